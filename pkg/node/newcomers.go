package node

import (
	"net/netip"
	"slices"

	"go4.org/netipx"

	"github.com/podmark/podmark/pkg/apply"
	"github.com/podmark/podmark/pkg/ident"
)

// newcomers has those flows judged again that are older than the endpoint at one of their ends:
// who had its address before, or posed as it, was nobody, and no policy was asked about the
// endpoint. An ADD does not look for such flows, because it would have to walk through all
// of conntrack.
type newcomers struct {
	// known are the attachments whose flows have been judged as theirs, with what they may
	// send from.
	known map[ident.Key][]netip.Prefix
}

// welcome looks for attachments that are new, or may send from more than before.
func (c *newcomers) welcome(n apply.Node) error {
	records, _ := n.Records() // damaged ones are for who can say what to do
	known, come := c.compare(records)
	if len(come) == 0 {
		c.known = known
		return nil
	}
	var b netipx.IPSetBuilder
	for _, p := range come {
		b.AddPrefix(p)
	}
	set, err := b.IPSet()
	if err != nil {
		return err
	}
	if err := n.Rejudge(set); err != nil {
		return err // the next look tries again
	}
	c.known = known
	return nil
}

// compare lists what the records may send from, and what of it was not known. One that is not
// committed is not in force yet.
func (c *newcomers) compare(records []ident.Record) (now map[ident.Key][]netip.Prefix, come []netip.Prefix) {
	now = map[ident.Key][]netip.Prefix{}
	for _, r := range records {
		if !r.Committed {
			continue
		}
		own := slices.Clone(r.Sources)
		for _, a := range r.Addresses {
			own = append(own, netip.PrefixFrom(a, a.BitLen()))
		}
		now[r.Key] = own
		for _, p := range own {
			if !slices.Contains(c.known[r.Key], p) {
				come = append(come, p)
			}
		}
	}
	return now, come
}
