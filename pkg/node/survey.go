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
// and reports that: then everything is to be written. If there are more tunnels than before,
// the next epoch begins, for what is in a live flow was not forbidden.
func (n Node) survey(f nodeFile, links []netlink.Link) (nodeFile, bool, error) {
	tunnels, err := n.forbid(f, links)
	if err != nil {
		return f, false, err
	}
	records, err := n.records()
	if err != nil {
		return f, false, err
	}
	open := n.unfiltered(records)
	if f.Tunnels != nil && same(*f.Tunnels, tunnels) && f.Unfiltered == open {
		return f, false, nil
	}
	node, err := f.node()
	if err != nil {
		return f, false, err
	}
	from := desired.State{Node: node}
	node.Tunnels = tunnels
	if to := (desired.State{Node: node}); from.Restricts(to) {
		if f.Epoch, err = n.nextEpoch(to); err != nil {
			return f, false, err
		}
	}
	f.Tunnels, f.Unfiltered, f.Synced = &tunnels, open, false
	return f, true, n.save(f)
}

func same(a, b desired.Tunnels) bool {
	return slices.Equal(a.UDPPorts, b.UDPPorts) && slices.Equal(a.Protocols, b.Protocols)
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

// surveyNow is survey with the links of now.
func (n Node) surveyNow(f nodeFile) (nodeFile, bool, error) {
	links, err := n.kernel().links()
	if err != nil {
		return f, false, err
	}
	return n.survey(f, links)
}
