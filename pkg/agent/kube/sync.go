package kube

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"github.com/podmark/podmark/pkg/agent/runner"
	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/node"
)

// SyncResult is what one round did.
type SyncResult struct {
	Time    time.Time
	Took    time.Duration
	Applied node.Applied
	Err     error
}

// Between two rounds events are collected, and others get the node's lock.
const (
	leastPause = 20 * time.Millisecond
	mostPause  = 2 * time.Second
	pauseRatio = 4 // of the time that the round before took
	// regular is how often attachments are listed when nothing is said, and soon while
	// a pod is about to have one.
	regular = 5 * time.Second
	soon    = 200 * time.Millisecond
	// retry is how long after a failure.
	retry = time.Second
	// setEvery is how often it is verified of a set whether the kernel has what it should hold,
	// at the most, and setRatio how much longer than that took.
	setEvery = time.Second
	setRatio = 40
)

// Run follows the cluster from the moment it is activated until ctx is done, and leaves
// what is enforced as it is.
func (c *Cluster) Run(ctx context.Context) {
	c.mu.Lock()
	c.ctx = ctx
	c.mu.Unlock()
	set, due, remembers := "", time.Now(), false
	c.rounds.Run(ctx, func(notified bool) runner.Pause {
		if !remembers {
			if remembers = c.remember() == nil; !remembers {
				return runner.Pause{Least: retry}
			}
		}
		if !notified {
			c.mu.Lock()
			c.view.Stir() // attachments may have come and gone
			c.mu.Unlock()
		}
		round, did := c.turn(ctx)
		if did && c.Done != nil && ctx.Err() == nil {
			c.Done(round)
		}
		if start := time.Now(); start.After(due) {
			set = c.keep(ctx, set)
			due = time.Now().Add(max(setEvery, setRatio*time.Since(start)))
		}
		pause := min(max(leastPause, pauseRatio*round.Took), mostPause)
		if round.Err != nil {
			pause = retry
		}
		return runner.Pause{Least: pause, Most: pause + c.patience()}
	})
}

// patience is how long may pass without an event.
func (c *Cluster) patience() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.view.Hurried() {
		return soon
	}
	return regular
}

// keep reconciles the set after the one of last time.
func (c *Cluster) keep(ctx context.Context, after string) string {
	set, changed, err := c.Node.ReconcileSet(ctx, after)
	switch {
	case err != nil && ctx.Err() == nil:
		c.Log.Warn("Failed to check a set", "after", after, "error", err)
	case changed > 0:
		c.Log.Warn("Repaired a set", "set", set, "elements", changed)
	}
	return set
}

// remember reads what a former podmarkd left. Until that can be read, nothing is followed: without it,
// what it enforced would end before the API has said so.
func (c *Cluster) remember() error {
	policies, _, err := c.Node.EnforcedPolicies()
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err == nil:
		c.view.Remember(policies)
	case errors.Is(err, fs.ErrNotExist):
		err = nil
	}
	c.failed = err
	c.announce()
	return err
}

// turn has a round, if one is due. Before the first one everything must be known that a
// policy means, but for what the API refuses: what was enforced before goes on until then.
func (c *Cluster) turn(ctx context.Context) (r SyncResult, did bool) {
	r.Time = time.Now()
	c.mu.Lock()
	if !c.active {
		c.mu.Unlock()
		return r, false
	}
	if !c.view.Begun() {
		if records, err := c.Node.Records(); err == nil { // a damaged one is told by the round
			c.view.Attach(records)
		}
	}
	ready := c.follow(r.Time)
	c.log()
	settings := c.settings
	due := c.view.Begun() && c.view.Changed() || !c.view.Begun() && ready
	c.mu.Unlock()
	if !due {
		return r, false
	}
	r.Applied, r.Err = c.Node.UpdatePolicies(ctx, settings, c.decide)
	r.Took = time.Since(r.Time)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.log()
	if errors.Is(r.Err, fs.ErrNotExist) { // podmark has not run here, and no pod has come
		return SyncResult{}, false
	}
	if c.failed = r.Err; r.Err == nil {
		c.done = c.sync
	} else {
		c.view.Lost()
	}
	c.announce()
	return r, true
}

// decide is what is to be enforced from now on, given the attachments.
func (c *Cluster) decide(records []attachment.Record) node.PolicyUpdate {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sync++
	return c.view.Decide(records, time.Now())
}

// follow has those things watched and asked that are to be, and reports whether everything
// is known that there is to wait for.
func (c *Cluster) follow(now time.Time) (ready bool) {
	begin, end, ready := c.view.Plan(now)
	for _, w := range begin {
		c.watches[w] = c.start(c.ctx, w)
	}
	for _, w := range end {
		c.watches[w].stop()
		c.watches[w].ended = true
		delete(c.watches, w)
	}
	for _, namespace := range c.view.Questions() {
		go c.fetchUnknown(c.ctx, namespace)
	}
	return ready
}
