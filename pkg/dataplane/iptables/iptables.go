// Package iptables enforces a desired.State with iptables rules and ipsets,
// IPv4 and IPv6, legacy and nft variants.
//
// It renders purely (render.go, sets.go) and applies thinly (sync.go for the whole
// node, update.go for endpoints). The rules that judge are all in
// table mangle. Sets are written over netlink; rules by at most one
// iptables-restore per family and change, and none for an endpoint whose
// profiles exist: then only set elements move. What goes from port to port of a bridge is
// guarded by nftables.Guard beside it.
//
// Who is who after a restart: chains begin with PODMARK-, sets with podmark-,
// routed host veths are in device group 1886. Whether the rules are in place is
// read off the sets, without a process: a rule that names a set is one of the
// set's references.
package iptables

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/podmark/podmark/pkg/dataplane/drift"
	"github.com/podmark/podmark/pkg/dataplane/ipset"
	"github.com/podmark/podmark/pkg/desired"
)

// ErrIncomplete is returned when the static rules or sets are not in place, as
// before the first endpoint or after 'iptables -F': a Sync puts them there.
var ErrIncomplete = drift.Err

// vethReferences are the rules that name a set of host veths.
const vethReferences = 2

// Backend applies states. Its methods are not safe for concurrent use: the
// caller holds the node's lock.
type Backend struct {
	Variant Variant
	// Former are variants that may have rules of ours. They use the same sets, so
	// a Sync takes those rules out once its own are there.
	Former []Variant
	// Lacks is what the kernel lacks.
	Lacks []Feature
	// Wait bounds the wait for the xtables lock.
	Wait time.Duration
	// Step, if set, is called after each write to the kernel: tests end the
	// process there.
	Step func(string)
	// fake, if set, stands in for the kernel, in tests.
	fake kernel
}

func (b Backend) step(name string) {
	if b.Step != nil {
		b.Step(name)
	}
}

// families are those the kernel has; IPv4 always, IPv6 unless it was disabled.
func families() []family {
	if _, err := os.Stat("/proc/sys/net/ipv6"); err != nil {
		return []family{v4}
	}
	return []family{v4, v6}
}

// Check reports the first thing of want that is not in place: the base chains, by what refers to
// their sets; a profile; an element of an endpoint. Only deep it starts processes, one per family
// and table, and finds a hook that does not come first, and a chain with other rules than it should have.
func (b Backend) Check(ctx context.Context, want desired.State, depth drift.Depth) error {
	if err := b.checkSets(want); err != nil || depth < drift.Deep {
		return err
	}
	return b.checkRules(ctx, want)
}

func (b Backend) checkSets(want desired.State) error {
	conn, err := b.kernel().dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	for _, f := range families() {
		gen, err := b.generationInUse(conn, f, want.Node)
		if err != nil {
			return fmt.Errorf("IPv%s: %w", f.digit, err)
		}
		n := naming{f, gen}
		for _, c := range vethSets(want, n) {
			if used, err := references(conn, c.Name); err != nil {
				return err
			} else if used < vethReferences {
				return errVeths(c)
			}
		}
		for _, id := range want.ProfileIDs() {
			if there, err := inPlace(conn, want.Profiles[id], n); err != nil {
				return err
			} else if !there {
				return errProfile(want.Profiles[id])
			}
		}
		for _, c := range append(populations(want, f), memberships(want, n)...) {
			for _, e := range c.elements {
				if ok, err := conn.Test(c.Set, e); err != nil {
					return err
				} else if !ok {
					return fmt.Errorf("%w: set %s lacks %s", drift.Element.Err(), c.Name, e)
				}
			}
		}
	}
	return nil
}

// errProfile says that another program removed a profile's rules, or some of them.
func errProfile(p desired.Profile) error {
	byAddress, _ := dispatches(p.Direction, asked)
	return fmt.Errorf("%w: chain %s is empty or missing, or %s does not lead to it", drift.Chain.Err(), chainOf(p, asked), byAddress)
}

// inPlace reports whether the rules of a profile are in place; ErrIncomplete when some are.
func inPlace(conn setConn, p desired.Profile, n naming) (bool, error) {
	// In each of its two chains, and where those are led to.
	members, nets := uint32(2*2), uint32(2)
	if p.Audit() {
		nets *= 2
	}
	byAddress, err := references(conn, n.members(p.Direction, p.ID).Name)
	if err != nil {
		return false, err
	}
	byNet, err := references(conn, n.nets(p.Direction, p.ID).Name)
	switch {
	case err != nil || byAddress+byNet == 0:
		return false, err
	case byAddress < members || byNet < nets:
		return false, errProfile(p)
	}
	return true, nil
}

// errVeths says the same of the rules that know the host veths of a set.
func errVeths(c content) error {
	return fmt.Errorf("%w: set %s is not looked for in %s and %s", drift.Chain.Err(), c.Name, chainSender, chainBeyond)
}

// generationInUse finds the generation whose sets the frame's rules use. It
// returns ErrIncomplete when no generation has a complete frame.
func (b Backend) generationInUse(conn setConn, f family, node desired.Node) (generation, error) {
	for _, gen := range []generation{genA, genB} {
		complete, err := b.baseChainsIntact(conn, naming{f, gen}, node)
		if err != nil {
			return "", err
		}
		if complete {
			return gen, nil
		}
	}
	return "", fmt.Errorf("%w: no rule uses set %s, or some that should do not", drift.Chain.Err(), naming{f, genA}.endpoints().Name)
}

// baseChainsIntact reports whether the rules that do not depend on who is on the node use their sets.
func (b Backend) baseChainsIntact(conn setConn, n naming, node desired.Node) (bool, error) {
	for set, want := range b.baseChainReferences(n, node) {
		if used, err := references(conn, set); err != nil || used < want {
			return false, err
		}
	}
	return true, nil
}

// baseChainReferences counts the rules that use each set where nobody is on the node.
func (b Backend) baseChainReferences(n naming, node desired.Node) map[string]uint32 {
	out := map[string]uint32{}
	for _, c := range b.possible(baseChains(desired.State{Node: node}, n)) {
		for _, r := range c.rules {
			words := strings.Fields(r)
			for i, word := range words {
				if word == "--match-set" || word == "--map-set" {
					out[words[i+1]]++
				}
			}
		}
	}
	return out
}

// spareGeneration finds the generation that no rule uses, also where another program
// has removed a part of the frame.
func spareGeneration(conn setConn, f family) (generation, error) {
	names, err := conn.Names()
	if err != nil {
		return "", err
	}
	for _, name := range names {
		if !Owns(name) || !ofFamily(name, f) || !ofGeneration(name, genA) {
			continue
		}
		if used, err := inUse(conn, name); err != nil {
			return "", err
		} else if used {
			return genB, nil
		}
	}
	return genA, nil
}

// references counts the rules that use a set; a missing one has none.
func references(conn setConn, name string) (uint32, error) {
	h, err := conn.Header(name)
	if errors.Is(err, ipset.ErrNotExist) {
		return 0, nil
	}
	return h.References, err
}

func inUse(conn setConn, name string) (bool, error) {
	n, err := references(conn, name)
	return n > 0, err
}

// ofFamily and ofGeneration read a name that naming.set made: the purpose, in
// letters, is followed by the family's digit and the generation.
func ofFamily(name string, f family) bool {
	rest := strings.TrimLeft(strings.TrimPrefix(name, SetPrefix), "abcdefghijklmnopqrstuvwxyz")
	return strings.HasPrefix(rest, f.digit)
}

func ofGeneration(name string, gen generation) bool {
	rest := strings.TrimLeft(strings.TrimPrefix(name, SetPrefix), "abcdefghijklmnopqrstuvwxyz")
	return len(rest) > 1 && rest[1:2] == string(gen)
}
