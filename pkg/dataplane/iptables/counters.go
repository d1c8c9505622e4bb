package iptables

import (
	"context"
	"fmt"
	"hash"
	"hash/fnv"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"github.com/podmark/podmark/pkg/dataplane/counters"
	"github.com/podmark/podmark/pkg/desired"
)

// Counters reads what each rule that drops, or decides in a profile, has counted. It
// runs one command per family, and needs no lock.
func (b Backend) Counters(ctx context.Context) ([]counters.Rule, error) {
	var out []counters.Rule
	for _, f := range families() {
		listing, err := b.Variant.save(ctx, f, mangle, "-c")
		if err != nil {
			return nil, err
		}
		out = append(out, counting(listing, f)...)
	}
	return out, nil
}

var (
	// countingLine is a rule of ours: its packets, its chain, itself.
	countingLine = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`(?m)^\[([0-9]+):[0-9]+\] -A (` + ChainPrefix + `\S+) (.*)$`)
	})
	// originComment is that of a rule which allows.
	originComment = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`--comment "([^"]*)"`)
	})
	// endpointsLine is a rule that looks endpoints up, in a set of the generation that
	// is in use.
	endpointsLine = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(` ` + SetPrefix + `ep[46]([ab]) `)
	})
)

// counting reads the output of iptables-save. A rule is written again with every change of
// the whole node, which uses the other generation, and with every change of its chain: so
// both are in its ID. In a profile, a rule without a target is what an audit ends with.
func counting(listing string, f family) []counters.Rule {
	gen := ""
	if m := endpointsLine().FindStringSubmatch(listing); m != nil {
		gen = m[1]
	}
	lines := countingLine().FindAllStringSubmatch(listing, -1)
	chains := map[string]hash.Hash32{}
	for _, m := range lines {
		if chains[m[2]] == nil {
			chains[m[2]] = fnv.New32()
		}
		fmt.Fprintln(chains[m[2]], m[3])
	}
	var out []counters.Rule
	for _, m := range lines {
		key, known := keyOf(m[2])
		packets, err := strconv.ParseUint(m[1], 10, 64)
		if !known || err != nil {
			continue
		}
		rule := counters.Rule{
			Key: key, ID: fmt.Sprintf("%s%s %s %x %s", f.digit, gen, m[2], chains[m[2]].Sum32(), m[3]),
			Packets: packets,
		}
		_, target, _ := strings.Cut(m[3], "-j ")
		switch {
		case target == "RETURN":
			rule.Reason = counters.Allowed
			if c := originComment().FindStringSubmatch(m[3]); c != nil {
				rule.Origin = c[1]
			}
		case target == "":
			rule.Reason = counters.Audit
		case target != "DROP":
			continue // the log
		}
		out = append(out, rule)
	}
	return out
}

// keyOf tells why the rules of a chain drop, if they do: in a profile, those that end it.
func keyOf(chain string) (counters.Key, bool) {
	switch chain {
	case chainSpoofed:
		return counters.Key{Reason: counters.Spoofed}, true
	case chainUnclassified:
		return counters.Key{Reason: counters.Unclassified}, true
	case chainEncapsulated:
		return counters.Key{Reason: counters.Encapsulated}, true
	}
	for _, d := range desired.Directions {
		for _, w := range ways {
			if id, ok := strings.CutPrefix(chain, chainOf(desired.Profile{Direction: d}, w)); ok {
				return counters.Key{Reason: counters.Policy, Direction: d, Profile: desired.ProfileID(id)}, true
			}
		}
	}
	return counters.Key{}, false
}
