package foreign

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/config"
)

// Kind is what is looked up by the packet mark.
type Kind string

// The kinds.
const (
	RoutingRule Kind = "ip rule"
	IPsecState  Kind = "ip xfrm state"
	// IPVSService is one of a firewall mark (ipvsadm -f): IPVS compares the whole mark.
	IPVSService Kind = "ipvsadm -f"
)

// Lookup is something that the kernel looks up by the packet mark.
type Lookup struct {
	Kind Kind
	// Text names it so that it can be found.
	Text       string
	Mark, Mask uint32
	// Not is set where it is for every other mark.
	Not bool
}

// Breaks reports whether the kernel may look there while an ID is in the mark, and find
// something else than without. On nftables IPVS alone does. On iptables the ID stays until
// table security of OUTPUT, or until the packet is delivered: a packet that IPVS has sent on
// is routed again when another program changes its mark or destination in OUTPUT, and states of IPsec
// are looked up after INPUT.
func (l Lookup) Breaks(b config.Backend, mask uint32) bool {
	switch {
	case l.Mask&mask == 0:
		return false
	case l.Not && l.Mark&mask == 0: // true of a mark with an ID as of one without
		return false
	}
	return l.Kind == IPVSService || b == config.BackendIPTables
}

// Comparison is a rule that compares podmark's bits where an ID is in them.
type Comparison struct {
	Rule    Rule
	Compare Compare
	Place   Place
}

// Comparisons are the rules of others that take a packet with an ID for another one than
// without: they compare the whole mark, or bits of podmark's mask.
func (r Report) Comparisons(b config.Backend, mask uint32) []Comparison {
	var out []Comparison
rules:
	for _, rule := range r.Rules {
		for _, c := range rule.Compares {
			for _, p := range rule.Places {
				if c.Field == PacketMark && c.Mask&mask != 0 && !rule.Loopback && rule.marked(b, p) {
					out = append(out, Comparison{rule, c, p})
					continue rules
				}
			}
		}
	}
	return out
}

// readLookups reads what package fwmark does not.
func readLookups() ([]Lookup, error) {
	var out []Lookup
	var errs []error
	rules, err := netlink.RuleList(netlink.FAMILY_ALL)
	errs = append(errs, err)
	for _, r := range rules {
		l := Lookup{Kind: RoutingRule, Mark: r.Mark, Mask: All, Not: r.Invert}
		if r.Mask != nil {
			l.Mask = *r.Mask
		}
		if l.Mark == 0 && r.Mask == nil {
			continue
		}
		family := ""
		if r.Family == netlink.FAMILY_V6 {
			family = " -6"
		}
		not := ""
		if r.Invert {
			not = "not "
		}
		l.Text = fmt.Sprintf("'ip%s rule' %d: %sfwmark %#x/%#x lookup %d", family, r.Priority, not, l.Mark, l.Mask, r.Table)
		out = append(out, l)
	}
	states, err := netlink.XfrmStateList(netlink.FAMILY_ALL)
	if !errors.Is(err, unix.EPROTONOSUPPORT) && !errors.Is(err, unix.EOPNOTSUPP) {
		errs = append(errs, err)
	}
	for _, s := range states {
		if s.Mark != nil && s.Mark.Mask != 0 {
			out = append(out, Lookup{
				Kind: IPsecState, Mark: s.Mark.Value, Mask: s.Mark.Mask,
				Text: fmt.Sprintf("'ip xfrm state' to %s, spi %#x: mark %#x/%#x", s.Dst, uint32(s.Spi), s.Mark.Value, s.Mark.Mask),
			})
		}
	}
	return out, errors.Join(errs...)
}
