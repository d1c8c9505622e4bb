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

	"github.com/podmark/podmark/test/needs"
)

// crashes are the calls that are killed after each of their steps.
var crashes = []struct {
	name string
	verb string
	in   []backend
	// keys of the conflist, of the call and of the ADD that follows.
	keys conf
	// before brings the node to where the call is made. It runs again for each kill.
	before func(t *testing.T, n *node, p *pod)
	// policed is whether a policy applied to the pod until the call.
	policed bool
	// node is set where the whole node is brought up to date: of an ADD only that is
	// gone through then.
	node bool
	// full is whether the file system of the state directory has no room meanwhile.
	full bool
}{
	{
		name: "first ADD ever", verb: "ADD", in: backends, node: true,
		before: func(_ *testing.T, n *node, _ *pod) { n.ctl("uninstall", "--yes") },
	},
	{
		name: "first ADD ever, which chooses the mask", verb: "ADD", in: backends[:1], node: true,
		keys:   conf{"iptablesMarkMask": "auto"},
		before: func(_ *testing.T, n *node, _ *pod) { n.ctl("uninstall", "--yes") },
	},
	{
		name: "ADD on a flushed node", verb: "ADD", in: backends, policed: true, node: true,
		before: func(_ *testing.T, n *node, _ *pod) { n.wipe() },
	},
	{
		name: "ADD with a new profile", verb: "ADD", in: backends, policed: true,
		before: func(*testing.T, *node, *pod) {},
	},
	{
		name: "ADD with a known profile", verb: "ADD", in: backends, policed: true,
		before: func(t *testing.T, n *node, _ *pod) { n.ensurePeer(t) },
	},
	{
		name: "ADD that leaves iptables", verb: "ADD", in: inIPTables, policed: true, node: true,
		keys:   conf{"backend": "nftables"},
		before: func(t *testing.T, _ *node, p *pod) { p.Add(conf{"backend": "iptables"}).OK(t) },
	},
	{
		name: "ADD that leaves nftables", verb: "ADD", in: inIPTables, policed: true, node: true,
		keys:   conf{"backend": "iptables"},
		before: func(t *testing.T, _ *node, p *pod) { p.Add(conf{"backend": "nftables"}).OK(t) },
	},
	{
		name: "DEL of the last of a profile", verb: "DEL", in: backends, policed: true,
		before: func(t *testing.T, _ *node, p *pod) { p.Add().OK(t) },
	},
	{
		name: "DEL with the profile staying", verb: "DEL", in: backends, policed: true,
		before: func(t *testing.T, n *node, p *pod) { n.ensurePeer(t); p.Add().OK(t) },
	},
	{
		name: "DEL on a flushed node", verb: "DEL", in: backends, node: true,
		before: func(t *testing.T, n *node, p *pod) { p.Add().OK(t); n.wipe() },
	},
	{
		name: "DEL without room", verb: "DEL", in: kinds, policed: true, full: true,
		before: func(t *testing.T, _ *node, p *pod) { p.Add().OK(t) },
	},
}

// After a kill at any step the pod can do nothing that is forbidden, and what
// comes next, whatever it is, ends as if there had been no kill. Each step is followed by
// everything, but of 'make test' on one of the backends only.
func TestKill(t *testing.T) {
	for _, c := range crashes {
		t.Run(c.name, func(t *testing.T) {
			on(t, c.in, func(t *testing.T, n *node) {
				p := n.withHost().addPod().listen()
				var r *room
				if c.full {
					r = n.small(t)
				}
				k := killer{
					room: r,
					n:    n, p: p, verb: c.verb, keys: c.keys, policed: c.policed,
					before: func(t *testing.T) { c.before(t, n, p) },
					log:    filepath.Join(t.TempDir(), "steps"),
				}
				n.Apply(webPolicy)
				n.settle()
				k.learn(t)
				steps := k.steps
				if c.node && c.verb == "ADD" {
					reserved := slices.IndexFunc(steps, func(s string) bool { return strings.HasSuffix(s, " reserved") })
					steps = steps[:reserved]
				}
				nexts := slices.Sorted(maps.Keys(aftermath))
				for i := range steps {
					for j, next := range nexts {
						if !needs.Whole() && !follows(n.Backend, i, j, len(nexts)) {
							continue
						}
						// What a failure leaves behind is nothing the next round can start from.
						if !k.round(t, i+1, next) {
							return
						}
					}
				}
			})
		})
	}
}

// follows reports whether a step is followed by the thing number next of count: each step by
// one thing on each backend, and by another on the next one.
func follows(b backend, step, next, count int) bool {
	return next == (step+slices.Index(backends, b))%count
}

// aftermath is what may come after a kill, and brings the node back to where the
// pod was not known.
var aftermath = map[string]func(t *testing.T, k *killer){
	"ADD": func(t *testing.T, k *killer) {
		k.p.Add(k.keys).OK(t)
		k.p.Check().OK(t)
		if strings.Contains(k.files["policies.json"], `"web"`) {
			k.p.is(t, policed)
		}
		k.p.Del().OK(t)
	},
	"DEL": func(t *testing.T, k *killer) {
		_, err := os.Stat(k.p.RecordFile())
		k.p.Del().OK(t)
		if err != nil {
			k.n.ctl("gc") // the pod was not known yet, only the node had begun to change
		}
	},
	"gc": func(t *testing.T, k *killer) {
		if k.committed() {
			// Killed when all was done: only the runtime knows that it is not valid.
			valid := "another"
			if k.n.peer != nil {
				valid = k.n.peer.ID
			}
			k.n.gc(conf{"cni.dev/valid-attachments": []conf{{"containerID": valid, "ifname": "eth0"}}}).OK(t)
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
	keys    conf
	before  func(t *testing.T)
	policed bool
	log     string // the file that the plugin writes its steps to
	room    *room  // there is none during the call; nil for as much as it wants

	// done are the steps of the last call. It may have some that the unharmed one had not:
	// iptables has rules for every 32 IDs.
	done []string
	// What an unharmed call did, and what is left when the pod is gone again.
	steps  []string
	kernel string
	files  map[string]string
}

// call makes the call with the plugin that dies after a step; 0 is never.
func (k *killer) call(after int) reply {
	k.n.T.Helper()
	defer k.n.Faulty()()
	c := k.n.Conf(k.keys)
	if k.verb == "ADD" {
		c = k.p.Conf(k.keys)
	}
	_ = os.Remove(k.log)
	if k.room != nil {
		k.room.fill()
		defer k.room.free()
	}
	r := k.n.Call(k.verb, c, append(k.p.Env(), "PODMARK_STEPS="+k.log, fmt.Sprint("PODMARK_KILL_AFTER=", after))...)
	b, err := os.ReadFile(k.log)
	if err != nil {
		k.n.T.Fatal(err)
	}
	k.done = strings.Split(strings.TrimSpace(string(b)), "\n")
	return r
}

// learn makes the call unharmed.
func (k *killer) learn(t *testing.T) {
	t.Helper()
	k.before(t)
	k.call(0).OK(t)
	k.steps = k.done
	k.p.Del().OK(t)
	k.kernel, k.files = k.n.kernel(), k.n.files()
	if len(k.steps) < 5 {
		t.Fatalf("the call has %d steps: %q", len(k.steps), k.steps)
	}
}

// committed reports whether the pod has a record that says so.
func (k *killer) committed() bool {
	b, _ := os.ReadFile(k.p.RecordFile())
	return strings.Contains(string(b), `"committed":true`)
}

// passed reports whether the last call had a step of that name.
func (k *killer) passed(name string) bool {
	return slices.ContainsFunc(k.done, func(s string) bool { return strings.HasSuffix(s, " "+name) })
}

// guarded reports whether the pod was policed when the process ended: an ADD polices from
// when the port is closed, a DEL all along.
func (k *killer) guarded() bool {
	return k.policed && (k.verb == "DEL" || k.passed("closed"))
}

// round kills the call after a step, looks whether the pod is open, and goes on
// with next. It reports whether all came out right.
func (k *killer) round(t *testing.T, number int, next string) bool {
	return k.n.Run(t, fmt.Sprintf("%s, then %s", k.steps[number-1], next), func(t *testing.T) {
		k.before(t)
		// A pod that is there keeps its record until it gets a new one.
		kept := k.committed()
		if r := k.call(number); !r.Killed() {
			t.Fatalf("plugin ended with %v, want a kill", r.State)
		}
		kept = kept && !k.passed("reserved")
		if committed := k.committed(); k.verb == "ADD" && committed != (kept || k.passed("committed")) {
			t.Errorf("the record's committed is %t", committed)
		}
		switch {
		case k.verb == "ADD" && kept:
			k.p.is(t, policed)
		case k.guarded():
			k.p.is(t, guarded)
		}
		aftermath[next](t, k)
		if diff := cmp.Diff(k.kernel, k.n.kernel()); diff != "" {
			t.Errorf("left in the kernel:\n%s", diff)
		}
		if diff := cmp.Diff(k.files, k.n.files()); diff != "" {
			t.Errorf("left in the state directory:\n%s", diff)
		}
	})
}

// ensurePeer makes a pod with the same policy as the others live on the node.
func (n *node) ensurePeer(t *testing.T) {
	t.Helper()
	if n.peer == nil {
		n.peer = n.addPod()
		n.peer.Add().OK(t)
	}
}
