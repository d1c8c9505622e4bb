package iptables

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/podmark/podmark/pkg/dataplane/ipset"
	"github.com/podmark/podmark/pkg/desired"
)

// Update turns what from says into what to says, and touches nothing else. Endpoints
// and profiles that only from has go, those that only to has come, and of those that
// both have the differences are carried out, as with sets, their members and the epoch.
// A profile that only from has stays where another endpoint is left in it. It returns
// ErrIncomplete when the frame is not in place.
func (b Backend) Update(ctx context.Context, before, after desired.Share) error {
	from, to := before.State, after.State
	if err := to.OnlyNetworkPolicies(); err != nil {
		return err
	}
	conn, err := b.kernel().dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	var in []naming
	var obsolete [][]content
	for _, f := range families() {
		gen, err := b.generationInUse(conn, f, to.Node)
		if err != nil {
			return fmt.Errorf("IPv%s: %w", f.digit, err)
		}
		n := naming{f, gen}
		left, err := b.move(ctx, conn, from, to, n)
		if err != nil {
			return fmt.Errorf("IPv%s: %w", f.digit, err)
		}
		in, obsolete = append(in, n), append(obsolete, left)
	}
	gone, err := vacated(conn, from, to, in)
	if err != nil {
		return err
	}
	for i, n := range in {
		if err := b.finish(ctx, conn, from, to, gone, n); err != nil {
			return fmt.Errorf("IPv%s: %w", n.digit, err)
		}
		for _, s := range obsolete[i] {
			if err := destroyUnused(ctx, conn, s.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

// move carries out, in one family, what sets alone can say, and writes the rules that only
// to has. It returns the sets that are left over.
//
// That and what finish does come in an order in which every step allows no more than from or
// to does. What is new to a set, and what has left it, comes before the rules that begin
// another epoch: a flow that is judged then must not be judged by what is no more.
func (b Backend) move(
	ctx context.Context,
	conn setConn,
	from, to desired.State,
	n naming,
) (obsolete []content, err error) {
	if obsolete, err = b.populate(conn, from, to, n.family); err != nil {
		return nil, err
	}
	if err := b.addProfiles(ctx, conn, from, to, n); err != nil {
		return nil, err
	}
	old, added := memberships(from, n), memberships(to, n)
	if err := b.add(conn, append([]content{gateways(to, n)}, added...)); err != nil {
		return nil, err
	}
	// The endpoint elements first: without them the endpoint is closed.
	gone := without(old, added)
	slices.Reverse(gone)
	ofProfile := func(c content) bool { return n.isMembers(c.Set) || n.isNets(c.Set) }
	if err := b.del(conn, slices.DeleteFunc(slices.Clone(gone), ofProfile)); err != nil {
		return nil, err
	}
	return obsolete, b.removeProfiles(conn, slices.DeleteFunc(gone, func(c content) bool { return !ofProfile(c) }))
}

// populate brings the sets that rules name to what to says, with those that are new, and
// returns those that are left over.
func (b Backend) populate(conn setConn, from, to desired.State, f family) (obsolete []content, err error) {
	old, wanted := populations(from, f), populations(to, f)
	lacks := func(list []content, c content) bool {
		return !slices.ContainsFunc(list, func(other content) bool { return other.Name == c.Name })
	}
	for _, c := range wanted {
		if lacks(old, c) {
			if err := conn.Create(c.Set); err != nil {
				return nil, err
			}
		}
	}
	if err := b.add(conn, wanted); err != nil {
		return nil, err
	}
	obsolete = slices.DeleteFunc(slices.Clone(old), func(c content) bool { return !lacks(wanted, c) })
	kept := slices.DeleteFunc(old, func(c content) bool { return lacks(wanted, c) })
	return obsolete, b.del(conn, without(kept, wanted))
}

func (b Backend) add(conn setConn, list []content) error {
	for _, c := range list {
		for _, e := range c.elements {
			if err := conn.Add(c.Set, e); err != nil {
				return err
			}
			b.step("added to " + c.Name)
		}
	}
	return nil
}

func (b Backend) del(conn setConn, list []content) error {
	for _, c := range list {
		for _, e := range c.elements {
			if err := conn.Del(c.Set, e); err != nil && !errors.Is(err, ipset.ErrNotExist) {
				return err
			}
			b.step("deleted from " + c.Name)
		}
	}
	return nil
}

// removeProfiles takes endpoints out of their profiles. A packet may be between the rule that knows
// the endpoint and that of the profile, or between those of two profiles, so those on their
// way go first.
func (b Backend) removeProfiles(conn setConn, members []content) error {
	if len(members) == 0 {
		return nil
	}
	if err := b.kernel().drain(); err != nil {
		return err
	}
	return b.del(conn, members)
}

// addProfiles writes the rules of the profiles and host veths of to that are not in place, and
// makes the sets that those will name which are rewritten later.
func (b Backend) addProfiles(ctx context.Context, conn setConn, from, to desired.State, n naming) error {
	profiles, err := makeProfiles(conn, from, to, n)
	if err != nil {
		return err
	}
	veths, err := makeVeths(conn, to, n)
	if err != nil {
		return err
	}
	return b.restoreLines(ctx, n.family, append(profiles, veths...))
}

// makeProfiles makes the sets of the profiles of to that are not in place or become others, and
// lists the rules of those that are not in place.
func makeProfiles(conn setConn, from, to desired.State, n naming) ([]string, error) {
	var lines []string
	for _, id := range to.ProfileIDs() {
		p := to.Profiles[id]
		was, rewritten := from.Profiles[id]
		if !rewritten {
			was = p
		}
		there, err := inPlace(conn, was, n)
		if err != nil {
			return nil, err
		}
		if there && !rewritten {
			continue
		}
		if err := makeSets(conn, profileSets(p, n)); err != nil {
			return nil, err
		}
		if !there {
			lines = append(lines, rewrite(profile(p, n, to.Unlogged)...)...)
			lines = append(lines, dispatchLines("-A", p, n)...)
		}
	}
	return lines, nil
}

func makeSets(conn setConn, list []content) error {
	for _, c := range list {
		if err := conn.Create(c.Set); err != nil {
			return err
		}
		for _, e := range c.elements {
			if err := conn.Add(c.Set, e); err != nil {
				return err
			}
		}
	}
	return nil
}

// makeVeths makes the sets of host veths of to that no rule names, and lists the rules that do.
func makeVeths(conn setConn, to desired.State, n naming) ([]string, error) {
	var lines []string
	for _, c := range vethSets(to, n) {
		used, err := references(conn, c.Name)
		if err != nil {
			return nil, err
		}
		switch {
		case used >= vethReferences:
		case used > 0:
			return nil, errVeths(c)
		default:
			if err := conn.Create(c.Set); err != nil {
				return nil, err
			}
			lines = append(lines, vethLines("-A", c)...)
		}
	}
	return lines, nil
}

// vethLines list the rules of a set of host veths, with "-A" to add them and "-D" to delete them.
func vethLines(command string, c content) []string {
	return []string{
		fmt.Sprintf("%s %s %s", command, chainSender, fromVeth(c.Set)),
		fmt.Sprintf("%s %s %s", command, chainBeyond, toVeth(c.Set)),
	}
}

// rewrite lists the lines of a restore that give chains, new or not, their rules.
func rewrite(chains ...chain) []string {
	var lines []string
	for _, c := range chains {
		lines = append(lines, fmt.Sprintf(":%s - [0:0]", c.name))
	}
	for _, c := range chains {
		for _, r := range c.rules {
			lines = append(lines, fmt.Sprintf("-A %s %s", c.name, r))
		}
	}
	return lines
}

// rewriteBaseChains lists those of the static chains that change with the epoch.
func (b Backend) rewriteBaseChains(from, to desired.State, n naming) []string {
	var lines []string
	if from.Epoch == to.Epoch {
		return nil
	}
	before := b.possible(baseChains(from, n))
	for i, c := range b.possible(baseChains(to, n)) {
		switch c.name {
		case chainInput, chainForward, chainAnswer, chainOutput, chainPolice:
			if !slices.Equal(c.rules, before[i].rules) {
				lines = append(lines, rewrite(c)...)
			}
		}
	}
	return lines
}

// vacated lists the profiles of from that to does not have, and in which no endpoint is left
// by an address of any family.
func vacated(conn setConn, from, to desired.State, in []naming) ([]desired.Profile, error) {
	var out []desired.Profile
	for _, id := range from.ProfileIDs() {
		if _, kept := to.Profiles[id]; kept {
			continue
		}
		p, members := from.Profiles[id], uint32(0)
		for _, n := range in {
			for _, set := range []ipset.Set{n.members(p.Direction, id), n.nets(p.Direction, id)} {
				h, err := conn.Header(set.Name)
				if err != nil && !errors.Is(err, ipset.ErrNotExist) {
					return nil, err
				}
				members += h.Elements
			}
		}
		if members == 0 {
			out = append(out, p)
		}
	}
	return out, nil
}

// finish removes the profiles that are vacated, gives those that both have their new rules,
// and begins the epoch of to, in one restore.
func (b Backend) finish(
	ctx context.Context,
	conn setConn,
	from, to desired.State,
	vacated []desired.Profile,
	n naming,
) error {
	lines, rewritten := rewriteProfiles(from, to, n)
	removed, err := deleteProfiles(conn, vacated, n)
	if err != nil {
		return err
	}
	unused, err := ownSets(conn, slices.Concat(vacated, rewritten), n)
	if err != nil {
		return err
	}
	empty, err := emptyVeths(conn, from, to, n)
	if err != nil {
		return err
	}
	lines = append(lines, removed...)
	for _, c := range empty {
		lines = append(lines, vethLines("-D", c)...)
		unused = append(unused, c.Name)
	}
	if err := b.restoreLines(ctx, n.family, append(lines, b.rewriteBaseChains(from, to, n)...)); err != nil {
		return err
	}
	return destroySets(ctx, conn, unused, keptSets(from, to, n))
}

// rewriteProfiles lists the rules of profiles that both states have, and by other rules; and what
// those profiles were.
func rewriteProfiles(from, to desired.State, n naming) (lines []string, rewritten []desired.Profile) {
	for _, id := range from.ProfileIDs() {
		next, kept := to.Profiles[id]
		if !kept {
			continue
		}
		before, after := profile(from.Profiles[id], n, from.Unlogged), profile(next, n, to.Unlogged)
		if !slices.EqualFunc(before, after, func(a, b chain) bool { return slices.Equal(a.rules, b.rules) }) {
			lines, rewritten = append(lines, rewrite(after...)...), append(rewritten, from.Profiles[id])
		}
	}
	return lines, rewritten
}

// deleteProfiles lists what deletes the rules of profiles, as far as they are in place.
func deleteProfiles(conn setConn, profiles []desired.Profile, n naming) ([]string, error) {
	var lines []string
	for _, p := range profiles {
		there, err := inPlace(conn, p, n)
		if err != nil {
			return nil, err
		}
		if !there {
			continue
		}
		lines = append(lines, dispatchLines("-D", p, n)...)
		for _, w := range ways {
			lines = append(lines, "-F "+chainOf(p, w), "-X "+chainOf(p, w))
		}
	}
	return lines, nil
}

// keptSets are the names of the sets of profiles that both states have.
func keptSets(from, to desired.State, n naming) map[string]bool {
	kept := map[string]bool{}
	for id := range from.Profiles {
		if next, ok := to.Profiles[id]; ok {
			for _, c := range profileSets(next, n) {
				kept[c.Name] = true
			}
		}
	}
	return kept
}

func destroySets(ctx context.Context, conn setConn, names []string, kept map[string]bool) error {
	for _, name := range names {
		if kept[name] {
			continue
		}
		if err := destroyUnused(ctx, conn, name); err != nil {
			return err
		}
	}
	return nil
}

// emptyVeths lists the sets of host veths that only from needs, and in which none is left.
func emptyVeths(conn setConn, from, to desired.State, n naming) ([]content, error) {
	var out []content
	needed := vethSets(to, n)
	for _, c := range vethSets(from, n) {
		if slices.ContainsFunc(needed, func(other content) bool { return other.Name == c.Name }) {
			continue
		}
		switch h, err := conn.Header(c.Name); {
		case errors.Is(err, ipset.ErrNotExist) || err == nil && h.Elements > 0:
		case err != nil:
			return nil, err
		case h.References != vethReferences:
			return nil, errVeths(c)
		default:
			out = append(out, c)
		}
	}
	return out, nil
}

// ownSets lists the sets that no rule but these profiles' uses: their members with their
// further prefixes, and those of their ipBlocks that no other profile names.
func ownSets(conn setConn, profiles []desired.Profile, n naming) ([]string, error) {
	var own []string
	blocks := map[string]uint32{} // how many of the profiles' rules name the set
	for _, p := range profiles {
		sets := profileSets(p, n)
		own = append(own, sets[0].Name, sets[1].Name)
		for _, s := range sets[2:] {
			blocks[s.Name] += 0
		}
		for _, c := range profile(p, n, true) {
			for word := range strings.FieldsSeq(strings.Join(c.rules, " ")) {
				if _, ok := blocks[word]; ok {
					blocks[word]++
				}
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(blocks)) {
		used, err := references(conn, name)
		if err != nil {
			return nil, err
		}
		if used <= blocks[name] {
			own = append(own, name)
		}
	}
	return own, nil
}

func (b Backend) restoreLines(ctx context.Context, f family, lines []string) error {
	if len(lines) == 0 {
		return nil
	}
	// Chains are declared before any rule: a restore reads them in that order.
	slices.SortStableFunc(lines, func(x, y string) int {
		return boolOrder(strings.HasPrefix(y, ":")) - boolOrder(strings.HasPrefix(x, ":"))
	})
	if err := b.Variant.restore(ctx, f, b.Wait, "*"+mangle+"\n"+strings.Join(lines, "\n")+"\nCOMMIT\n"); err != nil {
		return err
	}
	b.step("restored")
	return nil
}

func boolOrder(b bool) int {
	if b {
		return 1
	}
	return 0
}
