package foreign

import (
	"cmp"
	"fmt"
	"math/bits"
	"slices"
	"strings"

	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/mark"
)

// User is a well-known program that uses bits of the packet mark.
type User struct {
	Name string
	// Bits are those that it uses unless it is told otherwise.
	Bits uint32
	// By these it is seen on the node: beginnings of names of chains, names of tables
	// of nf_tables, and of links. In its chains its rules say which bits it uses.
	Chains, Tables, Links []string
	// Plugins are its CNI plugins: where a network is configured to have one, its bits will be
	// in use.
	Plugins []string
	// Unseen is set where other than rules write its bits too: eBPF, routing, sockets.
	Unseen bool
	// Input is set where its rules write them in the table filter of INPUT.
	Input bool
	// Move says how to give it other bits; empty where it cannot be told.
	Move string
}

// portmapBit is the default of markMasqBit.
const portmapBit uint32 = 0x2000

// Users are the well-known ones. Sources: https://github.com/fwmark/registry, and
// the source of each.
func Users() []User {
	return []User{
		// Its bits are refused as a mask; --iptables-masquerade-bit moves the first.
		{
			Name: "kube-proxy", Bits: mark.KubeProxy, Chains: []string{"KUBE-SERVICES", "KUBE-POSTROUTING", "KUBE-MARK-"},
			Tables: []string{"kube-proxy"}, Move: "kube-proxy --iptables-masquerade-bit",
		},
		{
			Name: "portmap", Bits: portmapBit, Chains: []string{"CNI-HOSTPORT-"}, Tables: []string{"cni_hostport"},
			Plugins: []string{"portmap"}, Move: "markMasqBit of portmap's entry in the conflist",
		},
		{Name: "Calico", Bits: 0xffff0000, Input: true, Chains: []string{"cali-"}, Tables: []string{"calico"}, Plugins: []string{"calico"}, Move: "iptablesMarkMask or nftablesMarkMask of the FelixConfiguration"},
		// An identity of 24 bits is split: 16 above, 8 below (bpf/lib/common.h).
		{
			Name: "Cilium", Bits: 0xffff0fff, Chains: []string{"CILIUM_", "OLD_CILIUM_"},
			Links: []string{"cilium_host", "cilium_net"}, Plugins: []string{"cilium-cni"}, Unseen: true,
		},
		{Name: "kube-router", Bits: 0x30000, Input: true, Chains: []string{"KUBE-ROUTER-", "KUBE-NWPLCY-", "KUBE-POD-FW-"}},
		{
			Name: "Weave", Bits: 0x60000, Input: true, Chains: []string{"WEAVE"}, Links: []string{"weave"},
			Plugins: []string{"weave-net"},
		},
		{
			Name: "Tailscale", Bits: 0xff0000, Chains: []string{"ts-input", "ts-forward", "ts-postrouting"},
			Links: []string{"tailscale0"}, Unseen: true,
		},
		{
			Name: "NetBird", Bits: 0x1bdff, Chains: []string{"NETBIRD-"}, Tables: []string{"netbird"}, Links: []string{"wt0"},
			Unseen: true,
		},
		{Name: "Talos KubeSpan", Bits: 0x60, Tables: []string{"talos_kubespan"}, Links: []string{"kubespan"}, Unseen: true},
		{Name: "AWS VPC CNI", Bits: 0x80, Chains: []string{"AWS-SNAT-CHAIN-", "AWS-CONNMARK-CHAIN-"}, Plugins: []string{"aws-cni"}, Unseen: true, Move: "AWS_VPC_K8S_CNI_CONNMARK of the daemon set aws-node"},
		{Name: "Istio", Bits: 0xfff, Chains: []string{"ISTIO_"}, Plugins: []string{"istio-cni"}, Unseen: true},
	}
}

// has reports whether the chain is the user's.
func (u User) has(c Chain) bool {
	return slices.ContainsFunc(u.Chains, func(prefix string) bool { return strings.HasPrefix(c.Name, prefix) }) ||
		c.Origin == NFTables && slices.Contains(u.Tables, c.Table)
}

// Collision is another program that writes bits of podmark's mask.
type Collision struct {
	// User is a well-known one; its name is empty where a rule is all that is known. By is
	// what it was seen by.
	User User
	By   string
	// Bits are those that it uses, Overlap those of them that are the mask's.
	Bits, Mask, Overlap uint32
	// Rule and Write are the worst of its rules, nil where none writes bits of the mask.
	Rule  *Rule
	Write *Write
	Harm  Harm
	// Whole is set where every bit is written: no other mask would be free of it.
	Whole bool
}

// Name is who it is, for a label: "other" where nobody knows.
func (c Collision) Name() string { return cmp.Or(c.User.Name, "other") }

// String says who uses which bits, and by which rule if there is one.
func (c Collision) String() string {
	if c.User.Name == "" {
		return fmt.Sprintf("%s, in %s, writes %#x of podmark's mask %#x in %s: %s", c.Rule, c.Rule.where(), c.Overlap, c.Mask, c.Write.Field, c.Write.Text)
	}
	text := fmt.Sprintf("%s (%s) uses the bits %#x, and podmark's mask %#x has %#x of them", c.User.Name, c.By, c.Bits, c.Mask, c.Overlap)
	if c.Rule != nil {
		text += fmt.Sprintf(", as in %s, in %s", c.Rule, c.Rule.where())
	}
	return text
}

// where lists the places of a rule.
func (r Rule) where() string {
	var names []string
	for _, p := range r.Places {
		if p.Hook != "" {
			names = append(names, p.String())
		}
	}
	return cmp.Or(strings.Join(names, ", "), "no hook of IP")
}

// Collisions are those who write bits of the mask where that backend enforces: well-known
// programs first, then rules that do harm and are of nobody known. A well-known one is told
// even where its writes are harmless now: it may write elsewhere too.
func (r Report) Collisions(b config.Backend, mask uint32) []Collision {
	var out []Collision
	for _, u := range Users() {
		c, ok := r.seen(u)
		if !ok {
			continue
		}
		for i, rule := range r.Rules {
			if u.has(rule.Chain) {
				c.worsen(b, mask, &r.Rules[i])
			}
		}
		if c.Mask, c.Overlap = mask, c.Bits&mask; c.Overlap == 0 {
			continue
		}
		if u.Input { // where its rules come with the first pod
			c.Harm = max(c.Harm, Rule{}.harm(b, Place{Input, 0}, PacketMark))
		}
		c.Harm = max(c.Harm, Shared)
		out = append(out, c)
	}
	for i, rule := range r.Rules {
		known := slices.ContainsFunc(Users(), func(u User) bool { return u.has(rule.Chain) })
		c := Collision{}
		if c.worsen(b, mask, &r.Rules[i]); c.Harm == Harmless || known && !c.Whole {
			continue
		}
		c.By, c.Bits = rule.String(), c.Write.Bits
		c.Mask, c.Overlap = mask, c.Bits&mask
		out = append(out, c)
	}
	return out
}

// seen reports by what a user is seen on the node, and which bits it uses. A write of all
// bits is not what it says about its own.
func (r Report) seen(u User) (c Collision, ok bool) {
	c.User = u
	for _, chain := range r.Chains {
		if u.has(chain) && c.By == "" {
			c.By = fmt.Sprintf("chain %s %s %s", chain.Family, chain.Table, chain.Name)
		}
	}
	for _, l := range r.Links {
		if slices.Contains(u.Links, l.Name) && c.By == "" {
			c.By = "link " + l.Name
		}
	}
	for _, rule := range r.Rules {
		for _, w := range rule.Writes {
			if u.has(rule.Chain) && w.Bits != All {
				c.Bits |= w.Bits
			}
		}
	}
	if c.Bits == 0 || u.Unseen {
		c.Bits |= u.Bits
	}
	return c, c.By != ""
}

// worsen takes the rule's writes of the mask into account. Of a known user those of every
// bit are told apart.
func (c *Collision) worsen(b config.Backend, mask uint32, r *Rule) {
	for i, w := range r.Writes {
		whole := w.Bits == All
		if w.Bits&mask == 0 || r.savesOnly(w, mask) || whole && c.User.Name != "" {
			continue
		}
		worst := Harmless
		for _, p := range r.Places {
			worst = max(worst, r.harm(b, p, w.Field))
		}
		if c.Rule == nil || worst > c.Harm {
			c.Rule, c.Write, c.Harm, c.Whole = r, &r.Writes[i], worst, whole
		}
	}
}

// savesOnly reports whether the write saves a packet mark that the rule has compared as a
// whole, and that has none of the mask's bits: it is for packets that another program has marked,
// and says of podmark's bits that nobody has judged. wg-quick does that with its own.
func (r Rule) savesOnly(w Write, mask uint32) bool {
	return w.Saves && slices.ContainsFunc(r.Compares, func(c Compare) bool {
		return c.Field == PacketMark && c.Mask == All && !c.Not && !c.Among && c.Value != 0 && c.Value&mask == 0
	})
}

// maxFree is how many bits a mask has that is chosen.
const maxFree = 16

// Free is a mask of the highest bits that nobody who was seen uses, 16 at most; false when
// fewer than two are left. Bits are in use that another program writes, compares or looks up, those
// that a program has by default, since its rules may come with the first pod, and those that
// are configured to be. portmap's are: it is not seen before the first pod that has a port of
// the node.
func (r Report) Free() (mark.Layout, bool) {
	used := mark.KubeProxy | portmapBit | r.Reserved
	for _, u := range Users() {
		if c, ok := r.seen(u); ok {
			used |= c.Bits | u.Bits
		}
	}
	compared := func(value, mask uint32) {
		if mask == All {
			mask = value
		}
		used |= mask
	}
	for _, rule := range r.Rules {
		for _, w := range rule.Writes {
			if w.Bits != All {
				used |= w.Bits
			}
		}
		for _, c := range rule.Compares {
			compared(c.Value, c.Mask)
		}
	}
	for _, l := range r.Lookups {
		compared(l.Mark, l.Mask)
	}
	var free uint32
	for rest := ^used; rest != 0 && bits.OnesCount32(free) < maxFree; {
		high := uint32(1) << (bits.Len32(rest) - 1)
		free, rest = free|high, rest&^high
	}
	layout, err := mark.NewLayout(free)
	return layout, err == nil
}
