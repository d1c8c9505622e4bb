// Package node keeps a node's data plane current while the daemon runs. It listens
// to the kernel, looks at the node whenever something may have changed, and has
// package apply put right what is not as it should be.
//
// It decides nothing about packets, and owns nothing that the plugin needs: when
// the daemon is gone, what is in the kernel stays as it is.
package node

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"time"

	"github.com/podmark/podmark/pkg/apply"
)

// Keeper looks after one node.
type Keeper struct {
	Node apply.Node
	// Ports are what others say about NodePorts. Changed tells that they may say
	// something else; nil where they never do.
	Ports   func() PortOptions
	Changed <-chan struct{}
	// CollectAfter is how long a pod must have been gone until what its DEL should
	// have taken back is collected; 0 for never.
	CollectAfter time.Duration
	// Interval is how long the node is left alone when nothing is notified.
	Interval time.Duration
	Log      *slog.Logger
	// Looked, if set, is told of each look, after it.
	Looked func(Look)
}

// Look is what was found and done when the node was looked at.
type Look struct {
	Time   time.Time
	Reason Reason
	// Idle is set where podmark has never run: nothing is there to be kept.
	Idle  bool
	Mode  Mode
	Ports Decision
	Kept  apply.Kept
	// Collected is what pods had left that no DEL came for.
	Collected apply.Collected
	Took      time.Duration
	Err       error
}

// Between two looks a pause leaves room for others: notifications come in bursts,
// and a look holds the node's lock, for which plugins wait.
const (
	leastPause = 100 * time.Millisecond
	pauseRatio = 9 // of the time that the look before took
	// follow is when to look again after something was notified. What kube-proxy
	// does to IPVS is not: it comes right after an address that is.
	follow = 500 * time.Millisecond
)

// Run looks after the node until ctx is done. It leaves the data plane as it is.
func (k Keeper) Run(ctx context.Context) error {
	told := make(chan Reason, 1)
	tell := func(r Reason) {
		select {
		case told <- r:
		default: // a look is due anyway
		}
	}
	if err := watch(ctx, k.Log, tell); err != nil {
		return err
	}
	c := collector{after: k.CollectAfter}
	for reason := Started; ctx.Err() == nil; {
		look := k.look(ctx, reason)
		if k.CollectAfter > 0 && look.Err == nil && !look.Idle {
			look.Collected, look.Err = c.collect(ctx, k.Node, time.Now())
		}
		if k.Looked != nil && ctx.Err() == nil {
			k.Looked(look)
		}
		wait(ctx, max(leastPause, pauseRatio*look.Took))
		next := k.Interval
		if reason != Waited {
			next = min(next, follow)
		}
		select {
		case <-ctx.Done():
		case reason = <-told:
		case <-k.Changed:
			reason = Said
		case <-time.After(next):
			reason = Waited
		}
	}
	return nil
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// look finds out what is so, and has what follows from it carried out.
func (k Keeper) look(ctx context.Context, reason Reason) (l Look) {
	l = Look{Time: time.Now(), Reason: reason}
	defer func() { l.Took = time.Since(l.Time) }()
	facts, unread := readFacts()
	l.Mode = facts.mode()
	configured, err := k.Node.Configured()
	if errors.Is(err, fs.ErrNotExist) {
		l.Idle = true
		return l
	}
	if err != nil {
		l.Err = err
		return l
	}
	// What cannot be read does not keep from repairing: the NodePorts stay as they are.
	var ports *apply.Ports
	if unread == nil {
		l.Ports = k.Ports().decide(configured, facts)
		ports = &apply.Ports{Ranges: l.Ports.Ranges, SCTP: l.Ports.SCTP, Source: l.Ports.Source}
	}
	l.Kept, err = k.Node.Keep(ctx, ports)
	l.Err = errors.Join(unread, err)
	return l
}
