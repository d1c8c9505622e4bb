package main

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/mark"
)

const (
	namespace = "bench"
	// rulesPerPolicy are in each direction of a policy; each names one role and one
	// port, and the packets that are sent match the one in the middle.
	rulesPerPolicy = 10
	matching       = rulesPerPolicy / 2
	rulePort       = 10000 // of the first rule; the others follow
	// markMask is podmark's default.
	markMask = 0xffff0000
)

// population is who lives on a node and what policies there are. Each endpoint is
// in one group, each group is selected by one policy, which isolates it in both
// directions and allows it ten roles on a port each.
type population struct {
	node     desired.Node
	policies desired.Policies
	records  []attachment.Record
	// sender and receiver are the records of the pods that are real.
	sender, receiver int
}

// populate makes endpoints in as many groups as there are profiles, for packets
// of a protocol. The real pods stand in the middle of Felix's order of interfaces
// and of podmark's order of profiles, so that a candidate whose cost depends on
// the place is charged the mean.
func populate(endpoints, profiles int, protocol desired.Protocol) (population, error) {
	if endpoints < 2 {
		return population{}, fmt.Errorf("%d endpoints are too few to send packets from one to another", endpoints)
	}
	layout, err := mark.NewLayout(markMask)
	if err != nil {
		return population{}, err
	}
	p := population{node: desired.Node{
		Layout: layout, Epoch: 1,
		NodePorts: []desired.PortRange{{First: 30000, Last: 32767}},
		Tunnels:   desired.Tunnels{UDPPorts: []uint16{4789, 6081, 8472}, Protocols: []uint8{4, 41, 47}},
	}}
	for g := range min(profiles, endpoints) {
		p.policies.Policies = append(p.policies.Policies, groupPolicy(g, protocol))
	}
	for i := range endpoints {
		p.records = append(p.records, record(i, i%len(p.policies.Policies)))
	}
	order := make([]int, endpoints)
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(p.records[a].L3Interface, p.records[b].L3Interface) })
	// Names go into sixteen branches by their first digit: the middle of the ninth.
	at := min(endpoints*17/32, endpoints-2)
	p.sender, p.receiver = order[at], order[at+1]
	p.moveTo(p.sender, p.middle(desired.Egress))
	p.moveTo(p.receiver, p.middle(desired.Ingress))
	for _, i := range []int{p.sender, p.receiver} {
		p.records[i].Labels["role"] = role(matching)
	}
	return p, nil
}

// number gives the records of pods that are real the numbers of their links in the calling
// thread's namespace, and the others numbers that no link has.
func (p population) number() {
	for i := range p.records {
		r := &p.records[i]
		r.HostVethIndex = 1<<20 + i
		if link, err := net.InterfaceByName(r.HostVeth); (i == p.sender || i == p.receiver) && err == nil {
			r.HostVethIndex = link.Index
		}
		r.L3InterfaceIndex = r.HostVethIndex
	}
}

func group(g int) string { return fmt.Sprintf("g%03d", g) }
func role(r int) string  { return fmt.Sprintf("r%d", r) }

func label(key, value string) desired.Selector {
	return desired.Selector{{Key: key, Op: desired.In, Values: []string{value}}}
}

func groupPolicy(g int, protocol desired.Protocol) desired.Policy {
	isolation := func() *desired.Isolation {
		i := &desired.Isolation{}
		for r := range rulesPerPolicy {
			port := uint16(rulePort + r)
			i.Rules = append(i.Rules, desired.Rule{
				Peers: []desired.Peer{{Namespace: namespace, Pods: label("role", role(r))}},
				Ports: []desired.Port{{Protocol: protocol, PortRange: desired.PortRange{First: port, Last: port}}},
			})
		}
		return i
	}
	return desired.Policy{Namespace: namespace, Name: group(g), Pods: label("group", group(g)), Ingress: isolation(), Egress: isolation()}
}

// record is the attachment of the endpoint with this number, a routed one whose
// interface is named as Calico names them.
func record(i, g int) attachment.Record {
	hash := sha256.Sum256(fmt.Appendf(nil, "endpoint %d", i))
	name := "cali" + hex.EncodeToString(hash[:])[:11]
	return attachment.Record{
		Key: attachment.Key{Network: namespace, ContainerID: fmt.Sprintf("container-%d", i), IfName: podEnd},
		ID:  mark.First + mark.ID(i),
		Endpoint: attachment.Endpoint{
			Namespace: namespace, Pod: fmt.Sprintf("pod-%d", i),
			Labels:      map[string]string{"group": group(g), "role": role(i % rulesPerPolicy)},
			L3Interface: name, HostVeth: name,
			Addresses: []netip.Addr{
				netip.AddrFrom4([4]byte{10, 64, byte((i + 1) >> 8), byte(i + 1)}),
				netip.MustParseAddr(fmt.Sprintf("fd00:64::%x", i+1)),
			},
		},
		Policed: true, Committed: true,
	}
}

func (p population) state() desired.State { return desired.Build(p.node, p.policies, p.records) }

// middle is the group whose profile is in the middle of those of the direction,
// in the order in which they are looked through.
func (p population) middle(d desired.Direction) string {
	s := p.state()
	ids := slices.DeleteFunc(s.ProfileIDs(), func(id desired.ProfileID) bool { return s.Profiles[id].Direction != d })
	profile := s.Profiles[ids[len(ids)/2]]
	return profile.Policies()[0][len(namespace)+1:]
}

// moveTo puts a record into a group; one that is in it takes its place, so that
// no group becomes empty.
func (p population) moveTo(i int, group string) {
	for j := range p.records {
		if j != p.sender && j != p.receiver && p.records[j].Labels["group"] == group {
			p.records[j].Labels["group"] = p.records[i].Labels["group"]
			break
		}
	}
	p.records[i].Labels["group"] = group
}

// addr is the IPv4 address of a record.
func (p population) addr(i int) netip.Addr { return p.records[i].Addresses[0] }

// allowed is the flow from the sender to the receiver that both policies allow;
// forbidden is one that neither does.
func (p population) allowed() flow {
	return flow{src: p.addr(p.sender), dst: p.addr(p.receiver), port: rulePort + matching}
}

func (p population) forbidden() flow {
	f := p.allowed()
	f.port = 9
	return f
}
