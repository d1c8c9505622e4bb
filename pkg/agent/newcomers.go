package agent

import (
	"net/netip"
	"slices"

	"go4.org/netipx"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/mark"
	"github.com/podmark/podmark/pkg/node"
)

// newcomers has those flows judged again that are older than the endpoint at one of their ends:
// who had its address before, or posed as it, was nobody, and no policy was asked about the
// endpoint. An ADD does not look for such flows, because it would have to walk through all
// of conntrack.
type newcomers struct {
	// known are the attachments whose flows have been judged as theirs, with what they may
	// send from.
	known map[life][]netip.Prefix
}

// life is one of an attachment: a runtime may add one again.
type life struct {
	attachment.Key
	id mark.ID
}

// welcome looks for attachments that are new, or may send from more than before.
func (c *newcomers) welcome(n node.Node) error {
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
	done, err := n.Reevaluate(set)
	if done {
		c.known = known
	}
	return err // else the next reconciliation tries again
}

// compare lists what the records may send from, and what of it was not known. One that is not
// committed is not in force yet.
func (c *newcomers) compare(records []attachment.Record) (now map[life][]netip.Prefix, come []netip.Prefix) {
	now = map[life][]netip.Prefix{}
	for _, r := range records {
		if !r.Committed {
			continue
		}
		own := slices.DeleteFunc(slices.Clone(r.AllowedSources), func(p netip.Prefix) bool { return !p.IsValid() })
		for _, a := range r.Addresses {
			own = append(own, netip.PrefixFrom(a, a.BitLen()))
		}
		this := life{r.Key, r.ID}
		now[this] = own
		for _, p := range own {
			if !slices.Contains(c.known[this], p) {
				come = append(come, p)
			}
		}
	}
	return now, come
}
