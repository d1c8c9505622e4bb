// Package dataplane has what enforces: the contract of a backend, and below it the backends and the
// means that they share. Package node decides what is to be enforced, and in which order.
package dataplane

import (
	"context"
	"errors"

	"github.com/podmark/podmark/pkg/dataplane/counters"
	"github.com/podmark/podmark/pkg/dataplane/drift"
	"github.com/podmark/podmark/pkg/desired"
)

// Backend makes the kernel agree with a state. Its user holds the node's lock, but
// for Counters.
type Backend interface {
	// Sync makes the kernel hold exactly want. Of peer and tuple sets it makes those of want,
	// and leaves in them who is there besides. Like Update, it takes desired.ErrEmpty's state
	// for a fault and changes nothing.
	Sync(ctx context.Context, want desired.State) error
	// Remove takes everything of the backend's out of the kernel.
	Remove(ctx context.Context) error
	// Fill makes the peer and tuple sets of want hold exactly who is in them there, and
	// says how many elements came and went. It makes those that are not there, and looks
	// at nothing else.
	Fill(ctx context.Context, want desired.State) (changed int, err error)
	// Holds reports whether the kernel's peer and tuple sets hold everybody who is in those
	// of want.
	Holds(ctx context.Context, want desired.State) (bool, error)
	// Update moves the endpoints of from to what to says and touches nothing else.
	Update(ctx context.Context, from, to desired.State) error
	// Stands reports whether the rules are there that do not depend on who is on the node, by
	// their number: it costs next to nothing.
	Stands(ctx context.Context, n desired.Node) error
	// Check reports what of want is not in place, changing nothing, as far as no process is
	// needed to tell: also a rule of the frame, or of want's profiles, that another one has taken the place of.
	Check(ctx context.Context, want desired.State) error
	// Verify does too, and looks closer: at what only a process can tell.
	Verify(ctx context.Context, want desired.State) error
	// Keep is Verify, with more. What belongs to the node and not to an
	// endpoint it brings up to date, without writing a rule, and names it.
	Keep(ctx context.Context, want desired.State) (replaced []string, err error)
	// Counters reads what each rule that drops has counted since it was written. It
	// changes nothing, and needs no lock.
	Counters(ctx context.Context) ([]counters.Rule, error)
}

// Drifted holds for what a backend returns that a Sync would fix.
func Drifted(err error) bool {
	return errors.Is(err, drift.Err)
}
