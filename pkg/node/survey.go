package node

import (
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/desired"
)

// forbid finds out which tunnels endpoints may not send now, of a node with these links.
func (n Node) forbid(f nodeFile, links []netlink.Link) (desired.Tunnels, error) {
	if f.AllowTunnels {
		return desired.Tunnels{}, nil
	}
	return n.kernel().tunnels(links)
}

// fresh is f with the tunnels of now, of a node that has no endpoint.
func (n Node) fresh(f nodeFile) (nodeFile, error) {
	links, err := n.kernel().links()
	if err != nil {
		return f, err
	}
	now, err := n.forbid(f, links)
	f.Tunnels = &now
	return f, err
}

// survey notes what of the node's links and bridges is another than the rules were written with,
// and reports that: then everything is to be written.
func (t *tx) survey(links []netlink.Link) (changed bool, err error) {
	found := surroundings{}
	if found.tunnels, err = t.forbid(t.file, links); err != nil {
		return false, err
	}
	records, err := t.records()
	if err != nil {
		return false, err
	}
	found.unfiltered = t.unfiltered(records)
	p, err := planSurroundings(t.file, found)
	if err != nil {
		return false, err
	}
	return p.changed, t.note(p)
}

// surveyNow is survey with the links of now.
func (t *tx) surveyNow() error {
	links, err := t.kernel().links()
	if err != nil {
		return err
	}
	_, err = t.survey(links)
	return err
}

// note writes a repair down, after flows have lost the number of an epoch that begins.
func (t *tx) note(p repairPlan) error {
	if !p.changed {
		return nil
	}
	if p.restricted {
		node, err := p.file.node()
		if err != nil {
			return err
		}
		if err := t.clearFlows(node.Layout, node.Epoch); err != nil {
			return err
		}
	}
	t.file = p.file
	return t.save()
}

// unfiltered is what bridges keep from IP, of the families of policed endpoints on them.
func (n Node) unfiltered(records []attachment.Record) desired.Unfiltered {
	on := func(is func(netip.Addr) bool) bool {
		return slices.ContainsFunc(records, func(r attachment.Record) bool {
			return !r.Routed() && r.Policed && slices.ContainsFunc(r.Addresses, is)
		})
	}
	return desired.Unfiltered{
		IPv4: on(netip.Addr.Is4) && n.kernel().filtered(false) != nil,
		IPv6: on(netip.Addr.Is6) && n.kernel().filtered(true) != nil,
	}
}
