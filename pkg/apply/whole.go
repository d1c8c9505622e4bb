package apply

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path/filepath"

	"github.com/vishvananda/netlink"

	"github.com/podmark/podmark/pkg/apply/port"
	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/ident"
	"github.com/podmark/podmark/pkg/mark"
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
	return n.state(f)
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
	found := desired.Members{Peers: map[desired.PeerSetID][]netip.Addr{}, Tuples: map[desired.TupleSetID][]netip.AddrPort{}}
	holds := func(one desired.State) bool {
		there, errHolds := n.backend(f).Holds(ctx, one)
		err = errors.Join(err, errHolds)
		return there
	}
	for _, a := range addrs {
		for id, set := range s.PeerSets {
			set.Addrs = []netip.Addr{a}
			if holds(desired.State{PeerSets: map[desired.PeerSetID]desired.PeerSet{id: set}}) {
				found.Peers[id] = append(found.Peers[id], a)
			}
		}
		for id, set := range s.TupleSets {
			for _, port := range ports {
				set.Tuples = []netip.AddrPort{netip.AddrPortFrom(a, port)}
				if holds(desired.State{TupleSets: map[desired.TupleSetID]desired.TupleSet{id: set}}) {
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
		f = nodeFile{Mask: mask, Epoch: 1, NodePorts: settings.NodePorts, AllowTunnels: settings.AllowTunnels, Log: logByNFLOG}
		f, err = n.fresh(f)
	}
	if err != nil {
		return desired.State{}, err
	}
	if policies != nil {
		f.Policies = *policies
	}
	return n.state(f)
}

// Collected says what a collection removed, or would.
type Collected struct {
	Attachments []attachment.Record `json:"attachments"`
	Files       []string            `json:"files"`
	// Left is what stays: in the state directory for want of room, until the next collection, and
	// flows in a flowtable.
	Left error `json:"-"`
}

// CollectGarbage removes the attachments for which dead holds, what crashes left in
// the state directory, and what no one needs in the kernel. What it cannot do with one attachment
// it does with the others.
func (n Node) CollectGarbage(ctx context.Context, dead func(attachment.Record) bool, dryRun bool) (Collected, error) {
	switch _, err := n.load(); {
	case errors.Is(err, fs.ErrNotExist):
		return Collected{}, nil
	case errors.Is(err, ErrNewer): // whose records it would sweep away
		return Collected{}, err
	}
	unlock, err := n.lock(ctx)
	if err != nil {
		return Collected{}, err
	}
	defer unlock()
	all, _ := n.Store.List() // damaged records are collected as files
	var c Collected
	var errs []error
	n.deferred = map[attachment.Key]bool{}
	for _, r := range all {
		if !dead(r) {
			continue
		}
		c.Attachments = append(c.Attachments, r)
		if dryRun {
			continue
		}
		if err := n.unsynced(); err != nil {
			return c, err
		}
		err := n.kernel().blockForDelete(r.Endpoint)
		busy, unforgotten := n.deleteFlows(n.unclaimed(r).Addresses)
		c.Left = errors.Join(c.Left, busy)
		if err = errors.Join(err, unforgotten); err == nil {
			err = n.Store.Release(r)
		}
		if errors.Is(err, ident.ErrNoRoom) {
			n.deferred[r.Key] = true
			c.Left, err = errors.Join(c.Left, err), nil
		}
		errs = append(errs, err)
		n.step("released")
	}
	c.Files, err = n.removeOrphans(ctx, dryRun)
	if errors.Is(err, ident.ErrNoRoom) {
		c.Left, err = errors.Join(c.Left, err), nil
	}
	return c, errors.Join(append(errs, err)...)
}

// unsynced notes that the kernel may have more than the state directory says, so that whoever comes
// next takes that out before an ID is given out again.
func (n Node) unsynced() error {
	f, err := n.load()
	if err != nil || !f.Synced {
		return nil // who cannot be read writes nothing
	}
	f.Synced = false
	return n.saveBestEffort(f)
}

// RemoveOrphans removes the files that crashes left in the state directory, and what no one needs
// in the kernel if there were any. It returns the files. Damaged records are an
// operator's to remove: their endpoints may be alive.
func (n Node) RemoveOrphans(ctx context.Context) ([]string, error) {
	unlock, err := n.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if _, err := n.Store.List(); err != nil {
		return nil, err
	}
	files, err := n.Store.RemoveTemporary(true)
	if err != nil || len(files) == 0 {
		return nil, err
	}
	return n.removeOrphans(ctx, false)
}

// HostVethGone holds for an attachment whose interface is no longer there, and for what
// a crash left. Callers hold no lock: Collect does.
func HostVethGone(r attachment.Record) bool { return !r.Committed || !port.Alive(r.Endpoint) }

// removeOrphans removes files that belong to nobody and rewrites the kernel's share.
func (n Node) removeOrphans(ctx context.Context, dryRun bool) ([]string, error) {
	f, errNode := n.load()
	if errors.Is(errNode, ErrNewer) {
		return nil, errNode
	}
	files, err := n.misfits(f, dryRun)
	swept, errSweep := n.Store.RemoveTemporary(dryRun)
	files, err = append(files, swept...), errors.Join(err, errSweep)
	if dryRun {
		return files, err
	}
	if errNode != nil {
		return files, errors.Join(err, ignoreMissing(errNode))
	}
	_, errSync := n.sync(ctx, f)
	return files, errors.Join(err, errSync)
}

// misfits removes the records whose ID does not fit the node's mask, or names their files.
func (n Node) misfits(f nodeFile, dryRun bool) (files []string, err error) {
	node, err := f.node()
	if err != nil {
		return nil, nil // nobody knows what fits
	}
	records, _ := n.Store.List() // a Sweep removes the damaged ones
	for _, r := range records {
		if fits(node.Layout, r) == nil {
			continue
		}
		files = append(files, filepath.Join("attachments", r.Hash()))
		if dryRun {
			continue
		}
		if err := n.Store.Release(r); err != nil {
			return files, err
		}
	}
	return files, nil
}

// Uninstall removes every trace: rules, sets, device groups, bridge port
// settings and the state directory. Pods keep running, unmarked and unpoliced. Once it has begun,
// whoever comes next finishes it.
func (n Node) Uninstall(ctx context.Context) error {
	unlock, err := n.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if err := n.strip(ctx); err != nil {
		return err
	}
	return n.Store.RemoveAll()
}

// finishUninstall finishes an uninstall, and goes on with the lock and an empty state directory.
func (n Node) finishUninstall(ctx context.Context) error {
	if err := n.strip(ctx); err != nil {
		return err
	}
	if err := n.Store.Clear(); err != nil {
		return err
	}
	n.step("cleared")
	return n.Store.Init()
}

// strip notes that the node is to be left, and takes everything out of the kernel.
func (n Node) strip(ctx context.Context) error {
	kinds := n.kernel().leftovers()
	f, err := n.decodeNodeFile()
	if errors.Is(err, ErrNewer) {
		return err
	}
	if err == nil {
		_, err = f.node()
	}
	if err == nil && f.Backend != "" {
		kinds = append(f.Former, f.Backend, config.NFTables) // which guards bridges beside iptables
	}
	if err == nil {
		f.Uninstalling = true
		if err := n.saveBestEffort(f); err != nil {
			return err
		}
		n.step("leaving")
	}
	if err := n.kernel().remove(ctx, n.LockTimeout, kinds); err != nil {
		return err
	}
	if err := n.kernel().removeChecksums(); err != nil {
		return err
	}
	n.step("removed")
	records, _ := n.Store.List()
	for _, r := range records {
		if err := n.kernel().restore(r.Endpoint); err != nil {
			return err
		}
	}
	links, err := n.kernel().links()
	if err != nil {
		return err
	}
	for _, l := range links {
		if err := n.kernel().restoreLink(l); err != nil {
			return err
		}
	}
	n.step("freed")
	return nil
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
		return fmt.Errorf("%w: all %d IDs of iptablesMarkMask %#x are taken", ident.ErrExhausted, capacity, settings.Layout.Mask())
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
