package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/moby/ipvs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/dataplane/hostport"
	"github.com/podmark/podmark/pkg/explain"
	"github.com/podmark/podmark/pkg/node"
)

// Explain answers a question about this node. Of f, it finds out itself what the kernel
// knows.
func Explain(ctx context.Context, n node.Node, q explain.Query, f explain.Facts) (explain.Answer, error) {
	f.PastHooks4, f.PastHooks6 = hostport.BridgeFiltered(false) != nil, hostport.BridgeFiltered(true) != nil
	f.Host = hostOf(f.State.HostAddresses)
	addresses, err := q.Addresses(f)
	if err != nil {
		return explain.Answer{}, err
	}
	if f.IPVS, err = readTable(addresses); err != nil {
		return explain.Answer{}, err
	}
	// Now the backends are among them.
	if addresses, err = q.Addresses(f); err != nil {
		return explain.Answer{}, err
	}
	ports := []uint16{q.Port}
	for _, s := range f.IPVS.Services {
		for _, b := range s.Destinations {
			ports = append(ports, b.At.Port())
		}
	}
	slices.Sort(ports)
	if f.State, err = n.Members(ctx, f.State, addresses, slices.Compact(ports)); err != nil {
		return explain.Answer{}, err
	}
	f.Routes = map[netip.Addr]explain.Route{}
	for _, a := range addresses {
		if f.Routes[a], err = routeTo(a); err != nil {
			return explain.Answer{}, err
		}
	}
	return q.Explain(f)
}

// hostOf picks the address of each family that stands for the node: the one that it
// sends from by its default route, or else the first that can be routed.
func hostOf(addresses []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, everywhere := range []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")} {
		if list, err := netlink.RouteGet(everywhere.AsSlice()); err == nil && len(list) > 0 {
			if a, ok := netip.AddrFromSlice(list[0].Src); ok && slices.Contains(addresses, a.Unmap()) {
				out = append(out, a.Unmap())
				continue
			}
		}
		i := slices.IndexFunc(addresses, func(a netip.Addr) bool {
			return a.Is4() == everywhere.Is4() && !a.IsLoopback() && !a.IsLinkLocalUnicast()
		})
		if i >= 0 {
			out = append(out, addresses[i])
		}
	}
	return out
}

// readTable reads what IPVS has on these addresses, with the backends.
func readTable(addresses []netip.Addr) (t explain.IPVS, err error) {
	var f facts
	if f.link, err = hasServiceLink(); err != nil {
		return t, err
	}
	t.Loaded, err = eachService(func(h *ipvs.Handle, s *ipvs.Service) error {
		one, ok := serviceOf(s)
		if s.FWMark != 0 {
			t.ByMark++
		}
		if !ok {
			return nil
		}
		f.services = append(f.services, one)
		if !slices.Contains(addresses, one.addr) {
			return nil
		}
		asked := explain.Service{Protocol: one.protocol, At: netip.AddrPortFrom(one.addr, one.port)}
		if asked.Destinations, err = readBackends(h, s); err != nil {
			return fmt.Errorf("reading the backends of %s/%s: %w", asked.At, asked.Protocol, err)
		}
		t.Services = append(t.Services, asked)
		return nil
	})
	t.Used = f.mode().IPVS
	return t, err
}

// methods are the forwarding methods of IPVS.
var methods = map[uint32]explain.Method{
	ipvs.ConnFwdMasq:        explain.Masquerade,
	ipvs.ConnFwdLocalNode:   explain.LocalNode,
	ipvs.ConnFwdTunnel:      explain.Tunnel,
	ipvs.ConnFwdDirectRoute: explain.DirectRoute,
}

// readBackends reads those of a service, sorted.
func readBackends(h *ipvs.Handle, s *ipvs.Service) ([]explain.Destination, error) {
	list, err := h.GetDestinations(s)
	if err != nil {
		return nil, err
	}
	var out []explain.Destination
	for _, d := range list {
		addr, ok := netip.AddrFromSlice(d.Address)
		if !ok {
			continue
		}
		out = append(out, explain.Destination{
			At: netip.AddrPortFrom(addr.Unmap(), d.Port), Weight: d.Weight, Method: methods[d.ConnectionFlags&ipvs.ConnFwdMask],
		})
	}
	slices.SortFunc(out, func(a, b explain.Destination) int { return a.At.Compare(b.At) })
	return out, nil
}

// routeTo asks the kernel how the node sends to an address.
func routeTo(a netip.Addr) (explain.Route, error) {
	list, err := netlink.RouteGet(net.IP(a.AsSlice()))
	var errno unix.Errno
	if errors.As(err, &errno) {
		// ENETUNREACH where there is none; others for a route that says so.
		return explain.Route{Error: errno.Error()}, nil
	}
	if err != nil {
		return explain.Route{}, fmt.Errorf("asking for the route to %s: %w", a, err)
	}
	if len(list) == 0 {
		return explain.Route{Error: unix.ENETUNREACH.Error()}, nil
	}
	r := explain.Route{
		Local: list[0].Type == unix.RTN_LOCAL || list[0].Type == unix.RTN_ANYCAST,
		Many:  a.IsMulticast() || list[0].Type == unix.RTN_BROADCAST,
	}
	link, err := netlink.LinkByIndex(list[0].LinkIndex)
	if err != nil {
		return explain.Route{}, fmt.Errorf("reading the link to %s: %w", a, err)
	}
	r.Interface = link.Attrs().Name
	return r, nil
}
