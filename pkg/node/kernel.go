package node

import (
	"context"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"go4.org/netipx"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/dataplane"
	"github.com/podmark/podmark/pkg/dataplane/checksum"
	"github.com/podmark/podmark/pkg/dataplane/conntrack"
	"github.com/podmark/podmark/pkg/dataplane/flowtable"
	"github.com/podmark/podmark/pkg/dataplane/hostport"
	"github.com/podmark/podmark/pkg/dataplane/tunnel"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/foreign"
	"github.com/podmark/podmark/pkg/mark"
)

// kernel is what a change does to the node besides what it writes into the state directory, and
// what it asks of the node. Tests have one that fails.
type kernel interface {
	// choose decides what enforces, and ask notes what that does without.
	choose(f *nodeFile, wanted config.Backend) error
	ask(ctx context.Context, f *nodeFile, wait time.Duration) error
	// backend is that of f. leftovers are the kinds of which something may be there although
	// no file says so, and remove takes everything of some out.
	backend(n Node, f nodeFile) dataplane.Backend
	leftovers() []config.Kind
	remove(ctx context.Context, wait time.Duration, kinds []config.Kind) error
	// removeChecksums takes the programs of package checksum out.
	removeChecksums() error

	// What others have: rules, links, tunnels, addresses.
	others(ctx context.Context) foreign.Report
	links() ([]netlink.Link, error)
	tunnels(links []netlink.Link) (desired.Tunnels, error)
	addresses() ([]netip.Addr, error)

	// Of package hostport.
	block(e attachment.Endpoint) error
	unblock(e attachment.Endpoint) error
	guard(e attachment.Endpoint) error
	blockForDelete(e attachment.Endpoint) error
	restore(e attachment.Endpoint) error
	restoreLink(l netlink.Link) error
	setGroup(e attachment.Endpoint) error
	check(e attachment.Endpoint) error
	alive(e attachment.Endpoint) bool
	filtered(ipv6 bool) error

	// Of package conntrack.
	resetVerdict(addrs []netip.Addr, mask uint32) error
	deleteFlows(addrs []netip.Addr) error
	clearEpoch(m mark.Mark) error
	clearOtherEpochs(m mark.Mark) error
	reevaluate(m mark.Mark, set *netipx.IPSet) error
	reclaim(m mark.Mark, set *netipx.IPSet) (conntrack.Reclaimed, error)
}

// kernel is that of the node.
func (n Node) kernel() kernel {
	if n.fake != nil {
		return n.fake
	}
	return linux{}
}

// linux is the kernel of the network namespace.
type linux struct{}

func (linux) choose(f *nodeFile, wanted config.Backend) error { return f.choose(wanted) }
func (linux) ask(ctx context.Context, f *nodeFile, wait time.Duration) error {
	return f.askKernel(ctx, wait)
}
func (linux) backend(n Node, f nodeFile) dataplane.Backend { return n.judge(f) }
func (linux) leftovers() []config.Kind                     { return leftovers() }
func (linux) remove(ctx context.Context, wait time.Duration, kinds []config.Kind) error {
	return remove(ctx, wait, kinds)
}
func (linux) removeChecksums() error { return checksum.Remove() }

func (linux) others(ctx context.Context) foreign.Report { return foreign.Read(ctx) }
func (linux) links() ([]netlink.Link, error)            { return hostport.List() }
func (linux) tunnels(links []netlink.Link) (desired.Tunnels, error) {
	return tunnel.Read(links)
}
func (linux) addresses() ([]netip.Addr, error) { return HostAddresses() }

func (linux) block(e attachment.Endpoint) error          { return hostport.Block(e) }
func (linux) unblock(e attachment.Endpoint) error        { return hostport.Unblock(e) }
func (linux) guard(e attachment.Endpoint) error          { return hostport.Guard(e) }
func (linux) blockForDelete(e attachment.Endpoint) error { return hostport.BlockForDelete(e) }
func (linux) restore(e attachment.Endpoint) error        { return hostport.Restore(e) }
func (linux) restoreLink(l netlink.Link) error           { return hostport.RestoreLink(l) }
func (linux) setGroup(e attachment.Endpoint) error       { return hostport.SetGroup(e) }
func (linux) check(e attachment.Endpoint) error          { return hostport.Check(e) }
func (linux) alive(e attachment.Endpoint) bool           { return hostport.Alive(e) }
func (linux) filtered(ipv6 bool) error                   { return hostport.BridgeFiltered(ipv6) }

func (linux) resetVerdict(addrs []netip.Addr, mask uint32) error {
	return conntrack.ResetVerdict(addrs, mask)
}

func (linux) deleteFlows(addrs []netip.Addr) error { return conntrack.DeleteFlows(addrs) }
func (linux) clearEpoch(m mark.Mark) error         { return conntrack.ClearEpoch(m) }
func (linux) clearOtherEpochs(m mark.Mark) error   { return conntrack.ClearOtherEpochs(m) }

func (linux) reevaluate(m mark.Mark, set *netipx.IPSet) error { return conntrack.Reevaluate(m, set) }

func (linux) reclaim(m mark.Mark, set *netipx.IPSet) (conntrack.Reclaimed, error) {
	if tables, err := flowtable.List(); err == nil && len(tables) == 0 {
		return conntrack.Reclaimed{}, nil
	}
	return conntrack.Reclaim(m, set)
}
