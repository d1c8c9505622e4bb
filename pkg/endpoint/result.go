//go:build linux

package endpoint

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/attachment"
)

// ErrNoHostInterface is returned for a container interface whose packets do not
// enter the host by an interface of its own, so that nothing can bind an
// identity to it: macvlan, ipvlan, SR-IOV.
var ErrNoHostInterface = errors.New("no host-side interface")

// ErrNoAddress is returned for a prevResult without an address for the interface.
var ErrNoAddress = errors.New("no address")

// ErrNetns is returned when the network namespace cannot be entered.
var ErrNetns = errors.New("network namespace unusable")

// FromResult finds the endpoint of the container interface ifName in the
// network namespace at path netnsPath: its addresses from the prevResult, its
// interfaces from the kernel. The host veth is found by its peer's index and not by the
// prevResult's names, because not every main plugin lists it. Identity
// (namespace, pod, labels) is for the caller to fill in, and Counters for it to close.
func FromResult(result *types100.Result, netnsPath, ifName string) (e attachment.Endpoint, c Counters, err error) {
	e.Addresses, e.Gateways = addresses(result, ifName)
	if len(e.Addresses) == 0 {
		return attachment.Endpoint{}, Counters{}, fmt.Errorf("%w for interface %q in prevResult: podmark belongs after a plugin that assigns one", ErrNoAddress, ifName)
	}
	inner, c, err := containerLink(netnsPath, ifName)
	if err == nil {
		err = connect(&e, inner, ifName)
	}
	if err != nil {
		c.Close()
		return attachment.Endpoint{}, Counters{}, err
	}
	return e, c, nil
}

// FromOutside is FromResult without entering the network namespace, which takes
// CAP_SYS_ADMIN: the host's side may ask about a link there with CAP_NET_ADMIN (Linux
// 5.0, rtnl_get_net_ns_capable). What the namespace has sent is not known then.
func FromOutside(result *types100.Result, netnsPath, ifName string) (e attachment.Endpoint, err error) {
	if e.Addresses, e.Gateways = addresses(result, ifName); len(e.Addresses) == 0 {
		return attachment.Endpoint{}, fmt.Errorf("%w for interface %q in its result", ErrNoAddress, ifName)
	}
	ns, err := os.Open(netnsPath)
	if err != nil {
		return attachment.Endpoint{}, fmt.Errorf("%w: %w", ErrNetns, err)
	}
	defer ns.Close()
	inner, err := linkIn(int(ns.Fd()), ifName)
	if err != nil {
		return attachment.Endpoint{}, fmt.Errorf("reading interface %q in %q: %w", ifName, netnsPath, err)
	}
	err = connect(&e, inner, ifName)
	return e, err
}

// linkIn reads a link of the network namespace that is open as ns.
func linkIn(ns int, ifName string) (netlink.Link, error) {
	// The number by which this namespace knows the other: given at the first use.
	if err := netlink.SetNetNsIdByFd(ns, -1); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("numbering the network namespace: %w", err)
	}
	id, err := netlink.GetNetNsIdByFd(ns)
	if err != nil {
		return nil, fmt.Errorf("numbering the network namespace: %w", err)
	}
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, 0)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_TARGET_NETNSID, nl.Uint32Attr(uint32(id))))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(ifName)))
	answers, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	if err != nil {
		return nil, err
	}
	if len(answers) != 1 {
		return nil, fmt.Errorf("the kernel answers with %d links", len(answers))
	}
	return netlink.LinkDeserialize(nil, answers[0])
}

// connect finds the host's side of the container's link.
func connect(e *attachment.Endpoint, inner netlink.Link, ifName string) error {
	e.MAC = inner.Attrs().HardwareAddr.String()
	port, err := hostVeth(inner)
	if err != nil {
		return fmt.Errorf("interface %q: %w", ifName, err)
	}
	e.HostVeth, e.HostVethIndex = port.Attrs().Name, port.Attrs().Index
	e.L3Interface, e.L3InterfaceIndex = e.HostVeth, e.HostVethIndex
	master, err := masterOf(port)
	if err != nil || master == nil {
		return err
	}
	if master.Type() != "vrf" {
		if err := onto(e, master); err != nil {
			return err
		}
		// A bridge may be a VRF's in its turn.
		if master, err = masterOf(master); err != nil {
			return err
		}
	}
	if master != nil && master.Type() == "vrf" {
		e.VRF, e.VRFIndex = master.Attrs().Name, master.Attrs().Index
	}
	return nil
}

// onto takes over that the host veth is a port of master, which is the L3 interface then.
func onto(e *attachment.Endpoint, master netlink.Link) error {
	if kind := master.Type(); kind == "openvswitch" {
		return fmt.Errorf("%w: host veth %q is a port of an %s datapath, which forwards packets past the IP hooks", ErrNoHostInterface, e.HostVeth, kind)
	}
	e.L3Interface, e.L3InterfaceIndex = master.Attrs().Name, master.Attrs().Index
	bridge, ok := master.(*netlink.Bridge)
	if !ok || bridge.VlanFiltering == nil || !*bridge.VlanFiltering {
		return nil
	}
	facts, err := readVLANs(e, bridge)
	if err != nil {
		return err
	}
	return facts.plain(*e)
}

// masterOf reads the link that another is enslaved to; nil without one.
func masterOf(link netlink.Link) (netlink.Link, error) {
	index := link.Attrs().MasterIndex
	if index == 0 {
		return nil, nil
	}
	master, err := netlink.LinkByIndex(index)
	if err != nil {
		return nil, fmt.Errorf("reading master %d of %q: %w", index, link.Attrs().Name, err)
	}
	return master, nil
}

// addresses lists what the prevResult assigns to ifName in the container. An
// address that names no interface is taken to be the container's.
func addresses(result *types100.Result, ifName string) (addrs, gateways []netip.Addr) {
	for _, ip := range result.IPs {
		if ip == nil {
			continue
		}
		if i := ip.Interface; i != nil {
			if *i < 0 || *i >= len(result.Interfaces) || result.Interfaces[*i] == nil || result.Interfaces[*i].Name != ifName {
				continue
			}
		}
		addr, ok := specified(ip.Address.IP)
		if !ok {
			continue
		}
		addrs = append(addrs, addr)
		if gw, ok := specified(ip.Gateway); ok {
			gateways = append(gateways, gw)
		}
	}
	return addrs, gateways
}

// specified converts ip unless it is none, 0.0.0.0 or ::. A net.IP holds IPv4
// addresses as mapped ones, of which netip calls none unspecified.
func specified(ip net.IP) (netip.Addr, bool) {
	addr, ok := netip.AddrFromSlice(ip)
	addr = addr.Unmap()
	return addr, ok && !addr.IsUnspecified()
}

// containerLink reads the link ifName in another network namespace, and opens the
// namespace's counters: it is entered once.
func containerLink(netnsPath, ifName string) (link netlink.Link, c Counters, err error) {
	err = visit(netnsPath, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("%w: connecting in %q: %w", ErrNetns, netnsPath, err)
		}
		defer h.Close()
		if link, err = h.LinkByName(ifName); err != nil {
			return fmt.Errorf("reading interface %q in %q: %w", ifName, netnsPath, err)
		}
		c, err = openCounters()
		return err
	})
	return link, c, err
}

// hostVeth finds the host's end of the veth pair that inner is the other end of.
func hostVeth(inner netlink.Link) (netlink.Link, error) {
	attrs := inner.Attrs()
	if inner.Type() != "veth" {
		return nil, fmt.Errorf("%w: it is a %s, whose packets enter the host by a shared device; podmark works behind veth-based plugins (ptp, bridge, flannel, Calico, ...)", ErrNoHostInterface, inner.Type())
	}
	port, err := netlink.LinkByIndex(attrs.ParentIndex)
	if err != nil {
		return nil, fmt.Errorf("%w: reading its veth peer (index %d): %w", ErrNoHostInterface, attrs.ParentIndex, err)
	}
	// An index means something in one namespace only: the peer must point back.
	if port.Type() != "veth" || port.Attrs().ParentIndex != attrs.Index {
		return nil, fmt.Errorf("%w: its veth peer (index %d) is not in this network namespace", ErrNoHostInterface, attrs.ParentIndex)
	}
	return port, nil
}
