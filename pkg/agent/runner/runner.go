// Package runner runs a function again and again: after a notification, and at the latest after some
// time. In between it leaves room for others.
//
//	      run           run                    run
//	------|##|----------|##|-------------------|##|---
//	         <--Least-->    <-------Most------>
//	            ^ notified, waits for Least
//
// It is what kube-proxy's BoundedFrequencyRunner is to a sync, with intervals that each run sets:
// how long a pause has to be depends on what a run took, and on whether it failed.
package runner

import (
	"context"
	"math"
	"time"
)

// Runner runs one function, never twice at a time.
type Runner struct {
	// Quiet is how long no notification must follow another before there is a run: a program that
	// writes a file is in the middle of it. After Patience since the first there is one all the same.
	// With 0 there is a run at once.
	Quiet, Patience time.Duration

	notified chan struct{}
}

// New makes a runner that runs at once where it may.
func New() *Runner { return &Runner{notified: make(chan struct{}, 1)} }

// Pause says when the next run is.
type Pause struct {
	// Least is how long there is none, whatever is notified.
	Least time.Duration
	// Most is after how long there is one without a notification. It counts from the end of the run,
	// as Least does, which it is at least.
	Most time.Duration
	// Urgent, if set, is asked after a notification within Least whether the next run is due now. It is
	// asked every UrgentEvery at most: notifications come in bursts.
	Urgent      func() bool
	UrgentEvery time.Duration
}

// Never is a Most after which there is no run without a notification.
const Never = time.Duration(math.MaxInt64)

// Notify makes a run due. It does not wait, and may be called from any goroutine, at any time.
func (r *Runner) Notify() {
	select {
	case r.notified <- struct{}{}:
	default: // one is due already
	}
}

// Run calls do at once, and then again and again until ctx is done. notified is whether a notification
// has made the run due.
func (r *Runner) Run(ctx context.Context, do func(notified bool) Pause) {
	for notified := false; ctx.Err() == nil; {
		notified = r.wait(ctx, do(notified))
	}
}

// wait returns when the next run is due, or ctx is done, and whether there was a notification.
func (r *Runner) wait(ctx context.Context, p Pause) (notified bool) {
	start := time.Now()
	earliest, due := start.Add(p.Least), start.Add(max(p.Least, p.Most))
	var first, ask time.Time // of the notifications, and when to ask whether it is urgent
	next := start.Add(p.UrgentEvery)
	timer := time.NewTimer(due.Sub(start))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return !first.IsZero()
		case <-r.notified:
			now := time.Now()
			if first.IsZero() {
				first = now
			}
			due = latest(soonest(first.Add(r.Patience), now.Add(r.Quiet)), earliest)
			if p.Urgent != nil && ask.IsZero() {
				ask = latest(now, next)
			}
		case <-timer.C:
			now := time.Now()
			if !now.Before(due) {
				return !first.IsZero()
			}
			if !ask.IsZero() && p.Urgent() {
				return true
			}
			ask, next = time.Time{}, now.Add(p.UrgentEvery)
		}
		wake := due
		if !ask.IsZero() {
			wake = soonest(ask, due)
		}
		timer.Reset(time.Until(wake))
	}
}

func soonest(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
