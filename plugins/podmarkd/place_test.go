package main_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/fsnotify/fsnotify"
	"github.com/google/go-cmp/cmp"

	"github.com/podmark/podmark/test/testnode"
	"github.com/podmark/podmark/test/wait"
)

// chain is a conflist of that network with those plugins, as an agent writes it.
func chain(network string, plugins ...string) string {
	var entries []string
	for _, p := range plugins {
		if !strings.HasPrefix(p, "{") {
			p = fmt.Sprintf("{\n      \"type\": %q,\n      \"ipam\": {\"type\": \"host-local\"},\n      \"unknown\": {\"b\": 1.0, \"a\": []}\n    }", p)
		}
		entries = append(entries, p)
	}
	return fmt.Sprintf("{\n  \"name\": %q,\n  \"cniVersion\": \"0.3.1\",\n  \"plugins\": [\n    %s\n  ],\n  \"x\": true\n}\n", network, strings.Join(entries, ",\n    "))
}

// place is where podmarkd installs in a test.
type place struct {
	t                *testing.T
	conf, bin, state string
	program          string
	env              []string
	// policy is what --policy says; empty for nothing.
	policy string
	// directories are flags that take the place of those that say where the runtime looks.
	directories []string
}

func newPlace(t *testing.T) *place {
	t.Helper()
	dir := t.TempDir()
	p := &place{
		t: t, conf: filepath.Join(dir, "net.d"), bin: filepath.Join(dir, "bin"), state: filepath.Join(dir, "state"),
		program: testnode.Program(t, "podmarkd"),
		policy:  "none",
	}
	for _, d := range []string{p.conf, p.bin} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	p.plugins("ptp", "bridge", "host-local", "portmap", "bandwidth", "calico")
	return p
}

// plugins puts programs of these names into the runtime's directory.
func (p *place) plugins(names ...string) {
	p.t.Helper()
	for _, name := range names {
		if err := os.WriteFile(filepath.Join(p.bin, name), nil, 0o755); err != nil {
			p.t.Fatal(err)
		}
	}
}

func (p *place) flags() []string {
	if p.directories != nil {
		return append([]string{"--state-dir", p.state}, p.directories...)
	}
	return []string{"--state-dir", p.state, "--cni-conf-dir", p.conf, "--cni-bin-dir", p.bin}
}

// start runs podmarkd in the network namespace of the test's thread.
func (p *place) start(args ...string) (wait func() testnode.Output) {
	p.t.Helper()
	_, wait = p.spawn(args...)
	return wait
}

func (p *place) spawn(args ...string) (process *os.Process, wait func() testnode.Output) {
	p.t.Helper()
	cmd := exec.Command(p.program, slices.Concat(args[:1], p.flags(), args[1:])...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.Env = &stdout, &stderr, slices.Concat(os.Environ(), []string{"PODMARKD_POLICY=" + p.policy}, p.env)
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	return cmd.Process, func() testnode.Output {
		_ = cmd.Wait()
		return testnode.Output{Stdout: stdout.String(), Stderr: stderr.String(), State: cmd.ProcessState}
	}
}

func (p *place) try(args ...string) testnode.Output {
	p.t.Helper()
	return p.start(args...)()
}

func (p *place) run(args ...string) string {
	p.t.Helper()
	o := p.try(args...)
	if o.Exit() != 0 {
		p.t.Fatalf("podmarkd %q: status %d: %s", args, o.Exit(), o.Stderr)
	}
	return o.Stdout
}

// fails wants a run to fail, say every word, and change nothing.
func (p *place) fails(words []string, args ...string) {
	p.t.Helper()
	before := p.tree(true)
	o := p.try(args...)
	if o.Exit() != 2 {
		p.t.Errorf("podmarkd %q: status %d, want 2", args, o.Exit())
	}
	for _, w := range words {
		if !strings.Contains(o.Stderr, w) {
			p.t.Errorf("podmarkd %q does not say %q: %s", args, w, o.Stderr)
		}
	}
	if diff := cmp.Diff(before, p.tree(true)); diff != "" {
		p.t.Errorf("podmarkd %q changed something:\n%s", args, diff)
	}
}

func (p *place) write(name, content string) {
	p.t.Helper()
	if err := os.WriteFile(filepath.Join(p.conf, name), []byte(content), 0o600); err != nil {
		p.t.Fatal(err)
	}
}

// tree is every file with its content, with the inode if exact.
func (p *place) tree(exact bool) map[string]string {
	p.t.Helper()
	out := map[string]string{}
	for _, dir := range []string{p.conf, p.bin} {
		err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := e.Info()
			if err != nil {
				return err
			}
			b, _ := os.ReadFile(path)
			if len(b) > 1<<20 {
				b = fmt.Append(nil, len(b))
			}
			name, _ := filepath.Rel(filepath.Dir(dir), path)
			out[name] = fmt.Sprintf("%v %s", info.Mode(), b)
			if exact {
				out[name] += fmt.Sprint(info.Sys().(*syscall.Stat_t).Ino, info.ModTime())
			}
			return nil
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			p.t.Fatal(err)
		}
	}
	return out
}

// types are the plugins that libcni loads for a conflist, files of their own included.
func (p *place) types(name string) []string {
	p.t.Helper()
	list, err := libcni.NetworkConfFromFile(filepath.Join(p.conf, name))
	if err != nil {
		p.t.Fatalf("libcni: %v", err)
	}
	var types []string
	for _, plugin := range list.Plugins {
		types = append(types, plugin.Network.Type)
	}
	return types
}

func (p *place) hasTypes(name string, want ...string) {
	p.t.Helper()
	if diff := cmp.Diff(want, p.types(name)); diff != "" {
		p.t.Errorf("plugins of %s:\n%s", name, diff)
	}
}

// hasPlugin wants a copy of the plugin that was built for the tests.
func (p *place) hasPlugin() {
	p.t.Helper()
	got, err := os.ReadFile(filepath.Join(p.bin, "podmark"))
	want, errWant := os.ReadFile(filepath.Join(testnode.Programs(p.t), "podmark"))
	if err != nil || errWant != nil || !bytes.Equal(got, want) {
		p.t.Errorf("the plugin is not installed: %v, %v", err, errWant)
	}
	if info, err := os.Stat(filepath.Join(p.bin, "podmark")); err == nil && info.Mode() != 0o755 {
		p.t.Errorf("the plugin has mode %v", info.Mode())
	}
}

// reloads runs f and reports whether containerd would have read the directory again:
// it does not for Create and Chmod.
func (p *place) reloads(f func()) bool {
	p.t.Helper()
	w, err := fsnotify.NewBufferedWatcher(1000)
	if err != nil {
		p.t.Fatal(err)
	}
	defer w.Close()
	if err := w.Add(p.conf); err != nil {
		p.t.Fatal(err)
	}
	f()
	p.write("zz-end", "")
	reloads := false
	for e := range w.Events {
		if filepath.Base(e.Name) == "zz-end" {
			break
		}
		reloads = reloads || e.Op&(fsnotify.Write|fsnotify.Rename|fsnotify.Remove) != 0
	}
	if err := os.Remove(filepath.Join(p.conf, "zz-end")); err != nil {
		p.t.Fatal(err)
	}
	return reloads
}

// faulty is a podmarkd that ends itself after a step, with the plugin of the others beside it.
func faulty(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	podmarkd := filepath.Join(dir, "podmarkd")
	err := errors.Join(os.Link(filepath.Join(testnode.Faulty(t), "podmarkd"), podmarkd), os.Link(testnode.Program(t, "podmark"), filepath.Join(dir, "podmark")))
	if err != nil {
		t.Fatal(err)
	}
	return podmarkd
}

// stopped waits until a process has stopped itself.
func (p *place) stopped(process *os.Process) {
	p.t.Helper()
	stat := fmt.Sprintf("/proc/%d/stat", process.Pid)
	wait.Until(p.t, "it stops", func() error {
		b, err := os.ReadFile(stat)
		if err == nil && !strings.Contains(string(b), ") T ") {
			err = fmt.Errorf("it is %s", b)
		}
		return err
	})
}

// steps are the names of those of a run.
func (p *place) steps(args ...string) []string {
	p.t.Helper()
	log := filepath.Join(p.t.TempDir(), "steps")
	p.env = []string{"PODMARK_STEPS=" + log}
	p.run(args...)
	p.env = nil
	b, err := os.ReadFile(log)
	if err != nil {
		p.t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(b)), "\n")
}
