package main_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestCheck(t *testing.T) {
	tests := []struct {
		name  string
		harm  func(t *testing.T, p *pod)
		code  uint
		words []string
	}{
		{name: "IPv4 element deleted", harm: func(_ *testing.T, p *pod) { p.n.exec("", "ipset", "del", p.n.set("ep4"), p.v4+","+p.veth) }, code: 5, words: []string{"podmark-ep4", "10.1.0."}},
		{name: "IPv6 element deleted", harm: func(_ *testing.T, p *pod) { p.n.exec("", "ipset", "del", p.n.set("ep6"), p.v6+","+p.veth) }, code: 5, words: []string{"podmark-ep6", "fd00:10::"}},
		{name: "profile member deleted", harm: func(_ *testing.T, p *pod) { p.n.exec("", "ipset", "del", p.n.set("e4"), p.v4) }, code: 5, words: []string{"podmark-e4"}},
		{name: "egress profile flushed", harm: func(_ *testing.T, p *pod) { p.n.iptables("-F", p.n.chain("PODMARK-E-")) }, code: 5, words: []string{"PODMARK-E-"}},
		{name: "ingress profile flushed", harm: func(_ *testing.T, p *pod) { p.n.iptables("-F", p.n.chain("PODMARK-I-")) }, code: 5, words: []string{"PODMARK-I-"}},
		{name: "dispatch flushed", harm: func(_ *testing.T, p *pod) { p.n.iptables("-F", "PODMARK-INGRESS") }, code: 5, words: []string{"PODMARK-I-"}},
		{name: "all rules flushed", harm: func(_ *testing.T, p *pod) { p.n.iptables("-F") }, code: 5, words: []string{"no rule uses"}},
		{name: "device group changed", harm: func(_ *testing.T, p *pod) { p.n.exec("", "ip", "link", "set", p.veth, "group", "0") }, code: 5, words: []string{"group 0", "1886", "veth"}},
		{name: "host side gone", harm: func(_ *testing.T, p *pod) { p.unlink() }, code: 5, words: []string{"eth0"}},
		{name: "address added", harm: func(_ *testing.T, p *pod) { p.v4 = "10.1.9.9" }, code: 5, words: []string{"10.1.9.9", "was added as"}},
		{name: "record removed", harm: func(t *testing.T, p *pod) {
			if err := os.Remove(p.recordFile()); err != nil {
				t.Fatal(err)
			}
		}, code: 3, words: []string{"not known"}},
		{name: "deleted", harm: func(t *testing.T, p *pod) { p.del().ok(t) }, code: 3, words: []string{"not known"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			eachVariant(t, func(t *testing.T, n *node) {
				n.apply(webPolicy)
				p := n.addPod()
				p.add().ok(t)
				ran := n.shims()
				p.check().ok(t)
				p.check(conf{"cniVersion": "0.4.0", "prevResult": p.result("0.4.0")}).ok(t)
				if commands := ran(); len(commands) > 0 {
					t.Errorf("CHECK ran %v", commands)
				}
				tt.harm(t, p)
				ran()
				p.check().fails(t, tt.code, tt.words...)
				if commands := ran(); len(commands) > 0 {
					t.Errorf("CHECK ran %v", commands)
				}
			})
		})
	}
}

// What CHECK complains of, another ADD or a gc mends.
func TestRepair(t *testing.T) {
	harms := map[string]func(p *pod){
		"profile flushed":  func(p *pod) { p.n.iptables("-F", p.n.chain("PODMARK-E-")) },
		"dispatch flushed": func(p *pod) { p.n.iptables("-F", "PODMARK-EGRESS") },
		"marking flushed":  func(p *pod) { p.n.iptables("-F", "PODMARK-MARK") },
		"input flushed":    func(p *pod) { p.n.iptables("-F", "PODMARK-INPUT") },
		"rules flushed":    func(p *pod) { p.n.iptables("-F") },
		"sets flushed":     func(p *pod) { p.n.exec("", "ipset", "flush") },
		"all gone":         func(p *pod) { p.n.wipe() },
		"group changed": func(p *pod) {
			link, err := netlink.LinkByName(p.veth)
			if err == nil {
				err = netlink.LinkSetGroup(link, 0)
			}
			if err != nil {
				p.n.t.Error(err)
			}
		},
	}
	for name, harm := range harms {
		t.Run(name, func(t *testing.T) {
			eachVariant(t, func(t *testing.T, n *node) {
				n.withHost().apply(webPolicy)
				p := n.addPod().listen()
				for _, mend := range []string{"ADD", "ADD of another", "gc"} {
					p.add().ok(t)
					harm(p)
					switch {
					case mend == "ADD" && name != "sets flushed":
						p.add().ok(t)
					case mend == "gc" && name != "group changed":
						n.ctl("gc")
					case mend != "gc" && name != "group changed" && name != "sets flushed":
						other := n.addPod()
						other.add().ok(t)
						other.del().ok(t)
					default:
						continue // the port is each pod's own, and prefixes are a whole-node matter
					}
					p.check().ok(t)
					p.is(t, policed)
				}
			})
		})
	}
}

// set names the set of the node's that is in use: "ep4" is podmark-ep4a or podmark-ep4b.
func (n *node) set(purpose string) string {
	n.t.Helper()
	for name := range strings.FieldsSeq(n.exec("", "ipset", "list", "-n")) {
		if strings.HasPrefix(name, "podmark-"+purpose) {
			return name
		}
	}
	n.t.Fatalf("no set podmark-%s", purpose)
	return ""
}

// chain names the one chain that begins with prefix.
func (n *node) chain(prefix string) string {
	n.t.Helper()
	out, err := exec.Command("iptables-"+n.variant, "-w", "30", "-t", "mangle", "-S").Output()
	if err != nil {
		n.t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "-N "+prefix); ok {
			return prefix + name
		}
	}
	n.t.Fatalf("no chain %s*", prefix)
	return ""
}
