package main_test

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/podmark/podmark/test/testnode"
)

// harm is what another program may do to a policed pod.
type harm struct {
	name string
	in   []backend
	do   func(t *testing.T, p *pod)
	// What CHECK says of it.
	code  uint
	words []string
	// fixes is what puts it right: the pod's "ADD", "ADD of another" with the same
	// policy, "gc". Nothing where there is no pod any more.
	fixes []string
}

var (
	inNFTables = []backend{nftables}
	inIPTables = []backend{iptablesNFT, iptablesLegacy}

	byAnything = []string{"ADD", "ADD of another", "gc"}
	// The elements of a pod are looked at when that pod is.
	byItself = []string{"ADD", "gc"}
	byGC     = []string{"gc"}
	byADD    = []string{"ADD"}
)

// ipset, nft and flush make harms of one command of ipset's, of nft's, and of one
// that empties a chain of iptables.
func ipset(args func(p *pod) []string) func(*testing.T, *pod) {
	return func(_ *testing.T, p *pod) { p.n.Exec("", "ipset", args(p)...) }
}

func nft(command func(p *pod) string) func(*testing.T, *pod) {
	return func(_ *testing.T, p *pod) { p.n.nft(command(p)) }
}

func nftCommand(command string) func(*testing.T, *pod) {
	return nft(func(*pod) string { return command })
}

func flush(chain ...string) func(*testing.T, *pod) {
	return func(_ *testing.T, p *pod) { p.n.Iptables(append([]string{"-F"}, chain...)...) }
}

var harms = []harm{
	{name: "IPv4 element deleted", in: inIPTables, do: ipset(func(p *pod) []string { return []string{"del", p.n.set("ep4"), p.V4 + "," + p.Veth} }), code: 5, words: []string{"podmark-ep4", "10.1.0."}, fixes: byItself},
	{name: "IPv6 element deleted", in: inIPTables, do: ipset(func(p *pod) []string { return []string{"del", p.n.set("ep6"), p.V6 + "," + p.Veth} }), code: 5, words: []string{"podmark-ep6", "fd00:10::"}, fixes: byItself},
	{name: "profile member deleted", in: inIPTables, do: ipset(func(p *pod) []string { return []string{"del", p.n.set("e4"), p.V4} }), code: 5, words: []string{"podmark-e4"}, fixes: byItself},
	{name: "egress profile flushed", in: inIPTables, do: func(_ *testing.T, p *pod) { p.n.Iptables("-F", p.n.chain("PODMARK-E-")) }, code: 5, words: []string{"PODMARK-E-"}, fixes: byAnything},
	{name: "ingress profile flushed", in: inIPTables, do: func(_ *testing.T, p *pod) { p.n.Iptables("-F", p.n.chain("PODMARK-I-")) }, code: 5, words: []string{"PODMARK-I-"}, fixes: byAnything},
	{name: "dispatch flushed", in: inIPTables, do: flush("PODMARK-INGRESS"), code: 5, words: []string{"PODMARK-I-"}, fixes: byAnything},
	{name: "marking flushed", in: inIPTables, do: flush("PODMARK-MARK"), code: 5, words: []string{"no rule uses"}, fixes: byAnything},
	{name: "input flushed", in: inIPTables, do: flush("PODMARK-INPUT"), code: 5, words: []string{"no rule uses"}, fixes: byAnything},
	{name: "rules flushed", in: inIPTables, do: flush(), code: 5, words: []string{"no rule uses"}, fixes: byAnything},
	// Those of the whole node too, of which an ADD knows nothing.
	{name: "sets flushed", in: inIPTables, do: ipset(func(*pod) []string { return []string{"flush"} }), code: 5, words: []string{"podmark-"}, fixes: byGC},

	{name: "IPv4 element deleted", in: inNFTables, do: nft(func(p *pod) string {
		return fmt.Sprintf("delete element inet podmark senders4 { %q . %s }", p.Veth, p.V4)
	}), code: 5, words: []string{"senders4", "10.1.0."}, fixes: byItself},
	{name: "IPv6 element deleted", in: inNFTables, do: nft(func(p *pod) string {
		return fmt.Sprintf("delete element inet podmark senders6 { %q . %s }", p.Veth, p.V6)
	}), code: 5, words: []string{"senders6", "fd00:10::"}, fixes: byItself},
	{name: "ingress element deleted", in: inNFTables, do: nft(func(p *pod) string {
		return fmt.Sprintf("delete element inet podmark ingress4 { %q . %s }", p.Veth, p.V4)
	}), code: 5, words: []string{"ingress4", "10.1.0."}, fixes: byItself},
	{name: "ID deleted", in: inNFTables, do: nft(func(p *pod) string { return "delete element inet podmark egress { ipv4 . " + p.mark() + " }" }), code: 5, words: []string{"egress"}, fixes: byItself},
	{name: "ID led to no profile", in: inNFTables, do: nft(func(p *pod) string {
		value := regexp.MustCompile(`0x[0-9a-f]{8}`).ReplaceAllString(p.n.value("egress", "ipv4 . "+p.mark()), "0x00000000")
		return fmt.Sprintf("delete element inet podmark egress { ipv4 . %[1]s }; add element inet podmark egress { ipv4 . %[1]s : %[2]s }", p.mark(), value)
	}), code: 5, words: []string{"egress"}, fixes: byItself},
	{name: "egress profile flushed", in: inNFTables, do: nft(func(p *pod) string { return "flush chain inet podmark " + p.n.chain("e4-") }), code: 5, words: []string{" e4-"}, fixes: byAnything},
	{name: "ingress profile flushed", in: inNFTables, do: nft(func(p *pod) string { return "flush chain inet podmark " + p.n.chain("i4-") }), code: 5, words: []string{" i4-"}, fixes: byAnything},
	{name: "rule of a profile deleted", in: inNFTables, do: nft(func(p *pod) string {
		path := "inet podmark " + p.n.chain("e4-")
		return "delete rule " + path + " handle " + p.n.handles(path)[0]
	}), code: 5, words: []string{" e4-"}, fixes: byAnything},
	{name: "dispatch flushed", in: inNFTables, do: nftCommand("flush chain inet podmark ingress"), code: 5, words: []string{"inet podmark"}, fixes: byAnything},
	{name: "profile led to by nobody", in: inNFTables, do: nft(func(p *pod) string {
		return "delete element inet podmark egress-profiles { " + p.n.number("e4-") + " }"
	}), code: 5, words: []string{"egress-profiles", "e4-"}, fixes: byAnything},
	{name: "forward flushed", in: inNFTables, do: nftCommand("flush chain inet podmark forward"), code: 5, words: []string{"inet podmark"}, fixes: byAnything},
	{name: "rule deleted", in: inNFTables, do: nft(func(p *pod) string {
		const path = "inet podmark egress"
		return "delete rule " + path + " handle " + p.n.handles(path)[0]
	}), code: 5, words: []string{"inet podmark"}, fixes: byAnything},
	{name: "all rules flushed", in: inNFTables, do: nftCommand("flush table inet podmark; flush table bridge podmark"), code: 5, words: []string{"inet podmark"}, fixes: byAnything},
	{name: "all elements deleted", in: inNFTables, do: func(_ *testing.T, p *pod) { p.n.flushMaps() }, code: 5, words: []string{"inet podmark"}, fixes: byGC},
	{name: "a foreign rule", in: inNFTables, do: nftCommand("insert rule inet podmark related accept"), code: 5, words: []string{"inet podmark related"}, fixes: byAnything},
	{name: "a foreign chain", in: inNFTables, do: nftCommand("add chain inet podmark foreign; add rule inet podmark foreign accept; insert rule inet podmark related jump foreign"), code: 5, words: []string{"inet podmark related"}, fixes: byAnything},
	{name: "a map that is another", in: inNFTables, do: nftCommand("flush table inet podmark; delete map inet podmark sources4; add set inet podmark sources4 { type mark; }"), code: 5, words: []string{"inet podmark"}, fixes: byAnything},
	{name: "table inet deleted", in: inNFTables, do: nftCommand("delete table inet podmark"), code: 5, words: []string{"inet podmark"}, fixes: byAnything},
	{name: "table bridge deleted", in: inNFTables, do: nftCommand("delete table bridge podmark"), code: 5, words: []string{"bridge podmark"}, fixes: byAnything},

	// As many rules as before, and others.
	{name: "rule of a profile replaced", in: inNFTables, do: nft(func(p *pod) string {
		path := "inet podmark " + p.n.chain("i4-")
		return "replace rule " + path + " handle " + p.n.handles(path)[0] + " accept"
	}), code: 5, words: []string{" i4-"}, fixes: byGC},
	{name: "rule of the frame replaced", in: inNFTables, do: nft(func(p *pod) string {
		const path = "inet podmark spoofed"
		return "replace rule " + path + " handle " + p.n.handles(path)[0] + " accept"
	}), code: 5, words: []string{"inet podmark spoofed"}, fixes: byGC},
	{name: "rules of a profile swapped", in: inNFTables, do: nft(func(p *pod) string {
		path := "inet podmark " + p.n.chain("i4-")
		last := p.n.handles(path)
		return "delete rule " + path + " handle " + last[len(last)-1] + "; insert rule " + path + " counter drop"
	}), code: 5, words: []string{" i4-"}, fixes: byGC},
	{name: "table dormant", in: inNFTables, do: nftCommand("add table inet podmark { flags dormant; }"), code: 5, words: []string{"inet podmark", "dormant"}, fixes: byAnything},

	{name: "all gone", in: backends, do: func(_ *testing.T, p *pod) { p.n.wipe() }, code: 5, words: []string{"incomplete"}, fixes: byAnything},
	{name: "device group changed", in: backends, do: func(_ *testing.T, p *pod) { p.n.Exec("", "ip", "link", "set", p.Veth, "group", "0") }, code: 5, words: []string{"group 0", "1886", "veth"}, fixes: byADD},
	{name: "host side gone", in: backends, do: func(_ *testing.T, p *pod) { p.Unlink() }, code: 5, words: []string{"eth0"}},
	{name: "address added", in: backends, do: func(_ *testing.T, p *pod) { p.V4 = "10.1.9.9" }, code: 5, words: []string{"10.1.9.9", "was added as"}},
	{name: "record removed", in: backends, do: func(t *testing.T, p *pod) {
		if err := os.Remove(p.RecordFile()); err != nil {
			t.Fatal(err)
		}
	}, code: 3, words: []string{"not known"}},
	{name: "deleted", in: backends, do: func(t *testing.T, p *pod) { p.Del().OK(t) }, code: 3, words: []string{"not known"}},
}

// flushMaps deletes every element of podmark's in nft.
func (n *node) flushMaps() {
	n.T.Helper()
	for _, object := range n.tables() {
		if m := setHeader.FindStringSubmatch(object); m != nil && strings.HasPrefix(object, "table inet") {
			n.nft("flush " + m[1] + " inet podmark " + m[2])
		}
	}
}

// value is what a map of nft holds for a key.
func (n *node) value(name, key string) string {
	n.T.Helper()
	for _, e := range n.elements() {
		if v, found := strings.CutPrefix(e, name+": "+key+" : "); found {
			return v
		}
	}
	n.T.Fatalf("map %s has no %s: %q", name, key, n.elements())
	return ""
}

// number is what the maps of nft call the one profile whose chain begins so.
func (n *node) number(prefix string) string {
	n.T.Helper()
	for _, e := range n.elements() {
		if key, found := strings.CutSuffix(e, " : goto "+n.chain(prefix)); found {
			_, number, _ := strings.Cut(key, ": ")
			return number
		}
	}
	n.T.Fatalf("no element leads to chain %s*: %q", prefix, n.elements())
	return ""
}

// mark is the pod's ID as the fwmark has it.
func (p *pod) mark() string { return fmt.Sprintf("0x%08x", uint32(p.Record(p.n.T).ID)<<16) }

// CHECK complains of what was done to a pod, changing nothing and running no
// command, and an ADD or a gc fixes it.
func TestHarm(t *testing.T) {
	eachBackend(t, func(t *testing.T, n *node) {
		n.withHost().Apply(webPolicy)
		p := n.addPod().listen()
		p.Add().OK(t)
		p.Check().OK(t)
		p.Check(conf{"cniVersion": "0.4.0", "prevResult": p.result("0.4.0")}).OK(t)
		other := n.addPod()
		n.ctl("gc")
		kernel := n.kernel()
		path := n.Path
		ran := n.shims()
		shimmed := n.Path
		n.Path = path
		harmed := func(t *testing.T, h harm, p *pod) {
			t.Helper()
			h.do(t, p)
			harmed := n.kernel()
			n.Path = shimmed
			p.Check().Fails(t, h.code, h.words...)
			n.Path = path
			if commands := ran(); len(commands) > 0 {
				t.Errorf("CHECK ran %v", commands)
			}
			if diff := cmp.Diff(harmed, n.kernel()); diff != "" {
				t.Errorf("CHECK changed something:\n%s", diff)
			}
		}
		for _, h := range harms {
			switch {
			case !slices.Contains(h.in, n.Backend):
				continue
			case h.fixes == nil:
				n.Run(t, h.name, func(t *testing.T) {
					victim := n.addPod()
					victim.Add().OK(t)
					harmed(t, h, victim)
					victim.Del().OK(t)
				})
				n.ctl("gc") // the host address of a veth that is gone
				kernel = n.kernel()
				continue
			}
			for _, fix := range h.fixes {
				n.Run(t, h.name+", then "+fix, func(t *testing.T) {
					defer func() {
						if t.Failed() {
							n.ctl("gc") // for the next
						}
					}()
					harmed(t, h, p)
					switch fix {
					case "ADD":
						p.Add().OK(t)
					case "ADD of another":
						other.Add().OK(t)
						other.Del().OK(t)
					case "gc":
						n.ctl("gc")
					}
					p.Check().OK(t)
					if diff := cmp.Diff(kernel, n.kernel()); diff != "" {
						t.Errorf("left in the kernel:\n%s", diff)
					}
				})
			}
			p.is(t, policed)
		}
	})
}

// Every chain that is there whatever the policy says is looked at: one without a
// rule, or with one too few, is noticed and put right by the ADD of any pod.
func TestEveryRuleCounts(t *testing.T) {
	n := newNode(t, nftables)
	n.Apply(webPolicy)
	p, plain := n.addPod(), n.addPod()
	plain.Labels = nil
	p.Add().OK(t)
	plain.Add().OK(t)
	n.ctl("gc")
	kernel := n.kernel()
	for _, path := range n.staticChains() {
		count := len(n.handles(path))
		for i := range count + 1 {
			command := "flush chain " + path
			if i < count {
				command = "delete rule " + path + " handle " + n.handles(path)[i] // each is written again, with a new handle
			}
			n.nft(command)
			p.Check().Fails(t, 5, "incomplete")
			plain.Add().OK(t)
			p.Check().OK(t)
			if diff := cmp.Diff(kernel, n.kernel()); diff != "" {
				t.Fatalf("%s, rule %d of %d:\n%s", command, i+1, count, diff)
			}
		}
	}
}

// staticChains names the chains of nft that are there whatever the policy says.
func (n *node) staticChains() []string {
	n.T.Helper()
	var paths []string
	for _, object := range n.tables() {
		m := regexp.MustCompile(`^table (\S+ podmark) \{\n\tchain (\S+) \{`).FindStringSubmatch(object)
		if m != nil && !profileChain.MatchString(object) {
			paths = append(paths, m[1]+" "+m[2])
		}
	}
	if len(paths) < 10 {
		n.T.Fatalf("chains %q", paths)
	}
	return paths
}

// CHECK takes what others do to the node meanwhile for no harm to the pod.
func TestCheckWhileOthersChange(t *testing.T) {
	// Many rules: the more there are, the longer it takes to write them.
	policy := &strings.Builder{}
	policy.WriteString(webPolicy + "  - ports: [{port: 1}]\n---\n" + `{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "many", "namespace": "default"}, "spec": {"podSelector": {}, "egress": [`)
	for port := range 500 {
		fmt.Fprintf(policy, `{"ports": [{"protocol": "TCP", "port": %d}]}, `, port+1)
	}
	manifests := strings.TrimSuffix(policy.String(), ", ") + `]}}`
	eachKind(t, func(t *testing.T, n *node) {
		n.Apply(manifests)
		p, other := n.addPod(), n.addPod()
		p.Add().OK(t)
		done := make(chan struct{})
		go func() {
			defer close(done)
			if err := n.Enter(); err != nil {
				t.Errorf("entering the node's namespace: %v", err)
				return
			}
			for range 10 {
				if _, err := n.Try(manifests, testnode.Program(t, "podmarkctl"), "--state-dir", n.Dir, "apply", "-f", "-"); err != nil {
					t.Error(err)
				}
				for _, r := range []reply{other.Add(), other.Del()} {
					if r.Code() != 0 {
						t.Errorf("%d: %s", r.Code(), r.Text())
					}
				}
			}
		}()
		for {
			if r := p.Check(); r.Code() != 0 {
				t.Errorf("CHECK: %d: %s", r.Code(), r.Text())
			}
			select {
			case <-done:
				return
			default:
			}
		}
	})
}
