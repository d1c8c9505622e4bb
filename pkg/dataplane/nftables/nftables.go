// Package nftables enforces a desired.State with nf_tables, over netlink: no
// nft binary is needed.
//
// It renders purely (frame.go, inet.go, bridge.go, profile.go, ruleset.go), finds out purely what
// that changes (change.go), and carries it out in a few transactions (conn.go).
// Endpoints are elements of a few maps; rules are written for profiles only. So
// what an endpoint costs does not depend on how many there are: were each one
// led to by a verdict, the kernel would check all of them at every change.
//
// Who is who after a restart: everything is in the tables inet podmark and
// bridge podmark, and routed host veths are in device group 1886.
package nftables

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/dataplane/drift"
	"github.com/podmark/podmark/pkg/desired"
)

// ErrIncomplete is returned when the tables are not as a Sync left them, as
// before the first endpoint or after 'nft flush ruleset': a Sync fixes that.
var ErrIncomplete = drift.Err

// Backend applies states. Its methods are not safe for concurrent use: the
// caller holds the node's lock.
type Backend struct {
	// Step, if set, is called after each write to the kernel: tests end the
	// process there.
	Step func(string)
}

// change is what is done to the tables, a transaction each, which may be empty.
//
// A packet keeps to the rules of when it came to a hook, and sees elements as they are
// when it looks for them (nft_do_chain and nft_genmask_cur, Linux 3.18 to 6.18). To one
// in flight, a chain that came in the transaction that leads to it is empty, and what
// falls off the end of a chain passes. So chains are there before anything leads to
// them, and go when nothing does.
type change struct {
	prepare, commit, cleanup []command
	// attempts are made after that, each by itself, and may be refused for what is still in use. What they
	// may have referred to goes last.
	attempts [][]command
	last     []command
}

// plan decides on a change by what there is.
type plan func(*conn) (change, error)

// Sync makes the kernel hold exactly want.
func (b Backend) Sync(ctx context.Context, want desired.State) error {
	if err := want.Filled(); err != nil {
		return err
	}
	fix := func(c *conn) (change, error) {
		have, err := readAll(c, tables())
		if err != nil {
			return change{}, err
		}
		n := have.numbers().only(want).with(want)
		return whole(have, render(want, n)), nil
	}
	rebuild := func(c *conn) (change, error) {
		have, err := readAll(c, tables())
		return fresh(have, render(want, numbers{}.with(want))), err
	}
	return b.transact(ctx, "synced", fix, rebuild)
}

// Remove removes both tables. A kernel without nf_tables has none.
func (b Backend) Remove(ctx context.Context) error {
	err := b.transact(ctx, "removed", func(c *conn) (change, error) {
		have, err := readAll(c, tables())
		return change{commit: nothing(have)}, err
	})
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil
	}
	return err
}

// Update turns what from says into what to says, and touches nothing else. Endpoints
// and profiles that only from has go, those that only to has come, and of those that
// both have the differences are carried out, as with sets, their members and the epoch.
// A profile that only from has stays where another endpoint is left in it. It returns
// ErrIncomplete when something that it changes is not what it should be; Check looks
// at the rest.
func (b Backend) Update(ctx context.Context, before, after desired.Share) error {
	from, to := before.State, after.State
	if err := to.Filled(); err != nil {
		return err
	}
	err := b.transact(ctx, "updated", func(c *conn) (change, error) { return update(c, from, to) })
	if unexpected(err) {
		err = fmt.Errorf("%w: %w", ErrIncomplete, err)
	}
	return err
}

// transact decides on what there is and commits it, again when another program
// came in between. When the kernel refuses it, because things are not what their
// names say, the next plan is tried. Once a change has begun, that is all that another program
// else can bring about.
func (b Backend) transact(ctx context.Context, step string, plans ...plan) error {
	c, err := dial()
	if err != nil {
		return err
	}
	defer c.close()
	for {
		generation, err := c.generation()
		if err != nil {
			return err
		}
		ch, err := plans[0](c)
		if err != nil {
			return err
		}
		err = b.commit(c, generation, step, ch)
		switch {
		case errors.Is(err, errChanged) && ctx.Err() == nil:
			continue
		case unexpected(err) && len(plans) > 1:
			plans = plans[1:]
			continue
		}
		return err
	}
}

// commit carries out a change: where another program has changed something since a generation, nothing.
func (b Backend) commit(c *conn, generation uint32, step string, ch change) error {
	transaction := func(commands []command) error {
		if len(commands) == 0 {
			return nil
		}
		if err := c.commit(generation, commands); err != nil {
			return err
		}
		generation = anyGeneration
		if b.Step != nil {
			b.Step(step)
		}
		return nil
	}
	for _, commands := range [][]command{ch.prepare, ch.commit, ch.cleanup} {
		if err := transaction(commands); err != nil {
			return err
		}
	}
	for _, commands := range ch.attempts {
		if err := transaction(commands); err != nil && !errInUse(err) {
			return err
		}
	}
	return transaction(ch.last)
}

// unexpected holds for what the kernel answers when an object is missing, is of
// another kind, maps to something else, or is full.
func unexpected(err error) bool {
	return slices.ContainsFunc([]error{unix.ENOENT, unix.EEXIST, unix.EBUSY, unix.EINVAL, unix.ENFILE},
		func(e error) bool { return errors.Is(err, e) })
}

// update lists what turns what from says into what to says.
func update(c *conn, from, to desired.State) (ch change, err error) {
	var used numbers
	if profiled(from) || profiled(to) {
		for _, d := range desired.Directions {
			list, err := c.elements(profiles(d))
			if err != nil {
				return ch, err
			}
			used[d] = numbersOf(list)
		}
	}
	n := used.with(to)
	old, added := placed(from, used), placed(to, n)
	goneSets, comeSets := setsBetween(from, to)
	for _, s := range comeSets {
		ch.prepare = append(ch.prepare, addSet(s))
	}
	stages, restaged, err := addStages(c, from, to)
	if err != nil {
		return ch, err
	}
	come, rewritten, err := addProfiles(c, from, to, used, n)
	if err != nil {
		return ch, err
	}
	ch.prepare = slices.Concat(ch.prepare, stages, come)
	ch.commit = slices.Concat(restaged, rewritten, rewriteBaseChains(from, to))
	for _, s := range setsOf(to) {
		// What should be there is added in any case: another program may have deleted it.
		gone, _ := differences(old[s.name], added[s.name])
		ch.commit = append(ch.commit, deleteElements(s, gone)...)
		ch.commit = append(ch.commit, addElements(s, added[s.name].sorted())...)
	}
	var leaving []familyProfile
	for _, h := range familyProfiles(from) {
		_, kept := to.Profiles[h.ID]
		if _, there := used[h.Direction][h.chain()]; there && !kept {
			leaving = append(leaving, h)
		}
	}
	ch.cleanup, err = removeProfiles(leaving, used, old)
	ch.attempts = leavingStages(from, to)
	for _, s := range goneSets {
		ch.last = append(ch.last, deleteSet(s))
	}
	return ch, err
}

// profiled reports whether a state has to do with profiles.
func profiled(s desired.State) bool {
	return len(s.Profiles) > 0 || slices.ContainsFunc(s.Endpoints,
		func(e desired.Endpoint) bool { return e.Profiles != [2]desired.ProfileID{} })
}

// setsBetween lists the policy's sets that only from has, and those that only to has.
func setsBetween(from, to desired.State) (gone, come []set) {
	lacks := func(list, other []set) []set {
		names := map[string]bool{}
		for _, s := range other {
			names[s.name] = true
		}
		return slices.DeleteFunc(list, func(s set) bool { return names[s.name] })
	}
	return lacks(setsOf(from), setsOf(to)), lacks(setsOf(to), setsOf(from))
}

// rewriteBaseChains lists what rewrites those of the static chains that change with the epoch.
func rewriteBaseChains(from, to desired.State) []command {
	if from.Epoch == to.Epoch {
		return nil
	}
	var out []command
	before := baseChains(from)
	for i, c := range baseChains(to) {
		if c.text() != before[i].text() {
			out = append(out, refill(c)...)
		}
	}
	return out
}

// refill lists what gives a chain that is there other rules.
func refill(c chain) []command { return append([]command{flushChain(c)}, fill(c)...) }

// fill lists what gives a chain its rules.
func fill(c chain) (out []command) {
	for i := range c.rules {
		out = append(out, addRule(c, i))
	}
	return out
}

// addProfiles lists what makes the chains of to that are not there, and what gives those that
// from has otherwise their new rules.
func addProfiles(c *conn, from, to desired.State, used, n numbers) (come, rewritten []command, err error) {
	wanted := familyProfiles(to)
	expected := make([]familyProfile, len(wanted))
	for i, h := range wanted {
		expected[i] = h
		if old, ok := from.Profiles[h.ID]; ok {
			expected[i].Profile = old
		}
	}
	there, err := checkProfiles(c, expected, used)
	if err != nil {
		return nil, nil, err
	}
	var added []familyProfile
	for i, h := range wanted {
		ch := h.render()
		if there[h.chain()] {
			if ch.text() != expected[i].render().text() {
				rewritten = append(rewritten, refill(ch)...)
			}
			continue
		}
		come = append(append(come, addChain(ch)), fill(ch)...)
		come = append(come, addElements(profiles(h.Direction),
			[]element{profileElement(n[h.Direction][ch.name], ch.name)})...)
		added = append(added, h)
	}
	// A number that only its map has lost is still in use.
	for _, m := range leadingMaps() {
		taken, err := leadsTo(c, m, inMap(m, added), n, nil)
		if err != nil {
			return nil, nil, err
		}
		for name := range taken {
			return nil, nil, fmt.Errorf("%w: the number that %s would get is in use already", ErrIncomplete, path(inet, name))
		}
	}
	return come, rewritten, nil
}

// removeProfiles lists what removes those of the leaving profiles that no endpoint is left
// in but those of old. An endpoint may have addresses of one family only.
func removeProfiles(leaving []familyProfile, used numbers, old map[string]elements) ([]command, error) {
	var out []command
	others := map[desired.ProfileID]bool{}
	for _, m := range leadingMaps() {
		list := inMap(m, leaving)
		if len(list) == 0 {
			continue
		}
		c, err := dial() // which cannot be used again when it was not read to the end
		if err != nil {
			return nil, err
		}
		found, err := leadsTo(c, m, list, used, old[m.name])
		c.close()
		if err != nil {
			return nil, err
		}
		for _, h := range list {
			others[h.ID] = others[h.ID] || found[h.chain()]
		}
	}
	for _, h := range leaving {
		if !others[h.ID] {
			out = append(out, deleteElements(profiles(h.Direction),
				[]element{profileElement(used[h.Direction][h.chain()], h.chain())})...)
			out = append(out, deleteChain(chain{table: inet, name: h.chain()}))
		}
	}
	return out, nil
}

// leadingMaps are those that say, whole, who is in which chain.
func leadingMaps() []set { return []set{egress(), ingress(v4), ingress(v6)} }

// inMap lists those of the chains to which map m leads.
func inMap(m set, list []familyProfile) []familyProfile {
	return slices.DeleteFunc(slices.Clone(list), func(h familyProfile) bool {
		return h.Direction == desired.Egress && m != egress() || h.Direction == desired.Ingress && m != ingress(h.family)
	})
}

// leadsTo names those of the chains to which map m leads anybody who is not among
// except. It reads until it has found them all.
func leadsTo(c *conn, m set, list []familyProfile, n numbers, except elements) (map[string]bool, error) {
	found := map[string]bool{}
	if len(list) == 0 {
		return found, nil
	}
	chains := map[string]string{} // by the value that leads there
	for _, h := range list {
		chains[leadingTo(none, n[h.Direction][h.chain()])] = h.chain()
	}
	return found, c.eachElement(m, func(e element) bool {
		_, excepted := except[e.key]
		if name, wanted := chains[e.value]; wanted && !excepted {
			found[name] = true
		}
		return len(found) < len(chains)
	})
}

// Check reports the first thing of want that is not in place, changing nothing: a base chain that
// has not as many rules as it should, an element, a rule that is not as it was written; deep, of
// all chains and not only of those that want has.
func (b Backend) Check(_ context.Context, want desired.State, depth drift.Depth) error {
	switch depth {
	case drift.Base:
		return checkBase(usesOf(want.Node))
	case drift.Content:
		return check(want, checkStamps)
	}
	return check(want, checkAllStamps)
}

func checkBase(uses map[string]int) error {
	c, err := dial()
	if err != nil {
		return err
	}
	defer c.close()
	return checkBaseChains(c, uses)
}

func check(want desired.State, stamps func(*conn, []chain) error) error {
	if err := want.Filled(); err != nil {
		return err
	}
	c, err := dial()
	if err != nil {
		return err
	}
	defer c.close()
	if err := checkBaseChains(c, usesOf(want.Node)); err != nil {
		return err
	}
	var n numbers
	for _, d := range desired.Directions {
		list, err := c.elements(profiles(d))
		if err != nil {
			return fmt.Errorf("%w: %w", drift.Element.Err(), err)
		}
		n[d] = numbersOf(list)
	}
	for _, h := range familyProfiles(want) {
		if _, led := n[h.Direction][h.chain()]; !led {
			return fmt.Errorf("%w: map %s does not lead to chain %s", drift.Element.Err(),
				path(inet, profiles(h.Direction).name), h.chain())
		}
	}
	r := render(want, n)
	// One set after the other: with thousands of endpoints they are large.
	if err := checkElements(c, r); err != nil {
		return err
	}
	if _, err = checkProfiles(c, familyProfiles(want), n); err != nil {
		return err
	}
	return stamps(c, r.chains)
}

// checkElements reports the first element of r that its set lacks.
func checkElements(c *conn, r ruleset) error {
	for _, s := range r.sets {
		lacks, err := c.lacks(s, r.elements[s.name].sorted())
		if err != nil {
			return fmt.Errorf("%w: %w", drift.Element.Err(), err)
		}
		if lacks != nil {
			return fmt.Errorf("%w: %s lacks %s", drift.Element.Err(), path(s.table, s.name), s.show(*lacks))
		}
		delete(r.elements, s.name)
	}
	return nil
}

// Refresh is a deep Check: there is nothing of the node's own to bring up to date, neither a host
// address nor a NodePort.
func (b Backend) Refresh(ctx context.Context, want desired.State) ([]string, error) {
	return nil, b.Check(ctx, want, drift.Deep)
}

// checkProfiles tells which of the chains are there. One that lacks a rule, or to
// which nothing leads, is an error, as is one that is not there and has a number.
func checkProfiles(c *conn, list []familyProfile, n numbers) (map[string]bool, error) {
	there := map[string]bool{}
	if len(list) == 0 {
		return there, nil
	}
	chains := make([]chain, len(list))
	for i, h := range list {
		chains[i] = h.render()
	}
	uses, err := c.chainUses(chains)
	if err != nil {
		return nil, err
	}
	for i, h := range list {
		_, led := n[h.Direction][h.chain()]
		use, ok := uses[h.chain()]
		if ok != led || ok && use != len(chains[i].rules)+1 {
			return nil, errChain(chains[i])
		}
		there[h.chain()] = ok
	}
	return there, nil
}

// checkBaseChains reports a table that sleeps, or the first static chain that has not as many uses
// as it should: it lacks a rule, or one that leads to it. What the rules say is not read.
func checkBaseChains(c *conn, wanted map[string]int) error {
	for _, t := range tables() {
		_, awake, err := c.table(t)
		switch {
		case errors.Is(err, unix.ENOENT):
			return fmt.Errorf("%w: table %s is missing", drift.Chain.Err(), path(t))
		case err != nil:
			return err
		case !awake:
			return fmt.Errorf("%w: table %s is dormant, and no hook leads to its rules", drift.Chain.Err(), path(t))
		}
	}
	var chains []chain
	for _, f := range baseChainUses {
		if wanted[f.name] > 0 {
			chains = append(chains, f.chain)
		}
	}
	uses, err := c.chainUses(chains)
	if err != nil {
		return err
	}
	for _, ch := range chains {
		if uses[ch.name] != wanted[ch.name] {
			return errChain(ch)
		}
	}
	return nil
}

func errChain(c chain) error {
	return fmt.Errorf("%w: chain %s is missing, or is not as it was written", drift.Chain.Err(), path(c.table, c.name))
}
