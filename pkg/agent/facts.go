package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/moby/ipvs"
	"github.com/vishvananda/netlink"

	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/foreign/fwmark"
	"github.com/podmark/podmark/pkg/node"
)

// Mode is how the node's services are done.
type Mode struct {
	// IPVS is set where IPVS has services and their addresses are on the link that
	// kube-proxy keeps for them. A link that kube-proxy left behind is not enough.
	IPVS bool `json:"ipvs"`
	// Link is whether kube-ipvs0 is there, Services how many IPVS has.
	Link     bool `json:"link"`
	Services int  `json:"services"`
	// Proxy is the mode that kube-proxy says it runs in: ipvs, iptables, nftables. It is
	// a hint, for people: what the kernel does with packets counts. Empty where it does
	// not say.
	Proxy string `json:"proxy,omitempty"`
}

// Leftover holds where IPVS has services although kube-proxy says that it does not use it.
func (m Mode) Leftover() bool { return m.IPVS && m.Proxy != "" && m.Proxy != "ipvs" }

// String names the mode.
func (m Mode) String() string {
	if m.IPVS {
		return "ipvs"
	}
	return "other"
}

// service is a virtual service of IPVS.
type service struct {
	addr     netip.Addr
	port     uint16
	protocol desired.Protocol
}

// facts are what the kernel says about services.
type facts struct {
	link     bool
	services []service
	// hosts are the node's own addresses: not those of services.
	hosts []netip.Addr
}

func (f facts) mode() Mode {
	return Mode{IPVS: f.link && len(f.services) > 0, Link: f.link, Services: len(f.services)}
}

// inUse lists the ports of the node's own addresses that IPVS answers on, by one of
// these protocols if any are named, sorted.
func (f facts) inUse(protocols ...desired.Protocol) []uint16 {
	var ports []uint16
	for _, s := range f.services {
		if slices.Contains(f.hosts, s.addr) && (len(protocols) == 0 || slices.Contains(protocols, s.protocol)) {
			ports = append(ports, s.port)
		}
	}
	slices.Sort(ports)
	return slices.Compact(ports)
}

// Observe tells how services are done on the node, and on which ports of the
// node's own addresses IPVS answers, sorted.
func Observe() (Mode, []uint16, error) {
	f, err := readFacts()
	return f.mode(), f.inUse(), err
}

func readFacts() (facts, error) {
	hosts, err := node.HostAddresses()
	if err != nil {
		return facts{}, err
	}
	f, err := readServices()
	f.hosts = hosts
	return f, err
}

// readServices reads what the mode follows from: the link, and the services.
func readServices() (f facts, err error) {
	if f.link, err = hasServiceLink(); err != nil {
		return f, err
	}
	_, err = eachService(func(_ *ipvs.Handle, s *ipvs.Service) error {
		if one, ok := serviceOf(s); ok {
			f.services = append(f.services, one)
		}
		return nil
	})
	return f, err
}

// hasServiceLink reports whether kube-proxy's link for the addresses of services is there.
func hasServiceLink() (bool, error) {
	_, err := netlink.LinkByName(node.ServiceLink)
	if missing := (netlink.LinkNotFoundError{}); err != nil && !errors.As(err, &missing) {
		return false, fmt.Errorf("reading link %s: %w", node.ServiceLink, err)
	}
	return err == nil, nil
}

// eachService calls do for each service of IPVS, and reports whether the kernel has IPVS loaded.
func eachService(do func(*ipvs.Handle, *ipvs.Service) error) (loaded bool, err error) {
	return fwmark.WithIPVS(func(h *ipvs.Handle) error {
		list, err := h.GetServices()
		if err != nil {
			return fmt.Errorf("reading the services of IPVS: %w", err)
		}
		for _, s := range list {
			if err := do(h, s); err != nil {
				return err
			}
		}
		return nil
	})
}

// serviceOf reads a service that has a port of its own: one that goes by a fwmark has none.
func serviceOf(s *ipvs.Service) (service, bool) {
	addr, ok := netip.AddrFromSlice(s.Address)
	return service{addr.Unmap(), s.Port, desired.Protocol(s.Protocol)}, ok && s.FWMark == 0
}
