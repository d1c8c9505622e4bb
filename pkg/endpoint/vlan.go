//go:build linux

package endpoint

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"

	"github.com/podmark/podmark/pkg/attachment"
)

// vlans are what a bridge with VLAN filtering does with what its port sends.
type vlans struct {
	// pvid is the VLAN that the port's untagged frames belong to, and byDefault that of the
	// bridge's ports, and of the bridge itself; 0 is none.
	pvid, byDefault uint16
	// all are those that the port carries.
	all []uint16
	// elsewhere names the link that has the endpoint's gateway, where that is not the bridge.
	elsewhere string
}

// readVLANs asks the kernel. The bridge plugin takes vlan_filtering for "vlan" and
// "vlanTrunk" alone, so on other nodes nothing of this is read.
func readVLANs(e *attachment.Endpoint, bridge *netlink.Bridge) (v vlans, err error) {
	if bridge.VlanDefaultPVID != nil {
		v.byDefault = *bridge.VlanDefaultPVID
	}
	ports, err := netlink.BridgeVlanList()
	for tries := 0; errors.Is(err, netlink.ErrDumpInterrupted) && tries < 5; tries++ {
		ports, err = netlink.BridgeVlanList()
	}
	if err != nil {
		return v, fmt.Errorf("reading the VLANs of bridge port %q: %w", e.HostVeth, err)
	}
	for _, info := range ports[int32(e.HostVethIndex)] {
		v.all = append(v.all, info.Vid)
		if info.PortVID() {
			v.pvid = info.Vid
		}
	}
	addresses, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return v, fmt.Errorf("reading who has the gateway of %q: %w", e.HostVeth, err)
	}
	if index, ok := gatewayElsewhere(e, addresses); ok {
		v.elsewhere = fmt.Sprintf("link %d", index)
		if link, err := netlink.LinkByIndex(index); err == nil {
			v.elsewhere = fmt.Sprintf("%q", link.Attrs().Name)
		}
	}
	return v, nil
}

// gatewayElsewhere is the index of a link that has a gateway of the endpoint, where its L3
// interface does not have that.
func gatewayElsewhere(e *attachment.Endpoint, addresses []netlink.Addr) (index int, ok bool) {
	here, elsewhere := map[netip.Addr]bool{}, map[netip.Addr]int{}
	for _, a := range addresses {
		if addr, ok := netip.AddrFromSlice(a.IP); ok && a.LinkIndex == e.L3InterfaceIndex {
			here[addr.Unmap()] = true
		} else if ok {
			elsewhere[addr.Unmap()] = a.LinkIndex
		}
	}
	for _, gateway := range e.Gateways {
		if here[gateway] || gateway.IsLinkLocalUnicast() { // which every link may have
			continue
		}
		if at, has := elsewhere[gateway]; has {
			index, ok = at, true
		}
	}
	return index, ok
}

// plain returns why the endpoint's packets do not enter the host by the bridge itself, or
// not all of them: nil where they do.
func (v vlans) plain(e attachment.Endpoint) error {
	why := ""
	switch {
	case v.pvid != v.byDefault:
		why = fmt.Sprintf("has PVID %d, and those of bridge %q have %d", v.pvid, e.L3Interface, v.byDefault)
	case len(v.all) > 1:
		why = fmt.Sprintf("carries %d VLANs of bridge %q", len(v.all), e.L3Interface)
	case v.elsewhere != "":
		why = fmt.Sprintf("is a port of bridge %q, and its gateway is on %s", e.L3Interface, v.elsewhere)
	default:
		return nil
	}
	return fmt.Errorf("%w: host veth %q %s: its packets enter the host by the interface of a VLAN, where podmark does not look for them; take vlan, vlanTrunk and preserveDefaultVlan out of the bridge plugin's entry, and give each VLAN a bridge of its own instead", ErrNoHostInterface, e.HostVeth, why)
}
