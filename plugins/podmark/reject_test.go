package main_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/podmark/podmark/test/testnode"
)

// A refused ADD says why, with the code that the specification or docs/configuration.md
// gives it, and leaves the node as it was.
func TestAddRefused(t *testing.T) {
	tests := []struct {
		name string
		// node prepares the node after it has one pod.
		node  func(t *testing.T, n *node)
		conf  func(p *pod) conf
		stdin string
		env   func(p *pod) []string
		code  uint
		words []string
	}{
		{name: "no container ID", env: func(*pod) []string { return []string{"CNI_CONTAINERID="} }, code: 4, words: []string{"CNI_CONTAINERID"}},
		{name: "container ID leaves the directory", env: func(*pod) []string { return []string{"CNI_CONTAINERID=../../etc/passwd"} }, code: 4, words: []string{"../../etc/passwd"}},
		{name: "interface name with a slash", env: func(*pod) []string { return []string{"CNI_IFNAME=../eth0"} }, code: 4, words: []string{"/"}},
		{name: "network namespace missing", env: func(*pod) []string { return []string{"CNI_NETNS=/run/netns/does-not-exist"} }, code: 4, words: []string{"CNI_NETNS", "/run/netns/does-not-exist"}},
		{name: "network namespace is no namespace", env: func(*pod) []string { return []string{"CNI_NETNS=/etc/passwd"} }, code: 4, words: []string{"CNI_NETNS", "/etc/passwd"}},
		{name: "state directory is a file", conf: func(p *pod) conf {
			file := filepath.Join(p.n.T.TempDir(), "file")
			if err := os.WriteFile(file, nil, 0o600); err != nil {
				p.n.T.Fatal(err)
			}
			return conf{"stateDir": file}
		}, code: 5, words: []string{"/file", "not a directory"}},
		{name: "interface missing in the pod", env: func(*pod) []string { return []string{"CNI_IFNAME=eth7"} }, conf: func(p *pod) conf {
			r := p.PrevResult()
			r["interfaces"].([]conf)[1]["name"] = "eth7"
			return conf{"prevResult": r}
		}, code: 5, words: []string{"eth7"}},
		{name: "not JSON", stdin: "hello", code: 6},
		{name: "not an object", stdin: "[]", code: 6},
		{name: "prevResult of the wrong shape", conf: func(*pod) conf { return conf{"prevResult": conf{"ips": 7}} }, code: 6, words: []string{"prevResult"}},
		{name: "prevResult with a bad address", conf: func(p *pod) conf {
			r := p.PrevResult()
			r["ips"].([]conf)[0]["address"] = "10.0.0.0.1/32\nflush"
			return conf{"prevResult": r}
		}, code: 6, words: []string{"prevResult"}},
		{name: "no prevResult", conf: func(*pod) conf { return conf{"prevResult": nil} }, code: 7, words: []string{"chained", "conflist", "ptp"}},
		{name: "no address", conf: func(*pod) conf { return conf{"prevResult": conf{"cniVersion": "1.1.0"}} }, code: 7, words: []string{"eth0", "address"}},
		{name: "network name", conf: func(*pod) conf { return conf{"name": "../net"} }, code: 7, words: []string{"../net"}},
		{name: "mask", conf: func(*pod) conf { return conf{"iptablesMarkMask": "0xc000"} }, code: 7, words: []string{"iptablesMarkMask", "0xc000", "kube-proxy"}},
		{name: "NodePorts", conf: func(*pod) conf { return conf{"kubeNodePortRanges": []string{"2:1"}} }, code: 7, words: []string{"kubeNodePortRanges", "2:1", "a <= b"}},
		{name: "backend", conf: func(*pod) conf { return conf{"backend": "nft"} }, code: 7, words: []string{`"backend"`, `"nft"`, `"auto"`, `"nftables"`, `"iptables"`}},
		{name: "two wrong keys", conf: func(*pod) conf { return conf{"policy": "felix", "backend": "ipvs"} }, code: 7, words: []string{`"policy"`, `"felix"`, `"files"`, `"kubernetes"`, `"backend"`, `"ipvs"`, `"iptables"`}},
		{name: "mask changed", conf: func(*pod) conf { return conf{"iptablesMarkMask": "0xff0000"} }, code: 7, words: []string{"iptablesMarkMask", "0xff0000", "0xffff0000", "drain"}},
		{name: "lock held", node: func(t *testing.T, n *node) { t.Cleanup(n.HoldLock()) }, conf: func(*pod) conf { return conf{"lockTimeoutSeconds": 0.05} }, code: 101, words: []string{"50ms", "lockTimeoutSeconds"}},
		{name: "node.json damaged", node: func(t *testing.T, n *node) { n.write(t, "node.json", "{") }, code: 103, words: []string{"node.json", "podmarkctl uninstall"}},
		{name: "node.json impossible", node: func(t *testing.T, n *node) { n.write(t, "node.json", `{"mask": 49152, "epoch": 1}`) }, code: 103, words: []string{"node.json", "0xc000"}},
		{name: "epoch impossible", node: func(t *testing.T, n *node) { n.write(t, "node.json", `{"mask": 4294901760, "epoch": 0}`) }, code: 103, words: []string{"epoch 0"}},
		{name: "backend unknown", node: func(t *testing.T, n *node) {
			n.write(t, "node.json", strings.Replace(n.files()["node.json"], `"backend":"nftables"`, `"backend":"ebtables"`, 1))
		}, code: 103, words: []string{"node.json", "ebtables"}},
		{name: "node.json of a newer podmark", node: func(t *testing.T, n *node) {
			n.write(t, "node.json", `{"format":99,"reads":99,"mask":"two"}`)
		}, code: 105, words: []string{"node.json", "format 99", "podmarkctl uninstall"}},
		{name: "macvlan", conf: func(p *pod) conf { p.macvlan(); return nil }, code: 104, words: []string{"eth0", "macvlan", "ptp"}},
	}
	n := newNode(t, nftables)
	first := n.addPod()
	first.Add().OK(t)
	good := n.files()["node.json"]
	for _, tt := range tests {
		n.Run(t, tt.name, func(t *testing.T) {
			defer func(path string) { n.Path = path }(n.Path)
			n.write(t, "node.json", good)
			p := n.addPod()
			if tt.node != nil {
				tt.node(t, n)
			}
			var stdin any = tt.stdin
			if tt.stdin == "" {
				keys := conf{}
				if tt.conf != nil {
					keys = tt.conf(p)
				}
				stdin = p.Conf(keys)
			}
			env := p.Env()
			if tt.env != nil {
				env = append(env, tt.env(p)...)
			}
			kernel, files := n.kernel(), n.files()
			n.Call("ADD", stdin, env...).Fails(t, tt.code, tt.words...)
			if diff := cmp.Diff(kernel, n.kernel()); diff != "" {
				t.Errorf("it changed the kernel:\n%s", diff)
			}
			if diff := cmp.Diff(files, n.files()); diff != "" {
				t.Errorf("it changed the state:\n%s", diff)
			}
		})
	}
}

// Without the commands that iptables needs nothing of the pod is kept, and the ADD
// works once they are there.
func TestAddWithoutBackend(t *testing.T) {
	for _, name := range []string{"virgin", "flushed"} {
		t.Run(name, func(t *testing.T) {
			on(t, inIPTables, func(t *testing.T, n *node) {
				p := n.addPod()
				if name == "flushed" {
					p.Add().OK(t)
					p.Del().OK(t)
					n.wipe()
				}
				path := n.Path
				n.Path = "/nowhere"
				p.Add().Fails(t, 102, "iptables", "executable file not found")
				if left := n.attachments(); left != nil {
					t.Errorf("left behind: %v", left)
				}
				n.Path = path
				p.Add().OK(t)
				p.Check().OK(t)
			})
		})
	}
}

// A wrong configuration does not even make the state directory.
func TestAddRefusedOnVirginNode(t *testing.T) {
	n := newNode(t, nftables)
	p := n.addPod()
	p.Add(conf{"iptablesMarkMask": 1}).Fails(t, 7)
	if _, err := os.Stat(n.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("state directory: %v", err)
	}
}

func TestMaskExhausted(t *testing.T) {
	eachKind(t, func(t *testing.T, n *node) {
		mask := conf{"iptablesMarkMask": "0x3000"}
		a, b, c := n.addPod(), n.addPod(), n.addPod()
		a.Add(mask).OK(t)
		n.status(mask).OK(t)
		b.Add(mask).OK(t)
		kernel, files := n.kernel(), n.files()
		c.Add(mask).Fails(t, 100, "iptablesMarkMask 0x3000", "holds 2 endpoints", "0x80003000 for 6", "podmarkctl gc")
		if diff := cmp.Diff(files, n.files()) + cmp.Diff(kernel, n.kernel()); diff != "" {
			t.Errorf("a refused ADD changed something:\n%s", diff)
		}
		n.status(mask).Fails(t, 50, "iptablesMarkMask 0x3000", "2 IDs")
		a.Add(mask).OK(t) // has one already
		b.Del(mask).OK(t)
		n.status(mask).OK(t)
		// Nor does one that finds the rules gone leave anything but the rules.
		n.ctl("gc")
		kernel = n.kernel()
		n.wipe()
		d := n.addPod()
		c.Add(mask).OK(t)
		d.Add(mask).Fails(t, 100)
		c.Del(mask).OK(t)
		d.Unlink()
		if diff := cmp.Diff(kernel, n.kernel()); diff != "" {
			t.Errorf("a refused ADD left something:\n%s", diff)
		}
		c.Add(mask).OK(t)
		if id := c.Record(t).ID; id != 3 {
			t.Errorf("ID is %d, want 3, the only free one", id)
		}
	})
}

// macvlan puts an eth0 in the pod's place that has no host side of its own.
func (p *pod) macvlan() {
	p.n.T.Helper()
	p.Unlink()
	parent := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: p.Veth}, PeerName: "p" + p.Veth[4:]}
	if err := netlink.LinkAdd(parent); err != nil {
		p.n.T.Fatal(err)
	}
	link, err := netlink.LinkByName(p.Veth)
	if err != nil {
		p.n.T.Fatal(err)
	}
	ns, err := os.Open(p.Path)
	if err != nil {
		p.n.T.Fatal(err)
	}
	defer ns.Close()
	err = netlink.LinkAdd(&netlink.Macvlan{LinkAttrs: netlink.LinkAttrs{
		Name: "eth0", ParentIndex: link.Attrs().Index, Namespace: netlink.NsFd(int(ns.Fd())),
	}})
	if err != nil {
		p.n.T.Fatal(err)
	}
}

// write puts a file into the state directory.
func (n *node) write(t *testing.T, name, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(n.Dir, name), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A pod on a bridge shares its L3 interface, and its port is guarded. For that iptables needs
// nftables beside it, which not every kernel has: without, a policed pod is refused.
func TestBridge(t *testing.T) {
	eachBackend(t, func(t *testing.T, n *node) {
		n.withHost().Apply(webPolicy)
		n.bridge()
		n.settle()
		p := n.addPod().listen()
		p.plug()
		if n.Backend != nftables {
			const has, lacks = `"bridge":"nftables"`, `"bridge":"none","bridgeLacks":"the kernel is too old"`
			n.rewrite(t, has, lacks)
			p.Add().Fails(t, 102, "cni0", "the kernel is too old", "policy")
			p.Del().OK(t)
			if left := n.attachments(); left != nil {
				t.Errorf("left behind: %v", left)
			}
			p.Add(conf{"policy": "none"}).OK(t)
			p.Del().OK(t)
			n.rewrite(t, lacks, has)
		}
		n.ctl("gc")
		kernel := n.kernel()
		p.Add().OK(t)
		if r := p.Record(t); r.L3Interface != "cni0" || r.HostVeth != p.Veth {
			t.Errorf("interface %q, port %q", r.L3Interface, r.HostVeth)
		}
		p.Check().OK(t)
		p.is(t, policed)
		other := n.addPod().listen()
		other.Add().OK(t)
		other.is(t, policed)
		other.plug() // it was routed until now
		other.Add().OK(t)
		other.Check().OK(t)
		other.is(t, policed)
		other.Del().OK(t)
		other.is(t, closed)
		p.Check().OK(t)
		p.is(t, policed)
		p.Del().OK(t)
		if left := n.attachments(); left != nil {
			t.Errorf("left behind: %v", left)
		}
		if diff := cmp.Diff(kernel, n.kernel()); diff != "" {
			t.Errorf("left in the kernel:\n%s", diff)
		}
	})
}

// bridge makes the bridge cni0, which is the pods' gateway.
func (n *node) bridge() {
	n.T.Helper()
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "cni0"}}); err != nil {
		n.T.Fatal(err)
	}
	if err := errors.Join(testnode.Up("cni0"), testnode.Address("cni0", "10.1.0.1/32"), testnode.Address("cni0", "fd00:10::1/128")); err != nil {
		n.T.Fatal(err)
	}
}

// plug makes the pod's veth a port of the bridge.
func (p *pod) plug() {
	n := p.n
	n.T.Helper()
	n.Exec("", "ip", "link", "set", p.Veth, "master", "cni0")
	n.Exec("", "ip", "address", "flush", "dev", p.Veth)
	if err := errors.Join(testnode.Route("cni0", p.V4+"/32", ""), testnode.Route("cni0", p.V6+"/128", "")); err != nil {
		n.T.Fatal(err)
	}
}
