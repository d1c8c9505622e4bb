// Package drift names the kinds of what others take out of the data plane, for
// backends to say and for who counts repairs.
//
//	err := fmt.Errorf("%w: chain %s is not there", missing.Chain.Err(), name)
//	missing.KindOf(err) // Chain
//	errors.Is(err, missing.Err) // true
package drift

import "errors"

// Err is what the error of every kind is: the data plane is not as a Sync left it,
// and a Sync fixes that.
var Err = errors.New("the data plane is incomplete")

// Kind is what is missing.
type Kind string

// The kinds.
const (
	// Hook: a chain of the kernel's does not lead to ours first.
	Hook Kind = "hook"
	// Chain: one of ours is gone, or has other rules.
	Chain Kind = "chain"
	// Element: a set or map is gone, or lacks something.
	Element Kind = "element"
	// Group: the host veth of a routed endpoint is not in podmark's device group.
	Group Kind = "group"
	// Change: a change of the whole node was not finished.
	Change Kind = "change"
	// Other is what lacks a kind.
	Other Kind = "other"
)

// Kinds lists them all.
func Kinds() []Kind { return []Kind{Hook, Chain, Element, Group, Change, Other} }

// Err is the error of the kind, for another one to wrap that says what it is.
func (k Kind) Err() error { return incomplete{k} }

type incomplete struct{ kind Kind }

func (incomplete) Error() string { return Err.Error() }

func (incomplete) Unwrap() error { return Err }

// KindOf is the kind that err wraps.
func KindOf(err error) Kind {
	if e := (incomplete{}); errors.As(err, &e) {
		return e.kind
	}
	return Other
}
