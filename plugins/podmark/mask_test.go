package main_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/podmark/podmark/pkg/mark"
	"github.com/podmark/podmark/test/wait"
)

// use makes the next ADD get this ID, if it is free.
func (n *node) use(id int) {
	n.T.Helper()
	if err := os.WriteFile(filepath.Join(n.Dir, "next"), []byte(strconv.Itoa(id)), 0o600); err != nil && !errors.Is(err, fs.ErrNotExist) {
		n.T.Fatal(err)
	}
}

// marks are the endpoints' marks by address, as the kernel has them, and what the
// records say they should be.
func (n *node) marks(t *testing.T, mask uint32, pods ...*pod) (got, want []string) {
	t.Helper()
	layout, err := mark.NewLayout(mask)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pods {
		for _, a := range []string{p.V4, p.V6} {
			want = append(want, fmt.Sprintf("%s %s %#x", a, p.Veth, layout.ID(p.Record(t).ID).Value))
		}
	}
	return n.endpoints(), want
}

// A conflist with another mask moves every endpoint, under traffic: nothing
// forbidden gets through on the way, and what is allowed goes on. IDs change where
// the masks overlap so that a mark would mean two endpoints, or where they do not fit.
func TestMask(t *testing.T) {
	eachBackend(t, func(t *testing.T, n *node) {
		n.withHost()
		n.Apply(switchPolicy)
		masks := []uint32{0xffff0000, 0x00ff0000, 0xfffc0000, 0x000000ff, 0x0f0f0f0f, 0xff000000, 0xffff0000}
		keys := func(i int) conf { return conf{"iptablesMarkMask": fmt.Sprintf("%#x", masks[i])} }
		p, q := n.addPod().listen(), n.addPod().listen()
		plain := n.addPod()
		plain.Labels = nil
		p.Add(keys(0)).OK(t)
		n.use(300) // does not fit in 8 bits
		q.Add(keys(0)).OK(t)
		n.use(4) // in 0x00ff0000 its mark is what means "outside" in 0xfffc0000
		plain.Add(keys(0)).OK(t)
		lines := n.allowedLines(t, p)
		tries := newTrials(t)
		for _, pod := range []*pod{p, q} {
			tries.from(pod.Space, n.outside.v4, 9001)
			tries.from(pod.Space, n.outside.v6, 9001)
			tries.from(n.outside.Space, pod.V4, 8001)
			tries.from(plain.Space, pod.V6, 8001)
		}
		forbidden := map[string]*server{"the host outside": n.outside.forbidden, "pod p": p.forbidden, "pod q": q.forbidden}
		n.configure(keys(0))
		n.keeper()
		for i, mask := range masks[1:] {
			keys := keys(i + 1)
			n.Run(t, fmt.Sprintf("%d %#x", i, mask), func(t *testing.T) {
				before := tries.count()
				n.configure(keys)
				wait.For(t, "the endpoints have moved", func() bool { return n.settledOn(mask) })
				wait.For(t, "something was tried meanwhile", func() bool { return tries.count() > before })
				got, want := n.marks(t, mask, p, q, plain)
				for _, w := range want {
					if !strings.Contains(strings.Join(got, "\n"), w) {
						t.Errorf("no endpoint %s in %q", w, got)
					}
				}
				late := n.addPod()
				late.Add(keys).OK(t)
				for _, pod := range []*pod{p, q, plain, late} {
					pod.Check(keys).OK(t)
				}
				late.Del(keys).OK(t)
				alive(t, lines)
				silent(t, forbidden)
				p.is(t, policed)
				q.is(t, policed)
			})
		}
		tries.stop()
		for _, l := range lines {
			l.close(t)
		}
	})
}

// A mask that has not room for all changes nothing, and neither do networks that
// want different ones: the plugin says what to do.
func TestMaskRefused(t *testing.T) {
	n := newNode(t, nftables)
	var pods []*pod
	for range 3 {
		pods = append(pods, n.addPod())
		pods[len(pods)-1].Add().OK(t)
	}
	kernel, files := n.kernel(), n.files()
	k := n.keeper()
	n.configure(conf{"iptablesMarkMask": "0x30000"})
	status := func() string { return n.ctl("status") }
	wait.For(t, "podmarkd says that it is too narrow", func() bool { return strings.Contains(status(), "holds 2 endpoints, and the node has 3") })
	pods[0].Add(conf{"iptablesMarkMask": "0x30000"}).Fails(t, 7, "podmarkd")
	other := strings.NewReplacer(`"net"`, `"other"`, "0x30000", "0xff0000").Replace(n.conflist())
	if err := os.WriteFile(filepath.Join(filepath.Dir(n.Dir), "net.d", "20-other.conflist"), []byte(other), 0o600); err != nil {
		t.Fatal(err)
	}
	wait.For(t, "podmarkd says that they differ", func() bool { return strings.Contains(status(), "make them the same") })
	k.Kill()
	if diff := cmp.Diff(kernel, n.kernel()); diff != "" {
		t.Errorf("the kernel has changed:\n%s", diff)
	}
	after := n.files()
	for _, p := range pods {
		name, _ := filepath.Rel(n.Dir, p.RecordFile())
		if diff := cmp.Diff(files[name], after[name]); diff != "" {
			t.Errorf("a record has changed:\n%s", diff)
		}
	}
	if !n.settledOn(0xffff0000) {
		t.Errorf("the node is on its way: %s", after["node.json"])
	}
}

func (n *node) conflist() string {
	n.T.Helper()
	b, err := os.ReadFile(filepath.Join(filepath.Dir(n.Dir), "net.d", "10-net.conflist"))
	if err != nil {
		n.T.Fatal(err)
	}
	return string(b)
}

// Killed at any step on the way to another mask, podmarkd leaves pods policed, and
// whoever comes next arrives there: another podmarkd, an ADD, a DEL or a policy.
func TestMaskKilled(t *testing.T) {
	eachBackend(t, func(t *testing.T, n *node) {
		n.withHost()
		n.Apply(webPolicy)
		masks := []uint32{0xffff0000, 0x0ff00000}
		keys := func(i int) conf { return conf{"iptablesMarkMask": fmt.Sprintf("%#x", masks[i%2])} }
		p, q := n.addPod().listen(), n.addPod().listen()
		p.Add().OK(t)
		q.Add().OK(t)
		n.configure(keys(0))
		next := map[string]func(t *testing.T, i int){
			"podmarkd": func(t *testing.T, i int) {
				k := n.keeper()
				wait.For(t, "it arrives", func() bool { return n.settledOn(masks[i%2]) })
				k.Kill()
			},
			"ADD":    func(t *testing.T, i int) { p.Add(keys(i)).OK(t) },
			"DEL":    func(t *testing.T, i int) { q.Del(keys(i)).OK(t); q.Add(keys(i)).OK(t) },
			"policy": func(t *testing.T, _ int) { n.Apply(webPolicy) },
		}
		order := []string{"podmarkd", "ADD", "DEL", "policy"}
		for i := 1; ; i++ {
			n.configure(keys(i))
			steps := filepath.Join(t.TempDir(), "steps")
			k := n.faultyKeeper("PODMARK_STEPS="+steps, fmt.Sprint("PODMARK_KILL_AFTER=", i))
			wait.For(t, "it is killed or arrives", func() bool { return begun(steps, "renumbered") && n.settledOn(masks[i%2]) || k.Gone() })
			arrived := !k.Gone()
			k.Kill()
			if !arrived {
				n.Run(t, fmt.Sprintf("step %d, then %s", i, order[i%4]), func(t *testing.T) {
					p.is(t, policed)
					if b, _ := os.ReadFile(filepath.Join(n.Dir, "node.json")); strings.Contains(string(b), `"moving"`) {
						next[order[i%4]](t, i)
					} else {
						next["podmarkd"](t, i)
					}
				})
			}
			n.Run(t, fmt.Sprintf("after step %d", i), func(t *testing.T) {
				if !n.settledOn(masks[i%2]) {
					t.Fatalf("the node has not arrived: %s", n.files()["node.json"])
				}
				for _, pod := range []*pod{p, q} {
					pod.Check(keys(i)).OK(t)
					pod.is(t, policed)
				}
			})
			if arrived || t.Failed() {
				if i < 6 {
					t.Errorf("there were %d steps", i)
				}
				break
			}
		}
	})
}
