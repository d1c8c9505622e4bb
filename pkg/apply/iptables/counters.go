package iptables

import (
	"context"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"github.com/podmark/podmark/pkg/apply/counters"
	"github.com/podmark/podmark/pkg/desired"
)

// Counters reads what each rule that drops has counted. It runs one command per
// family, and needs no lock.
func (b Backend) Counters(ctx context.Context) ([]counters.Rule, error) {
	var out []counters.Rule
	for _, f := range families() {
		listing, err := b.Variant.save(ctx, f, "-c")
		if err != nil {
			return nil, err
		}
		out = append(out, drops(listing, f)...)
	}
	return out, nil
}

var (
	// dropLine is a rule of ours that drops: its packets, its chain, itself.
	dropLine = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`(?m)^\[([0-9]+):[0-9]+\] -A (` + ChainPrefix + `\S+) (.*-j DROP)$`)
	})
	// endpointsLine is a rule that looks endpoints up, in a set of the generation that
	// is in use.
	endpointsLine = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(` ` + SetPrefix + `ep[46]([ab]) `)
	})
)

// drops reads the output of iptables-save. A rule is written anew with every change of
// the whole node, which uses the other generation.
func drops(listing string, f family) []counters.Rule {
	gen := ""
	if m := endpointsLine().FindStringSubmatch(listing); m != nil {
		gen = m[1]
	}
	var out []counters.Rule
	for _, m := range dropLine().FindAllStringSubmatch(listing, -1) {
		key, known := keyOf(m[2])
		packets, err := strconv.ParseUint(m[1], 10, 64)
		if !known || err != nil {
			continue
		}
		out = append(out, counters.Rule{Key: key, ID: f.digit + gen + " " + m[2] + " " + m[3], Packets: packets})
	}
	return out
}

// keyOf tells why the rules of a chain drop, if they do.
func keyOf(chain string) (counters.Key, bool) {
	switch chain {
	case chainMark, chainBridge:
		return counters.Key{Reason: counters.Spoofed}, true
	case chainPolice:
		return counters.Key{Reason: counters.Unclassified}, true
	}
	for _, d := range desired.Directions {
		if id, ok := strings.CutPrefix(chain, chainOf(desired.Profile{Direction: d})); ok {
			return counters.Key{Reason: counters.Policy, Direction: d, Profile: desired.ProfileID(id)}, true
		}
	}
	return counters.Key{}, false
}
