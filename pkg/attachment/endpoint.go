package attachment

import (
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"
)

// Endpoint is the host's view of one container interface.
type Endpoint struct {
	// Namespace and Pod come from CNI_ARGS; both are empty outside Kubernetes.
	Namespace string `json:"namespace,omitempty"`
	Pod       string `json:"pod,omitempty"`
	// Labels are the pod's labels, from args.cni.labels.
	Labels map[string]string `json:"labels,omitempty"`

	// L3Interface is the L3 interface the endpoint's packets come in by: the
	// host veth, or its master when it has one.
	L3Interface string `json:"interface"`
	// HostVeth is the host veth itself; it equals Interface when routed.
	HostVeth string `json:"port"`
	// L3InterfaceIndex and PortIndex are the kernel's numbers of those links. They stay when
	// a link is renamed, and no other link of the namespace gets them. 0 is not known: the
	// record is an older podmark's.
	L3InterfaceIndex int `json:"interfaceIndex,omitempty"`
	HostVethIndex    int `json:"portIndex,omitempty"`
	// VRF is the VRF that the host veth is enslaved to, and VRFIndex its number: what the
	// endpoint sends passes the IP hooks once as from the host veth and once as from the
	// VRF (vrf_ip_rcv). Empty and 0 without one.
	VRF      string `json:"vrf,omitempty"`
	VRFIndex int    `json:"vrfIndex,omitempty"`
	// MAC is the address of the container interface; a bridge port is held to it.
	MAC string `json:"mac,omitempty"`
	// Addresses are those of the container interface, IPv4 and IPv6, unmapped
	// and without zone.
	Addresses []netip.Addr `json:"addresses"`
	// AllowedSources are prefixes that the endpoint may send from besides, as a router does:
	// masked, sorted, of either family. What comes from them, or goes to them by the host
	// veth, is judged by the endpoint's own policies; to policies of others it is nobody.
	AllowedSources []netip.Prefix `json:"sources,omitempty"`
	// NamedPorts are the named ports of the pod's containers.
	NamedPorts []NamedPort `json:"ports,omitempty"`
	// Gateways are the prevResult's gateways: addresses of the host where the
	// main plugin routes.
	Gateways []netip.Addr `json:"gateways,omitempty"`
}

// Sends reports whether the endpoint may send from an address: its own, or a further one.
func (e Endpoint) Sends(from netip.Addr) bool {
	return slices.Contains(e.Addresses, from) ||
		slices.ContainsFunc(e.AllowedSources, func(p netip.Prefix) bool { return p.Contains(from) })
}

// Contends returns a prefix of e's further ones of which a part is one of other's, where both
// come in by the same interface: whose a packet from there is cannot be told. False where
// there is none.
func (e Endpoint) Contends(other Endpoint) (netip.Prefix, bool) {
	if e.L3Interface != other.L3Interface && (e.VRF == "" || e.VRF != other.VRF) {
		return netip.Prefix{}, false
	}
	i := slices.IndexFunc(e.AllowedSources,
		func(p netip.Prefix) bool { return slices.ContainsFunc(other.AllowedSources, p.Overlaps) })
	if i < 0 {
		return netip.Prefix{}, false
	}
	return e.AllowedSources[i], true
}

// NamedPort is a container port that has a name.
type NamedPort struct {
	Name     string `json:"name"`
	Protocol uint8  `json:"protocol"` // IANA number
	Number   uint16 `json:"number"`
}

// Routed reports whether the host veth is itself the L3 interface. A routed
// veth carries one endpoint's packets only; a bridge is shared.
func (e Endpoint) Routed() bool { return e.HostVeth == e.L3Interface }

// LinkLocal is the link-local address that Linux gives the container interface by itself
// (RFC 4291, appendix A); false where MAC is none of Ethernet. A pod that gives itself
// another is not heard under it by its neighbours on a bridge.
func (e Endpoint) LinkLocal() (netip.Addr, bool) {
	mac, err := hex.DecodeString(strings.ReplaceAll(e.MAC, ":", "")) // as net.HardwareAddr writes it
	if err != nil || len(mac) != 6 {
		return netip.Addr{}, false
	}
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]}), true
}
