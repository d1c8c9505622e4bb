package lab

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/moby/ipvs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Kind is how a service is reached.
type Kind int

// The kinds of service.
const (
	// ClusterIP is an address of the cluster's own range.
	ClusterIP Kind = iota
	// ExternalIP is an address that the network outside routes to the node; an
	// address of a load balancer works the same.
	ExternalIP
	// NodePort is a port of every address of the node that a host is connected to.
	NodePort
)

// Service is a kube-proxy service of one port.
type Service struct {
	Kind     Kind
	Protocol Protocol
	// Address is the service's own; unused by a NodePort.
	Address netip.Addr
	Port    uint16
	// Local keeps a NodePort's client address (externalTrafficPolicy: Local).
	Local bool
	// Backends may be of both families; a service address has those of its own.
	Backends []netip.AddrPort
}

// backends are those of family f.
func (s Service) backends(f Family) []netip.AddrPort {
	var of []netip.AddrPort
	for _, b := range s.Backends {
		if familyOf(b.Addr()) == f {
			of = append(of, b)
		}
	}
	return of
}

// addresses are where the service is reached: the node's for a NodePort.
func (n *Node) addresses(s Service) []netip.Addr {
	if s.Kind != NodePort {
		return []netip.Addr{s.Address}
	}
	return slices.DeleteFunc(slices.Clone(n.Addresses), func(a netip.Addr) bool {
		return len(s.backends(familyOf(a))) == 0
	})
}

// AddServices does what kube-proxy does for services: their addresses on
// kube-ipvs0, IPVS services with their backends, entries in the sets.
func (n *Node) AddServices(services ...Service) {
	n.t.Helper()
	var entries strings.Builder
	for _, s := range services {
		addresses := n.addresses(s)
		if len(addresses) == 0 {
			n.t.Fatalf("service %v/%v: the node has no address of its backends' families: add a host first", s.Port, s.Protocol)
		}
		for _, addr := range addresses {
			if err := n.programService(s, addr); err != nil {
				n.t.Fatalf("service %v/%v: %v", netip.AddrPortFrom(addr, s.Port), s.Protocol, err)
			}
			entries.WriteString(n.setEntries("add", s, addr))
		}
	}
	n.restoreSets(entries.String())
}

// RemoveServices undoes [Node.AddServices], but for the addresses, which other
// services may share.
func (n *Node) RemoveServices(services ...Service) {
	n.t.Helper()
	var entries strings.Builder
	for _, s := range services {
		for _, addr := range n.addresses(s) {
			err := n.withIPVS(func(h *ipvs.Handle) error { return h.DelService(virtual(s, addr)) })
			if err != nil {
				n.t.Fatalf("removing service %v/%v: %v", netip.AddrPortFrom(addr, s.Port), s.Protocol, err)
			}
			entries.WriteString(n.setEntries("del", s, addr))
		}
	}
	n.restoreSets(entries.String())
}

// binds reports whether a service's address goes onto kube-ipvs0. kube-proxy
// leaves out an external IP that another link has.
func (n *Node) binds(s Service, addr netip.Addr) bool {
	return s.Kind != NodePort && !slices.Contains(n.Addresses, addr)
}

func (n *Node) programService(s Service, addr netip.Addr) error {
	if n.binds(s, addr) {
		err := n.Do(func() error {
			link, err := netlink.LinkByName(serviceLink)
			if err != nil {
				return err
			}
			// No error where another port of the address has been there before.
			return netlink.AddrReplace(link, &netlink.Addr{IPNet: netlink.NewIPNet(addr.AsSlice()), Flags: unix.IFA_F_NODAD})
		})
		if err != nil {
			return fmt.Errorf("binding to %s: %w", serviceLink, err)
		}
	}
	return n.withIPVS(func(h *ipvs.Handle) error {
		service := virtual(s, addr)
		if err := h.NewService(service); err != nil {
			return fmt.Errorf("adding to IPVS: %w", err)
		}
		for _, b := range s.backends(familyOf(addr)) {
			err := h.NewDestination(service, &ipvs.Destination{
				AddressFamily:   service.AddressFamily,
				Address:         b.Addr().AsSlice(),
				Port:            b.Port(),
				Weight:          1,
				ConnectionFlags: ipvs.ConnectionFlagMasq,
			})
			if err != nil {
				return fmt.Errorf("adding backend %v: %w", b, err)
			}
		}
		return nil
	})
}

// withIPVS hands the node's IPVS to f.
func (n *Node) withIPVS(f func(*ipvs.Handle) error) error {
	return n.Do(func() error {
		h, err := ipvs.New("")
		if err != nil {
			return err
		}
		defer h.Close()
		return f(h)
	})
}

// virtual is the IPVS service of s at addr.
func virtual(s Service, addr netip.Addr) *ipvs.Service {
	v := &ipvs.Service{
		AddressFamily: unix.AF_INET,
		Protocol:      uint16(s.Protocol),
		Address:       addr.AsSlice(),
		Port:          s.Port,
		SchedName:     ipvs.RoundRobin,
		Netmask:       0xffffffff,
	}
	if addr.Is6() {
		// For IPv6 the field is the length of the prefix.
		v.AddressFamily, v.Netmask = unix.AF_INET6, 128
	}
	return v
}
