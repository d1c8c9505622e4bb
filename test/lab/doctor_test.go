package lab_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/podmark/podmark/pkg/agent"
	"github.com/podmark/podmark/pkg/doctor"
	"github.com/podmark/podmark/test/lab"
	"github.com/podmark/podmark/test/needs"
)

// patient is a node that podmarkctl doctor looks at.
type patient struct {
	*cluster
	t         *testing.T
	bin, conf string
	// plugins is the runtime's directory of plugins.
	plugins string
}

func newPatient(t *testing.T, c *cluster, mainPlugin string) *patient {
	t.Helper()
	bin, err := filepath.Abs("../../bin")
	if err != nil {
		t.Fatal(err)
	}
	p := &patient{cluster: c, t: t, bin: bin, conf: t.TempDir(), plugins: t.TempDir()}
	// Nothing calls them: install asks whether the list's plugins are there.
	for _, plugin := range []string{mainPlugin, "host-local", "podmark"} {
		if err := os.Symlink(filepath.Join(bin, "podmark"), filepath.Join(p.plugins, plugin)); err != nil {
			t.Fatal(err)
		}
	}
	list := fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": %q, "ipam": {"type": "host-local"}}, {"type": "podmark", "policy": "files", "backend": %q, "stateDir": %q}]}`,
		mainPlugin, c.Backend().Key, c.StateDir)
	if err := os.WriteFile(filepath.Join(p.conf, "10-net.conflist"), []byte(list), 0o600); err != nil {
		t.Fatal(err)
	}
	podmarkctl(t, c.Node, "apply", "--delete") // or its pods were open for want of a policy
	return p
}

// finds fails the test unless exactly these checks find something.
func (p *patient) finds(checks ...string) []doctor.Finding {
	p.t.Helper()
	out, err := p.Try(filepath.Join(p.bin, "podmarkctl"), "--state-dir", p.StateDir, "--lock-timeout", lab.LockTimeout, "doctor", "-o", "json", "--cni-conf-dir", p.conf, "--cni-bin-dir", p.plugins, "--runtime-endpoint", "")
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 1) {
		p.t.Fatal(err)
	}
	var found []doctor.Finding
	if err := json.Unmarshal([]byte(out), &found); err != nil {
		p.t.Fatalf("%v: %s", err, out)
	}
	var names []string
	if needs.Checksums() != nil { // so it is on every node of this kernel
		found = slices.DeleteFunc(found, func(f doctor.Finding) bool { return f.Check == "checksums" })
	}
	for _, f := range found {
		names = append(names, f.Check)
	}
	if !slices.Equal(slices.Compact(names), checks) {
		p.t.Fatalf("want findings of %q: %+v", checks, found)
	}
	return found
}

// fix runs the commands of findings, on the node.
func (p *patient) fix(found []doctor.Finding) {
	p.t.Helper()
	for _, f := range found {
		p.Run("sh", "-c", fmt.Sprintf("PATH=%s:$PATH; %s", p.bin, f.Fix))
	}
}

// What IPVS and bridges need is found where it is missing, and fixed by what is
// said, or by a podmarkd that may; so is a NodePort outside the ranges. Nothing else is
// wrong on a node with kube-proxy's rules, and without IPVS its parameter does not
// matter, nor does a port.
func TestDoctor(t *testing.T) {
	t.Parallel()
	for backend, network := range map[lab.Backend]func(*lab.Node) lab.Network{lab.NFTables: routed, lab.IPTablesLegacy: bridged} {
		t.Run(backend.Name, func(t *testing.T) {
			t.Parallel()
			onBridge := backend == lab.IPTablesLegacy
			p := newPatient(t, newCluster(t, lab.Options{Backend: backend}, network), map[bool]string{true: "bridge", false: "ptp"}[onBridge])
			ports := p.finds("node-ports")
			if !strings.Contains(ports[0].What, fmt.Sprintf("NodePorts %d are", oddPort)) {
				t.Errorf("%+v", ports)
			}
			p.fix(ports)
			p.finds()
			// IPVS compares the whole mark, and an ID is in it.
			p.Run("ipvsadm", "-A", "-f", "14146")
			if found := p.finds("mark-compares"); len(found) != 1 || !strings.Contains(found[0].What, "firewall mark 14146") {
				t.Errorf("%+v", found)
			}
			p.Run("ipvsadm", "-D", "-f", "14146")
			p.finds()
			p.Sysctl("net/bridge/bridge-nf-call-iptables", "0")
			p.Sysctl("net/bridge/bridge-nf-call-ip6tables", "0")
			if onBridge {
				found := p.finds("bridge-netfilter")
				if len(found) != 2 {
					t.Errorf("want one for each family: %+v", found)
				}
				p.fix(found)
			}
			p.finds()
			p.Sysctl("net/ipv4/vs/conntrack", "0")
			p.daemon(onBridge)
			if !onBridge {
				p.fix(p.finds("ipvs-conntrack"))
			}
			p.finds()
			p.Run("ipvsadm", "-C")
			p.Sysctl("net/ipv4/vs/conntrack", "0")
			becomes(t, p.Node, "nothing is needed of IPVS", func(s agent.Status) bool { _, needed := ipvsConntrack(s); return !needed })
			p.finds()
		})
	}
}

func ipvsConntrack(s agent.Status) (agent.Sysctl, bool) {
	i := slices.IndexFunc(s.Sysctls, func(s agent.Sysctl) bool { return s.Name == "net.ipv4.vs.conntrack" })
	if i < 0 {
		return agent.Sysctl{}, false
	}
	return s.Sysctls[i], true
}

// daemon runs podmarkd where what IPVS needs is off. It sets that if it is told to,
// and else leaves it and says so.
func (p *patient) daemon(set bool) {
	p.t.Helper()
	startDaemon(p.t, p.Node, fmt.Sprintf("--set-sysctls=%v", set), "--cni-conf-dir", p.conf, "--cni-bin-dir", p.plugins)
	want := map[bool]string{true: "1", false: "0"}[set]
	is := func(s agent.Status) bool { c, needed := ipvsConntrack(s); return needed && c.Value == want }
	becomes(p.t, p.Node, "it has looked", is)
	first := time.Now()
	becomes(p.t, p.Node, "it has looked again", func(s agent.Status) bool { return is(s) && s.LastReconcile.After(first) })
	if got := strings.TrimSpace(p.Run("sysctl", "-n", "net.ipv4.vs.conntrack")); got != want {
		p.t.Errorf("net.ipv4.vs.conntrack is %s, want %s", got, want)
	}
}
