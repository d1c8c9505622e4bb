package main_test

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// crashes are the calls that are killed after each of their steps.
var crashes = []struct {
	name string
	verb string
	// before brings the node to where the call is made. It runs again for each kill.
	before func(t *testing.T, n *node, p *pod)
	// policed is whether a policy applied to the pod until the call.
	policed bool
	// node is set where the whole node is brought up to date first: then only
	// that is gone through, and each step is followed by one thing, in turn, in both.
	node bool
}{
	{
		name: "first ADD ever", verb: "ADD", node: true,
		before: func(_ *testing.T, n *node, _ *pod) { n.ctl("uninstall") },
	},
	{
		name: "ADD on a flushed node", verb: "ADD", policed: true, node: true,
		before: func(_ *testing.T, n *node, _ *pod) { n.wipe() },
	},
	{
		name: "ADD with a new profile", verb: "ADD", policed: true,
		before: func(*testing.T, *node, *pod) {},
	},
	{
		name: "ADD with a known profile", verb: "ADD", policed: true,
		before: func(t *testing.T, n *node, _ *pod) { n.ensurePeer(t) },
	},
	{
		name: "DEL of the last of a profile", verb: "DEL", policed: true,
		before: func(t *testing.T, _ *node, p *pod) { p.add().ok(t) },
	},
	{
		name: "DEL with the profile staying", verb: "DEL", policed: true,
		before: func(t *testing.T, n *node, p *pod) { n.ensurePeer(t); p.add().ok(t) },
	},
	{
		name: "DEL on a flushed node", verb: "DEL", node: true,
		before: func(t *testing.T, n *node, p *pod) { p.add().ok(t); n.wipe() },
	},
}

// After a kill at any step the pod can do nothing that is forbidden, and what
// comes next, whatever it is, ends as if there had been no kill. Each step is
// followed by everything in one variant, and by one thing in turn in the other.
func TestKill(t *testing.T) {
	for _, c := range crashes {
		t.Run(c.name, func(t *testing.T) {
			eachVariant(t, func(t *testing.T, n *node) {
				p := n.withHost().addPod().listen()
				k := killer{
					n: n, p: p, verb: c.verb, policed: c.policed,
					before: func(t *testing.T) { c.before(t, n, p) },
					log:    filepath.Join(t.TempDir(), "steps"),
				}
				n.apply(webPolicy)
				k.learn(t)
				nexts := slices.Sorted(maps.Keys(aftermath))
				for i, step := range k.steps {
					for j, next := range nexts {
						if (c.node || n.variant != variants[0]) && (i+slices.Index(variants, n.variant))%len(nexts) != j {
							continue
						}
						// What a failure leaves behind is nothing the next round can start from.
						if !k.round(t, i+1, next) {
							return
						}
					}
					if c.node && strings.HasSuffix(step, " synced") {
						break
					}
				}
			})
		})
	}
}

// aftermath is what may come after a kill, and brings the node back to where the
// pod was not known.
var aftermath = map[string]func(t *testing.T, k *killer){
	"ADD": func(t *testing.T, k *killer) {
		k.p.add().ok(t)
		k.p.check().ok(t)
		if strings.Contains(k.files["node.json"], `"web"`) {
			k.p.is(t, policed)
		}
		k.p.del().ok(t)
	},
	"DEL": func(t *testing.T, k *killer) {
		_, err := os.Stat(k.p.recordFile())
		k.p.del().ok(t)
		if err != nil {
			k.n.ctl("gc") // the pod was not known yet, only the node had begun to change
		}
	},
	"gc": func(t *testing.T, k *killer) {
		if k.committed() {
			// Killed when all was done: only the runtime knows that it is not valid.
			valid := "another"
			if k.n.peer != nil {
				valid = k.n.peer.id
			}
			k.n.gc(conf{"cni.dev/valid-attachments": []conf{{"containerID": valid, "ifname": "eth0"}}}).ok(t)
			return
		}
		k.n.ctl("gc")
	},
}

// killer makes one call again and again, killed after another step each time.
type killer struct {
	n       *node
	p       *pod
	verb    string
	before  func(t *testing.T)
	policed bool
	log     string // the file that the plugin writes its steps to

	// What an unharmed call did, and what is left when the pod is gone again.
	steps  []string
	kernel string
	files  map[string]string
}

// call makes the call with the plugin that dies after a step; 0 is never.
func (k *killer) call(after int) reply {
	k.n.t.Helper()
	k.n.program = filepath.Join(programs, "fault", "podmark")
	defer func() { k.n.program = filepath.Join(programs, "podmark") }()
	c := k.n.conf()
	if k.verb == "ADD" {
		c = k.p.conf()
	}
	return k.n.call(k.verb, c, append(k.p.env(), "PODMARK_STEPS="+k.log, fmt.Sprint("PODMARK_KILL_AFTER=", after))...)
}

// learn makes the call unharmed.
func (k *killer) learn(t *testing.T) {
	t.Helper()
	k.before(t)
	k.call(0).ok(t)
	k.p.del().ok(t)
	k.kernel, k.files = k.n.kernel(), k.n.files()
	b, err := os.ReadFile(k.log)
	if err != nil {
		t.Fatal(err)
	}
	k.steps = strings.Split(strings.TrimSpace(string(b)), "\n")
	if len(k.steps) < 5 {
		t.Fatalf("the call has %d steps: %q", len(k.steps), k.steps)
	}
}

// committed reports whether the pod has a record that says so.
func (k *killer) committed() bool {
	b, _ := os.ReadFile(k.p.recordFile())
	return strings.Contains(string(b), `"committed":true`)
}

// guarded reports whether the pod was policed when the process ended after a
// step: an ADD polices from when the port is closed, a DEL all along.
func (k *killer) guarded(number int) bool {
	return k.policed && (k.verb == "DEL" || slices.ContainsFunc(k.steps[:number], func(s string) bool { return strings.HasSuffix(s, " closed") }))
}

// round kills the call after a step, looks whether the pod is open, and goes on
// with next. It reports whether all came out right.
func (k *killer) round(t *testing.T, number int, next string) bool {
	return k.n.run(t, fmt.Sprintf("%s, then %s", k.steps[number-1], next), func(t *testing.T) {
		k.before(t)
		if r := k.call(number); !r.killed() {
			t.Fatalf("plugin ended with %v, want a kill", r.state)
		}
		if committed := k.committed(); k.verb == "ADD" && committed != strings.HasSuffix(k.steps[number-1], " committed") {
			t.Errorf("the record's committed is %t", committed)
		}
		if k.guarded(number) {
			k.p.is(t, guarded)
		}
		aftermath[next](t, k)
		if diff := cmp.Diff(k.kernel, k.n.kernel()); diff != "" {
			t.Errorf("left in the kernel:\n%s", diff)
		}
		if diff := cmp.Diff(k.files, k.n.files()); diff != "" {
			t.Errorf("left in the state folder:\n%s", diff)
		}
	})
}

// wipe takes podmark's rules and sets away, as 'iptables -F' and a reload of a
// firewall do.
func (n *node) wipe() {
	n.t.Helper()
	n.iptables("-F")
	n.iptables("-X")
	n.iptables("-N", "KUBE-IPTABLES-HINT")
	n.exec("", "ipset", "destroy")
}

// ensurePeer makes a pod with the same policy as the others live on the node.
func (n *node) ensurePeer(t *testing.T) {
	t.Helper()
	if n.peer == nil {
		n.peer = n.addPod()
		n.peer.add().ok(t)
	}
}
