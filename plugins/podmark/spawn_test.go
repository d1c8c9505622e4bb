package main_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/podmark/podmark/pkg/mark"
	"github.com/podmark/podmark/test/wait"
)

// With nftables nothing ever starts a process. With iptables, a pod whose profiles
// exist costs none; one that brings a profile costs one restore per family, and so
// does the last one that leaves with it.
func TestProcesses(t *testing.T) {
	eachBackend(t, func(t *testing.T, n *node) {
		n.apply(webPolicy)
		n.settle()
		a, b := n.addPod(), n.addPod()
		plain := n.addPod()
		plain.labels = nil
		c, d := n.addPod(), n.addPod()
		ran := n.shims()
		restores := []string{"ip6tables-" + n.backend.variant + "-restore", "iptables-" + n.backend.variant + "-restore"}
		if n.backend == nftables {
			restores = nil
		}
		for _, step := range []struct {
			name string
			call func() reply
			want []string
		}{
			{"ADD of a pod that no policy selects", func() reply { return plain.add() }, nil},
			{"ADD that brings a profile", func() reply { return a.add() }, restores},
			{"ADD of its sibling", func() reply { return b.add() }, nil},
			{"ADD again", func() reply { return b.add() }, nil},
			{"CHECK", func() reply { return b.check() }, nil},
			{"STATUS", func() reply { return n.status() }, nil},
			{"DEL of its sibling", func() reply { return b.del() }, nil},
			{"DEL again", func() reply { return b.del() }, nil},
			{"DEL of the last", func() reply { return a.del() }, restores},
			{"DEL of a pod that no policy selects", func() reply { return plain.del() }, nil},
			{"ADD with IPv4 alone that brings a profile", func() reply { return c.add(c.onlyIPv4()) }, restores},
			{"ADD of its sibling with IPv4 alone", func() reply { return d.add(d.onlyIPv4()) }, nil},
			{"DEL of that sibling", func() reply { return d.del() }, nil},
			{"CHECK of who is left", func() reply { return c.check(c.onlyIPv4()) }, nil},
			{"DEL of the last with IPv4 alone", func() reply { return c.del() }, restores},
		} {
			step.call().ok(t)
			got := ran()
			slices.Sort(got)
			if diff := cmp.Diff(step.want, append([]string(nil), got...)); diff != "" {
				t.Errorf("%s ran other commands than expected:\n%s", step.name, diff)
			}
		}
	})
}

// Who leaves a family in which nobody is takes nothing of it with him: not a rule that the
// CHECK of the others looks for, and nothing that podmarkd would have to write back.
func TestOneFamilyLeaves(t *testing.T) {
	eachBackend(t, func(t *testing.T, n *node) {
		n.withHost().apply(webPolicy)
		stays, goes := n.addPod().listen(), n.addPod()
		stays.add(stays.onlyIPv4()).ok(t)
		n.ctl("gc")
		kernel := n.kernel()
		goes.add(goes.onlyIPv4()).ok(t)
		ran := n.shims()
		goes.del().ok(t)
		stays.check(stays.onlyIPv4()).ok(t)
		if commands := ran(); len(commands) > 0 {
			t.Errorf("ran %v", commands)
		}
		goes.unlink()
		if diff := cmp.Diff(kernel, n.kernel()); diff != "" {
			t.Errorf("left in the kernel:\n%s", diff)
		}
		k := n.keeper()
		wait.For(t, "podmarkd has looked", func() bool { _, err := os.Stat(filepath.Join(n.dir, "daemon.json")); return err == nil })
		k.end()
		if said := k.said(); strings.Contains(said, "Repaired") {
			t.Errorf("podmarkd has repaired something: %s", said)
		}
	})
}

// Nor is one where pods come and go for long: a new block of IDs has sets, and no rules.
func TestProcessesInTheLongRun(t *testing.T) {
	eachBackend(t, func(t *testing.T, n *node) {
		n.apply(webPolicy)
		n.settle()
		n.addPod().add().ok(t)
		ran := n.shims()
		for range 2 * mark.Block {
			p := n.addPod()
			p.add().ok(t)
			p.del().ok(t)
		}
		if got := ran(); len(got) > 0 {
			t.Errorf("ran %v", got)
		}
	})
}

// With nftables no command is run whatever is asked, from the first ADD on a
// virgin node to the end, and none has to be there.
func TestNoCommands(t *testing.T) {
	steps := []struct {
		name string
		call func(t *testing.T, n *node, a, b *pod)
	}{
		{"STATUS of a virgin node", func(t *testing.T, n *node, _, _ *pod) { n.status().ok(t) }},
		{"first ADD", func(t *testing.T, _ *node, a, _ *pod) { a.add().ok(t) }},
		{"apply", func(_ *testing.T, n *node, _, _ *pod) { n.apply(webPolicy) }},
		{"ADD of another", func(t *testing.T, _ *node, _, b *pod) { b.add().ok(t) }},
		{"CHECK", func(t *testing.T, _ *node, _, b *pod) { b.check().ok(t) }},
		{"STATUS", func(t *testing.T, n *node, _, _ *pod) { n.status().ok(t) }},
		{"list", func(_ *testing.T, n *node, _, _ *pod) { n.ctl("list") }},
		{"render", func(_ *testing.T, n *node, _, _ *pod) { n.ctl("render") }},
		{"ADD on a flushed node", func(t *testing.T, n *node, a, _ *pod) { n.nft("flush ruleset"); a.add().ok(t) }},
		{"DEL on a flushed node", func(t *testing.T, n *node, a, _ *pod) { n.nft("flush ruleset"); a.del().ok(t) }},
		{"DEL of the last", func(t *testing.T, _ *node, _, b *pod) { b.del().ok(t) }},
		{"ADD again", func(t *testing.T, _ *node, a, _ *pod) { a.add().ok(t) }},
		{"GC", func(t *testing.T, n *node, _, _ *pod) {
			n.gc(conf{"cni.dev/valid-attachments": []conf{{"containerID": "another", "ifname": "eth0"}}}).ok(t)
		}},
		{"apply --delete", func(_ *testing.T, n *node, _, _ *pod) { n.ctl("apply", "--delete") }},
		{"gc", func(_ *testing.T, n *node, _, _ *pod) { n.ctl("gc") }},
		{"uninstall", func(_ *testing.T, n *node, _, _ *pod) { n.ctl("uninstall", "--yes") }},
		{"DEL after uninstall", func(t *testing.T, _ *node, a, _ *pod) { a.del().ok(t) }},
	}
	for _, key := range []string{"auto", "nftables"} {
		for _, commands := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, commands there is %t", key, commands), func(t *testing.T) {
				n := newNode(t, nftables)
				n.backend.key = key
				a, b := n.addPod(), n.addPod()
				ran := n.shims()
				if !commands {
					n.path = "/nowhere"
				}
				for _, step := range steps {
					step.call(t, n, a, b)
					if got := ran(); len(got) > 0 {
						t.Errorf("%s ran %v", step.name, got)
					}
				}
				if got := n.present(); got != "" {
					t.Errorf("%s is left after uninstall", got)
				}
			})
		}
	}
}

// A pod that finds the rules of iptables gone has them written back together with
// its own: still one restore per family.
func TestRestoresOnAFlushedNode(t *testing.T) {
	on(t, inIPTables, func(t *testing.T, n *node) {
		n.apply(webPolicy)
		n.settle()
		pod := n.addPod()
		n.iptables("-t", "mangle", "-F")
		ran := n.shims()
		pod.add().ok(t)
		count := map[string]int{}
		for _, command := range ran() {
			count[command]++
		}
		for _, command := range []string{"ip6tables-" + n.backend.variant + "-restore", "iptables-" + n.backend.variant + "-restore"} {
			if count[command] != 1 {
				t.Errorf("%s ran %d times, want once", command, count[command])
			}
		}
	})
}
