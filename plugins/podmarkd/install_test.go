package main_test

import (
	"encoding/json"
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

	"github.com/google/go-cmp/cmp"

	"github.com/podmark/podmark/test/needs"
	"github.com/podmark/podmark/test/testnode"
)

func TestInstall(t *testing.T) {
	const name = "10-calico.conflist"
	for _, mode := range []fs.FileMode{0o600, 0o644} {
		t.Run(mode.String(), func(t *testing.T) {
			p := newPlace(t)
			list := chain("k8s-pod-network", "calico", "portmap", "bandwidth")
			p.write(name, list)
			p.write("99-other.conflist", chain("other", "ptp"))
			path := filepath.Join(p.conf, name)
			if err := errors.Join(os.Chmod(path, mode), os.Chown(path, 1234, 2345)); err != nil {
				t.Skip(err)
			}
			before := p.tree(true)
			if out := p.run("install", "--dry-run"); !strings.Contains(out, "would write "+path) {
				t.Errorf("dry run says %q", out)
			}
			if diff := cmp.Diff(before, p.tree(true)); diff != "" {
				t.Errorf("dry run changed:\n%s", diff)
			}
			p.run("install")
			p.hasTypes(name, "calico", "portmap", "bandwidth", "podmark")
			p.hasTypes("99-other.conflist", "ptp")
			p.hasPlugin()
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if s := info.Sys().(*syscall.Stat_t); info.Mode() != mode || s.Uid != 1234 || s.Gid != 2345 {
				t.Errorf("the conflist is now %v of %d:%d", info.Mode(), s.Uid, s.Gid)
			}
			entry := fmt.Sprintf(",\n    {\n      \"type\": \"podmark\",\n      \"stateDir\": %q,\n      \"policy\": \"none\"\n    }", p.state)
			if b, _ := os.ReadFile(path); strings.Replace(string(b), entry, "", 1) != list {
				t.Errorf("more than the entry changed:\n%s", b)
			}
			after := p.tree(true)
			p.run("install")
			if diff := cmp.Diff(after, p.tree(true)); diff != "" {
				t.Errorf("installed again, it changed:\n%s", diff)
			}
		})
	}
}

func TestInstallEntry(t *testing.T) {
	p := newPlace(t)
	p.policy = ""
	p.write("10-a.conflist", chain("net", "ptp"))
	entry := filepath.Join(t.TempDir(), "entry.json")
	for _, policy := range []string{"files", "none"} {
		content := fmt.Sprintf(`{"type": "podmark", "policy": %q}`, policy)
		if err := os.WriteFile(entry, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		p.run("install", "--entry", entry)
		p.run("install") // keeps what is there
		p.hasTypes("10-a.conflist", "ptp", "podmark")
		if b, _ := os.ReadFile(filepath.Join(p.conf, "10-a.conflist")); !strings.Contains(string(b), `"policy": "`+policy+`"`) {
			t.Errorf("no policy %s in:\n%s", policy, b)
		}
	}
	for _, tt := range []struct {
		entry string
		words []string
	}{
		{`{"type": "podmark"}`, []string{"--policy", "kubernetes", "files", "none"}},
		{`{"type": "podmark", "policy": "all"}`, []string{"policy", `"all"`, `"files"`}},
		{`{"type": "podmark", "iptablesMarkMask": "0x4000"}`, []string{"iptablesMarkMask", "0x4000"}},
		{`{"type": "podmark", "polcy": "files"}`, []string{"polcy", "known are", "policy"}},
		{`{"type": "ptp"}`, []string{"ptp", "podmark"}},
		{`{"policy": "files"}`, []string{"type"}},
		{`[]`, []string{"entry"}},
	} {
		if err := os.WriteFile(entry, []byte(tt.entry), 0o600); err != nil {
			t.Fatal(err)
		}
		p.fails(append(tt.words, entry), "install", "--entry", entry)
		p.fails(append(tt.words, entry), "--keep-installed", "--entry", entry)
	}
}

func TestInstallJSON(t *testing.T) {
	p := newPlace(t)
	p.write("05-broken.conflist", "{")
	p.write("10-a.conflist", chain("net", "ptp"))
	p.env = []string{"PODMARKD_DROP_IN=true"} // every flag has a variable
	for _, verbs := range [][]string{{"write", "write", "reload"}, {}} {
		var got struct {
			Binary, Conflist, Network, DropIn string
			Entry                             map[string]string
			Changes                           []struct{ Verb, Path, Why string }
			Notes                             []string
		}
		if err := json.Unmarshal([]byte(p.run("install", "-o", "json")), &got); err != nil {
			t.Fatal(err)
		}
		said := []string{}
		for _, c := range got.Changes {
			said = append(said, c.Verb)
		}
		if got.Changes == nil || !slices.Equal(said, verbs) {
			t.Errorf("changes %q, want %q", got.Changes, verbs)
		}
		if got.Binary != filepath.Join(p.bin, "podmark") || got.Conflist != filepath.Join(p.conf, "10-a.conflist") ||
			got.DropIn != filepath.Join(p.conf, "net", "50-podmark.conf") || got.Network != "net" || got.Entry["type"] != "podmark" {
			t.Errorf("%+v", got)
		}
		if len(got.Notes) != 1 || !strings.Contains(got.Notes[0], "05-broken.conflist") {
			t.Errorf("it does not say that containerd has no network: %q", got.Notes)
		}
	}
}

func TestInstallRefused(t *testing.T) {
	for _, tt := range []struct {
		name  string
		files map[string]string
		args  []string
		words []string
	}{
		{"no conflist", nil, nil, []string{"agent of the main plugin", "--cni-conf-dir"}},
		{"plain configuration", map[string]string{"10-a.conf": `{"name": "net", "type": "bridge"}`, "20-b.conflist": chain("net", "ptp")}, nil, []string{"10-a.conf", "bridge", ".conflist"}},
		{"only a broken conflist", map[string]string{"10-a.conflist": `{"name": "net"`}, nil, []string{"10-a.conflist", "agent"}},
		{"no plugins in it", map[string]string{"10-a.conflist": `{"name": "net", "cniVersion": "1.0.0"}`}, nil, []string{"10-a.conflist", "--drop-in"}},
		{"version of before chains", map[string]string{"10-a.conflist": strings.Replace(chain("net", "ptp"), "0.3.1", "0.2.0", 1)}, nil, []string{"0.2.0", "0.3.0"}},
		{"name that leads elsewhere", map[string]string{"10-a.conflist": chain("../net", "ptp")}, []string{"--drop-in"}, []string{"name", "../net"}},
		{"wrong value in the conflist", map[string]string{"10-a.conflist": chain("net", "ptp", `{"type": "podmark", "backend": "x"}`)}, nil, []string{"backend", `"x"`}},
		{"no plugin", map[string]string{"10-a.conflist": chain("net", "ptp")}, []string{"--source", "/does/not/exist"}, []string{"/does/not/exist", "--source"}},
		{"output", map[string]string{"10-a.conflist": chain("net", "ptp")}, []string{"-o", "yaml"}, []string{"yaml", "table", "json"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPlace(t)
			for name, content := range tt.files {
				p.write(name, content)
			}
			p.fails(tt.words, append([]string{"install"}, tt.args...)...)
		})
	}
	t.Run("nothing to enforce with", func(t *testing.T) {
		p := newPlace(t)
		p.env = []string{"PATH=" + t.TempDir()}
		p.write("10-a.conflist", chain("net", "ptp", `{"type": "podmark", "backend": "iptables"}`))
		p.fails([]string{"iptables", "102"}, "install")
	})
	t.Run("symbolic link", func(t *testing.T) {
		p := newPlace(t)
		p.write("list", chain("net", "ptp"))
		if err := os.Symlink("list", filepath.Join(p.conf, "10-a.conflist")); err != nil {
			t.Fatal(err)
		}
		p.fails([]string{"10-a.conflist", "link"}, "install")
	})
	t.Run("no directory", func(t *testing.T) {
		p := newPlace(t)
		if err := os.Remove(p.conf); err != nil {
			t.Fatal(err)
		}
		p.fails([]string{p.conf, "--cni-conf-dir"}, "install")
	})
}

// What cannot be read matters only where a runtime could take it for the network.
func TestInstallBesideUnreadable(t *testing.T) {
	const name = "10-a.conflist"
	p := newPlace(t)
	p.write(name, chain("net", "ptp"))
	loop := func(name string) { // an error for root too
		t.Helper()
		if err := os.Symlink(name, filepath.Join(p.conf, name)); err != nil {
			t.Fatal(err)
		}
	}
	loop("05-kubeconfig")
	loop("99-z.conflist")
	if err := os.MkdirAll(filepath.Join(p.conf, "unrelated", "50-podmark.conf"), 0o755); err != nil {
		t.Fatal(err)
	}
	p.run("install")
	p.hasTypes(name, "ptp", "podmark")
	loop("05-b.conflist")
	p.fails([]string{"05-b.conflist"}, "install")
	p.fails([]string{"99-z.conflist"}, "install", "--cni-conf-name", "99-z.conflist")
	p.write(name, chain("net", "ptp"))
	p.run("install", "--cni-conf-name", name)
	p.hasTypes(name, "ptp", "podmark")
	if err := os.MkdirAll(filepath.Join(p.conf, "net", "50-podmark.conf"), 0o755); err != nil {
		t.Fatal(err)
	}
	p.fails([]string{"net/50-podmark.conf"}, "install", "--cni-conf-name", name)
}

func TestDropIn(t *testing.T) {
	const name = "10-a.conflist"
	p := newPlace(t)
	list := chain("net", "ptp", "portmap")
	p.write(name, list)
	dropIn := filepath.Join(p.conf, "net", "50-podmark.conf")
	exists := func() bool { _, err := os.Stat(dropIn); return err == nil }
	inlined := func() bool {
		b, _ := os.ReadFile(filepath.Join(p.conf, name))
		return strings.Contains(string(b), "podmark")
	}
	for i, args := range [][]string{{"--drop-in"}, {}, {"--drop-in"}} {
		own := len(args) > 0
		if !p.reloads(func() { p.run(append([]string{"install"}, args...)...) }) {
			t.Errorf("install %d %q: the runtime would not notice", i, args)
		}
		p.hasTypes(name, "ptp", "portmap", "podmark")
		if exists() != own || inlined() == own {
			t.Errorf("install %d %q: file of its own %t, in the conflist %t", i, args, exists(), inlined())
		}
		if p.reloads(func() { p.run(append([]string{"install"}, args...)...) }) {
			t.Errorf("install %d %q: again, it writes again", i, args)
		}
	}
	if info, err := os.Stat(dropIn); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if b, _ := os.ReadFile(filepath.Join(p.conf, name)); string(b) != list {
		t.Errorf("the conflist is not as the agent wrote it:\n%s", b)
	}
	p.write(name, strings.Replace(list, `"x": true`, `"loadOnlyInlinedPlugins": true`, 1))
	if out := p.run("install", "--drop-in"); !strings.Contains(out, "loadOnlyInlinedPlugins") {
		t.Errorf("it does not say why there is no drop-in: %s", out)
	}
	p.hasTypes(name, "ptp", "portmap", "podmark")
	if exists() || !inlined() {
		t.Error("a drop-in for a network that does not read it")
	}
}

// The plugin is replaced while the runtime runs it.
func TestTextFileBusy(t *testing.T) {
	p := newPlace(t)
	p.write("10-a.conflist", chain("net", "ptp"))
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Skip(err)
	}
	plugin := filepath.Join(p.bin, "podmark")
	b, err := os.ReadFile(sleep)
	if err == nil {
		err = os.WriteFile(plugin, b, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(plugin, "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	if _, err := os.OpenFile(plugin, os.O_WRONLY, 0); !errors.Is(err, syscall.ETXTBSY) {
		t.Fatalf("it is not busy: %v", err)
	}
	p.run("install")
	p.hasPlugin()
	if err := cmd.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("what ran is gone: %v", err)
	}
}

// Killed after any step, install leaves a node on which pods start, and the next
// install ends as if nothing had been.
func TestInstallKilled(t *testing.T) {
	needs.All(t, needs.Time)
	const name = "10-a.conflist"
	program := faulty(t)
	for _, tt := range []struct {
		name   string
		before []string
		args   []string
		atMost int
	}{
		{"first", nil, []string{"install"}, 1},
		{"first, with a drop-in", nil, []string{"install", "--drop-in"}, 1},
		// The runtime reads the directory after the last step only.
		{"to a drop-in", []string{"install"}, []string{"install", "--drop-in"}, 2},
		{"from a drop-in", []string{"install", "--drop-in"}, []string{"install"}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fresh := func() *place {
				p := newPlace(t)
				p.program = program
				p.state = "/run/podmark"
				p.write(name, chain("net", "ptp", "portmap"))
				if tt.before != nil {
					p.run(tt.before...)
				}
				return p
			}
			p := fresh()
			steps := p.steps(tt.args...)
			want := p.tree(false)
			if len(steps) < 4 {
				t.Fatalf("only these steps: %q", steps)
			}
			for i, step := range steps {
				p := fresh()
				p.env = []string{fmt.Sprintf("PODMARK_KILL_AFTER=%d", i+1)}
				if o := p.try(tt.args...); o.Exit() != -1 {
					t.Fatalf("%s: not killed: %+v", step, o)
				}
				p.env = nil
				types := p.types(name)
				ours := len(slices.DeleteFunc(slices.Clone(types), func(s string) bool { return s != "podmark" }))
				if !slices.Equal(types[:2], []string{"ptp", "portmap"}) || ours > tt.atMost {
					t.Errorf("%s: plugins %q", step, types)
				}
				if ours > 0 {
					p.hasPlugin()
				}
				if !p.reloads(func() { p.run(tt.args...) }) && i < len(steps)-2 {
					t.Errorf("%s: the runtime would not notice the second install", step)
				}
				if diff := cmp.Diff(want, p.tree(false)); diff != "" {
					t.Errorf("%s: installed again:\n%s", step, diff)
				}
			}
		})
	}
}

// What others do between the read and the write of install is neither lost nor undone.
func TestInstallOvertaken(t *testing.T) {
	const name = "10-a.conflist"
	program := faulty(t)
	list, newer := chain("net", "ptp", "portmap"), chain("net", "ptp", `{"type": "portmap", "newer": true}`)
	for _, tt := range []struct {
		name string
		do   func(p *place) error
		end  func(p *place, o testnode.Output) error
	}{
		{"renamed over", func(p *place) error { return p.rename(name, newer) }, func(p *place, _ testnode.Output) error { return p.withEntry(name, newer) }},
		{"written in place", func(p *place) error { p.write(name, newer); return nil }, func(p *place, _ testnode.Output) error { return p.withEntry(name, newer) }},
		{"deleted", func(p *place) error { return os.Remove(filepath.Join(p.conf, name)) }, func(p *place, o testnode.Output) error {
			if _, err := os.Stat(filepath.Join(p.conf, name)); err == nil || o.Exit() != 2 || !strings.Contains(o.Stderr, "agent") {
				return fmt.Errorf("%v, %+v", err, o) //nolint:errorlint // it may be nil
			}
			return nil
		}},
		{"set aside for another", func(p *place) error {
			path := filepath.Join(p.conf, name)
			return errors.Join(os.Rename(path, path+".cilium_bak"), p.rename("05-b.conflist", list))
		}, func(p *place, _ testnode.Output) error {
			if b, err := os.ReadFile(filepath.Join(p.conf, name+".cilium_bak")); string(b) != list {
				return fmt.Errorf("what was set aside changed: %w", err)
			}
			return p.withEntry("05-b.conflist", list)
		}},
	} {
		overtaken := func(t *testing.T, env ...string) {
			p := newPlace(t)
			p.program, p.env = program, env
			p.write(name, list)
			p.run("install") // the plugin
			p.write(name, list)
			p.env = append(env, "PODMARK_STOP_AFTER=1") // the temporary file is there
			process, wait := p.spawn("install")
			p.stopped(process)
			if err := errors.Join(tt.do(p), process.Signal(syscall.SIGCONT)); err != nil {
				t.Fatal(err)
			}
			if err := tt.end(p, wait()); err != nil {
				t.Error(err)
			}
			if left := p.left(); left != nil {
				t.Errorf("left behind: %q", left)
			}
		}
		t.Run(tt.name, func(t *testing.T) { overtaken(t) })
		t.Run(tt.name+", without exchange", func(t *testing.T) { overtaken(t, "PODMARK_NO_EXCHANGE=1") })
	}
}

// Several at once, as in a rolling update with a command besides, are one.
func TestInstallTogether(t *testing.T) {
	t.Parallel()
	const name = "10-a.conflist"
	p := newPlace(t)
	list := chain("net", "ptp", "portmap")
	p.write(name, list)
	stopReader := p.reader(name)
	var waits []func() testnode.Output
	for range 10 {
		waits = append(waits, p.start("install", "--lock-timeout", "5m"))
	}
	for _, wait := range waits {
		if o := wait(); o.Exit() != 0 {
			t.Errorf("%+v", o)
		}
	}
	stopReader()
	if err := p.withEntry(name, list); err != nil {
		t.Error(err)
	}
	p.hasPlugin()
	if left := p.left(); left != nil {
		t.Errorf("left behind: %q", left)
	}

	// One that hangs is not waited for without end.
	dir, err := os.Open(p.conf)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := syscall.Flock(int(dir.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	p.fails([]string{p.conf, "another podmarkd", "200ms"}, "install", "--lock-timeout", "200ms")
	p.fails([]string{p.conf, "another podmarkd", "200ms"}, "uninstall", "--lock-timeout", "200ms")
}
