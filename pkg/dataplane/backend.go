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

// Backend makes the kernel agree with a state. Its caller holds the node's lock.
type Backend interface {
	// Sync makes the kernel hold exactly want. Of peer and tuple sets it makes those of want,
	// and leaves in them who is there besides. Like Update, it takes desired.ErrEmpty's state
	// for a fault and changes nothing.
	Sync(ctx context.Context, want desired.State) error
	// Update moves the endpoints of from to what to says and touches nothing else.
	Update(ctx context.Context, from, to desired.Share) error
	// FillSet makes one peer or tuple set hold exactly its members, and says how many elements
	// came and went. It makes the set if it is not there, and looks at nothing else.
	FillSet(ctx context.Context, set desired.Set) (changed int, err error)
	// Check reports what of want is not in place, changing nothing: [Drifted] holds for that.
	Check(ctx context.Context, want desired.State, depth drift.Depth) error
	// Refresh is a deep Check, with more. What belongs to the node and not to an
	// endpoint it brings up to date, without writing a rule, and names it.
	Refresh(ctx context.Context, want desired.State) (replaced []string, err error)
}

// Reader tells what a backend has in the kernel. It changes nothing, and needs no lock.
type Reader interface {
	// Holds reports whether a peer or tuple set holds all members of set.
	Holds(ctx context.Context, set desired.Set) (bool, error)
	// Counters reads what each rule that drops has counted since it was written.
	Counters(ctx context.Context) ([]counters.Rule, error)
}

// Drifted holds for what a backend returns that a Sync would fix.
func Drifted(err error) bool {
	return errors.Is(err, drift.Err)
}
