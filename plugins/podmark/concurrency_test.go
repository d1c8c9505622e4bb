package main_test

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/podmark/podmark/pkg/mark"
	"github.com/podmark/podmark/pkg/state"
)

// each runs f for every pod at once, on threads of the node's namespace.
func (n *node) each(pods []*pod, f func(p *pod)) {
	var all sync.WaitGroup
	for _, p := range pods {
		all.Go(func() {
			if err := n.Enter(); err != nil {
				n.T.Errorf("entering the node's namespace: %v", err)
				return
			}
			f(p)
		})
	}
	all.Wait()
}

// A node starts and stops many pods at once.
func TestConcurrent(t *testing.T) { inTurn(t, testConcurrent) }

func testConcurrent(t *testing.T, n *node) {
	const count = 100
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	var pods []*pod
	for i := range count {
		p := n.addPod()
		if i%3 == 0 {
			p.Labels = nil
		}
		pods = append(pods, p)
	}
	n.Apply(webPolicy)
	n.settle()
	kernel, files := n.kernel(), n.files()
	unharmed := func(r reply, what string, p *pod) {
		if r.Code() != 0 || r.Killed() {
			t.Errorf("%s of %s: %d: %s", what, p.ID, r.Code(), r.Text())
		}
	}
	add := func(p *pod) { unharmed(p.Add(), "ADD", p) }
	del := func(p *pod) { unharmed(p.Del(), "DEL", p) }
	distinct := func() {
		t.Helper()
		records, err := state.At(n.Dir).List()
		if err != nil {
			t.Fatal(err)
		}
		owner := map[mark.ID]string{}
		for _, r := range records {
			if other := owner[r.ID]; other != "" {
				t.Errorf("%s and %s both have ID %d", other, r.ContainerID, r.ID)
			}
			owner[r.ID] = r.ContainerID
		}
	}

	n.each(pods, add)
	distinct()
	if known := len(n.known()); known != count {
		t.Errorf("%d attachments, want %d", known, count)
	}
	// Half of the pods come while the other half goes, some twice.
	random.Shuffle(len(pods), func(i, j int) { pods[i], pods[j] = pods[j], pods[i] })
	leaving := map[*pod]bool{}
	for _, p := range pods[:count/2] {
		leaving[p] = true
	}
	n.each(append(pods, pods[:10]...), func(p *pod) {
		if leaving[p] {
			del(p)
		} else {
			add(p)
		}
	})
	distinct()
	n.each(pods[count/2:], func(p *pod) { unharmed(p.Check(), "CHECK", p) })
	n.each(pods, del)
	if diff := cmp.Diff(kernel, n.kernel()) + cmp.Diff(files, n.files()); diff != "" {
		t.Errorf("left behind:\n%s", diff)
	}
}

// Who waits for the lock while an uninstall takes the whole state directory away, or comes right
// after, begins a new life: no ADD fails, and in the end everything is there.
func TestUninstallWhileOthersWait(t *testing.T) {
	inTurn(t, func(t *testing.T, n *node) {
		const count, times = 20, 5
		var pods []*pod
		for range count {
			pods = append(pods, n.addPod())
		}
		pods[0].Add().OK(t)
		var all sync.WaitGroup
		all.Go(func() {
			n.each(pods, func(p *pod) {
				for range times {
					if r := p.Add(); r.Code() != 0 {
						t.Errorf("ADD of %s: %d: %s", p.ID, r.Code(), r.Text())
					}
				}
			})
		})
		defer all.Wait()
		for range times {
			n.ctl("uninstall", "--yes")
		}
		all.Wait()
		for _, p := range pods {
			p.Add().OK(t)
		}
		for _, p := range pods {
			p.Check().OK(t)
		}
		if known := len(n.known()); known != count {
			t.Errorf("%d attachments, want %d", known, count)
		}
	})
}
