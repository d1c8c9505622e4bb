package apply

import (
	"slices"

	"github.com/vishvananda/netlink"

	"github.com/podmark/podmark/pkg/apply/port"
	"github.com/podmark/podmark/pkg/apply/tunnel"
	"github.com/podmark/podmark/pkg/desired"
)

// forbid finds out which tunnels endpoints may not send now, of a node with these links.
func (f file) forbid(links []netlink.Link) (desired.Tunnels, error) {
	if f.AllowTunnels {
		return desired.Tunnels{}, nil
	}
	return tunnel.Read(links)
}

// fresh is f with the tunnels of now, of a node that has no endpoint.
func (f file) fresh() (file, error) {
	links, err := port.List()
	if err != nil {
		return f, err
	}
	now, err := f.forbid(links)
	f.Tunnels = &now
	return f, err
}

// retunnel notes the tunnels of now, where they are others than those that the rules were
// written with, and reports that: then everything is to be written. If there are more than
// before, the next epoch begins, for what is in a live flow was not forbidden.
func (n Node) retunnel(f file, links []netlink.Link) (file, bool, error) {
	now, err := f.forbid(links)
	if err != nil || f.Tunnels != nil && same(*f.Tunnels, now) {
		return f, false, err
	}
	node, err := f.node()
	if err != nil {
		return f, false, err
	}
	from := desired.State{Node: node}
	node.Tunnels = now
	if to := (desired.State{Node: node}); from.Narrows(to) {
		if f.Epoch, err = nextEpoch(to); err != nil {
			return f, false, err
		}
	}
	f.Tunnels, f.Synced = &now, false
	return f, true, n.save(f)
}

func same(a, b desired.Tunnels) bool {
	return slices.Equal(a.UDPPorts, b.UDPPorts) && slices.Equal(a.Protocols, b.Protocols)
}

// relink is retunnel with the links of now.
func (n Node) relink(f file) (file, bool, error) {
	links, err := port.List()
	if err != nil {
		return f, false, err
	}
	return n.retunnel(f, links)
}
