package main_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	enforced "github.com/podmark/podmark/pkg/node"
	"github.com/podmark/podmark/pkg/state"
	"github.com/podmark/podmark/test/testnode"
	"github.com/podmark/podmark/test/wait"
)

// Without the policies in force nobody comes, and whoever is there is policed as before, whatever
// podmarkd and others do, until they are applied again.
func TestLostPolicies(t *testing.T) {
	losses := map[string]func(path string) error{
		"gone":    os.Remove,
		"none":    func(path string) error { return os.WriteFile(path, []byte("{}"), 0o600) },
		"damaged": func(path string) error { return os.Truncate(path, 10) },
	}
	eachBackend(t, func(t *testing.T, n *node) {
		n.withHost().Apply(webPolicy)
		p, other := n.addPod().listen(), n.addPod().listen()
		p.Add().OK(t)
		for name, lose := range losses {
			n.Run(t, name, func(t *testing.T) {
				kernel := n.kernel()
				if err := lose(filepath.Join(n.Dir, "policies.json")); err != nil {
					t.Fatal(err)
				}
				other.Add().Fails(t, 103, "policies.json", "apply the policies again")
				p.Check().Fails(t, 103, "policies.json")
				_ = os.Remove(filepath.Join(n.Dir, "daemon.json"))
				k := n.keeper()
				wait.For(t, "podmarkd has looked", func() bool { _, err := os.Stat(filepath.Join(n.Dir, "daemon.json")); return err == nil })
				k.Kill()
				if _, err := n.Try("", testnode.Program(t, "podmarkctl"), "--state-dir", n.Dir, "gc"); err == nil {
					t.Error("gc succeeds")
				}
				other.Del().OK(t)
				if diff := cmp.Diff(kernel, n.kernel()); diff != "" {
					t.Errorf("the kernel has something else:\n%s", diff)
				}
				p.is(t, policed)
				n.Apply(webPolicy)
				p.Check().OK(t)
				p.is(t, policed)
				other.Add().OK(t)
				other.is(t, policed)
				other.Del().OK(t)
				n.ctl("gc")
			})
		}
	})
}

// Whenever an uninstall ends half-way, the next ADD begins a life that has nothing of the one
// before, in the kernel or in the state directory.
func TestUninstallEndsHalfWay(t *testing.T) {
	eachBackend(t, func(t *testing.T, n *node) {
		p, stale := n.addPod(), n.addPod()
		p.Add().OK(t)
		// A podmarkd that has been started meanwhile keeps what it holds.
		n.write(t, "daemon.lock", "")
		kernel, files := n.kernel(), n.files()
		// interrupted reports whether an uninstall had as many steps.
		interrupted := func(after int) (did bool) {
			steps := 0
			here := enforced.Node{Store: state.At(n.Dir), LockTimeout: time.Minute, Programs: true, Step: func(string) {
				if steps++; steps == after {
					panic("interrupted")
				}
			}}
			defer func() { did = recover() != nil }()
			if err := here.Uninstall(t.Context()); err != nil {
				t.Fatal(err)
			}
			return false
		}
		for after := 1; ; after++ {
			n.Apply(webPolicy)
			stale.Add().OK(t)
			if !interrupted(after) {
				if after < 4 {
					t.Errorf("an uninstall has %d steps", after-1)
				}
				break
			}
			if _, err := os.Stat(filepath.Join(n.Dir, "node.json")); err == nil {
				p.Check().Fails(t, 5)
			}
			p.Add().OK(t)
			p.Check().OK(t)
			if diff := cmp.Diff(kernel, n.kernel()) + cmp.Diff(files, n.files()); diff != "" {
				t.Errorf("interrupted at step %d, the next life begins otherwise:\n%s", after, diff)
			}
		}
	})
}
