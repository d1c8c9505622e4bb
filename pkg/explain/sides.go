package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/podmark/podmark/pkg/desired"
)

// assumed are addresses that "outside" can stand for: those of documentation, RFC 5737,
// 3849 and 9637.
var assumed = map[bool][]netip.Addr{
	true:  {netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("203.0.113.1")},
	false: {netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("3fff::1")},
}

// pair is a source and a destination of one family.
type pair struct{ src, dst netip.Addr }

// pairs lists the pairs that the question is about, IPv4 first.
func (q Query) pairs(f Facts) ([]pair, error) {
	src, err := f.addresses(q.Src)
	if err != nil {
		return nil, err
	}
	dst, err := f.addresses(q.Dst)
	if err != nil {
		return nil, err
	}
	var pairs []pair
	for _, four := range []bool{true, false} {
		of := func(a netip.Addr) bool { return a.Is4() == four }
		s, d := slices.IndexFunc(src, of), slices.IndexFunc(dst, of)
		if s >= 0 && d >= 0 {
			pairs = append(pairs, pair{src[s], dst[d]})
		}
	}
	if len(pairs) == 0 {
		return nil, fmt.Errorf("%s and %s have no addresses of one family", q.Src, q.Dst)
	}
	return pairs, nil
}

// addresses are those that a side stands for.
func (f Facts) addresses(s Side) ([]netip.Addr, error) {
	switch s.Name {
	case "":
		return []netip.Addr{s.Address}, nil
	case Host:
		return f.Host, nil
	case Outside:
		return []netip.Addr{f.outside(true), f.outside(false)}, nil
	}
	found := map[string][]netip.Addr{}
	for _, e := range f.State.Endpoints {
		if name := e.Namespace + "/" + e.Pod; e.Pod != "" && (name == s.Name || e.Pod == s.Name) {
			found[name] = append(found[name], e.Addresses...)
		}
	}
	if len(found) == 0 && f.Elsewhere[s.Name] != nil {
		return f.Elsewhere[s.Name], nil
	}
	var names []string
	for name := range found {
		names = append(names, name)
	}
	slices.Sort(names)
	switch len(names) {
	case 0:
		return nil, fmt.Errorf("no pod %q is on this node: 'podmarkctl list' shows those that are; one of another node is NAMESPACE/NAME where podmarkd asks the API server, and an address everywhere", s.Name)
	case 1:
		return found[names[0]], nil
	default:
		return nil, fmt.Errorf("pod %q is one of %s: say which", s.Name, strings.Join(names, ", "))
	}
}

// outside is an address that as few rules as possible name: one of those for which the
// narrowest block that holds it is the widest.
func (f Facts) outside(four bool) netip.Addr {
	narrowest := func(a netip.Addr) int {
		bits := 0
		for _, p := range f.State.Profiles {
			for _, r := range p.Rules() {
				for _, b := range r.Blocks {
					if b.Contains(a) {
						bits = max(bits, b.Bits())
					}
				}
			}
		}
		return bits
	}
	return slices.MinFunc(assumed[four], func(a, b netip.Addr) int { return narrowest(a) - narrowest(b) })
}

// Addresses are those whose routes and services an answer needs: the two sides', and of
// the services that are known already, the backends'.
func (q Query) Addresses(f Facts) ([]netip.Addr, error) {
	pairs, err := q.pairs(f)
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, p := range pairs {
		out = append(out, p.src, p.dst)
		if s := f.service(q.Protocol, netip.AddrPortFrom(p.dst, q.Port)); s != nil {
			for _, b := range s.Destinations {
				out = append(out, b.At.Addr())
			}
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out), nil
}

// service is what IPVS has at an address and port.
func (f Facts) service(p desired.Protocol, at netip.AddrPort) *Service {
	for i, s := range f.IPVS.Services {
		if s.Protocol == p && s.At == at {
			return &f.IPVS.Services[i]
		}
	}
	return nil
}

// served lists the ports of an address that have a service.
func (f Facts) served(a netip.Addr) []string {
	var ports []string
	for _, s := range f.IPVS.Services {
		if s.At.Addr() == a {
			ports = append(ports, fmt.Sprintf("%d/%s", s.At.Port(), name(s.Protocol)))
		}
	}
	return ports
}

// party is who has an address.
func (f Facts) party(a netip.Addr, port uint16) Party {
	p := Party{Address: a, Port: port}
	if e := f.endpoint(a); e != nil {
		p.Name = nameOf(*e)
	} else if slices.Contains(f.State.HostAddresses, a) {
		p.Name = Host
	}
	return p
}

// endpoint is the one that has an address, or the only one that may send from it besides.
func (f Facts) endpoint(a netip.Addr) *desired.Endpoint {
	for i, e := range f.State.Endpoints {
		if slices.Contains(e.Addresses, a) {
			return &f.State.Endpoints[i]
		}
	}
	// Many may send from one further address. The node sends to one of them.
	var found *desired.Endpoint
	route, known := f.Routes[a]
	for i, e := range f.State.Endpoints {
		switch {
		case !e.Sends(a) || known && route.Interface != e.L3Interface:
		case found != nil:
			return nil
		default:
			found = &f.State.Endpoints[i]
		}
	}
	return found
}

// elsewhere reports whether an address is known to be a pod's of another node: a rule
// names that pod.
func (f Facts) elsewhere(a netip.Addr) bool {
	for _, set := range f.State.PeerSets {
		if _, ok := slices.BinarySearchFunc(set.Addrs, a, netip.Addr.Compare); ok {
			return f.endpoint(a) == nil
		}
	}
	return false
}

// nameOf is the pod's name, or the container's where there is no pod.
func nameOf(e desired.Endpoint) string {
	if e.Pod == "" {
		return e.ContainerID
	}
	return e.Namespace + "/" + e.Pod
}
