// Package iptables enforces a desired.State with iptables rules and ipsets,
// IPv4 and IPv6, legacy and nft variants.
//
// It renders purely (render.go, sets.go) and applies thinly. All rules are in
// table mangle. Sets are written over netlink; rules by at most one
// iptables-restore per family and change, and none for an endpoint whose
// profiles exist: then only set elements move.
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
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/podmark/podmark/pkg/apply/ipset"
	"github.com/podmark/podmark/pkg/desired"
)

// ErrIncomplete is returned when the static rules or sets are not in place, as
// before the first endpoint or after 'iptables -F': a Sync puts them there.
var ErrIncomplete = errors.New("the data plane is incomplete")

// References that the complete frame holds on its sets.
const (
	endpointReferences = 2 // PODMARK-MARK and PODMARK-POLICE
	hostReferences     = 1 // PODMARK-INPUT
	profileReferences  = 2 // on its members: its own chain and the dispatch
)

// Backend applies states. Its methods are not safe for concurrent use: the
// caller holds the node's lock.
type Backend struct {
	Variant Variant
	// Wait bounds the wait for the xtables lock.
	Wait time.Duration
	// Step, if set, is called after each write to the kernel: tests end the
	// process there.
	Step func(string)
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

// Sync makes the kernel hold exactly want. Packets see the old state until, per
// family, one restore makes them see the new one. A zero State removes everything.
func (b Backend) Sync(ctx context.Context, want desired.State) error {
	if want.Layout.Mask() == 0 {
		return Remove(ctx, b.Wait, b.Variant)
	}
	conn, err := ipset.Dial()
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

func (b Backend) sync(ctx context.Context, conn *ipset.Conn, f family, want desired.State) error {
	gen, err := spareGeneration(conn, f)
	if err != nil {
		return err
	}
	n := naming{f, gen}
	sets := everySet(want, n)
	if err := fill(ctx, conn, sets, n); err != nil {
		return err
	}
	ipt, err := b.Variant.open(f, b.Wait)
	if err != nil {
		return fmt.Errorf("starting %s: %w", b.Variant.command(f, ""), err)
	}
	existing, err := ownChains(ipt.ListChains(table))
	if err != nil {
		return err
	}
	chains := frame(want, n)
	for _, id := range want.ProfileIDs() {
		chains = append(chains, profile(want.Profiles[id], n))
	}
	b.step("filled")
	if err := b.Variant.restore(ctx, f, b.Wait, whole(chains, existing)); err != nil {
		return err
	}
	b.step("restored")
	for _, h := range hooks {
		if err := ipt.InsertUnique(table, h.chain, 1, h.rule...); err != nil {
			return fmt.Errorf("hooking %s: %w", h.chain, err)
		}
		b.step("hooked " + h.chain)
	}
	return destroy(ctx, conn, func(name string) bool {
		return ofFamily(name, f) && !slices.ContainsFunc(sets, func(c content) bool { return c.Name == name })
	})
}

// fill builds a generation of sets that no rule uses, afresh.
func fill(ctx context.Context, conn *ipset.Conn, sets []content, n naming) error {
	err := destroy(ctx, conn, func(name string) bool { return ofFamily(name, n.family) && ofGeneration(name, n.gen) })
	if err != nil {
		return err
	}
	for _, c := range sets {
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

// whole is the restore input that rewrites every chain of ours and removes
// those of existing that are not wanted.
func whole(chains []chain, existing []string) string {
	var b strings.Builder
	b.WriteString("*" + table + "\n")
	obsolete := slices.DeleteFunc(slices.Clone(existing), func(name string) bool {
		return slices.ContainsFunc(chains, func(c chain) bool { return c.name == name })
	})
	for _, c := range chains {
		fmt.Fprintf(&b, ":%s - [0:0]\n", c.name) // creates or flushes
	}
	for _, name := range obsolete {
		fmt.Fprintf(&b, ":%s - [0:0]\n", name)
	}
	for _, c := range chains {
		for _, r := range c.rules {
			fmt.Fprintf(&b, "-A %s %s\n", c.name, r)
		}
	}
	for _, name := range obsolete {
		fmt.Fprintf(&b, "-X %s\n", name)
	}
	b.WriteString("COMMIT\n")
	return b.String()
}

// Remove takes out every hook and chain of ours, in each of the variants, and
// then every set.
func Remove(ctx context.Context, wait time.Duration, variants ...Variant) error {
	conn, err := ipset.Dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	for _, f := range families() {
		for _, v := range variants {
			if err := removeRules(ctx, v, f, wait); err != nil {
				return fmt.Errorf("IPv%s: %w", f.digit, err)
			}
		}
	}
	return destroy(ctx, conn, func(string) bool { return true })
}

func removeRules(ctx context.Context, v Variant, f family, wait time.Duration) error {
	ipt, err := v.open(f, wait)
	if err != nil {
		return fmt.Errorf("starting %s: %w", v.command(f, ""), err)
	}
	existing, err := ownChains(ipt.ListChains(table))
	if err != nil || len(existing) == 0 {
		return err
	}
	// In reverse: nothing is marked any more when nothing judges it any more.
	for _, h := range slices.Backward(hooks) {
		if !slices.Contains(existing, h.rule[len(h.rule)-1]) {
			continue
		}
		if err := ipt.DeleteIfExists(table, h.chain, h.rule...); err != nil {
			return fmt.Errorf("unhooking %s: %w", h.chain, err)
		}
	}
	return v.restore(ctx, f, wait, whole(nil, existing))
}

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

// Check reports the first thing of want that is not in place: the frame, a
// profile, an element of an endpoint. It starts no process.
func (b Backend) Check(_ context.Context, want desired.State) error {
	conn, err := ipset.Dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	for _, f := range families() {
		gen, err := generationInUse(conn, f)
		if err != nil {
			return fmt.Errorf("IPv%s: %w", f.digit, err)
		}
		n := naming{f, gen}
		for _, id := range want.ProfileIDs() {
			if used, err := references(conn, n.members(want.Profiles[id].Direction, id).Name); err != nil {
				return err
			} else if used < profileReferences {
				return errProfile(want.Profiles[id])
			}
		}
		for _, c := range memberships(want, n) {
			for _, e := range c.elements {
				if ok, err := conn.Test(c.Set, e); err != nil {
					return err
				} else if !ok {
					return fmt.Errorf("%w: set %s lacks %s", ErrIncomplete, c.Name, e)
				}
			}
		}
	}
	return nil
}

// errProfile says that someone else removed a profile's rules, or some of them.
func errProfile(p desired.Profile) error {
	return fmt.Errorf("%w: chain %s is empty or missing, or %s does not lead to it", ErrIncomplete, chainOf(p), dispatchChain(p))
}

// generationInUse finds the generation whose sets the frame's rules use. It
// returns ErrIncomplete when no generation has a complete frame.
func generationInUse(conn *ipset.Conn, f family) (generation, error) {
	for _, gen := range []generation{genA, genB} {
		n := naming{f, gen}
		ep, err := references(conn, n.endpoints().Name)
		if err != nil {
			return "", err
		}
		hosts, err := references(conn, n.hosts().Name)
		if err != nil {
			return "", err
		}
		if ep >= endpointReferences && hosts >= hostReferences {
			return gen, nil
		}
	}
	return "", fmt.Errorf("%w: no rule uses set %s", ErrIncomplete, naming{f, genA}.endpoints().Name)
}

// spareGeneration finds the generation that no rule uses, also where somebody
// has removed a part of the frame.
func spareGeneration(conn *ipset.Conn, f family) (generation, error) {
	names, err := conn.Names()
	if err != nil {
		return "", err
	}
	for _, name := range names {
		if !strings.HasPrefix(name, SetPrefix) || !ofFamily(name, f) || !ofGeneration(name, genA) {
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
func references(conn *ipset.Conn, name string) (uint32, error) {
	h, err := conn.Header(name)
	if errors.Is(err, ipset.ErrNotExist) {
		return 0, nil
	}
	return h.References, err
}

func inUse(conn *ipset.Conn, name string) (bool, error) {
	n, err := references(conn, name)
	return n > 0, err
}

// destroy removes our sets that match.
func destroy(ctx context.Context, conn *ipset.Conn, match func(name string) bool) error {
	names, err := conn.Names()
	if err != nil {
		return err
	}
	for _, name := range names {
		if strings.HasPrefix(name, SetPrefix) && match(name) {
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
func destroyUnused(ctx context.Context, conn *ipset.Conn, name string) error {
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

// ownChains filters the result of ListChains.
func ownChains(names []string, err error) ([]string, error) {
	if err != nil {
		return nil, fmt.Errorf("listing chains of %s: %w", table, err)
	}
	return slices.DeleteFunc(names, func(n string) bool { return !strings.HasPrefix(n, ChainPrefix) }), nil
}
