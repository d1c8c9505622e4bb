package main_test

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A pod whose profiles exist costs no process; one that brings a profile costs
// one restore per family, and so does the last one that leaves with it.
func TestProcesses(t *testing.T) {
	eachVariant(t, func(t *testing.T, n *node) {
		n.apply(webPolicy)
		a, b := n.addPod(), n.addPod()
		plain := n.addPod()
		plain.labels = nil
		ran := n.shims()
		restores := []string{"ip6tables-" + n.variant + "-restore", "iptables-" + n.variant + "-restore"}
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

// A pod that finds the rules gone has them written back together with its own:
// still one restore per family.
func TestRestoresOnAFlushedNode(t *testing.T) {
	eachVariant(t, func(t *testing.T, n *node) {
		n.apply(webPolicy)
		pod := n.addPod()
		n.iptables("-t", "mangle", "-F")
		ran := n.shims()
		pod.add().ok(t)
		count := map[string]int{}
		for _, command := range ran() {
			count[command]++
		}
		for _, command := range []string{"ip6tables-" + n.variant + "-restore", "iptables-" + n.variant + "-restore"} {
			if count[command] != 1 {
				t.Errorf("%s ran %d times, want once", command, count[command])
			}
		}
	})
}
