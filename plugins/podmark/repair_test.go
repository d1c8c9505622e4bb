package main_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/podmark/podmark/test/wait"
)

// Killed at any step of a repair, podmarkd leaves nothing that another cannot finish:
// afterwards the kernel has what it had, and the pod is policed.
func TestRepairKilled(t *testing.T) {
	eachBackend(t, func(t *testing.T, n *node) {
		n.withHost()
		n.Apply(webPolicy)
		p := n.addPod().listen()
		p.Add().OK(t)
		want := n.kept()
		back := func() bool { return cmp.Equal(want, n.kernel()) }
		for i := 1; ; i++ {
			n.wipe()
			k := n.faultyKeeper(fmt.Sprint("PODMARK_KILL_AFTER=", i))
			wait.For(t, "it is killed or has repaired", func() bool { return k.Gone() || back() })
			killed := k.Gone()
			k.Kill()
			other := n.keeper()
			wait.For(t, fmt.Sprintf("after step %d another has repaired", i), back)
			other.Kill()
			p.Check().OK(t)
			p.is(t, policed)
			if killed {
				continue
			}
			if i == 1 {
				t.Error("a repair has no step")
			}
			break
		}
	})
}

// kept is what the kernel has once podmarkd has looked, and has noted what it knows of the node,
// and everything was written after that.
func (n *node) kept() string {
	n.T.Helper()
	k := n.keeper()
	wait.For(n.T, "podmarkd has looked", func() bool { _, err := os.Stat(filepath.Join(n.Dir, "daemon.json")); return err == nil })
	k.Kill()
	n.ctl("gc")
	return n.kernel()
}

// What a rule says is podmarkd's to look at from its start on: one in the place of ours, as many as
// there were, goes.
func TestReplacedRule(t *testing.T) {
	eachBackend(t, func(t *testing.T, n *node) {
		n.withHost().Apply(webPolicy)
		p := n.addPod().listen()
		p.Add().OK(t)
		want := n.kept()
		if n.Backend == nftables {
			path := "inet podmark " + n.chain("i4-")
			n.nft("replace rule " + path + " handle " + n.handles(path)[0] + " accept")
		} else {
			n.Iptables("-R", n.chain("PODMARK-I-"), "1", "-j", "ACCEPT")
		}
		if cmp.Equal(want, n.kernel()) {
			t.Fatal("nothing has changed")
		}
		k := n.keeper()
		wait.For(t, "podmarkd has written the rule again", func() bool { return cmp.Equal(want, n.kernel()) })
		k.Kill()
		p.Check().OK(t)
		p.is(t, policed)
	})
}
