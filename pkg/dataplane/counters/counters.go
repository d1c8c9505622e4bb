// Package counters makes totals that only grow of what the kernel's rules have
// counted, which begins from 0 whenever a rule is written again. It is pure: backends
// read the rules.
package counters

import "github.com/podmark/podmark/pkg/desired"

// Reason is why a rule counts.
type Reason string

// The reasons.
const (
	// Spoofed: the source is not the endpoint's own, or the endpoint is not complete.
	Spoofed Reason = "spoofed"
	// Unclassified: no endpoint has the ID, or the address behind a pod's veth.
	Unclassified Reason = "unclassified"
	// Encapsulated: an endpoint wraps a packet as the node's tunnels do.
	Encapsulated Reason = "encapsulated"
	// Stray: a frame to the bridge port of an isolated endpoint that is not for its
	// address, or from port to port of a bridge that hands nothing to IP, so that no policy
	// was asked about it.
	Stray Reason = "stray"
	// Policy: no rule of the profile allows it.
	Policy Reason = "policy"
	// Audit: no rule of the profile allows it, and it passes, because the profile is
	// audited.
	Audit Reason = "audit"
	// Allowed: the rule of the profile allows it.
	Allowed Reason = "allowed"
	// Passed: the rule leaves it to the next tier, or is audited and would allow it.
	Passed Reason = "passed"
)

// Key is what packets are counted by. All but Reason is zero but for Policy, Audit, Allowed and Passed.
type Key struct {
	Reason    Reason
	Direction desired.Direction
	// Profile is that whose NetworkPolicies decide. Where a stage of other tiers does, Stage is that
	// one instead.
	Profile desired.ProfileID
	Stage   desired.StageID
	// Rule is the rule of the stage that denies, from 1 on; 0 for Allowed and Passed, and where no rule
	// allows.
	Rule int
}

// Rule is a rule of the kernel's that drops, or that decides in a profile.
type Rule struct {
	Key
	// ID names the rule until it is written again.
	ID string
	// Origin is the policy and rule that an Allowed or a Passed rule comes from: "shop/web
	// ingress[0]".
	Origin string
	// Packets that it has counted since it was written.
	Packets uint64
}

// keptGone is how many totals are kept of keys that have no rule any more: a profile
// that comes back goes on counting. Beyond, all of them are forgotten.
const keptGone = 500

// Totals are packets since the first Add. The zero value is ready to be used; it is
// not safe for concurrent use.
type Totals struct {
	begun bool
	seen  map[string]uint64 // by ID, at the last Add
	byKey map[Key]uint64
}

// Add takes over what the rules have counted since the last Add, but for those that
// allow. Of the first it takes
// what they have as the beginning. What a rule counted between an Add and being
// written again is lost. A rule that has counted less than before was written again
// under its old ID.
func (t *Totals) Add(rules []Rule) {
	seen := map[string]uint64{}
	there := map[Key]bool{}
	if t.byKey == nil {
		t.byKey = map[Key]uint64{}
	}
	for _, r := range rules {
		if r.Reason == Allowed || r.Reason == Passed {
			continue
		}
		before, known := t.seen[r.ID]
		switch {
		case !t.begun:
			t.byKey[r.Key] += 0
		case known && r.Packets >= before:
			t.byKey[r.Key] += r.Packets - before
		default:
			t.byKey[r.Key] += r.Packets
		}
		seen[r.ID], there[r.Key] = r.Packets, true
	}
	t.seen, t.begun = seen, true
	if len(t.byKey)-len(there) > keptGone {
		for k := range t.byKey {
			if !there[k] {
				delete(t.byKey, k)
			}
		}
	}
}

// Rewritten tells that all rules were written again since the last Add, where their IDs
// may not: what they have counted when it comes to the next Add counts in full.
func (t *Totals) Rewritten() { t.seen = nil }

// ByKey are the totals of every rule that there is, and of some that were. The caller
// does not change them.
func (t *Totals) ByKey() map[Key]uint64 { return t.byKey }
