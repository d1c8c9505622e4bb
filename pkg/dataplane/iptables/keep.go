package iptables

import (
	"context"
	"fmt"
	"slices"

	"github.com/podmark/podmark/pkg/dataplane/drift"
	"github.com/podmark/podmark/pkg/desired"
)

// Refresh reports what a deep Check does.
//
// The sets that are the node's own, the host's addresses and the NodePorts, it
// brings up to date, and names those that it has replaced. The kernel swaps a new
// set for the old one: no packet sees one that is half full, and no rule is written.
func (b Backend) Refresh(ctx context.Context, want desired.State) (replaced []string, err error) {
	if err := b.Check(ctx, want, drift.Deep); err != nil {
		return nil, err
	}
	return b.refresh(want)
}

func (b Backend) checkRules(ctx context.Context, want desired.State) error {
	conn, err := b.kernel().dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	for _, f := range families() {
		there, err := b.Variant.list(ctx, f)
		if err != nil {
			return err
		}
		gen, err := b.generationInUse(conn, f, want.Node)
		if err != nil {
			return fmt.Errorf("IPv%s: %w", f.digit, err)
		}
		n := naming{f, gen}
		for _, h := range hooks {
			if h.table == security && slices.Contains(b.Lacks, Security) {
				continue
			}
			if !there.leads(h) {
				return fmt.Errorf("%w: '%s' is not the first rule of IPv%s %s %s", drift.Hook.Err(), h.rule, f.digit, h.table,
					h.chain)
			}
		}
		unordered := passing(want, n)
		for _, c := range b.possible(chainsOf(want, n)) {
			if i, is, should, any := differs(there[c.table][c.name], c.rules, unordered); any {
				return fmt.Errorf("%w: rule %d of IPv%s chain %s is %q, and should be %q", drift.Chain.Err(), i, f.digit, c.name, is, should)
			}
		}
	}
	return nil
}

// passing are the shapes of the rules that come and go with endpoints: those that lead to
// profiles, and those about sets of host veths.
func passing(s desired.State, n naming) map[string]bool {
	out := map[string]bool{}
	for _, id := range s.ProfileIDs() {
		for _, w := range ways {
			for _, r := range dispatchRules(s.Profiles[id], w, n) {
				out[shape(r)] = true
			}
		}
	}
	for _, c := range vethSets(s, n) {
		out[shape(fromVeth(c.Set))], out[shape(toVeth(c.Set))] = true, true
	}
	return out
}

func (b Backend) refresh(want desired.State) (replaced []string, err error) {
	conn, err := b.kernel().dial()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	for _, f := range families() {
		gen, err := b.generationInUse(conn, f, want.Node)
		if err != nil {
			return replaced, fmt.Errorf("IPv%s: %w", f.digit, err)
		}
		n := naming{f, gen}
		for _, c := range nodeSets(want, n) {
			if same, err := holds(conn, c); err != nil {
				return replaced, err
			} else if same {
				continue
			}
			if err := replace(conn, c); err != nil {
				return replaced, err
			}
			b.step("replaced " + c.Name)
			replaced = append(replaced, c.Name)
		}
	}
	return replaced, nil
}

// holds reports whether the kernel's set is c: as many elements, and each of c's
// among them. Of a range of ports the ends are looked up.
func holds(conn setConn, c content) (bool, error) {
	h, err := conn.Header(c.Name)
	if err != nil {
		return false, err
	}
	size := 0
	for _, e := range c.elements {
		size += int(e.Last) - int(e.First) + 1 // 1 for an address without ports
		for _, port := range []uint16{e.First, e.Last} {
			end := e
			end.First, end.Last = port, port
			if there, err := conn.Test(c.Set, end); err != nil || !there {
				return false, err
			}
		}
	}
	return int(h.Elements) == size, nil
}

// replace fills a set of another name and swaps the two.
func replace(conn setConn, c content) error {
	next := c.Set
	next.Name += "-next"
	if err := conn.Destroy(next.Name); err != nil { // of a crash
		return err
	}
	if err := conn.Create(next); err != nil {
		return err
	}
	for _, e := range c.elements {
		if err := conn.Add(next, e); err != nil {
			return err
		}
	}
	if err := conn.Swap(next.Name, c.Name); err != nil {
		return err
	}
	return conn.Destroy(next.Name)
}
