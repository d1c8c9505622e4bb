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
		n.Apply(webPolicy)
		n.settle()
		a, b := n.addPod(), n.addPod()
		plain := n.addPod()
		plain.Labels = nil
		c, d := n.addPod(), n.addPod()
		ran := n.shims()
		restores := []string{"ip6tables-" + n.Backend.Variant + "-restore", "iptables-" + n.Backend.Variant + "-restore"}
		if n.Backend == nftables {
			restores = nil
		}
		for _, step := range []struct {
			name string
			call func() reply
			want []string
		}{
			{"ADD of a pod that no policy selects", func() reply { return plain.Add() }, nil},
			{"ADD that brings a profile", func() reply { return a.Add() }, restores},
			{"ADD of its sibling", func() reply { return b.Add() }, nil},
			{"ADD again", func() reply { return b.Add() }, nil},
			{"CHECK", func() reply { return b.Check() }, nil},
			{"STATUS", func() reply { return n.status() }, nil},
			{"DEL of its sibling", func() reply { return b.Del() }, nil},
			{"DEL again", func() reply { return b.Del() }, nil},
			{"DEL of the last", func() reply { return a.Del() }, restores},
			{"DEL of a pod that no policy selects", func() reply { return plain.Del() }, nil},
			{"ADD with IPv4 alone that brings a profile", func() reply { return c.Add(c.onlyIPv4()) }, restores},
			{"ADD of its sibling with IPv4 alone", func() reply { return d.Add(d.onlyIPv4()) }, nil},
			{"DEL of that sibling", func() reply { return d.Del() }, nil},
			{"CHECK of who is left", func() reply { return c.Check(c.onlyIPv4()) }, nil},
			{"DEL of the last with IPv4 alone", func() reply { return c.Del() }, restores},
		} {
			step.call().OK(t)
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
		n.withHost().Apply(webPolicy)
		stays, goes := n.addPod().listen(), n.addPod()
		stays.Add(stays.onlyIPv4()).OK(t)
		n.ctl("gc")
		kernel := n.kernel()
		goes.Add(goes.onlyIPv4()).OK(t)
		ran := n.shims()
		goes.Del().OK(t)
		stays.Check(stays.onlyIPv4()).OK(t)
		if commands := ran(); len(commands) > 0 {
			t.Errorf("ran %v", commands)
		}
		goes.Unlink()
		if diff := cmp.Diff(kernel, n.kernel()); diff != "" {
			t.Errorf("left in the kernel:\n%s", diff)
		}
		k := n.keeper()
		wait.For(t, "podmarkd has looked", func() bool { _, err := os.Stat(filepath.Join(n.Dir, "daemon.json")); return err == nil })
		k.Kill()
		if said := k.Log.String(); strings.Contains(said, "Repaired") {
			t.Errorf("podmarkd has repaired something: %s", said)
		}
	})
}

// Nor is one where pods come and go for long: a new block of IDs has sets, and no rules.
func TestProcessesInTheLongRun(t *testing.T) {
	eachBackend(t, func(t *testing.T, n *node) {
		n.Apply(webPolicy)
		n.settle()
		n.addPod().Add().OK(t)
		ran := n.shims()
		for range 2 * mark.Block {
			p := n.addPod()
			p.Add().OK(t)
			p.Del().OK(t)
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
		{"STATUS of a virgin node", func(t *testing.T, n *node, _, _ *pod) { n.status().OK(t) }},
		{"first ADD", func(t *testing.T, _ *node, a, _ *pod) { a.Add().OK(t) }},
		{"apply", func(_ *testing.T, n *node, _, _ *pod) { n.Apply(webPolicy) }},
		{"ADD of another", func(t *testing.T, _ *node, _, b *pod) { b.Add().OK(t) }},
		{"CHECK", func(t *testing.T, _ *node, _, b *pod) { b.Check().OK(t) }},
		{"STATUS", func(t *testing.T, n *node, _, _ *pod) { n.status().OK(t) }},
		{"list", func(_ *testing.T, n *node, _, _ *pod) { n.ctl("list") }},
		{"render", func(_ *testing.T, n *node, _, _ *pod) { n.ctl("render") }},
		{"ADD on a flushed node", func(t *testing.T, n *node, a, _ *pod) { n.nft("flush ruleset"); a.Add().OK(t) }},
		{"DEL on a flushed node", func(t *testing.T, n *node, a, _ *pod) { n.nft("flush ruleset"); a.Del().OK(t) }},
		{"DEL of the last", func(t *testing.T, _ *node, _, b *pod) { b.Del().OK(t) }},
		{"ADD again", func(t *testing.T, _ *node, a, _ *pod) { a.Add().OK(t) }},
		{"GC", func(t *testing.T, n *node, _, _ *pod) {
			n.gc(conf{"cni.dev/valid-attachments": []conf{{"containerID": "another", "ifname": "eth0"}}}).OK(t)
		}},
		{"apply --delete", func(_ *testing.T, n *node, _, _ *pod) { n.ctl("apply", "--delete") }},
		{"gc", func(_ *testing.T, n *node, _, _ *pod) { n.ctl("gc") }},
		{"uninstall", func(_ *testing.T, n *node, _, _ *pod) { n.ctl("uninstall", "--yes") }},
		{"DEL after uninstall", func(t *testing.T, _ *node, a, _ *pod) { a.Del().OK(t) }},
	}
	for _, key := range []string{"auto", "nftables"} {
		for _, commands := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, commands there is %t", key, commands), func(t *testing.T) {
				n := newNode(t, nftables)
				n.Backend.Key = key
				a, b := n.addPod(), n.addPod()
				ran := n.shims()
				if !commands {
					n.Path = "/nowhere"
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
		n.Apply(webPolicy)
		n.settle()
		pod := n.addPod()
		n.Iptables("-t", "mangle", "-F")
		ran := n.shims()
		pod.Add().OK(t)
		count := map[string]int{}
		for _, command := range ran() {
			count[command]++
		}
		for _, command := range []string{"ip6tables-" + n.Backend.Variant + "-restore", "iptables-" + n.Backend.Variant + "-restore"} {
			if count[command] != 1 {
				t.Errorf("%s ran %d times, want once", command, count[command])
			}
		}
	})
}
