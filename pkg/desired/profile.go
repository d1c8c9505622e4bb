package desired

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"github.com/podmark/podmark/pkg/attachment"
)

// Profile is what becomes of the packets of one direction, for every endpoint that the
// same set of policies selects. The stages are asked in their order, and what none of them
// decides is allowed.
type Profile struct {
	ID        ProfileID
	Direction Direction
	Stages    []Stage // by tier, each at most once
}

// Stage is what the policies of one tier say. The first rule that matches decides.
//
// In the stage of NetworkPolicies all rules allow. Those that are audited make a stage of their
// own, which decides nothing: what none of its rules allows is logged and counted. NetworkPolicies
// only ever add to what is allowed, so where one that is enforced isolates the endpoint, audited
// ones would deny nothing more, and what they would allow is not to be allowed yet: they are not
// part of that stage.
type Stage struct {
	Tier Tier
	// Audit is set where all the policies are audited.
	Audit bool
	// Policies are the "namespace/name" of the policies it is made of, sorted.
	Policies []string
	Rules    []ProfileRule
	// Default is for what no rule matches: Deny or Pass.
	Default Action
}

// denies reports whether the stage can forbid anything.
func (s Stage) denies() bool {
	return !s.Audit && (s.Default == Deny ||
		slices.ContainsFunc(s.Rules, func(r ProfileRule) bool { return r.Action == Deny }))
}

// Audit reports whether the profile has policies, and all of them are audited.
func (p Profile) Audit() bool {
	return len(p.Stages) > 0 && !slices.ContainsFunc(p.Stages, func(s Stage) bool { return !s.Audit })
}

// Policies are the names of those that it is made of, by stages.
func (p Profile) Policies() (names []string) {
	for _, s := range p.Stages {
		names = append(names, s.Policies...)
	}
	return names
}

// Rules are those of all stages in their order.
func (p Profile) Rules() (rules []ProfileRule) {
	for _, s := range p.Stages {
		rules = append(rules, s.Rules...)
	}
	return rules
}

// ProfileRule is a Rule with its peers resolved to shared sets.
type ProfileRule struct {
	// Origin is the policy and rule it comes from: "web/allow ingress[0]".
	Origin string
	Action Action
	// AnyPeer is set where the rule names no peer; Peers and Blocks are empty then.
	AnyPeer bool
	Peers   []PeerSetID
	Blocks  []netip.Prefix
	// Ports and Tuples both empty mean every protocol and port.
	Ports  []Port
	Tuples []TupleSetID
}

// about lists the policies of a pod's namespace that are about the pod.
func about(policies []Policy, r attachment.Record) (out []Policy) {
	for _, policy := range policies {
		if SameNamespace(policy.NamespaceUID, r.NamespaceUID) && policy.Pods.Matches(r.Labels) {
			out = append(out, policy)
		}
	}
	return out
}

// profile builds a pod's profile in direction d from the policies that are about it; its ID is empty
// where none says anything.
func profile(policies []Policy, d Direction) Profile {
	p := Profile{Direction: d}
	if len(policies) == 0 {
		return p
	}
	parts := []string{d.String()}
	for _, tier := range Tiers {
		if stage, names := stageOf(tier, policies, d); stage.Policies != nil {
			p.Stages = append(p.Stages, stage)
			parts = append(parts, strings.Join(names, " "))
			if tier != NetworkPolicyTier {
				parts[len(parts)-1] = tier.String() + " " + parts[len(parts)-1]
			}
			if stage.Audit {
				parts = append(parts, "audit")
			}
		}
	}
	if p.Stages != nil {
		p.ID = ProfileID(digest(parts...))
	}
	return p
}

// stageOf builds the stage of a tier, and returns the names of its policies with their UIDs, sorted.
func stageOf(tier Tier, policies []Policy, d Direction) (Stage, []string) {
	enforced, audited := Stage{Tier: tier, Default: Pass}, Stage{Tier: tier, Default: Pass, Audit: true}
	if tier == NetworkPolicyTier {
		enforced.Default, audited.Default = Deny, Deny
	}
	names := map[bool][]string{}
	for _, policy := range inOrder(tier, policies) {
		isolation := policy.isolation(d)
		if isolation == nil {
			continue
		}
		stage := &enforced
		if policy.Audit {
			stage = &audited
		}
		stage.Policies = append(stage.Policies, policy.String())
		names[policy.Audit] = append(names[policy.Audit],
			strings.TrimSuffix(policy.String()+" of "+policy.NamespaceUID, " of "))
		for i, rule := range isolation.Rules {
			if !rule.MatchNone {
				stage.Rules = append(stage.Rules, rule.resolve(d, fmt.Sprintf("%s %s[%d]", policy, d, i)))
			}
		}
	}
	stage := enforced
	if enforced.Policies == nil {
		stage = audited
	}
	slices.Sort(stage.Policies)
	slices.Sort(names[stage.Audit])
	return stage, names[stage.Audit]
}

// inOrder lists the policies of a tier, those first whose rules come first.
func inOrder(tier Tier, policies []Policy) []Policy {
	out := slices.DeleteFunc(slices.Clone(policies), func(p Policy) bool { return p.Tier != tier })
	slices.SortStableFunc(out, func(a, b Policy) int {
		return cmp.Or(cmp.Compare(a.Priority, b.Priority), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return out
}

// resolve replaces the rule's peers by their sets.
func (r Rule) resolve(d Direction, origin string) ProfileRule {
	resolved := ProfileRule{
		Origin:  origin,
		Action:  r.Action,
		AnyPeer: len(r.Peers) == 0 && len(r.Blocks) == 0,
		Blocks:  r.Blocks,
		Ports:   r.Ports,
	}
	for _, peer := range r.Peers {
		resolved.Peers = append(resolved.Peers, peer.id())
	}
	slices.Sort(resolved.Peers)
	resolved.Peers = slices.Compact(resolved.Peers)
	for _, port := range r.NamedPorts {
		resolved.Tuples = append(resolved.Tuples, port.id(d))
	}
	slices.Sort(resolved.Tuples)
	resolved.Tuples = slices.Compact(resolved.Tuples)
	return resolved
}

func (p Peer) id() PeerSetID {
	if p.Namespace != "" {
		parts := []string{"namespace", p.Namespace, p.Pods.canonical()}
		if p.NamespaceUID != "" {
			parts = append(parts, p.NamespaceUID)
		}
		return PeerSetID(digest(parts...))
	}
	return PeerSetID(digest("selector", p.NamespaceSelector.canonical(), p.Pods.canonical()))
}

func (n NamedPort) id(d Direction) TupleSetID {
	return TupleSetID(digest(d.String()+" port", n.Protocol.String(), n.Name))
}

// digest hashes parts to 64 bits in hexadecimal.
func digest(parts ...string) string {
	sum := sha256.Sum256([]byte(framed(parts)))
	return hex.EncodeToString(sum[:8])
}

// restricts reports whether next, which denies what no rule allows, lacks a rule of p. Where rules do
// other things than to allow, any change may restrict.
func (p Profile) restricts(next Profile) bool {
	if p.equal(next) {
		return false
	}
	if !p.onlyAllows() || !next.onlyAllows() {
		return true
	}
	have := map[string]bool{}
	for _, r := range next.Rules() {
		have[r.canonical()] = true
	}
	return slices.ContainsFunc(p.Rules(), func(r ProfileRule) bool { return !have[r.canonical()] })
}

// onlyAllows holds for a profile of NetworkPolicies alone: the order of its rules does not matter.
func (p Profile) onlyAllows() bool {
	return len(p.Stages) == 1 && p.Stages[0].Default == Deny &&
		!slices.ContainsFunc(p.Stages[0].Rules, func(r ProfileRule) bool { return r.Action != Allow })
}

// canonical is a form in which rules that allow the same are equal, whatever
// policy they come from.
func (r ProfileRule) canonical() string {
	r.Origin = ""
	return fmt.Sprint(r)
}

// equal reports whether both allow the same by the same rules.
func (p Profile) equal(other Profile) bool { return reflect.DeepEqual(p, other) }

// without lists what of a, sorted, is not in b, sorted.
func without[T any](a, b []T, compare func(T, T) int) []T {
	var out []T
	for _, v := range a {
		if _, ok := slices.BinarySearchFunc(b, v, compare); !ok {
			out = append(out, v)
		}
	}
	return out
}

// ProfileIDs lists the profiles in a stable order.
func (s State) ProfileIDs() []ProfileID { return slices.Sorted(maps.Keys(s.Profiles)) }

// PeerSetIDs lists the peer sets in a stable order.
func (s State) PeerSetIDs() []PeerSetID { return slices.Sorted(maps.Keys(s.PeerSets)) }

// TupleSetIDs lists the tuple sets in a stable order.
func (s State) TupleSetIDs() []TupleSetID { return slices.Sorted(maps.Keys(s.TupleSets)) }
