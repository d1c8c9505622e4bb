package cluster

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"time"

	"github.com/podmark/podmark/pkg/apply"
)

// Round is what one round did.
type Round struct {
	Time    time.Time
	Took    time.Duration
	Applied apply.Applied
	Err     error
}

// Size is how much of the cluster is followed.
type Size struct {
	// Watches are those that policies need, and Behind those of them of which not all has
	// been seen yet.
	Watches, Behind int
	// Pods are those that are known, the node's own among them.
	Pods int
}

// Size tells how much is followed now.
func (c *Cluster) Size() Size {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := Size{Watches: len(c.wanted), Pods: len(c.pods)}
	for w := range c.wanted {
		if watch := c.watches[w]; watch == nil || !watch.synced {
			s.Behind++
		}
	}
	return s
}

// Between two rounds events are collected, and others get the node's lock.
const (
	leastPause = 20 * time.Millisecond
	mostPause  = 2 * time.Second
	pauseRatio = 4 // of the time that the round before took
	// regular is how often attachments are looked at when nothing is said, and soon while
	// a pod is about to have one.
	regular = 5 * time.Second
	soon    = 200 * time.Millisecond
	// retry is how long after a failure.
	retry = time.Second
	// linger is how long a watch goes on that is needed no more: pods of a namespace come
	// and go.
	linger = time.Minute
	// setEvery is how often a set is looked at whether the kernel has what it should hold,
	// at the most, and setRatio how much longer than a look took.
	setEvery = time.Second
	setRatio = 40
)

// Run follows the cluster from the moment it is activated until ctx is done, and leaves
// what is enforced as it is.
func (c *Cluster) Run(ctx context.Context) error {
	c.mu.Lock()
	c.ctx = ctx
	c.mu.Unlock()
	if err := c.remember(); err != nil {
		return err
	}
	next := time.NewTimer(regular)
	defer next.Stop()
	set, due := "", time.Now()
	for ctx.Err() == nil {
		round, did := c.turn(ctx)
		if did && c.Done != nil && ctx.Err() == nil {
			c.Done(round)
		}
		pause := min(max(leastPause, pauseRatio*round.Took), mostPause)
		if round.Err != nil {
			pause = retry
		}
		if start := time.Now(); start.After(due) {
			set = c.keep(ctx, set)
			due = time.Now().Add(max(setEvery, setRatio*time.Since(start)))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		next.Reset(c.patience())
		select {
		case <-ctx.Done():
		case <-c.poked:
		case <-next.C:
			c.mu.Lock()
			c.dirty = true // attachments may have come and gone
			c.mu.Unlock()
		}
	}
	return nil
}

// patience is how long may pass without an event.
func (c *Cluster) patience() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.coming) > 0 || c.dirty {
		return soon
	}
	return regular
}

// keep looks at the set behind the one that was looked at last.
func (c *Cluster) keep(ctx context.Context, after string) string {
	set, changed, err := c.Node.KeepSet(ctx, after)
	switch {
	case err != nil && ctx.Err() == nil:
		c.Log.Warn("looking at a set", "behind", after, "error", err)
	case changed > 0:
		c.Log.Warn("somebody had changed a set", "set", set, "elements", changed)
	}
	return set
}

// remember reads what a former podmarkd left.
func (c *Cluster) remember() error {
	policies, _, err := c.Node.Remembered()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.applied = policies
	// One that the API has no more may be one whose namespace is going.
	for _, p := range policies.Policies {
		if c.policies[p.Namespace] == nil {
			c.policies[p.Namespace] = map[string]*known{}
		}
		c.policies[p.Namespace][p.Name] = newKnown(p, time.Time{})
	}
	return nil
}

// turn has a round, if one is due. Before the first one everything must be known that a
// policy means: what was enforced before goes on until then.
func (c *Cluster) turn(ctx context.Context) (r Round, did bool) {
	r.Time = time.Now()
	c.mu.Lock()
	if !c.active {
		c.mu.Unlock()
		return r, false
	}
	if !c.begun {
		if records, err := c.Node.Records(); err == nil { // a damaged one is told by the round
			c.informed(records)
		}
	}
	all := c.plan(r.Time)
	settings := c.settings
	due := c.begun && (c.dirty || c.index.Changed()) || !c.begun && all
	c.mu.Unlock()
	if !due {
		return r, false
	}
	r.Applied, r.Err = c.Node.Revise(ctx, settings, c.decide)
	r.Took = time.Since(r.Time)
	c.mu.Lock()
	defer c.mu.Unlock()
	if errors.Is(r.Err, fs.ErrNotExist) { // podmark has not run here, and no pod has come
		return Round{}, false
	}
	if c.failed = r.Err; r.Err == nil {
		c.done = c.round
	} else {
		c.dirty, c.lost = true, true
	}
	c.announce()
	return r, true
}

// plan has those things watched that are to be, and reports whether everything is known
// that there is to know.
func (c *Cluster) plan(now time.Time) (all bool) {
	maps.DeleteFunc(c.coming, func(_ name, k *coming) bool { return now.After(k.until) })
	wanted := map[Watch]bool{{Kind: Pods, Node: c.Name}: true}
	w := c.world()
	for namespace, pods := range c.crowd() {
		wanted[Watch{Kind: Policies, Namespace: namespace}] = true
		for _, p := range c.policies[namespace] {
			for _, labels := range pods {
				if p.Pods.Matches(labels) {
					for _, watch := range p.needs.in(w) {
						wanted[watch] = true
					}
					break
				}
			}
		}
	}
	for namespace, policies := range c.policies {
		if !wanted[Watch{Kind: Policies, Namespace: namespace}] {
			maps.DeleteFunc(policies, func(_ string, p *known) bool { return p.gone })
		}
	}
	c.wanted = merged(wanted)
	all = true
	for watch := range c.wanted {
		if c.watches[watch] == nil {
			if c.premature(watch, now) {
				all = false
				continue
			}
			c.watches[watch] = c.start(c.ctx, watch)
		}
		c.watches[watch].idle = time.Time{}
		all = all && c.watches[watch].synced
	}
	for watch, s := range c.watches {
		switch {
		case c.wanted[watch]:
		case s.idle.IsZero():
			s.idle = now
		case now.Sub(s.idle) > linger && c.covered(s):
			s.stop()
			delete(c.watches, watch)
			c.forget(s)
		}
	}
	return all
}

// premature reports whether it may turn out yet that a watch is not needed: one policy that
// means every pod makes superfluous those for others. What takes long is not waited for.
func (c *Cluster) premature(w Watch, now time.Time) bool {
	for earlier := range c.wanted {
		if s := c.watches[earlier]; w.follows(earlier) && (s == nil || !s.synced && now.Sub(s.begun) < hold) {
			return true
		}
	}
	return false
}

// covered reports whether all that is wanted and that s sees is seen by another: one watch
// takes over from another only when it has caught up.
func (c *Cluster) covered(s *watching) bool {
	for watch := range c.wanted {
		if s.covers(watch) && !c.watches[watch].synced {
			return false
		}
	}
	return true
}
