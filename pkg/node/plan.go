package node

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/mark"
	"github.com/podmark/podmark/pkg/state"
)

// Plans say with values what a change does. What makes one reads and writes nothing: a transaction
// reads what it needs, makes the plan, and carries it out in steps.

// planSettings is next, for which a backend was chosen, with the rest of what settings say, and
// whether the node is set to something else than it was.
func planSettings(was, next nodeFile, settings Settings) (_ nodeFile, changed bool) {
	next.AllowTunnels, next.NodePorts = settings.AllowTunnels, settings.NodePorts
	if next.Backend != was.Backend {
		next.Log, next.LogLacks, next.Has = "", "", nil // of the former backend
	}
	return next, next.AllowTunnels != was.AllowTunnels || !slices.Equal(next.NodePorts, was.NodePorts) ||
		next.Backend != was.Backend || next.Auto != was.Auto || next.Bridge != was.Bridge
}

// addPlan is what an ADD does beside giving an ID.
type addPlan struct {
	// before are the attachments of which the new one takes addresses, its own former self among
	// them, and kept is what those have from now on.
	before, kept []attachment.Record
	// displaces is set where another one loses something. That must not stay in the kernel if
	// the ADD ends on the way.
	displaces bool
	// block keeps the port closed until the kernel has the endpoint.
	block bool
	// resetFirst has flows judged again before the kernel has the endpoint.
	resetFirst bool
}

// planAdd plans the ADD of r, or the adoption of one that is running. Former is r as it was added
// before, nil where it was not, and owners are the other attachments that have an address of r's
// (their DEL is late, or lost), each with the addresses that are its own. Those whose ID the layout
// has no bits for are damaged, and nobody's.
func planAdd(
	layout mark.Layout,
	r attachment.Record,
	running bool,
	former *attachment.Record,
	owners []attachment.Record,
) addPlan {
	// A device group keeps others from reaching a routed port, so no flow is judged again before
	// the elements are there. A bridge port keeps the endpoint from sending, so its flows wait for
	// the elements, as those of a running one do.
	p := addPlan{block: !running, resetFirst: r.Routed() && !running}
	if former != nil && fits(layout, *former) == nil && len(former.Addresses) > 0 {
		p.before = append(p.before, *former)
		p.displaces = !slices.Equal(former.Addresses, r.Addresses)
	}
	for _, owner := range owners {
		if fits(layout, owner) != nil {
			continue
		}
		p.before, p.displaces = append(p.before, owner), true
		taken := func(a addr) bool { return slices.Contains(r.Addresses, a) }
		owner.Addresses = slices.DeleteFunc(slices.Clone(owner.Addresses), taken)
		if owner.Committed && len(owner.Addresses) > 0 {
			p.kept = append(p.kept, owner)
		}
	}
	return p
}

// difference is the node's share of the attachments of before, and of those of after. Sharers are in
// both.
func (f nodeFile) difference(before, after, sharers []attachment.Record) (from, to desired.Share, err error) {
	if from, err = f.share(slices.Concat(before, sharers)...); err != nil {
		return from, to, err
	}
	to, err = f.share(slices.Concat(after, sharers)...)
	return from, to, err
}

// sharersOf are the attachments, but for those of known, that have a further source prefix of one of
// leaving. Behind IPVS, iptables knows such a prefix by its profile alone, so it stays there with the
// last that has it.
func sharersOf(all, leaving, known []attachment.Record) []attachment.Record {
	return slices.DeleteFunc(slices.Clone(all), func(other attachment.Record) bool {
		return slices.ContainsFunc(known, func(r attachment.Record) bool { return r.Key == other.Key }) ||
			!slices.ContainsFunc(leaving, func(r attachment.Record) bool {
				return slices.ContainsFunc(r.AllowedSources,
					func(p netip.Prefix) bool { return slices.Contains(other.AllowedSources, p) })
			})
	})
}

// policyPlan is a change of policies, of what is known of attachments, or of pods elsewhere.
type policyPlan struct {
	// file is node.json with the policies and the epoch.
	file nodeFile
	// records are the attachments of which something else is known, to be written down.
	records []attachment.Record
	// policies is set where those are to be written down.
	policies bool
	// from and to are the shares of all attachments.
	from, to desired.Share
	// restricted is set where a new epoch begins.
	restricted bool
}

// planPolicies plans an update of a node with these attachments.
func planPolicies(was nodeFile, before []attachment.Record, update PolicyUpdate) (policyPlan, error) {
	p := policyPlan{file: was, records: update.Records, policies: update.Policies != nil}
	p.file.Kubernetes = was.Kubernetes || update.kubernetes
	if p.policies {
		p.file.Policies = *update.Policies
	}
	var err error
	if p.from, err = was.share(before...); err != nil {
		return p, err
	}
	if p.to, err = p.file.share(replaced(before, update.Records)...); err != nil {
		return p, err
	}
	p.from, p.to = p.from.WithMembers(update.Removed), p.to.WithMembers(update.Added)
	// A change that was interrupted may be half in the kernel: what it forbade is not known to be
	// stopped. Whether this one takes anything away, only whole states tell: an endpoint that stays
	// in its place may have got other rules.
	p.restricted = !was.Synced || update.Unknown || p.from.Restricts(p.to) ||
		// To a packet in flight, those who come may be peers of the rules that go.
		p.policies && p.from.MentionsAny(update.Added)
	if p.restricted {
		p.file.Epoch = p.to.Layout.NextEpoch(p.to.Epoch)
		p.to.Epoch = p.file.Epoch
	}
	return p, nil
}

// replaced is records with those of changed in the place of their former selves.
func replaced(records, changed []attachment.Record) []attachment.Record {
	next := map[attachment.Key]attachment.Record{}
	for _, r := range changed {
		next[r.Key] = r
	}
	out := make([]attachment.Record, len(records))
	for i, r := range records {
		if changed, ok := next[r.Key]; ok {
			// The addresses that a later attachment has taken over are no more its own.
			changed.Addresses = r.Addresses
			r = changed
		}
		out[i] = r
	}
	return out
}

// repairPlan is a change of what node.json says of the node itself.
type repairPlan struct {
	file nodeFile
	// changed is set where there is anything to write down, restricted where a new epoch begins,
	// and rewrite where rules have to be written.
	changed, restricted, rewrite bool
}

// surroundings are what rules say of the node's links and bridges.
type surroundings struct {
	tunnels    desired.Tunnels
	unfiltered desired.Unfiltered
}

// planSurroundings plans what follows where rules were written with other surroundings. More tunnels
// than before begin an epoch, since what is in a live flow was not forbidden.
func planSurroundings(f nodeFile, found surroundings) (repairPlan, error) {
	if f.Tunnels != nil && sameTunnels(*f.Tunnels, found.tunnels) && f.Unfiltered == found.unfiltered {
		return repairPlan{file: f}, nil
	}
	node, err := f.node()
	if err != nil {
		return repairPlan{}, err
	}
	from, to := desired.State{Node: node}, desired.State{Node: node}
	to.Tunnels = found.tunnels
	p := repairPlan{file: f, changed: true, restricted: from.Restricts(to), rewrite: true}
	if p.restricted {
		p.file.Epoch = node.Layout.NextEpoch(f.Epoch)
	}
	p.file.Tunnels, p.file.Unfiltered, p.file.Synced = &found.tunnels, found.unfiltered, false
	return p, nil
}

func sameTunnels(a, b desired.Tunnels) bool {
	return slices.Equal(a.UDPPorts, b.UDPPorts) && slices.Equal(a.Protocols, b.Protocols)
}

// planPorts plans what follows from the ports that the daemon knows; nil leaves those as they are. In
// iptables a rule has those of SCTP.
func planPorts(f nodeFile, ports *Ports) (repairPlan, error) {
	if ports == nil || f.Ports.equal(*ports) {
		return repairPlan{file: f}, nil
	}
	node, err := f.node()
	if err != nil {
		return repairPlan{}, err
	}
	p := repairPlan{file: f, changed: true, rewrite: f.kind().SCTPInRules && !slices.Equal(node.SCTPPorts, ports.SCTP)}
	p.file.Ports, p.file.Synced = ports, f.Synced && !p.rewrite
	return p, nil
}

// maskStep is a migration: to a layout, with IDs by the attachment's hash.
type maskStep struct {
	layout mark.Layout
	ids    map[string]migratedID
}

// planMask plans the way of a node's attachments from one layout to another. ErrExhausted where that
// has not room for all.
func planMask(former, layout mark.Layout, records []attachment.Record) ([]maskStep, error) {
	var plan []maskStep
	records = slices.Clone(records)
	// A mark that means "outside" in the new layout must be no endpoint's in the former one: such
	// an endpoint gets another ID there first.
	for _, to := range []mark.Layout{former, layout} {
		ids, err := reassign(records, former, to, layout.ID(mark.Outside))
		if err != nil {
			return nil, err
		}
		moves := false
		for i, r := range records {
			moves = moves || ids[r.Hash()].From != ids[r.Hash()].To
			records[i].ID = ids[r.Hash()].To
		}
		if moves || to == layout {
			plan = append(plan, maskStep{to, ids})
		}
	}
	return plan, nil
}

// reassign gives every attachment an ID in layout: its own if it can keep it, else the lowest that
// is free. A mark of the one layout that is not that attachment's in the other one is not given, and
// neither is what is to mean "outside".
func reassign(
	records []attachment.Record,
	former, layout mark.Layout,
	outside mark.Mark,
) (map[string]migratedID, error) {
	if len(records) > layout.Capacity() {
		return nil, fmt.Errorf("%w: iptablesMarkMask %#x holds %d endpoints, and the node has %d; use a wider mask", state.ErrExhausted, layout.Mask(), layout.Capacity(), len(records))
	}
	if err := fits(former, records...); err != nil {
		return nil, err
	}
	owner := map[uint32]string{former.ID(mark.Outside).Value: "", outside.Value: ""}
	for _, r := range records {
		owner[former.ID(r.ID).Value] = r.Hash()
	}
	owner[outside.Value] = ""
	ids, taken := map[string]migratedID{}, map[mark.ID]bool{}
	usable := func(id mark.ID, hash string) bool {
		if id < mark.First || uint32(id) > layout.Max() || taken[id] {
			return false
		}
		whose, any := owner[layout.ID(id).Value]
		return !any || whose == hash
	}
	give := func(r attachment.Record, id mark.ID) {
		ids[r.Hash()], taken[id] = migratedID{r.ID, id}, true
	}
	for _, r := range records {
		if usable(r.ID, r.Hash()) {
			give(r, r.ID)
		}
	}
	next := mark.First
	for _, r := range records {
		if _, done := ids[r.Hash()]; done {
			continue
		}
		for !usable(next, r.Hash()) {
			if next++; uint32(next) > layout.Max() {
				return nil, fmt.Errorf("%w: iptablesMarkMask %#x overlaps the one in force, %#x, and has no ID left that is free there; take a wider mask, or one with other bits", state.ErrExhausted, layout.Mask(), former.Mask())
			}
		}
		give(r, next)
	}
	return ids, nil
}

// fits is ErrDamaged where the layout has no bits for the ID of a record, and names its file.
func fits(layout mark.Layout, records ...attachment.Record) error {
	for _, r := range records {
		if uint32(r.ID) > layout.Max() {
			return fmt.Errorf("%w: \"attachments/%s\": ID %d does not fit iptablesMarkMask %#x, which has those up to %d; run 'podmarkctl gc'", state.ErrDamaged, r.Hash(), r.ID, layout.Mask(), layout.Max())
		}
	}
	return nil
}
