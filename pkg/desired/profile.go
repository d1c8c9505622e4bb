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
)

// Profile is what becomes of the packets of one direction, for every endpoint that the
// same set of policies selects. The stages are asked in their order, and what none of them
// decides is allowed.
type Profile struct {
	ID        ProfileID
	Direction Direction
	Stages    []Stage // by tier
}

// StageID names a Stage: 16 hexadecimal digits.
type StageID string

// Stage is what policies of one tier say. The first rule that matches decides, and Pass asks the next
// stage. A tier has at most one stage that is enforced.
//
// Policies that are audited make stages before it, which decide nothing: what one of them denies is
// logged and counted. A policy of the cluster is tried as if it were enforced in its place: its stage
// begins with the rules of the policies before it, each of which passes what it decides.
//
// In the stage of NetworkPolicies all rules allow, and the audited ones make one stage.
// NetworkPolicies only ever add to what is allowed, so where one that is enforced isolates the
// endpoint, audited ones would deny nothing more, and what they would allow is not to be allowed
// yet: they have no stage then.
type Stage struct {
	// ID is the same for all profiles of a direction in which the same policies make the stage.
	ID   StageID
	Tier Tier
	// Audit is set where it decides nothing.
	Audit bool
	// Policies are the names of the policies it is made of, as [Policy.String] has them: in the order
	// in which they are asked, NetworkPolicies sorted.
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
	// Origin is the policy and rule it comes from: "web/allow ingress[0]", "Admin/quarantine egress[2]".
	// It is empty for a rule of another policy in a stage that is audited.
	Origin string
	// Name is what its author calls the rule; empty for none.
	Name   string
	Action Action
	// AnyPeer is set where the rule names no peer; Peers and Blocks are empty then.
	AnyPeer bool
	Peers   []PeerSetID
	Blocks  []netip.Prefix
	// Ports and Tuples both empty mean every protocol and port.
	Ports  []Port
	Tuples []TupleSetID
}

// profileOf builds the profile in direction d of the endpoints that policies select; its ID is empty
// where none says anything.
func profileOf(policies []selected, d Direction) Profile {
	p := Profile{Direction: d}
	parts := []string{d.String()}
	for _, tier := range Tiers {
		for _, draft := range draftsOf(tier, policies, d) {
			stage := draft.stage(d)
			p.Stages = append(p.Stages, stage)
			parts = append(parts, draft.key()...)
		}
	}
	if p.Stages != nil {
		p.ID = ProfileID(digest(parts...))
	}
	return p
}

// draft is a stage of which the policies are known, and not yet what they say.
type draft struct {
	tier  Tier
	audit bool
	// before are asked before an audited policy of the cluster.
	before, policies []selected
}

// draftsOf lists the stages that the policies of a tier make, in their order.
func draftsOf(tier Tier, policies []selected, d Direction) (drafts []draft) {
	enforced, audited := draft{tier: tier}, draft{tier: tier, audit: true}
	for _, policy := range inOrder(tier, policies) {
		switch {
		case policy.isolation(d) == nil:
		case !policy.Audit:
			enforced.policies = append(enforced.policies, policy)
		case policy.Cluster():
			drafts = append(drafts, draft{tier, true, slices.Clone(enforced.policies), []selected{policy}})
		default:
			audited.policies = append(audited.policies, policy)
		}
	}
	switch {
	case enforced.policies != nil:
		drafts = append(drafts, enforced)
	case audited.policies != nil:
		drafts = append(drafts, audited)
	}
	return drafts
}

// key tells the stage from others of its direction.
func (d draft) key() []string {
	names := func(policies []selected) string {
		var out []string
		for _, p := range policies {
			out = append(out, p.key())
		}
		if d.tier == NetworkPolicyTier {
			slices.Sort(out)
		}
		return strings.Join(out, " ")
	}
	parts := []string{names(d.policies)}
	if d.tier != NetworkPolicyTier {
		parts[0] = d.tier.String() + " " + parts[0]
	}
	if d.audit {
		parts = append(parts, "audit")
	}
	if d.before != nil {
		parts = append(parts, "after "+names(d.before))
	}
	return parts
}

// stage resolves the rules.
func (d draft) stage(direction Direction) Stage {
	s := Stage{
		ID: StageID(digest(append([]string{"stage", direction.String()}, d.key()...)...)), Tier: d.tier, Audit: d.audit,
		Default: Pass,
	}
	if d.tier == NetworkPolicyTier {
		s.Default = Deny
	}
	for _, p := range d.before {
		for _, r := range p.rules(direction) {
			r.Origin, r.Name, r.Action = "", "", Pass
			s.Rules = append(s.Rules, r)
		}
	}
	for _, p := range d.policies {
		s.Policies = append(s.Policies, p.String())
		s.Rules = append(s.Rules, p.rules(direction)...)
	}
	if d.tier == NetworkPolicyTier {
		slices.Sort(s.Policies)
	}
	return s
}

// rules are those of the policy that can match.
func (p selected) rules(d Direction) (out []ProfileRule) {
	for i, rule := range p.isolation(d).Rules {
		if !rule.MatchNone && !(p.unsure && rule.Action != Deny) {
			out = append(out, rule.resolve(d, fmt.Sprintf("%s %s[%d]", p.Policy, d, i)))
		}
	}
	return out
}

// inOrder lists the policies of a tier, those first whose rules come first.
func inOrder(tier Tier, policies []selected) []selected {
	out := slices.DeleteFunc(slices.Clone(policies), func(p selected) bool { return p.Tier != tier })
	slices.SortStableFunc(out, func(a, b selected) int {
		return cmp.Or(cmp.Compare(a.Priority, b.Priority), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return out
}

// resolve replaces the rule's peers by their sets.
func (r Rule) resolve(d Direction, origin string) ProfileRule {
	resolved := ProfileRule{
		Origin:  origin,
		Name:    r.Name,
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
	parts := []string{"selector", p.NamespaceSelector.canonical(), p.Pods.canonical()}
	switch {
	case p.Namespace != "" && p.NamespaceUID != "":
		parts = []string{"namespace", p.Namespace, p.Pods.canonical(), p.NamespaceUID}
	case p.Namespace != "":
		parts = []string{"namespace", p.Namespace, p.Pods.canonical()}
	case p.Unsure:
		parts = append(parts, "unsure")
	}
	return PeerSetID(digest(parts...))
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
