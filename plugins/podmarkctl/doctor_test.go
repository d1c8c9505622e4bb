package main_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/podmark/podmark/pkg/doctor"
	"github.com/podmark/podmark/pkg/foreign"
	"github.com/podmark/podmark/test/needs"
	"github.com/podmark/podmark/test/testnode"
)

// patient is a node with a conflist and the plugin's directory, on which nothing is wrong.
type patient struct {
	*node
	conf, bin string
	// directories are flags that say where the runtime looks.
	directories []string
}

func newPatient(t *testing.T, b backend, pods int) *patient {
	t.Helper()
	p := &patient{node: newNode(t, b), conf: t.TempDir(), bin: t.TempDir()}
	p.Path = testnode.Programs(t) + ":" + os.Getenv("PATH")
	p.directories = []string{"--cni-conf-dir", p.conf, "--cni-bin-dir", p.bin, "--runtime-endpoint", ""}
	p.list("10-net.conflist", "net", nil)
	p.Exec("", "cp", testnode.Program(p.T, "podmark"), p.bin)
	for _, plugin := range []string{"ptp", "bridge", "host-local", "portmap"} {
		p.Exec("", "install", "-m", "0755", "/dev/null", filepath.Join(p.bin, plugin))
	}
	p.ctlIn(webPolicy, "apply", "-f", "-").ok(t)
	for range pods {
		p.addPod(nil)
	}
	return p
}

// addPod adds a pod that the policy selects, unless it has labels of its own.
func (p *patient) addPod(labels map[string]string) string {
	p.T.Helper()
	if labels == nil {
		labels = map[string]string{"app": "web"}
	}
	return p.node.addPod(labels)
}

// entry is podmark's, with other keys.
func (p *patient) entry(keys map[string]any) map[string]any {
	entry := map[string]any{"type": "podmark", "stateDir": p.Dir, "policy": "files", "backend": p.Backend.Key}
	for k, v := range keys {
		entry[k] = v
	}
	return entry
}

// list writes a conflist of ptp and podmark, with other keys of podmark's.
func (p *patient) list(file, network string, keys map[string]any) {
	p.T.Helper()
	p.plugins(file, network, "1.0.0", mainPlugin("ptp"), p.entry(keys))
}

// mainPlugin is an entry of one that gives addresses.
func mainPlugin(plugin string) map[string]any {
	return map[string]any{"type": plugin, "ipam": map[string]any{"type": "host-local"}}
}

func (p *patient) plugins(file, network, version string, plugins ...any) {
	p.T.Helper()
	b, err := json.MarshalIndent(map[string]any{"cniVersion": version, "name": network, "plugins": plugins}, "", "  ")
	if err != nil {
		p.T.Fatal(err)
	}
	write(p.T, filepath.Join(p.conf, file), string(b))
}

// doctor runs podmarkctl doctor and returns what it found. Its exit status says
// whether that is anything.
func (p *patient) doctor(args ...string) []doctor.Finding {
	p.T.Helper()
	args = slices.Concat([]string{"doctor", "-o", "json"}, p.directories, args)
	o := p.ctl(args...)
	var found []doctor.Finding
	if err := json.Unmarshal([]byte(o.Stdout), &found); err != nil || o.Stderr != "" || o.Exit() != min(len(found), 1) {
		p.T.Fatalf("exit %d, stderr %q, %v:\n%s", o.Exit(), o.Stderr, err, o.Stdout)
	}
	for _, f := range found {
		if f.Check == "" || f.Severity == "" || f.What == "" || f.Why == "" || f.Fix == "" {
			p.T.Errorf("incomplete: %+v", f)
		}
	}
	if needs.Checksums() != nil { // so it is on every node of this kernel
		found = slices.DeleteFunc(found, func(f doctor.Finding) bool { return f.Check == "checksums" })
	}
	return found
}

// of lists the findings of one check.
func of(found []doctor.Finding, check string) []doctor.Finding {
	return slices.DeleteFunc(slices.Clone(found), func(f doctor.Finding) bool { return f.Check != check })
}

// well fails the test unless nothing is found.
func (p *patient) well() {
	p.T.Helper()
	if found := p.doctor(); len(found) > 0 {
		p.T.Fatalf("on a node on which nothing is wrong: %+v", found)
	}
}

// finds fails the test unless the check finds something that says words, and no
// check but it and those of also finds anything.
func (p *patient) finds(check, words string, also ...string) doctor.Finding {
	p.T.Helper()
	found := p.doctor()
	for _, f := range found {
		if f.Check != check && !slices.Contains(also, f.Check) {
			p.T.Errorf("besides %s: %+v", check, f)
		}
	}
	list := of(found, check)
	if len(list) == 0 {
		p.T.Fatalf("%s found nothing", check)
	}
	for _, f := range list {
		if strings.Contains(f.What, words) {
			return f
		}
	}
	p.T.Fatalf("%s does not say %q: %+v", check, words, list)
	return doctor.Finding{}
}

// fix runs the command of every finding of the check, until there is none: each
// must go away by its own.
func (p *patient) fix(check string) {
	p.T.Helper()
	for before := of(p.doctor(), check); len(before) > 0; {
		p.shell(before[0].Fix)
		now := of(p.doctor(), check)
		if len(now) >= len(before) {
			p.T.Fatalf("%s\n%s: before %+v\nand behind it: %+v", check, before[0].Fix, before, now)
		}
		before = now
	}
}

// shell runs a command as root's shell would.
func (p *patient) shell(command string) {
	p.T.Helper()
	p.Exec("", "env", "PATH="+p.Path, "sh", "-c", command)
}

// dropIn gives podmark's entry a file of its own, with other keys.
func (p *patient) dropIn(keys map[string]any) {
	p.T.Helper()
	p.plugins("10-net.conflist", "net", "1.0.0", mainPlugin("ptp"))
	b, err := json.Marshal(p.entry(keys))
	if err == nil {
		err = os.MkdirAll(p.conf+"/net", 0o755)
	}
	if err != nil {
		p.T.Fatal(err)
	}
	write(p.T, p.conf+"/net/50-podmark.conf", string(b))
}

// Each thing that is wrong is found, by its check and no other, and its command
// fixes it.
func TestDoctor(t *testing.T) {
	t.Parallel()
	for _, h := range harms() {
		for _, b := range backends {
			if h.backends != nil && !slices.Contains(h.backends, b) {
				continue
			}
			t.Run(h.name+"/"+b.Name, func(t *testing.T) {
				t.Parallel()
				p := newPatient(t, b, h.pods)
				p.kubectl()
				p.well()
				h.do(p)
				p.finds(h.check, h.words, h.also...)
				if !h.noMend {
					p.fix(h.check)
				}
			})
		}
	}
}

// kubectl makes 'kubectl drain' take the node's pods away, which is all that it is
// asked to do.
func (p *patient) kubectl() {
	p.T.Helper()
	dir := p.T.TempDir()
	script := "#!/bin/sh\n[ \"$1\" = drain ] || exit 1\n"
	for _, pod := range p.Pods {
		script += fmt.Sprintf("ip link del %s\n", pod.Veth)
	}
	script += fmt.Sprintf("podmarkctl gc --state-dir %s || true\n", p.Dir) // where the state is damaged, a DEL does what it can
	write(p.T, dir+"/kubectl", script)
	p.Exec("", "chmod", "0755", dir+"/kubectl")
	p.Path = dir + ":" + p.Path
}

// A drop-in counts as an entry, and an empty mask of others as none.
func TestDoctorDropIn(t *testing.T) {
	p := newPatient(t, nftables, 1)
	p.dropIn(nil)
	p.well()
	p.dropIn(map[string]any{"iptablesMarkMask": "0xff0000"})
	p.finds("settings", "0xff0000")
	p.fix("settings")
	p.well()
}

// With the nftables backend, a node whose kubelet has changed its variant is well
// from the next pod on.
func TestDoctorVariant(t *testing.T) {
	p := newPatient(t, iptablesLegacy, 1)
	p.Iptables("-X", "KUBE-IPTABLES-HINT")
	p.Exec("", "iptables-nft", "-t", "mangle", "-N", "KUBE-IPTABLES-HINT")
	p.shell(p.finds("iptables-variant", "iptables-legacy").Fix)
	p.Backend.Key = "nftables"
	p.addPod(nil)
	p.well()
}

// IDs that are all taken are found, with or without pods that are gone.
func TestDoctorIDs(t *testing.T) {
	p := newPatient(t, nftables, 0)
	p.Exec("", testnode.Program(p.T, "podmarkctl"), "--state-dir", p.Dir, "uninstall", "--yes")
	p.Keys = testnode.Conf{"iptablesMarkMask": "0x30000"}
	p.list("10-net.conflist", "net", p.Keys)
	p.addPod(nil)
	p.ctlIn(webPolicy, "apply", "-f", "-").ok(t)
	p.well()
	p.addPod(nil)
	p.kubectl()
	p.finds("ids", "2 of the 2 IDs")
	p.fix("ids")
}

// What cannot be looked at is said, and what can is.
func TestDoctorCouldNotLook(t *testing.T) {
	p := newPatient(t, nftables, 1)
	p.Exec("", "iptables-legacy", "-t", "mangle", "-A", "PREROUTING", "-j", "CONNMARK", "--set-mark", "1")
	p.finds("mark-rules", "iptables-legacy")
	p.Path = "/nonexistent"
	if f := p.finds("could-not-look", "iptables-legacy"); !strings.Contains(f.Why, "mark-rules") || f.Severity != doctor.Unknown {
		t.Errorf("%+v", f)
	}
	p.Exec("", "iptables-legacy", "-t", "mangle", "-F")
	defer p.HoldLock()()
	found := of(p.doctor("--lock-timeout", "50ms"), "could-not-look")
	if len(found) != 3 || !strings.Contains(found[0].Fix, "fuser") {
		t.Errorf("with the lock held: %+v", found)
	}
}

// Doctor changes nothing, whatever it finds, also on a node that podmark has never
// run on.
func TestDoctorChangesNothing(t *testing.T) {
	p := newPatient(t, iptablesLegacy, 1)
	p.Exec("", "ip", "link", "del", p.veth(1))
	p.Iptables("-A", "OUTPUT", "-j", "MARK", "--set-mark", "1")
	kernel, files := p.kernel(), p.files()
	p.finds("leaked", "container-1", "mark-rules")
	if kernel != p.kernel() || fmt.Sprint(files) != fmt.Sprint(p.files()) {
		t.Error("it changed something")
	}
	fresh := &patient{node: newNode(t, nftables)}
	fresh.Path = p.Path
	fresh.directories = []string{"--cni-conf-dir", filepath.Join(t.TempDir(), "none"), "--cni-bin-dir", "/nonexistent", "--runtime-endpoint", ""}
	kernel = fresh.kernel()
	fresh.finds("conflist", "no such file")
	if kernel != fresh.kernel() || len(fresh.files()) > 0 {
		t.Errorf("it changed a node that podmark has never run on: %v", fresh.files())
	}
}

// The table has everything that JSON has.
func TestDoctorTable(t *testing.T) {
	if err := needs.Checksums(); err != nil {
		t.Skipf("there is a finding on every node of this kernel: %v", err)
	}
	p := newPatient(t, nftables, 0)
	run := func() output { return p.ctl(append([]string{"doctor"}, p.directories...)...) }
	checks := fmt.Sprintf("the runtime has network configurations in %q and plugins in [%q] (given)\nchecks: %d, findings: ", p.conf, p.bin, len(doctor.Checks()))
	rest := "\nnot looked at, which may write marks: " + strings.Join(foreign.NotLookedAt(), "; ") + "\n"
	if o := run().ok(t); o.Stdout != checks+"0"+rest {
		t.Errorf("%q", o.Stdout)
	}
	p.Exec("", "rm", p.bin+"/podmark")
	f := p.finds("plugin", "podmark")
	o := run()
	want := fmt.Sprintf("%s: %s\n  what  %s\n  why   %s\n  fix  %s\n\n%s1%s", f.Severity, f.Check, f.What, f.Why, f.Fix, checks, rest)
	if o.Exit() != 1 || o.Stderr != "" || o.Stdout != want {
		t.Errorf("exit %d, stderr %q, want:\n%sgot:\n%s", o.Exit(), o.Stderr, want, o.Stdout)
	}
}

// Who is not root is told that, and nothing else.
func TestDoctorNotRoot(t *testing.T) {
	p := newPatient(t, nftables, 1)
	program := filepath.Join(t.TempDir(), "podmarkctl") // where others may run it
	p.Exec("", "install", "-m", "0755", testnode.Program(p.T, "podmarkctl"), program)
	o := p.Output("", "setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", program, "--state-dir", p.Dir, "doctor")
	if o.Exit() != 2 || o.Stdout != "" || !strings.Contains(o.Stderr, "not root") || !strings.Contains(o.Stderr, "sudo podmarkctl doctor") {
		t.Errorf("exit %d, %q, %q", o.Exit(), o.Stdout, o.Stderr)
	}
}

// Where runtimes call Multus, podmark's entry goes into the list of the network that Multus calls
// first: Multus' own file is its daemon's, which copies the list when it starts.
func TestDoctorMultus(t *testing.T) {
	p := newPatient(t, nftables, 1)
	ptp := map[string]any{"type": "ptp", "ipam": map[string]any{"type": "host-local"}}
	multus := func(file string, delegate map[string]any) {
		t.Helper()
		m := map[string]any{"cniVersion": "1.0.0", "name": "multus-cni-network", "type": "multus", "delegates": []any{delegate}}
		if filepath.Ext(file) == ".conflist" {
			m = map[string]any{"cniVersion": "1.0.0", "name": "multus-cni-network", "plugins": []any{m}}
		}
		b, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(p.conf, file), string(b))
	}
	list := func(plugins ...any) map[string]any {
		return map[string]any{"cniVersion": "1.0.0", "name": "net", "plugins": plugins}
	}
	for _, file := range []string{"00-multus.conf", "00-multus.conflist"} {
		p.plugins("10-net.conflist", "net", "1.0.0", ptp)
		multus(file, list(ptp))
		f := p.finds("conflist", "10-net.conflist")
		if strings.Contains(f.Fix, "multus") || strings.Contains(f.Fix, ".off") {
			t.Errorf("fix: %s", f.Fix)
		}
		p.shell(f.Fix)
		if f := p.finds("conflist", file); !strings.HasPrefix(f.Fix, "# ") {
			t.Errorf("its copy is older: %s", f.Fix)
		}
		multus(file, list(ptp, p.entry(nil)))
		p.list("10-net.conflist", "net", nil)
		p.well()
		multus(file, map[string]any{"name": "elsewhere", "type": "macvlan"})
		if f := p.finds("conflist", file, "settings"); !strings.Contains(f.Fix, "--cni-conf-name") {
			t.Errorf("with a network that is not known: %s", f.Fix)
		}
		p.Exec("", "rm", filepath.Join(p.conf, file))
	}
}
