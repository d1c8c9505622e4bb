package apply

import (
	"context"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"go4.org/netipx"

	"github.com/podmark/podmark/pkg/apply/conntrack"
	"github.com/podmark/podmark/pkg/apply/csum"
	"github.com/podmark/podmark/pkg/apply/flowtable"
	"github.com/podmark/podmark/pkg/apply/port"
	"github.com/podmark/podmark/pkg/apply/tunnel"
	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/foreign"
	"github.com/podmark/podmark/pkg/mark"
)

// kernel is what a change does to the node besides what it writes into the state folder, and
// what it asks of the node. Tests have one that fails.
type kernel interface {
	// choose decides what enforces, and ask notes what that does without.
	choose(f *file, wanted config.Backend) error
	ask(ctx context.Context, f *file, wait time.Duration) error
	// backend is that of f. leftovers are the kinds of which something may be there although
	// no file says so, and remove takes everything of some out.
	backend(n Node, f file) Backend
	leftovers() []config.Kind
	remove(ctx context.Context, wait time.Duration, kinds []config.Kind) error
	// unlook takes the programs of package csum out.
	unlook() error

	// What others have: rules, links, tunnels, addresses.
	others(ctx context.Context) foreign.Report
	links() ([]netlink.Link, error)
	tunnels(links []netlink.Link) (desired.Tunnels, error)
	addresses() ([]netip.Addr, error)

	// Of package port.
	close(e attachment.Endpoint) error
	open(e attachment.Endpoint) error
	hold(e attachment.Endpoint) error
	shut(e attachment.Endpoint) error
	release(e attachment.Endpoint) error
	releaseLink(l netlink.Link) error
	regroup(e attachment.Endpoint) error
	check(e attachment.Endpoint) error
	alive(e attachment.Endpoint) bool
	filtered(ipv6 bool) error

	// Of package conntrack.
	unjudge(addrs []netip.Addr, mask uint32) error
	forget(addrs []netip.Addr) error
	clear(m mark.Mark) error
	clearOthers(m mark.Mark) error
	rejudge(m mark.Mark, set *netipx.IPSet) error
	takeBack(m mark.Mark, set *netipx.IPSet) (conntrack.Reclaimed, error)
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

func (linux) choose(f *file, wanted config.Backend) error { return f.choose(wanted) }
func (linux) ask(ctx context.Context, f *file, wait time.Duration) error {
	return f.askKernel(ctx, wait)
}
func (linux) backend(n Node, f file) Backend { return n.judge(f) }
func (linux) leftovers() []config.Kind       { return leftovers() }
func (linux) remove(ctx context.Context, wait time.Duration, kinds []config.Kind) error {
	return remove(ctx, wait, kinds)
}
func (linux) unlook() error { return csum.Remove() }

func (linux) others(ctx context.Context) foreign.Report { return foreign.Read(ctx) }
func (linux) links() ([]netlink.Link, error)            { return port.List() }
func (linux) tunnels(links []netlink.Link) (desired.Tunnels, error) {
	return tunnel.Read(links)
}
func (linux) addresses() ([]netip.Addr, error) { return HostAddresses() }

func (linux) close(e attachment.Endpoint) error   { return port.Close(e) }
func (linux) open(e attachment.Endpoint) error    { return port.Open(e) }
func (linux) hold(e attachment.Endpoint) error    { return port.Hold(e) }
func (linux) shut(e attachment.Endpoint) error    { return port.Shut(e) }
func (linux) release(e attachment.Endpoint) error { return port.Release(e) }
func (linux) releaseLink(l netlink.Link) error    { return port.ReleaseLink(l) }
func (linux) regroup(e attachment.Endpoint) error { return port.Regroup(e) }
func (linux) check(e attachment.Endpoint) error   { return port.Check(e) }
func (linux) alive(e attachment.Endpoint) bool    { return port.Alive(e) }
func (linux) filtered(ipv6 bool) error            { return port.BridgeFiltered(ipv6) }

func (linux) unjudge(addrs []netip.Addr, mask uint32) error { return conntrack.Unjudge(addrs, mask) }
func (linux) forget(addrs []netip.Addr) error               { return conntrack.Forget(addrs) }
func (linux) clear(m mark.Mark) error                       { return conntrack.Clear(m) }
func (linux) clearOthers(m mark.Mark) error                 { return conntrack.ClearOthers(m) }
func (linux) rejudge(m mark.Mark, set *netipx.IPSet) error  { return conntrack.Rejudge(m, set) }

func (linux) takeBack(m mark.Mark, set *netipx.IPSet) (conntrack.Reclaimed, error) {
	if tables, err := flowtable.List(); err == nil && len(tables) == 0 {
		return conntrack.Reclaimed{}, nil
	}
	return conntrack.TakeBack(m, set)
}
