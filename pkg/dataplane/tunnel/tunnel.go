// Package tunnel finds out which encapsulations a node unwraps, so that endpoints can be
// kept from wrapping packets in them: what comes out of a tunnel comes in by the tunnel's
// link, with a source that nobody has checked.
//
// [Of] decides, purely; [Read] asks the kernel. WireGuard and IPsec are not in it: they
// take a packet only from a peer that proves who it is.
package tunnel

import (
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/desired"
)

// ports are UDP ports on which CNI plugins take packets by default. They count without a
// link, too: it may be made when podmark is there already, and a node without podmarkd would
// not notice.
var ports = []uint16{
	4789, // VXLAN, RFC 7348: Calico, Docker, Tungsten Fabric
	4790, // VXLAN-GPE, as assigned by IANA; Calico's egress gateways
	6081, // Geneve, RFC 8926: Antrea, Cilium, Kube-OVN, OVN-Kubernetes
	6635, // MPLS in UDP, RFC 7510: Tungsten Fabric
	6784, // Weave Net's fast datapath, a VXLAN
	8285, // flannel's backend udp, of which flanneld is the end and no link tells
	8472, // VXLAN where nobody names a port (drivers/net/vxlan): flannel, k3s, Cilium
}

// protocols are the IP protocols of tunnels. Links of kind gre, gretap, erspan, ipip, sit,
// ip6gre, ip6gretap, ip6erspan and ip6tnl take one of these, so none has to be there.
var protocols = []uint8{
	unix.IPPROTO_IPIP, // 4
	unix.IPPROTO_IPV6, // 41: sit, ip6tnl, a segment routing header that ends here
	unix.IPPROTO_GRE,  // 47
	97,                // EtherIP, RFC 3378
	115,               // L2TPv3, RFC 3931, which is open where it has no cookie
	137,               // MPLS in IP, RFC 4023
	143,               // Ethernet after a segment routing header, RFC 8986
}

// Link is what a link says of the packets that it unwraps.
type Link struct {
	// Kind is that of rtnetlink, as "vxlan".
	Kind string
	// Port is the UDP port on which it takes packets; 0 for none, or not said.
	Port uint16
}

// unsaid are the UDP ports of kinds whose links do not tell them.
var unsaid = map[string][]uint16{
	"gtp": {2152, 3386}, // GTP-U and GTPv0 (drivers/net/gtp.c)
	"amt": {2268},       // RFC 7450 (drivers/net/amt.c)
}

// Of are the tunnels of a node with these links, and with these UDP ports on which fou
// listens, which is none.
func Of(links []Link, listeners []uint16) desired.Tunnels {
	t := desired.Tunnels{UDPPorts: slices.Concat(ports, listeners), Protocols: slices.Clone(protocols)}
	for _, l := range links {
		if l.Port != 0 {
			t.UDPPorts = append(t.UDPPorts, l.Port)
		}
		t.UDPPorts = append(t.UDPPorts, unsaid[l.Kind]...)
	}
	slices.Sort(t.UDPPorts)
	t.UDPPorts = slices.Compact(t.UDPPorts)
	return t
}

// Read are the tunnels of the node with the links of a dump.
func Read(list []netlink.Link) (desired.Tunnels, error) {
	listeners, err := readListeners()
	if err != nil {
		return desired.Tunnels{}, err
	}
	links := make([]Link, 0, len(list))
	for _, l := range list {
		links = append(links, linkOf(l))
	}
	return Of(links, listeners), nil
}

func linkOf(l netlink.Link) Link {
	link := Link{Kind: l.Type()}
	switch l := l.(type) {
	case *netlink.Vxlan:
		link.Port = uint16(l.Port)
	case *netlink.Geneve:
		link.Port = l.Dport
	case *netlink.BareUDP:
		link.Port = l.Port
	}
	return link
}

// readListeners lists the ports of "ip fou" and "ip gue". The kernel loads a family that is
// asked for by its name, so the families that there are are listed first.
func readListeners() ([]uint16, error) {
	families, err := netlink.GenlFamilyList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("listing the families of generic netlink: %w", err)
	}
	if !slices.ContainsFunc(families, func(f *netlink.GenlFamily) bool { return f.Name == "fou" }) {
		return nil, nil
	}
	list, err := netlink.FouList(unix.AF_UNSPEC)
	if errors.Is(err, unix.EPERM) {
		return nil, nil // who may not ask writes no rules
	}
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("listing the ports of fou: %w", err)
	}
	var out []uint16
	for _, l := range list {
		out = append(out, uint16(l.Port))
	}
	return out, nil
}
