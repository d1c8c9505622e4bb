package nftables

import (
	"context"
	"fmt"
	"slices"

	"github.com/podmark/podmark/pkg/dataplane/counters"
	"github.com/podmark/podmark/pkg/dataplane/drift"
	"github.com/podmark/podmark/pkg/desired"
)

// Guard enforces what only nf_tables can, beside a backend that judges packets of IP by
// other means. It has packets prove who sent them by the number of the link that they come
// in by, ahead of conntrack: iptables knows links by their names and groups, and comes
// behind. And it holds the bridge ports of endpoints to their addresses, and lets nothing into
// those of isolated ones that no policy was asked about. Its methods are those of Backend,
// for that part alone.
type Guard struct {
	// Step is that of Backend.
	Step func(string)
}

// renderGuard derives what Guard has of the whole ruleset, and its own.
func renderGuard(s desired.State) ruleset {
	r := render(s, numbers{})
	out := ruleset{tables: r.tables, elements: map[string]elements{}}
	uses := guardUses(desired.Node{})
	for _, c := range append(r.chains, remarkChain(s.Layout)) {
		if uses[c.name] > 0 {
			out.chains = append(out.chains, c)
		}
	}
	for _, s := range r.sets {
		if s.ofGuard() {
			out.sets, out.elements[s.name] = append(out.sets, s), r.elements[s.name]
		}
	}
	return out
}

// ofGuard reports whether a chain of Guard looks into the set.
func (s set) ofGuard() bool {
	return s.table == bridge || slices.ContainsFunc([]set{
		senders(v4), senders(v6), veths(), self(v4), self(v6), further(v4), further(v6),
	}, func(other set) bool { return other.name == s.name })
}

// Sync makes the tables hold exactly what want says of that.
func (g Guard) Sync(ctx context.Context, want desired.State) error {
	if err := want.Filled(); err != nil {
		return err
	}
	r := func() ruleset { return renderGuard(want) }
	fix := func(c *conn) (change, error) {
		have, err := readAll(c, tables())
		return whole(have, r()), err
	}
	rebuild := func(c *conn) (change, error) {
		have, err := readAll(c, tables())
		return fresh(have, r()), err
	}
	return Backend(g).transact(ctx, "synced senders", fix, rebuild)
}

// Remove removes both tables.
func (g Guard) Remove(ctx context.Context) error { return Backend(g).Remove(ctx) }

// Update turns what from says into what to says; ErrIncomplete when something is missing.
func (g Guard) Update(ctx context.Context, before, after desired.Share) error {
	from, to := before.State, after.State
	if err := to.Filled(); err != nil {
		return err
	}
	err := Backend(g).transact(ctx, "updated senders", func(*conn) (ch change, err error) {
		old, added := placed(from, numbers{}), placed(to, numbers{})
		for _, s := range staticSets() {
			if s.ofGuard() {
				gone, _ := differences(old[s.name], added[s.name])
				ch.commit = append(append(ch.commit, deleteElements(s, gone)...), addElements(s, added[s.name].sorted())...)
			}
		}
		return ch, nil
	})
	if unexpected(err) {
		err = fmt.Errorf("%w: %w", ErrIncomplete, err)
	}
	return err
}

// Check is that of Backend. It has few chains, and looks at all of them.
func (g Guard) Check(_ context.Context, want desired.State, depth drift.Depth) error {
	if err := checkBase(guardUses(want.Node)); err != nil || depth == drift.Base {
		return err
	}
	if err := want.Filled(); err != nil {
		return err
	}
	c, err := dial()
	if err != nil {
		return err
	}
	defer c.close()
	r := renderGuard(want)
	if err := checkElements(c, r); err != nil {
		return err
	}
	return checkAllStamps(c, r.chains)
}

// Counters reads what the rules that drop have counted.
func (g Guard) Counters(ctx context.Context) ([]counters.Rule, error) {
	return Backend(g).Counters(ctx)
}
