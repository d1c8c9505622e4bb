package main_test

import (
	"errors"
	"fmt"
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
	"github.com/podmark/podmark/test/wait"
)

// at is a place on a node.
func at(t *testing.T, h *host) *place {
	p := newPlace(t)
	p.state = h.Dir
	return p
}

// deletePod sends the DEL of a pod, by the plugin that is installed.
func (p *place) deletePod(h *host, number int) {
	p.t.Helper()
	h.Exec(fmt.Sprintf(`{"cniVersion": "1.1.0", "name": "net", "type": "podmark", "stateDir": %q}`, h.Dir), "env", "CNI_COMMAND=DEL",
		fmt.Sprintf("CNI_CONTAINERID=container-%d", number), "CNI_IFNAME=eth0", "CNI_PATH=/", filepath.Join(p.bin, "podmark"))
}

// isGone wants nothing of podmark to be left.
func (p *place) isGone(h *host, files map[string]string, kernel string) {
	p.t.Helper()
	if diff := cmp.Diff(files, p.tree(false)); diff != "" {
		p.t.Errorf("files:\n%s", diff)
	}
	if diff := cmp.Diff(kernel, h.kernel()); diff != "" {
		p.t.Errorf("kernel:\n%s", diff)
	}
	if _, err := os.Stat(p.state); !errors.Is(err, os.ErrNotExist) {
		p.t.Errorf("state directory: %v", err)
	}
}

// While a pod lives that has an ID, only the entry goes; the rest follows the last.
func TestUninstall(t *testing.T) {
	eachBackend(t, func(t *testing.T, h *host) {
		p := at(t, h)
		p.write("10-a.conflist", chain("net", "ptp", "portmap"))
		files, kernel := p.tree(false), h.kernel()
		p.run("install")
		h.Ctl(policy, "apply", "-f", "-")
		h.addPod()
		h.addPod()
		exact, rules := p.tree(true), h.kernel()
		if out := p.run("uninstall", "--dry-run"); !strings.Contains(out, "would write") || !strings.Contains(out, ": 2\n") {
			t.Errorf("dry run says %q", out)
		}
		if diff := cmp.Diff(exact, p.tree(true)); diff != "" || rules != h.kernel() {
			t.Errorf("dry run changed:\n%s", diff)
		}
		for range 2 {
			out := p.run("uninstall")
			if !strings.Contains(out, ": 2\n") || !strings.Contains(out, "again") {
				t.Errorf("it does not say what is left and what to do: %s", out)
			}
			p.hasTypes("10-a.conflist", "ptp", "portmap")
			p.hasPlugin()
			if diff := cmp.Diff(rules, h.kernel()); diff != "" {
				t.Errorf("rules that live pods need:\n%s", diff)
			}
		}
		p.deletePod(h, 1)
		p.run("install")
		wait := p.start("uninstall", "--wait", wait.Most.String())
		h.eventually("the entry is out again", func() error { return p.has("10-a.conflist", "ptp", "portmap") })
		p.deletePod(h, 2)
		if o := wait(); o.Exit() != 0 || !strings.Contains(o.Stdout, "podmark is removed") {
			t.Errorf("it does not say that it is done: %+v", o)
		}
		p.isGone(h, files, kernel)
		p.run("uninstall")
		p.isGone(h, files, kernel)
	})
}

func TestUninstallEverywhere(t *testing.T) {
	t.Parallel()
	h := newHost(t, nftables)
	p := at(t, h)
	kernel := h.kernel()
	lists := map[string]string{
		"05-cilium.conflist":         chain("cilium", "calico"),
		"10-a.conflist.cilium_bak":   chain("net", "ptp", "portmap"),
		"20-b.conflist":              chain("b", "bridge"),
		"30-untouched.conf":          `{"name": "c", "type": "podmark"}`,
		"40-broken.conflist":         `{"name": "podmark"`,
		"calico-kubeconfig":          "type: podmark",
		"50-others-drop-in.conflist": chain("others", "ptp"),
	}
	for name, content := range lists {
		p.write(name, content)
	}
	loop := func(name string) { // reading it is an error, for root too
		t.Helper()
		if err := os.Symlink(name, filepath.Join(p.conf, name)); err != nil {
			t.Fatal(err)
		}
	}
	loop("token")
	if err := os.MkdirAll(filepath.Join(p.conf, "unrelated", "50-podmark.conf"), 0o755); err != nil {
		t.Fatal(err)
	}
	files := p.tree(false)
	entry := fmt.Sprintf(`{"type": "podmark", "stateDir": %q}`, p.state)
	p.write("10-a.conflist.cilium_bak", strings.Replace(lists["10-a.conflist.cilium_bak"], "\n  ],", ",\n    "+entry+"\n  ],", 1))
	p.write("20-b.conflist", strings.Replace(lists["20-b.conflist"], "\n  ],", ",\n    "+entry+"\n  ],", 1))
	p.run("install", "--drop-in")
	p.write(".podmark-1.tmp", "half a")
	p.fails([]string{"stateDir", p.state, "/run/podmark"}, "uninstall", "--state-dir", "/run/podmark")
	loop("60-a.conflist")
	p.fails([]string{"60-a.conflist"}, "uninstall") // nobody knows whether it has an entry
	if err := os.Remove(filepath.Join(p.conf, "60-a.conflist")); err != nil {
		t.Fatal(err)
	}
	if !p.reloads(func() { p.run("uninstall") }) {
		t.Error("the runtime would not notice")
	}
	p.isGone(h, files, kernel)
}

// podmarkd would put back what is taken out.
func TestUninstallWhileItRuns(t *testing.T) {
	p, h, d := guarded(t)
	p.write("10-a.conflist", chain("net", "ptp"))
	files, kernel := p.tree(false), h.kernel()
	delete(files, "bin/podmark")
	h.eventually("installed", func() error { return p.has("10-a.conflist", "ptp", "podmark") })
	h.eventually("nothing to be tidied up", func() error {
		if left := p.left(); left != nil {
			return fmt.Errorf("%q", left)
		}
		return nil
	})
	p.fails([]string{"podmarkd is running", "end it"}, "uninstall")
	out, err := exec.Command(testnode.Program(t, "podmarkctl"), "--state-dir", p.state, "uninstall", "--yes").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "end it first") {
		t.Errorf("podmarkctl uninstall: %v, %s", err, out)
	}
	d.Stop()
	p.run("uninstall")
	files["net.d/10-a.conflist"] = p.tree(false)["net.d/10-a.conflist"]
	p.isGone(h, files, kernel)
	p.hasTypes("10-a.conflist", "ptp")
}

// An entry that an agent writes back while the last pod is waited for is taken out again: else the
// plugin would go that it names.
func TestUninstallWrittenBack(t *testing.T) {
	t.Parallel()
	h := newHost(t, nftables)
	kernel := h.kernel()
	p := at(t, h)
	const name = "10-a.conflist"
	p.write(name, chain("net", "ptp", "portmap"))
	files := p.tree(false)
	p.run("install")
	h.addPod()
	wait := p.start("uninstall", "--wait", wait.Most.String())
	h.eventually("the entry is out", func() error { return p.has(name, "ptp", "portmap") })
	entry := fmt.Sprintf(`{"type": "podmark", "policy": "none", "stateDir": %q}`, p.state)
	if err := p.rename(name, chain("net", "ptp", "portmap", entry)); err != nil {
		t.Fatal(err)
	}
	p.deletePod(h, 1)
	if o := wait(); o.Exit() != 0 || !strings.Contains(o.Stdout, "podmark is removed") {
		t.Errorf("it does not say that it is done: %+v", o)
	}
	p.isGone(h, files, kernel)
}

// The copy of a conflist that Multus has keeps the plugin that it names.
func TestUninstallDelegates(t *testing.T) {
	t.Parallel()
	h := newHost(t, nftables)
	kernel := h.kernel()
	p := at(t, h)
	const multus = "00-multus.conf"
	p.write("10-a.conflist", chain("net", "ptp"))
	p.write(multus, delegating(""))
	files := p.tree(false)
	p.write(multus, delegating(ours))
	p.run("install")
	h.addPod()
	p.deletePod(h, 1)
	for range 2 {
		if o := p.try("uninstall"); o.Exit() != 2 || !strings.Contains(o.Stderr, filepath.Join(p.conf, multus)) || !strings.Contains(o.Stderr, "again") {
			t.Errorf("%+v", o)
		}
		p.hasTypes("10-a.conflist", "ptp")
		p.hasPlugin()
	}
	p.write(multus, delegating(""))
	p.run("uninstall")
	p.isGone(h, files, kernel)
}

// delegating is Multus' file with a copy of network net, with an entry of podmark's or without.
func delegating(entry string) string {
	plugins := []string{"ptp"}
	if entry != "" {
		plugins = append(plugins, entry)
	}
	return `{"cniVersion": "0.3.1", "name": "multus-cni-network", "type": "multus", "delegates": [` + chain("net", plugins...) + `]}`
}

// Nobody knows whether the pod of a damaged record lives, so the plugin stays.
func TestUninstallDamaged(t *testing.T) {
	t.Parallel()
	h := newHost(t, nftables)
	p := at(t, h)
	p.write("10-a.conflist", chain("net", "ptp"))
	p.run("install")
	h.addPod()
	records, err := filepath.Glob(filepath.Join(p.state, "attachments", "*"))
	if err != nil || len(records) != 1 {
		t.Fatal(records, err)
	}
	if err := os.WriteFile(records[0], []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if o := p.try("uninstall"); o.Exit() != 2 || !strings.Contains(o.Stderr, "podmarkctl gc") {
		t.Errorf("%+v", o)
	}
	p.hasTypes("10-a.conflist", "ptp")
	p.hasPlugin()
}

// Killed after any step, uninstall never leaves an entry without its plugin, and the
// next one finishes.
func TestUninstallKilled(t *testing.T) {
	t.Parallel()
	needs.All(t, needs.Time)
	const name = "10-a.conflist"
	program := faulty(t)
	for _, args := range [][]string{{"install"}, {"install", "--drop-in"}} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			h := newHost(t, nftables)
			kernel := h.kernel()
			p := at(t, h)
			p.program = program
			p.write(name, chain("net", "ptp", "portmap"))
			files := p.tree(false)
			prepare := func() {
				p.run(args...)
				h.addPod()
				p.deletePod(h, len(h.Pods))
			}
			prepare()
			steps := p.steps("uninstall")
			p.isGone(h, files, kernel)
			if len(steps) < 5 {
				t.Fatalf("only these steps: %q", steps)
			}
			for i, step := range steps {
				prepare()
				p.env = []string{fmt.Sprintf("PODMARK_KILL_AFTER=%d", i+1)}
				if o := p.try("uninstall"); o.Exit() != -1 {
					t.Fatalf("%s: not killed: %+v", step, o)
				}
				p.env = nil
				if types := p.types(name); len(types) > 2 {
					p.hasPlugin()
				}
				noticed := p.reloads(func() { p.run("uninstall") })
				if strings.Contains(step, "50-podmark.conf") && !noticed {
					t.Errorf("%s: the runtime would not notice the second one", step)
				}
				p.isGone(h, files, kernel)
			}
		})
	}
}

// A pod whose ADD began with the conflist of before, and ended behind the removal of the
// rules, keeps the plugin, without which its DEL would fail.
func TestUninstallOvertaken(t *testing.T) {
	t.Parallel()
	h := newHost(t, nftables)
	kernel := h.kernel()
	p := at(t, h)
	p.program = faulty(t)
	p.write("10-a.conflist", chain("net", "ptp"))
	files := p.tree(false)
	prepare := func() {
		p.run("install")
		h.addPod()
		p.deletePod(h, len(h.Pods))
	}
	prepare()
	steps := p.steps("uninstall")
	i := slices.IndexFunc(steps, func(s string) bool { return strings.HasSuffix(s, "removed the rules") })
	if i < 0 {
		t.Fatalf("only these steps: %q", steps)
	}
	prepare()
	p.env = []string{fmt.Sprintf("PODMARK_STOP_AFTER=%d", i+1)}
	process, wait := p.spawn("uninstall")
	p.env = nil
	p.stopped(process)
	h.addPod()
	if err := process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if o := wait(); o.Exit() != 2 || !strings.Contains(o.Stderr, "started meanwhile") || !strings.Contains(o.Stderr, "again") {
		t.Errorf("it does not say that a pod was started: %+v", o)
	}
	p.hasTypes("10-a.conflist", "ptp")
	p.hasPlugin()
	if n := len(h.records()); n != 1 {
		t.Errorf("%d records, want that of the pod", n)
	}
	p.deletePod(h, len(h.Pods))
	p.run("uninstall")
	p.isGone(h, files, kernel)

	// The same for a file that names it again.
	prepare()
	p.env = []string{fmt.Sprintf("PODMARK_STOP_AFTER=%d", i+1)}
	process, wait = p.spawn("uninstall")
	p.env = nil
	p.stopped(process)
	p.write("00-multus.conf", delegating(ours))
	if err := process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if o := wait(); o.Exit() != 2 || !strings.Contains(o.Stderr, "00-multus.conf") {
		t.Errorf("it does not say which file names podmark: %+v", o)
	}
	p.hasPlugin()
	if err := os.Remove(filepath.Join(p.conf, "00-multus.conf")); err != nil {
		t.Fatal(err)
	}
	p.run("uninstall")
	p.isGone(h, files, kernel)
}

// A pod for which no DEL came is no reason to stay: where the entry is out, containerd
// sends none. Its interface alone being gone is not enough.
func TestUninstallVanished(t *testing.T) {
	t.Parallel()
	h := newHost(t, nftables)
	kernel := h.kernel()
	p := at(t, h)
	p.write("10-a.conflist", chain("net", "ptp"))
	files := p.tree(false)
	p.run("install")
	end := h.addPodUntil()
	h.Exec("", "ip", "link", "del", "veth1")
	if out := p.run("uninstall"); !strings.Contains(out, ": 1\n") {
		t.Errorf("a pod whose namespace is there is taken for gone: %s", out)
	}
	wait := p.start("uninstall", "--wait", wait.Most.String())
	end()
	if o := wait(); o.Exit() != 0 || !strings.Contains(o.Stdout, "podmark is removed") {
		t.Errorf("it does not say that it is done: %+v", o)
	}
	p.isGone(h, files, kernel)
}
