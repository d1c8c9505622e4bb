package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/podmark/podmark/pkg/dataplane/iptables"
	"github.com/podmark/podmark/pkg/desired"
)

// The bits of Felix's mark on a node with IPVS, with the widest field for
// endpoints it ever had (Calico up to 3.29, no WireGuard).
const (
	felixMarks    = 4094
	felixAccept   = 0x10000
	felixPass     = 0x20000
	felixScratch  = 0xc0000
	felixEndpoint = 0xfff00000
	felixNonCali  = 0x100000
)

// felixMark is what Felix would mark the endpoint with this number with.
func felixMark(i int) uint32 { return uint32(i+2) << 20 }

// felix renders a population in the layout of Calico's Felix, in iptables mode,
// IPv4, and table filter only: what it has in raw, mangle and nat costs a packet
// the same however many endpoints there are, and is left out in its favour.
//
//   - FORWARD looks the endpoint up in a tree by interface name: by one character,
//     then one name after the other.
//   - OUTPUT, which IPVS sends packets to, goes through all endpoints by mark.
//   - Each endpoint has a chain for each direction, which calls its policies, each
//     of which has a chain too; what a policy finds it says in two bits of the mark.
type felix struct {
	population
	chains, rules strings.Builder
	number        int
}

// fill writes it with a variant of iptables.
func (f *felix) fill(node space, variant iptables.Variant) error {
	if len(f.records) > felixMarks {
		return fmt.Errorf("it has marks for %d endpoints, not for %d", felixMarks, len(f.records))
	}
	if _, err := node.command(f.sets(), "ipset", "restore"); err != nil {
		return err
	}
	f.render()
	text := "*filter\n" + f.chains.String() + f.rules.String() + "COMMIT\n"
	_, err := node.command(text, "iptables-"+string(variant)+"-restore", "--noflush", "-w", "60")
	return err
}

func felixSet(id desired.PeerSetID) string { return "cali40s:" + string(id) }

func (f *felix) sets() string {
	var b strings.Builder
	s := f.state()
	for _, id := range s.PeerSetIDs() {
		fmt.Fprintf(&b, "create %s hash:net family inet\n", felixSet(id))
		for _, a := range s.PeerSets[id].Addrs {
			if a.Is4() {
				fmt.Fprintf(&b, "add %s %s\n", felixSet(id), a)
			}
		}
	}
	return b.String()
}

func (f *felix) chain(name string) { fmt.Fprintf(&f.chains, ":%s - [0:0]\n", name) }

// rule appends a rule. Felix puts a hash of it into a comment, by which it finds
// out what is there.
func (f *felix) rule(chain, format string, args ...any) {
	f.number++
	fmt.Fprintf(&f.rules, "-A %s -m comment --comment \"cali:%016x\" %s\n", chain, f.number, fmt.Sprintf(format, args...))
}

// bits matches a mark in which the bits of mask are value.
func bits(value, mask uint32) string { return fmt.Sprintf("-m mark --mark %#x/%#x", value, mask) }

// setBits sets the bits of mask to value.
func setBits(value, mask uint32) string {
	return fmt.Sprintf("-j MARK --set-xmark %#x/%#x", value, mask)
}

func (f *felix) render() {
	for _, c := range []string{"cali-FORWARD", "cali-OUTPUT", "cali-forward-endpoint-mark", "cali-from-hep-forward", "cali-to-hep-forward", "cali-cidr-block"} {
		f.chain(c)
	}
	f.rule("cali-FORWARD", "%s", setBits(0, felixPass|felixScratch|felixEndpoint))
	f.rule("cali-FORWARD", "%s -j cali-from-hep-forward", bits(0, felixAccept))
	f.rule("cali-FORWARD", "-i cali+ -j cali-from-wl-dispatch")
	f.rule("cali-FORWARD", "-o cali+ -j cali-to-wl-dispatch")
	f.rule("cali-FORWARD", "-j cali-to-hep-forward")
	f.rule("cali-FORWARD", "-j cali-cidr-block")
	f.rule("cali-OUTPUT", "%s -j ACCEPT", bits(felixAccept, felixAccept))
	f.rule("cali-OUTPUT", "-m mark ! --mark 0/%#x -g cali-forward-endpoint-mark", uint32(felixEndpoint))
	f.rule("cali-OUTPUT", "-o cali+ -j RETURN")
	f.rule("cali-forward-endpoint-mark", "-m mark ! --mark %#x/%#x -j cali-from-endpoint-mark", felixNonCali, uint32(felixEndpoint))
	f.rule("cali-forward-endpoint-mark", "-o cali+ -j cali-to-wl-dispatch")
	f.rule("cali-forward-endpoint-mark", "-j cali-to-hep-forward")
	f.rule("cali-forward-endpoint-mark", "%s", setBits(0, felixEndpoint))
	f.rule("cali-forward-endpoint-mark", "%s -j ACCEPT", bits(felixAccept, felixAccept))
	f.policyChains()
	f.endpointChains()
	f.tree("cali-from-wl-dispatch", "-i", "cali-fw-")
	f.tree("cali-to-wl-dispatch", "-o", "cali-tw-")
	f.marks()
	f.rule("FORWARD", "-j cali-FORWARD")
	f.rule("FORWARD", "%s -j ACCEPT", bits(felixAccept, felixAccept))
	f.rule("FORWARD", "%s", setBits(felixAccept, felixAccept))
	f.rule("OUTPUT", "-j cali-OUTPUT")
}

func (f *felix) policyChains() {
	s := f.state()
	for _, id := range s.ProfileIDs() {
		p := s.Profiles[id]
		name, side := policyChain(p.Direction, p.Policies()[0]), "src"
		if p.Direction == desired.Egress {
			side = "dst"
		}
		f.chain(name)
		for i, r := range p.Rules() {
			for _, peers := range r.Peers {
				f.rule(name, "-p %s -m set --match-set %s %s -m multiport --dports %s %s",
					r.Ports[0].Protocol, felixSet(peers), side, r.Ports[0], setBits(felixAccept, felixAccept))
			}
			if i < len(p.Rules())-1 { // it leaves out the last, which would do nothing
				f.rule(name, "%s -j RETURN", bits(felixAccept, felixAccept))
			}
		}
	}
	for _, c := range []string{"cali-pri-kns", "cali-pro-kns"} { // what a namespace's profile allows
		f.chain(c)
		f.rule(c, "%s", setBits(felixAccept, felixAccept))
		f.rule(c, "%s -j RETURN", bits(felixAccept, felixAccept))
	}
}

// policyChain is the chain of a policy, "namespace/name", in one direction.
func policyChain(d desired.Direction, policy string) string {
	_, name, _ := strings.Cut(policy, "/")
	return map[desired.Direction]string{desired.Ingress: "cali-pi-", desired.Egress: "cali-po-"}[d] + name
}

func (f *felix) endpointChains() {
	for _, r := range f.records {
		for d, prefix := range map[desired.Direction]string{desired.Ingress: "cali-tw-", desired.Egress: "cali-fw-"} {
			name := prefix + r.L3Interface[len("cali"):]
			f.chain(name)
			f.rule(name, "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT")
			f.rule(name, "-m conntrack --ctstate INVALID -j DROP")
			f.rule(name, "%s", setBits(0, felixAccept|felixPass))
			if d == desired.Egress { // a pod must not encapsulate
				f.rule(name, "-p udp -m multiport --dports 4789 -j DROP")
				f.rule(name, "-p 4 -j DROP")
			}
			f.rule(name, "%s", setBits(0, felixPass))
			f.rule(name, "%s -j %s", bits(0, felixPass), policyChain(d, namespace+"/"+r.Labels["group"]))
			f.rule(name, "%s -j RETURN", bits(felixAccept, felixAccept))
			f.rule(name, "%s -j DROP", bits(0, felixPass))
			f.rule(name, "-j %s", map[desired.Direction]string{desired.Ingress: "cali-pri-kns", desired.Egress: "cali-pro-kns"}[d])
			f.rule(name, "%s -j RETURN", bits(felixAccept, felixAccept))
			f.rule(name, "-j DROP")
		}
	}
}

// suffixes are the interface names behind "cali", in order.
func (f *felix) suffixes() []string {
	var names []string
	for _, r := range f.records {
		names = append(names, r.L3Interface[len("cali"):])
	}
	slices.Sort(names)
	return names
}

// tree leads from an interface to the chain of its endpoint.
func (f *felix) tree(root, direction, prefix string) {
	f.chain(root)
	branches := map[string][]string{}
	for _, name := range f.suffixes() {
		branches[name[:1]] = append(branches[name[:1]], name)
	}
	for _, first := range sortedKeys(branches) {
		names := branches[first]
		if len(names) == 1 {
			f.rule(root, "%s cali%s -g %s%s", direction, names[0], prefix, names[0])
			continue
		}
		branch := root + "-" + first
		f.chain(branch)
		f.rule(root, "%s cali%s+ -g %s", direction, first, branch)
		for _, name := range names {
			f.rule(branch, "%s cali%s -g %s%s", direction, name, prefix, name)
		}
		f.rule(branch, "-j DROP")
	}
	f.rule(root, "-j DROP")
}

// marks leads from an endpoint's mark to its chain.
func (f *felix) marks() {
	f.chain("cali-from-endpoint-mark")
	numbers := map[string]int{}
	for i, r := range f.records {
		numbers[r.L3Interface[len("cali"):]] = i
	}
	for _, name := range f.suffixes() {
		f.rule("cali-from-endpoint-mark", "%s -g cali-fw-%s", bits(felixMark(numbers[name]), felixEndpoint), name)
	}
	f.rule("cali-from-endpoint-mark", "-j DROP")
}
