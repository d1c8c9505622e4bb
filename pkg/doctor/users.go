package doctor

import (
	"cmp"
	"fmt"
	"math/bits"
	"slices"
	"strings"

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
	// Unseen is set where other than rules write its bits too: eBPF, routing, sockets.
	Unseen bool
	// Move says how to give it other bits; empty where it cannot be told.
	Move string
}

// Users are the well-known ones. Sources: https://github.com/fwmark/registry, and
// the source of each.
func Users() []User {
	return []User{
		// Its bits are refused as a mask; --iptables-masquerade-bit moves the first.
		{Name: "kube-proxy", Bits: mark.KubeProxy, Chains: []string{"KUBE-SERVICES", "KUBE-POSTROUTING", "KUBE-MARK-"}, Tables: []string{"kube-proxy"}, Move: "kube-proxy --iptables-masquerade-bit"},
		{Name: "portmap", Bits: 0x2000, Chains: []string{"CNI-HOSTPORT-"}, Tables: []string{"cni_hostport"}, Move: "markMasqBit of portmap's entry in the conflist"},
		{Name: "Calico", Bits: 0xffff0000, Chains: []string{"cali-"}, Tables: []string{"calico"}, Move: "iptablesMarkMask of the FelixConfiguration"},
		// An identity of 24 bits is split: 16 above, 8 below (bpf/lib/common.h).
		{Name: "Cilium", Bits: 0xffff0fff, Chains: []string{"CILIUM_", "OLD_CILIUM_"}, Links: []string{"cilium_host", "cilium_net"}, Unseen: true},
		{Name: "kube-router", Bits: 0x30000, Chains: []string{"KUBE-ROUTER-", "KUBE-NWPLCY-", "KUBE-POD-FW-"}},
		{Name: "Weave", Bits: 0x60000, Chains: []string{"WEAVE"}, Links: []string{"weave"}},
		{Name: "Tailscale", Bits: 0xff0000, Chains: []string{"ts-input", "ts-forward", "ts-postrouting"}, Links: []string{"tailscale0"}, Unseen: true},
		{Name: "NetBird", Bits: 0x1bdff, Chains: []string{"NETBIRD-"}, Tables: []string{"netbird"}, Links: []string{"wt0"}, Unseen: true},
		{Name: "Talos KubeSpan", Bits: 0x60, Tables: []string{"talos_kubespan"}, Links: []string{"kubespan"}, Unseen: true},
		{Name: "Istio", Bits: 0xfff, Chains: []string{"ISTIO_"}, Unseen: true},
	}
}

// has reports whether the chain is the user's.
func (u User) has(c Chain) bool {
	return slices.ContainsFunc(u.Chains, func(prefix string) bool { return strings.HasPrefix(c.Name, prefix) }) ||
		c.Origin == NFTables && slices.Contains(u.Tables, c.Table)
}

// seen is a user on this node: by what it was seen, which bits it uses, and the
// rules that write some of the mask's.
type seen struct {
	User
	by    string
	bits  uint32
	rules []Rule
}

// seenUsers lists the users on the node. A write of all bits is not what a user
// says about its own: see checkRules.
func seenUsers(f Facts) []seen {
	var out []seen
	for _, u := range Users() {
		s := seen{User: u}
		for _, c := range f.Chains {
			if u.has(c) && s.by == "" {
				s.by = fmt.Sprintf("chain %s %s %s", c.Family, c.Table, c.Name)
			}
		}
		for _, l := range f.Links {
			if slices.Contains(u.Links, l.Name) && s.by == "" {
				s.by = "link " + l.Name
			}
		}
		if s.by == "" {
			continue
		}
		for _, r := range f.Rules {
			for _, w := range r.Writes {
				if u.has(r.Chain) && w.Bits != all {
					s.bits |= w.Bits
					if w.Bits&f.mask().Mask() != 0 {
						s.rules = append(s.rules, r)
					}
				}
			}
		}
		if s.bits == 0 || u.Unseen {
			s.bits |= u.Bits
		}
		out = append(out, s)
	}
	return out
}

// freeMask is a mask of up to 16 bits, the highest, that nobody who was seen uses;
// false when fewer than two are left.
func freeMask(f Facts) (mark.Layout, bool) {
	used := mark.KubeProxy
	for _, u := range seenUsers(f) {
		used |= u.bits
	}
	for _, r := range f.Rules {
		for _, w := range r.Writes {
			if w.Bits != all {
				used |= w.Bits
			}
		}
	}
	var free uint32
	for rest := ^used; rest != 0 && bits.OnesCount32(free) < 16; {
		high := uint32(1) << (bits.Len32(rest) - 1)
		free, rest = free|high, rest&^high
	}
	layout, err := mark.NewLayout(free)
	return layout, err == nil
}

// otherMask is the command that gives podmark other bits.
func otherMask(f Facts, moves ...string) string {
	free, ok := freeMask(f)
	if !ok {
		moves = slices.DeleteFunc(moves, func(m string) bool { return m == "" })
		return "# no two bits are free; change " + cmp.Or(strings.Join(moves, ", "), "the bits of the other program, or take it off this node")
	}
	return remasked(f, install(f, map[string]any{"iptablesMarkMask": fmt.Sprintf("%#x", free.Mask())}))
}
