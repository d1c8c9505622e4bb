// Package foreign reads what other programs do to marks on a node: rules of both
// firewalls, routing rules, states of IPsec and, by package fwmark, services of IPVS that write or compare
// bits of the packet mark or of the conntrack mark. It says which of that matters to
// podmark, and which bits nobody uses.
//
// [Read] looks at the node of the process's network namespace and changes nothing. What
// [Report] says of itself is decided purely. It knows neither podmark's state nor its own
// rules but by their names, so that the plugin, the daemon and the doctor ask alike.
//
//	report := foreign.Read(ctx)
//	for _, c := range report.Collisions(config.BackendNFTables, 0xffff0000) {
//		fmt.Println(c)
//	}
package foreign

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
)

// Part is something that is read as a whole, or not.
type Part string

// The parts.
const (
	PartNFTables Part = "nf_tables"
	PartLegacy   Part = "iptables-legacy"
	PartLinks    Part = "links"
	PartLookups  Part = "what is looked up by the mark"
)

// Parts lists them.
func Parts() []Part { return []Part{PartNFTables, PartLegacy, PartLinks, PartLookups} }

// Report is what was read of a node. Of a part that is in Unread there may be nothing, or
// not all.
type Report struct {
	Chains  []Chain
	Rules   []Rule // those of others that do something that matters here
	Links   []Link
	Lookups []Lookup
	// Reserved are bits that are configured to be used, whether or not they are; see
	// [Configured]. Read does not know them.
	Reserved uint32
	Unread   map[Part]error
}

// Link is a link of the node.
type Link struct {
	Name  string
	Group uint32
}

// Read reads the node. iptables-legacy alone needs a command, and only where the kernel
// has tables of it.
func Read(ctx context.Context) Report {
	r := Report{Unread: map[Part]error{}}
	note := func(p Part, err error) {
		if err != nil {
			r.Unread[p] = err
		}
	}
	chains, rules, err := readNFTables()
	r.Chains, r.Rules = append(r.Chains, chains...), append(r.Rules, rules...)
	note(PartNFTables, err)
	chains, rules, err = readLegacy(ctx)
	r.Chains, r.Rules = append(r.Chains, chains...), append(r.Rules, rules...)
	note(PartLegacy, err)
	note(PartLinks, r.readLinks())
	r.Lookups, err = readLookups()
	note(PartLookups, err)
	return r
}

// With is r with more that is looked up by the mark, and why that could not be read.
func (r Report) With(more []Lookup, err error) Report {
	r.Lookups = append(slices.Clone(r.Lookups), more...)
	if err != nil {
		r.Unread = maps.Clone(r.Unread)
		r.Unread[PartLookups] = errors.Join(r.Unread[PartLookups], err)
	}
	return r
}

// Error is why something could not be read; nil where all was.
func (r Report) Error() error {
	var texts []string
	for _, p := range Parts() {
		if err := r.Unread[p]; err != nil {
			texts = append(texts, fmt.Sprintf("%s: %v", p, err))
		}
	}
	if len(texts) == 0 {
		return nil
	}
	return fmt.Errorf("looking at the marks of others: %s", strings.Join(texts, "; "))
}

func (r *Report) readLinks() error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("listing links: %w", err)
	}
	for _, l := range links {
		r.Links = append(r.Links, Link{l.Attrs().Name, l.Attrs().Group})
	}
	return nil
}
