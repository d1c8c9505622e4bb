package main_test

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// versions are the spec versions a runtime may call with.
var versions = []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"}

// What a runtime may send with the DEL of one and the same pod.
var delCalls = []struct {
	name string
	conf func(p *pod) conf
	env  []string
}{
	{name: "without prevResult"},
	{name: "with prevResult", conf: func(p *pod) conf { return conf{"prevResult": p.PrevResult()} }},
	{name: "with another's prevResult", conf: func(*pod) conf { return conf{"prevResult": conf{"ips": []conf{{"address": "192.0.2.1/32"}}}} }},
	{name: "with an unreadable prevResult", conf: func(*pod) conf { return conf{"prevResult": 7} }},
	{name: "without namespace", env: []string{"CNI_NETNS="}},
	{name: "with a missing namespace", env: []string{"CNI_NETNS=/run/netns/does-not-exist"}},
	{name: "without CNI_ARGS", env: []string{"CNI_ARGS="}},
	{name: "with another mask", conf: func(*pod) conf { return conf{"iptablesMarkMask": "0xff0000"} }},
	{name: "with another policy key", conf: func(*pod) conf { return conf{"policy": "none"} }},
}

// DEL needs nothing but the key, runs no command, and may be repeated.
func TestDel(t *testing.T) {
	eachKind(t, func(t *testing.T, n *node) {
		other := n.addPod() // keeps the node's files and sets in use
		other.Add().OK(t)
		ran := n.shims()
		for i, tt := range delCalls {
			n.Run(t, tt.name, func(t *testing.T) {
				version := versions[i%len(versions)]
				p := n.addPod()
				keys := conf{}
				if tt.conf != nil {
					keys = tt.conf(p)
				}
				kernel, files := n.kernel(), n.files()
				p.Add(conf{"cniVersion": version, "prevResult": p.result(version)}).OK(t)
				ran()
				for range 3 {
					r := n.Call("DEL", n.Conf(conf{"cniVersion": version}, keys), append(p.Env(), tt.env...)...).OK(t)
					if r.Stdout != "" || r.Stderr != "" {
						t.Errorf("DEL printed %q, %q", r.Stdout, r.Stderr)
					}
					if commands := ran(); len(commands) > 0 {
						t.Errorf("DEL ran %v", commands)
					}
					if diff := cmp.Diff(files, n.files()); diff != "" {
						t.Errorf("left behind:\n%s", diff)
					}
				}
				if diff := cmp.Diff(kernel, n.kernel()); diff != "" {
					t.Errorf("left in the kernel:\n%s", diff)
				}
			})
		}
	})
}

// A runtime deletes pods that were never added: that does nothing at all.
func TestDelUnknown(t *testing.T) {
	for _, version := range versions {
		t.Run("virgin node "+version, func(t *testing.T) {
			n := newNode(t, undecided)
			n.Path = ""
			p := n.addPod()
			p.Del(conf{"cniVersion": version}).OK(t)
			if _, err := os.Stat(n.Dir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("state directory: %v", err)
			}
		})
	}
	t.Run("used node", func(t *testing.T) {
		eachKind(t, testDelUnknown)
	})
}

func testDelUnknown(t *testing.T, n *node) {
	p, other := n.addPod(), n.addPod()
	p.Add().OK(t)
	n.Path = ""
	defer n.HoldLock()() // a DEL that has nothing to do does not wait
	kernel, files := n.kernel(), n.files()
	other.Del().OK(t)
	p.Del(conf{"name": "another-net"}).OK(t)
	n.Call("DEL", n.Conf(), append(p.Env(), "CNI_IFNAME=eth1")...).OK(t)
	if diff := cmp.Diff(kernel, n.kernel()) + cmp.Diff(files, n.files()); diff != "" {
		t.Errorf("DEL of an unknown attachment changed something:\n%s", diff)
	}
}

// What someone else removed from the kernel does not keep a pod from going.
func TestDelAfterWipe(t *testing.T) {
	wipes := []struct {
		name string
		in   []backend
		wipe func(n *node, p *pod)
	}{
		{"everything", backends, func(n *node, _ *pod) { n.wipe() }},
		{"interface", backends, func(_ *node, p *pod) { p.Unlink() }},
		{"rules", inIPTables, func(n *node, _ *pod) { n.Iptables("-F") }},
		{"hooks", inIPTables, func(n *node, _ *pod) { n.Iptables("-F", "FORWARD") }},
		{"dispatch", inIPTables, func(n *node, _ *pod) { n.Iptables("-F", "PODMARK-EGRESS") }},
		{"elements", inIPTables, func(n *node, _ *pod) { n.Exec("", "ipset", "flush") }},
		{"rules", inNFTables, func(n *node, _ *pod) { n.nft("flush table inet podmark") }},
		{"dispatch", inNFTables, func(n *node, _ *pod) { n.nft("flush chain inet podmark egress") }},
		{"elements", inNFTables, func(n *node, _ *pod) { n.flushMaps() }},
		{"profile", inNFTables, func(n *node, _ *pod) { n.nft("flush chain inet podmark " + n.chain("e4-")) }},
		{"one table", inNFTables, func(n *node, _ *pod) { n.nft("delete table inet podmark") }},
		{"the other table", inNFTables, func(n *node, _ *pod) { n.nft("delete table bridge podmark") }},
	}
	eachBackend(t, func(t *testing.T, n *node) {
		n.Apply(webPolicy)
		n.settle()
		for _, w := range wipes {
			if !slices.Contains(w.in, n.Backend) {
				continue
			}
			n.Run(t, w.name, func(t *testing.T) {
				p := n.addPod()
				n.ctl("gc")
				kernel, files := n.kernel(), n.files()
				p.Add().OK(t)
				w.wipe(n, p)
				p.Del().OK(t)
				if left := n.attachments(); left != nil {
					t.Errorf("left behind: %v", left)
				}
				if w.name == "interface" {
					kernel = strings.ReplaceAll(kernel, "add podmark-host4* 10.1.0.1\n", "")
					kernel = strings.ReplaceAll(kernel, "add podmark-host6* fd00:10::1\n", "")
				} else {
					defer p.Unlink()
				}
				n.ctl("gc")
				if diff := cmp.Diff(kernel, n.kernel()) + cmp.Diff(files, n.files()); diff != "" {
					t.Errorf("left behind:\n%s", diff)
				}
			})
		}
	})
}

func TestDelOfDamagedRecord(t *testing.T) {
	eachKind(t, func(t *testing.T, n *node) {
		p, other := n.addPod(), n.addPod()
		other.Add().OK(t)
		kernel, files := n.kernel(), n.files()
		p.Add().OK(t)
		p.damage(t, []byte(`{"network":`))
		p.Check().Fails(t, 103, "podmarkctl gc")
		p.Del().OK(t)
		if diff := cmp.Diff(kernel, n.kernel()) + cmp.Diff(files, n.files()); diff != "" {
			t.Errorf("left behind:\n%s", diff)
		}
		other.Check().OK(t)
		p.Del().OK(t)
	})
}

// Without node.json nobody knows what the pod had in the kernel. Its DEL says so
// and succeeds: an error would keep the runtime from giving its address back.
func TestDelWithDamagedNode(t *testing.T) {
	eachKind(t, func(t *testing.T, n *node) {
		pod := n.addPod()
		pod.Add().OK(t)
		n.write(t, "node.json", "{")
		r := pod.Del()
		r.OK(t)
		if !strings.Contains(r.Stderr, "node.json") {
			t.Errorf("stderr %q does not name node.json", r.Stderr)
		}
		if left := n.attachments(); left != nil {
			t.Errorf("left behind: %v", left)
		}
	})
}
