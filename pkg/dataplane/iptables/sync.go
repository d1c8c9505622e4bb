package iptables

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/podmark/podmark/pkg/dataplane/ipset"
	"github.com/podmark/podmark/pkg/desired"
)

// Sync makes the kernel hold exactly want. Packets see the old state until, per
// family, one restore makes them see the new one.
func (b Backend) Sync(ctx context.Context, want desired.State) error {
	if err := want.OnlyNetworkPolicies(); err != nil {
		return err
	}
	conn, err := b.kernel().dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	for _, f := range families() {
		if err := b.sync(ctx, conn, f, want); err != nil {
			return fmt.Errorf("IPv%s: %w", f.digit, err)
		}
	}
	return nil
}

func (b Backend) sync(ctx context.Context, conn setConn, f family, want desired.State) error {
	gen, err := spareGeneration(conn, f)
	if err != nil {
		return err
	}
	n := naming{f, gen}
	sets, named := everySet(want, n), populations(want, f)
	if err := fill(ctx, conn, sets, n); err != nil {
		return err
	}
	for _, c := range named {
		if err := errors.Join(conn.Create(c.Set), conn.AddAll(c.Set, c.elements)); err != nil {
			return err
		}
	}
	there, err := b.Variant.list(ctx, f)
	if err != nil {
		return err
	}
	b.step("filled")
	if err := b.Variant.restore(ctx, f, b.Wait, whole(b.possible(chainsOf(want, n)), there)); err != nil {
		return err
	}
	b.step("restored")
	for _, v := range b.Former {
		if err := removeRules(ctx, v, f, b.Wait); err != nil {
			return err
		}
	}
	return destroy(ctx, conn, func(name string) bool {
		return ofFamily(name, f) && !slices.ContainsFunc(append(sets, named...),
			func(c content) bool { return c.Name == name })
	})
}

// fill builds a generation of sets that no rule uses, afresh.
func fill(ctx context.Context, conn setConn, sets []content, n naming) error {
	err := destroy(ctx, conn, func(name string) bool { return ofFamily(name, n.family) && ofGeneration(name, n.gen) })
	if err != nil {
		return err
	}
	for _, c := range sets {
		if err := conn.Create(c.Set); err != nil {
			return err
		}
		if err := conn.AddAll(c.Set, c.elements); err != nil {
			return err
		}
	}
	return nil
}

// FillSet makes a peer or tuple set hold exactly its members, and says how many elements came
// and went. It makes one that is not there. A packet may see a set half-way.
func (b Backend) FillSet(_ context.Context, want desired.Set) (changed int, err error) {
	conn, err := b.kernel().dial()
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	for _, f := range families() {
		for _, c := range populations(want.State, f) {
			n, err := b.fill(conn, c)
			if changed += n; err != nil {
				return changed, err
			}
		}
	}
	return changed, nil
}

func (b Backend) fill(conn setConn, want content) (changed int, err error) {
	lacking := map[ipset.Element]bool{}
	for _, e := range want.elements {
		lacking[e] = true
	}
	if err := conn.Create(want.Set); err != nil {
		return 0, err
	}
	var gone []ipset.Element
	err = conn.Elements(want.Set, func(e ipset.Element) {
		if lacking[e] {
			delete(lacking, e)
		} else {
			gone = append(gone, e)
		}
	})
	if err != nil {
		return 0, err
	}
	come := slices.Collect(maps.Keys(lacking))
	if changed = len(gone) + len(come); changed == 0 {
		return 0, nil
	}
	if err := errors.Join(conn.DelAll(want.Set, gone), conn.AddAll(want.Set, come)); err != nil {
		return 0, err
	}
	b.step("filled " + want.Name)
	return changed, nil
}

// Holds reports whether the kernel's set holds all members of want. One that is not there
// holds none.
func (b Backend) Holds(_ context.Context, want desired.Set) (bool, error) {
	conn, err := b.kernel().dial()
	if err != nil {
		return false, err
	}
	defer conn.Close()
	for _, f := range families() {
		for _, c := range populations(want.State, f) {
			for _, e := range c.elements {
				there, err := conn.Test(c.Set, e)
				if errors.Is(err, ipset.ErrNotExist) {
					err = nil
				}
				if err != nil || !there {
					return false, err
				}
			}
		}
	}
	return true, nil
}

// possible are those of the chains and rules that the kernel can have.
func (b Backend) possible(chains []chain) []chain {
	if slices.Contains(b.Lacks, Security) {
		chains = slices.DeleteFunc(chains, func(c chain) bool { return c.table == security })
	}
	if slices.Contains(b.Lacks, BPF) {
		for i, c := range chains {
			chains[i].rules = slices.DeleteFunc(c.rules, func(r string) bool { return strings.Contains(r, "-m bpf ") })
		}
	}
	return chains
}

// whole is the restore input that rewrites every chain of ours, makes the hooks of their
// tables the first rules of theirs, and removes what there is of ours besides. Without
// chains it removes all. A table in which there is nothing to do is left alone.
func whole(chains []chain, there listing) string {
	var b strings.Builder
	for _, table := range tables {
		of := slices.DeleteFunc(slices.Clone(chains), func(c chain) bool { return c.table != table })
		if len(of)+len(there.own(table)) == 0 {
			continue
		}
		b.WriteString("*" + table + "\n")
		wholeTable(&b, table, of, there)
		b.WriteString("COMMIT\n")
	}
	return b.String()
}

func wholeTable(b *strings.Builder, table string, chains []chain, there listing) {
	obsolete := slices.DeleteFunc(there.own(table), func(name string) bool {
		return slices.ContainsFunc(chains, func(c chain) bool { return c.name == name })
	})
	for _, c := range chains {
		fmt.Fprintf(b, ":%s - [0:0]\n", c.name) // creates or flushes
	}
	for _, name := range obsolete {
		fmt.Fprintf(b, ":%s - [0:0]\n", name)
	}
	for _, c := range chains {
		for _, r := range c.rules {
			fmt.Fprintf(b, "-A %s %s\n", c.name, r)
		}
	}
	for _, h := range hooks {
		if h.table != table || len(chains) > 0 && there.leads(h) {
			continue
		}
		for _, r := range there[table][h.chain] {
			if r == h.rule {
				fmt.Fprintf(b, "-D %s %s\n", h.chain, r)
			}
		}
		if len(chains) > 0 {
			fmt.Fprintf(b, "-I %s 1 %s\n", h.chain, h.rule)
		}
	}
	for _, name := range obsolete {
		fmt.Fprintf(b, "-X %s\n", name)
	}
}

// Remove takes out every hook and chain of ours, in the variant and the former ones, and
// then every set.
func (b Backend) Remove(ctx context.Context) error {
	conn, err := b.kernel().dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	for _, f := range families() {
		for _, v := range append(slices.Clone(b.Former), b.Variant) {
			if err := removeRules(ctx, v, f, b.Wait); err != nil {
				return fmt.Errorf("IPv%s: %w", f.digit, err)
			}
		}
	}
	return destroy(ctx, conn, func(string) bool { return true })
}

func removeRules(ctx context.Context, v Variant, f family, wait time.Duration) error {
	there, err := v.list(ctx, f)
	if err != nil {
		return err
	}
	if input := whole(nil, there); input != "" {
		return v.restore(ctx, f, wait, input)
	}
	return nil
}

// destroy removes our sets that match.
func destroy(ctx context.Context, conn setConn, match func(name string) bool) error {
	names, err := conn.Names()
	if err != nil {
		return err
	}
	for _, name := range names {
		if Owns(name) && match(name) {
			if err := destroyUnused(ctx, conn, name); err != nil {
				return err
			}
		}
	}
	return nil
}

// destroyUnused removes a set whose rules are gone. The kernel frees rules in
// the background, so it may be in use for a moment longer. To return before it is gone would let
// its references pass for rules.
func destroyUnused(ctx context.Context, conn setConn, name string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		err := conn.Destroy(name)
		if !errors.Is(err, ipset.ErrBusy) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause):
		}
	}
}
