package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"

	"github.com/vishvananda/netlink"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/mark"
	"github.com/podmark/podmark/pkg/state"
)

type addr = netip.Addr

// ServiceLink is the link on which kube-proxy keeps the service addresses in
// IPVS mode; those are not the host's own.
const ServiceLink = "kube-ipvs0"

// State returns what the node should enforce now; fs.ErrNotExist when podmark
// has never run here.
func (n Node) State() (desired.State, error) {
	f, err := n.load()
	if err != nil {
		return desired.State{}, err
	}
	return n.stateOf(f)
}

// Coverage says who of the node's pods is policed, where those that started without podmark are
// the unmarked ones, by containers; with an error these alone are counted. It is fs.ErrNotExist
// when podmark has never run here.
func (n Node) Coverage(unmarked map[string]string) (desired.Coverage, error) {
	c := desired.CoverageOf(nil, unmarked, false)
	f, err := n.load()
	if err != nil {
		return c, err
	}
	records, err := n.records()
	if err != nil {
		return c, err
	}
	c = desired.CoverageOf(records, unmarked, f.applied())
	if !f.Kubernetes {
		c.Idle = f.Policies.Idle(records)
	}
	return c, nil
}

// Members adds to the peer and tuple sets of s those of the addresses, with each of the ports,
// that the kernel's sets hold: pods elsewhere are known there, and to podmarkd.
func (n Node) Members(ctx context.Context, s desired.State, addrs []netip.Addr, ports []uint16) (desired.State, error) {
	f, err := n.load()
	if err != nil {
		return s, ignoreMissing(err)
	}
	found := desired.Members{
		Peers:  map[desired.PeerSetID][]netip.Addr{},
		Tuples: map[desired.TupleSetID][]netip.AddrPort{},
	}
	holds := func(one desired.Set) bool {
		there, errHolds := n.reader(f).Holds(ctx, one)
		err = errors.Join(err, errHolds)
		return there
	}
	for _, a := range addrs {
		for id, set := range s.PeerSets {
			set.Addrs = []netip.Addr{a}
			if holds(desired.PeersOf(set)) {
				found.Peers[id] = append(found.Peers[id], a)
			}
		}
		for id, set := range s.TupleSets {
			for _, port := range ports {
				set.Tuples = []netip.AddrPort{netip.AddrPortFrom(a, port)}
				if holds(desired.TuplesOf(set)) {
					found.Tuples[id] = append(found.Tuples[id], set.Tuples...)
				}
			}
		}
	}
	if err != nil {
		return s, fmt.Errorf("%w: %w", ErrBackend, err)
	}
	return s.WithMembers(found), nil
}

// Kind is the backend that enforces, or that auto would choose where podmark has
// never run.
func (n Node) Kind() (config.Kind, error) {
	f, err := n.load()
	if errors.Is(err, fs.ErrNotExist) {
		return detect()
	}
	return f.Backend, err
}

// Preview returns what the node would enforce with policies, or with the present
// ones when policies is nil.
func (n Node) Preview(settings Settings, policies *desired.Policies) (desired.State, error) {
	f, err := n.load()
	if errors.Is(err, fs.ErrNotExist) {
		mask := settings.Layout.Mask()
		if mask == 0 {
			mask = config.DefaultMask // what is free is found out when it begins
		}
		f = nodeFile{
			Mask: mask, Epoch: 1, NodePorts: settings.NodePorts, AllowTunnels: settings.AllowTunnels,
			Log: logByNFLOG,
		}
		f, err = n.fresh(f)
	}
	if err != nil {
		return desired.State{}, err
	}
	if policies != nil {
		f.Policies = *policies
	}
	return n.stateOf(f)
}

// Records lists the attachments; damaged ones are reported with the good ones.
func (n Node) Records() ([]attachment.Record, error) { return n.Store.List() }

// IDs counts the IDs that are in use and those there are; none before the first change.
func (n Node) IDs() (used, capacity int, err error) {
	if used, err = n.Store.IDsInUse(); err != nil {
		return 0, 0, fmt.Errorf("counting IDs: %w", err)
	}
	f, err := n.load()
	if errors.Is(err, fs.ErrNotExist) {
		return used, 0, nil
	}
	if err != nil {
		return 0, 0, err
	}
	node, err := f.node()
	return used, node.Layout.Capacity(), err
}

// Status reports why an Add with settings would fail: no free ID, no usable
// backend. It changes nothing.
func (n Node) Status(ctx context.Context, settings Settings) error {
	used, err := n.Store.IDsInUse()
	if err != nil {
		return fmt.Errorf("counting IDs: %w", err)
	}
	f, err := n.load()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if settings.Layout.Mask() == 0 && f.Mask != 0 {
		if settings.Layout, err = mark.NewLayout(f.Mask); err != nil {
			return err
		}
	}
	if capacity := settings.Layout.Capacity(); settings.Layout.Mask() != 0 && used >= capacity {
		return fmt.Errorf("%w: all %d IDs of iptablesMarkMask %#x are taken", state.ErrExhausted, capacity,
			settings.Layout.Mask())
	}
	if f.Mask != 0 && f.Mask != settings.Layout.Mask() {
		if empty, err := n.Store.Empty(); err != nil || !empty {
			return errors.Join(fmt.Errorf("%w: it is %#x and the node's endpoints were given IDs in %#x", ErrLayout, settings.Layout.Mask(), f.Mask), err)
		}
	}
	if err := f.usable(settings.Backend); err != nil {
		return err
	}
	return ctx.Err()
}

// HostAddresses lists every address of the node but the services'.
func HostAddresses() ([]netip.Addr, error) {
	service := -1
	if link, err := netlink.LinkByName(ServiceLink); err == nil {
		service = link.Attrs().Index
	}
	list, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("listing the node's addresses: %w", err)
	}
	var out []netip.Addr
	for _, a := range list {
		if a.LinkIndex == service {
			continue
		}
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			out = append(out, ip.Unmap())
		}
	}
	return out, nil
}
