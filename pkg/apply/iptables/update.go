package iptables

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/podmark/podmark/pkg/apply/ipset"
	"github.com/podmark/podmark/pkg/desired"
)

// Update moves the endpoints of from to what to says, and nothing else: from is
// empty for a new endpoint, to for one that leaves. Profiles appear with their
// first endpoint and go with their last. It returns ErrIncomplete when the frame
// is not in place.
func (b Backend) Update(ctx context.Context, from, to desired.State) error {
	conn, err := ipset.Dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	for _, f := range families() {
		if err := b.update(ctx, conn, f, from, to); err != nil {
			return fmt.Errorf("IPv%s: %w", f.digit, err)
		}
	}
	return nil
}

func (b Backend) update(ctx context.Context, conn *ipset.Conn, f family, from, to desired.State) error {
	gen, err := generationInUse(conn, f)
	if err != nil {
		return err
	}
	n := naming{f, gen}
	if err := b.appear(ctx, conn, to, n); err != nil {
		return err
	}
	old, added := memberships(from, n), memberships(to, n)
	for _, c := range append([]content{gateways(to, n)}, added...) {
		for _, e := range c.elements {
			if err := conn.Add(c.Set, e); err != nil {
				return err
			}
			b.step("added to " + c.Name)
		}
	}
	// The endpoint elements first: without them the endpoint is closed.
	for _, c := range slices.Backward(without(old, added)) {
		for _, e := range c.elements {
			if err := conn.Del(c.Set, e); err != nil && !errors.Is(err, ipset.ErrNotExist) {
				return err
			}
			b.step("deleted from " + c.Name)
		}
	}
	return b.vanish(ctx, conn, from, to, n)
}

// appear writes the rules of the profiles of to that are not in place.
func (b Backend) appear(ctx context.Context, conn *ipset.Conn, to desired.State, n naming) error {
	var lines []string
	for _, id := range to.ProfileIDs() {
		p := to.Profiles[id]
		used, err := references(conn, n.members(p.Direction, id).Name)
		switch {
		case err != nil:
			return err
		case used >= profileReferences:
			continue
		case used > 0:
			return errProfile(p)
		}
		for _, c := range profileSets(p, n) {
			if err := conn.Create(c.Set); err != nil {
				return err
			}
			for _, e := range c.elements {
				if err := conn.Add(c.Set, e); err != nil {
					return err
				}
			}
		}
		c := profile(p, n)
		lines = append(lines, fmt.Sprintf(":%s - [0:0]", c.name))
		for _, r := range c.rules {
			lines = append(lines, fmt.Sprintf("-A %s %s", c.name, r))
		}
		lines = append(lines, fmt.Sprintf("-A %s %s", dispatchChain(p), dispatchRule(p, n)))
	}
	if rules := renderBridge(to, marksOf(to), n); rules != nil {
		used, err := inUse(conn, n.pairs().Name)
		if err != nil {
			return err
		}
		if !used {
			if err := errors.Join(conn.Create(n.pairs()), conn.Create(n.macs())); err != nil {
				return err
			}
			for _, r := range rules {
				lines = append(lines, fmt.Sprintf("-A %s %s", chainBridge, r))
			}
		}
	}
	return b.restoreLines(ctx, n.family, lines)
}

// vanish removes the profiles of from that to does not have and no endpoint is
// left in.
func (b Backend) vanish(ctx context.Context, conn *ipset.Conn, from, to desired.State, n naming) error {
	var lines []string
	var gone []desired.Profile
	for _, id := range from.ProfileIDs() {
		p := from.Profiles[id]
		h, err := conn.Header(n.members(p.Direction, id).Name)
		if errors.Is(err, ipset.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if _, kept := to.Profiles[id]; kept || h.Elements > 0 {
			continue
		}
		if h.References > 0 && h.References < profileReferences {
			return errProfile(p)
		}
		if h.References > 0 {
			c := chainOf(p)
			lines = append(lines, fmt.Sprintf("-D %s %s", dispatchChain(p), dispatchRule(p, n)), "-F "+c, "-X "+c)
		}
		gone = append(gone, p)
	}
	sets, err := ownSets(conn, gone, n)
	if err != nil {
		return err
	}
	if err := b.restoreLines(ctx, n.family, lines); err != nil {
		return err
	}
	for _, name := range sets {
		if err := destroyUnused(ctx, conn, name); err != nil {
			return err
		}
	}
	return nil
}

// ownSets lists the sets that no rule but these profiles' uses: their members, and
// those of their ipBlocks that no other profile names.
func ownSets(conn *ipset.Conn, profiles []desired.Profile, n naming) ([]string, error) {
	var own []string
	blocks := map[string]uint32{} // how many of the profiles' rules name the set
	for _, p := range profiles {
		sets := profileSets(p, n)
		own = append(own, sets[0].Name)
		for _, s := range sets[1:] {
			blocks[s.Name] += 0
		}
		for _, r := range profile(p, n).rules {
			for word := range strings.FieldsSeq(r) {
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
	if err := b.Variant.restore(ctx, f, b.Wait, "*"+table+"\n"+strings.Join(lines, "\n")+"\nCOMMIT\n"); err != nil {
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
