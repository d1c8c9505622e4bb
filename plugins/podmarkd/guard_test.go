package main_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/fsnotify/fsnotify"

	"github.com/podmark/podmark/test/needs"
	"github.com/podmark/podmark/test/wait"
)

// guarded is a place that a running podmarkd keeps installed.
func guarded(t *testing.T, args ...string) (*place, *host, *daemon) {
	t.Helper()
	t.Parallel()
	p := newPlace(t)
	h := newHost(t, nftables)
	p.state = h.Dir
	d := h.start(append([]string{"--keep-installed", "--policy", "none", "--cni-conf-dir", p.conf, "--cni-bin-dir", p.bin}, args...)...)
	return p, h, d
}

// has says what is missing of the plugins in a conflist.
func (p *place) has(name string, want ...string) error {
	list, err := libcni.NetworkConfFromFile(filepath.Join(p.conf, name))
	if err != nil {
		return err
	}
	var types []string
	for _, plugin := range list.Plugins {
		types = append(types, plugin.Network.Type)
	}
	if !slices.Equal(types, want) {
		return fmt.Errorf("%s has plugins %q, want %q", name, types, want)
	}
	return nil
}

// rename writes a file as careful agents do.
func (p *place) rename(name, content string) error {
	tmp := filepath.Join(p.conf, name+".agent-tmp")
	return errors.Join(os.WriteFile(tmp, []byte(content), 0o600), os.Rename(tmp, filepath.Join(p.conf, name)))
}

func TestGuard(t *testing.T) {
	p, h, d := guarded(t)
	h.eventually("it says that it waits", func() error {
		if !strings.Contains(d.Log.String(), "agent of the main plugin") {
			return errors.New("it does not")
		}
		return nil
	})
	const name = "10-a.conflist"
	list := chain("net", "ptp", "portmap")
	for _, tt := range []struct {
		name string
		do   func() error
		file string
		want []string
	}{
		{"conflist comes", func() error { p.write(name, list); return nil }, name, []string{"ptp", "portmap", "podmark"}},
		{"rewritten in place", func() error { p.write(name, chain("net", "bridge")); return nil }, name, []string{"bridge", "podmark"}},
		{"rewritten by a rename", func() error { return p.rename(name, list) }, name, []string{"ptp", "portmap", "podmark"}},
		{"deleted and written", func() error {
			err := os.Remove(filepath.Join(p.conf, name))
			p.write(name, list)
			return err
		}, name, []string{"ptp", "portmap", "podmark"}},
		{"another one comes first", func() error { p.write("05-b.conflist", chain("b", "calico")); return nil }, "05-b.conflist", []string{"calico", "podmark"}},
	} {
		if err := tt.do(); err != nil {
			t.Fatal(err)
		}
		h.eventually(tt.name, func() error { return p.has(tt.file, tt.want...) })
	}
	p.hasPlugin()
	if code := d.Stop(); code != 0 {
		t.Errorf("it ended with %d", code)
	}
	// It fails static.
	p.hasTypes("05-b.conflist", "calico", "podmark")
	p.hasPlugin()
	if left := p.left(); left != nil {
		t.Errorf("left behind: %q", left)
	}
}

// left are the temporary files that are there.
func (p *place) left() []string {
	var out []string
	for name := range p.tree(false) {
		if strings.HasSuffix(name, ".tmp") {
			out = append(out, name)
		}
	}
	return out
}

// What the operator set in the entry survives an agent that writes its own conflist.
func TestGuardKeepsEntry(t *testing.T) {
	p, h, d := guarded(t, "--policy", "files")
	const name = "10-a.conflist"
	p.write(name, chain("net", "ptp", fmt.Sprintf(`{"type": "podmark", "policy": "files", "stateDir": %q}`, p.state)))
	h.eventually("the plugin is there", func() error {
		_, err := os.Stat(filepath.Join(p.bin, "podmark"))
		return err
	})
	h.eventually("it says so", func() error {
		if !strings.Contains(d.Log.String(), "verb=write") {
			return errors.New("no")
		}
		return nil
	})
	p.write(name, chain("net", "ptp"))
	h.eventually("the entry is back", func() error {
		b, err := os.ReadFile(filepath.Join(p.conf, name))
		if err == nil && !strings.Contains(string(b), `"policy": "files"`) {
			err = fmt.Errorf("not in %s", b)
		}
		return err
	})
}

// Directories that are removed, moved or made later are watched again.
func TestGuardDirectories(t *testing.T) {
	p, h, _ := guarded(t)
	const name = "10-a.conflist"
	p.write(name, chain("net", "ptp"))
	back := func(what string) { h.eventually(what, func() error { return p.has(name, "ptp", "podmark") }) }
	back("first")
	if err := errors.Join(os.RemoveAll(p.conf), os.Mkdir(p.conf, 0o755)); err != nil {
		t.Fatal(err)
	}
	p.write(name, chain("net", "ptp"))
	back("directory made anew")
	if err := errors.Join(os.Rename(p.conf, p.conf+".old"), os.Mkdir(p.conf, 0o755)); err != nil {
		t.Fatal(err)
	}
	p.write(name, chain("net", "ptp"))
	back("directory moved away")
	if err := errors.Join(os.RemoveAll(p.bin), os.Mkdir(p.bin, 0o755)); err != nil {
		t.Fatal(err)
	}
	p.plugins("ptp", "host-local")
	h.eventually("the plugin is back", func() error {
		_, err := os.Stat(filepath.Join(p.bin, "podmark"))
		return err
	})
	p.hasPlugin()
}

// agent rewrites a conflist all the time until stop, 500 times at least, and says
// which it wrote last.
func (p *place) agent(name string) (stopped func() string) {
	ctx, stop := context.WithCancel(context.Background())
	last := make(chan string)
	go func() {
		content := ""
		for n := 0; n < 500 || ctx.Err() == nil; n++ {
			content = chain("net", "ptp", fmt.Sprintf(`{"type": "portmap", "generation": %d}`, n))
			if err := p.rename(name, content); err != nil {
				p.t.Error(err)
			}
		}
		last <- content
	}()
	return func() string { stop(); return <-last }
}

// reader reads a conflist as runtimes do, all the time until stop.
func (p *place) reader(name string) (stop func()) {
	end := make(chan struct{})
	var done sync.WaitGroup
	done.Go(func() {
		for {
			select {
			case <-end:
				return
			default:
			}
			list, err := libcni.NetworkConfFromFile(filepath.Join(p.conf, name))
			if err != nil {
				p.t.Errorf("a runtime could not read it: %v", err)
				return
			}
			for i, plugin := range list.Plugins {
				if plugin.Network.Type != "podmark" {
					continue
				}
				if _, err := os.Stat(filepath.Join(p.bin, "podmark")); err != nil || i != 2 {
					p.t.Errorf("a runtime saw the entry at %d: %v", i, err)
				}
			}
		}
	})
	stop = sync.OnceFunc(func() { close(end); done.Wait() })
	p.t.Cleanup(stop)
	return stop
}

// withEntry says whether a conflist is what an agent wrote and the entry.
func (p *place) withEntry(name, written string) error {
	b, err := os.ReadFile(filepath.Join(p.conf, name))
	if err != nil {
		return err
	}
	head, _, _ := strings.Cut(written, "\n  ],")
	if !strings.HasPrefix(string(b), head+",\n") {
		return fmt.Errorf("not what the agent wrote last:\n%s\n%s", written, b)
	}
	return p.has(name, "ptp", "portmap", "podmark")
}

// While an agent rewrites the conflist all the time, no runtime ever reads half a
// file, and what the agent wrote is never lost.
func TestGuardRace(t *testing.T) {
	p, h, _ := guarded(t)
	const name = "10-a.conflist"
	for round := range 3 {
		if err := p.rename(name, chain("net", "ptp", "portmap")); err != nil {
			t.Fatal(err)
		}
		stopReader, stopAgent := p.reader(name), p.agent(name)
		if round == 0 {
			h.eventually("podmarkd takes part", func() error {
				if left := p.tree(false)["bin/podmark"]; left == "" {
					return errors.New("no plugin")
				}
				return nil
			})
		}
		last := stopAgent()
		h.eventually("the entry is in what the agent wrote last", func() error { return p.withEntry(name, last) })
		stopReader()
	}
}

// The same for the command, which does not wait until it is quiet.
func TestInstallRace(t *testing.T) {
	t.Parallel()
	needs.All(t, needs.Time)
	const name = "10-a.conflist"
	p := newPlace(t)
	p.write(name, chain("net", "ptp", "portmap"))
	stopReader, stopAgent := p.reader(name), p.agent(name)
	won := 0
	rounds := 10
	if needs.Whole() {
		rounds = 100
	}
	for range rounds {
		o := p.try("install")
		switch {
		case o.Exit() == 0:
			won++
		case !strings.Contains(o.Stderr, "another program keeps writing"):
			t.Errorf("install: %+v", o)
		}
	}
	last := stopAgent()
	stopReader()
	if b, err := os.ReadFile(filepath.Join(p.conf, name)); err != nil || string(b) != last && p.withEntry(name, last) != nil {
		t.Errorf("what the agent wrote last is lost: %v\n%s\n%s", err, last, b)
	}
	p.run("install")
	if err := p.withEntry(name, last); err != nil {
		t.Error(err)
	}
	t.Logf("%d of %d came through", won, rounds)
}

// With an agent that takes the entry out as soon as it is in, podmarkd gives way.
func TestWriteWar(t *testing.T) {
	p, h, d := guarded(t)
	const name = "10-a.conflist"
	list := chain("net", "ptp")
	w, err := fsnotify.NewBufferedWatcher(10000)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := w.Add(p.conf); err != nil {
		t.Fatal(err)
	}
	p.write(name, list)
	temporary := 0
	// Five at once, the sixth begins the pauses of 2 and 4 seconds.
	for !strings.Contains(d.Log.String(), "pause=4s") {
		select {
		case e := <-w.Events:
			base := filepath.Base(e.Name)
			if strings.HasPrefix(base, ".podmark-") && e.Has(fsnotify.Rename) {
				temporary++
			}
			if base == name && p.has(name, "ptp", "podmark") == nil {
				if err := p.rename(name, list); err != nil {
					t.Fatal(err)
				}
			}
		case err := <-w.Errors:
			t.Fatal(err)
		case <-time.After(wait.Still):
			t.Fatalf("after %d renames it does not pause:\n%s", temporary, d.Log.String())
		}
	}
	// An exchange renames its temporary file there and back: two each.
	if temporary < 5 || temporary > 2*8 {
		t.Errorf("%d renames before the pause of 4 seconds", temporary)
	}
	if said := d.Log.String(); !strings.Contains(said, "cni.exclusive=false") || !strings.Contains(said, "pause=2s") {
		t.Errorf("it does not say what to do:\n%s", said)
	}
	h.eventually("peace", func() error { return p.has(name, "ptp", "podmark") })
}
