package cluster

import (
	"fmt"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// Object is a Pod or a NetworkPolicy.
type Object interface {
	runtime.Object
	metav1.Object
}

// Event is something that happens to one object.
type Event struct {
	// What happens: created, scheduled, running, relabelled, terminating, stopped,
	// completed or deleted for a pod, changed for a policy.
	What   string
	Object Object
	// Deleted is whether the object is gone; else it is as it is now.
	Deleted bool
}

// phase is how far a pod is.
type phase int

const (
	pending phase = iota
	scheduled
	running
	terminating
	stopped
	completed
)

// pod is what is known of one; its object is made of it.
type pod struct {
	workload int
	serial   int
	suffix   string
	node     int
	host     int  // number of its address; 0 for none of its own
	lost     bool // the address is another's perhaps
	phase    phase
	role     int
}

// onTheWay is how many pods are between two states.
const onTheWay = 64

// roles are the values of the label that events change and policies name.
func roles() []string { return []string{"client", "server", "job", "none"} }

func (c *Cluster) birth(workload int) *pod {
	c.born++
	const letters = "bcdfghjklmnpqrstvwxz2456789"
	suffix := make([]byte, 5)
	for i := range suffix {
		suffix[i] = letters[c.rng.IntN(len(letters))]
	}
	return &pod{workload: workload, serial: c.born, suffix: fmt.Sprintf("%s%d", suffix, c.born), node: -1, role: c.rng.IntN(len(roles()))}
}

// Next is the next event. Most take a pod one step on, from its creation to running or
// from running to its end; the number of pods stays about the same. What has completed
// gives its address back at once and is deleted later.
func (c *Cluster) Next() Event {
	switch n := c.rng.IntN(100); {
	case n < 2 && len(c.revisions) > 0:
		i := c.rng.IntN(len(c.revisions))
		c.revisions[i]++
		return Event{What: "changed", Object: c.policy(i)}
	case n < 12:
		p := c.pods[c.rng.IntN(len(c.pods))]
		if p.phase == running {
			p.role = (p.role + 1) % len(roles())
			return Event{What: "relabelled", Object: c.object(p)}
		}
	}
	for len(c.moving) < onTheWay {
		if e, ok := c.start(); ok {
			return e
		}
	}
	p := c.moving[0]
	c.moving = c.moving[1:]
	return c.advance(p)
}

// start lets a new pod come or one that runs go.
func (c *Cluster) start() (Event, bool) {
	if len(c.pods) <= c.options.Pods {
		return c.create(), true
	}
	p := c.pods[c.rng.IntN(len(c.pods))]
	if p.phase != running || p.node == 0 || c.workloads[p.workload].daemon {
		return Event{}, false
	}
	if c.rng.IntN(4) == 0 {
		p.phase = completed
		c.giveBack(p)
		c.moving = append(c.moving, p)
		return Event{What: "completed", Object: c.object(p)}, true
	}
	p.phase = terminating
	c.moving = append(c.moving, p)
	return Event{What: "terminating", Object: c.object(p)}, true
}

func (c *Cluster) create() Event {
	p := c.birth(1 + c.rng.IntN(len(c.workloads)-1))
	c.pods = append(c.pods, p)
	c.moving = append(c.moving, p)
	return Event{What: "created", Object: c.object(p)}
}

// advance takes a pod on its way one step on.
func (c *Cluster) advance(p *pod) Event {
	switch p.phase {
	case pending:
		p.phase, p.node = scheduled, c.room()
		c.moving = append(c.moving, p)
		return Event{What: "scheduled", Object: c.object(p)}
	case scheduled:
		p.phase, p.host = running, c.lease(p)
		return Event{What: "running", Object: c.object(p)}
	case terminating:
		p.phase = stopped
		c.moving = append(c.moving, p)
		return Event{What: "stopped", Object: c.object(p)}
	default: // stopped, completed
		c.giveBack(p)
		c.pods = slices.DeleteFunc(c.pods, func(o *pod) bool { return o == p })
		return Event{What: "deleted", Object: c.object(p), Deleted: true}
	}
}

// room is a node, but the first, with an address left.
func (c *Cluster) room() int {
	for {
		i := 1 + c.rng.IntN(c.options.Nodes-1)
		// Those that are scheduled and have no address yet need one too.
		if n := c.nodes[i]; hostsPerNode-n.next+len(n.free) > hostsPerNode/8 {
			return i
		}
	}
}
