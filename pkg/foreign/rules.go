package foreign

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// How podmark's own chains and tables are called: names of packages iptables and
// nftables below pkg/node, which are behind this one.
const (
	ownChains = "PODMARK-"
	ownTable  = "podmark"
)

// Origin says which of the kernel's two firewalls has a chain.
type Origin string

// The origins. Rules of iptables-nft are in nf_tables.
const (
	NFTables Origin = "nf_tables"
	Legacy   Origin = "iptables-legacy"
)

// Chain is a chain of a firewall.
type Chain struct {
	Origin Origin
	// Family is nf_tables': ip, ip6, inet, bridge, arp or netdev.
	Family      string
	Table, Name string
	// Rules is how many it has that do not lead to podmark's.
	Rules int
}

// Own reports whether the chain is podmark's.
func (c Chain) Own() bool {
	return leads(c.Name) || c.Origin == NFTables && c.Table == ownTable
}

// leads reports whether a rule that goes to that chain is one of podmark's hooks.
func leads(target string) bool { return strings.HasPrefix(target, ownChains) }

// OfIPTables reports whether iptables, of either variant, shows the chain.
func (c Chain) OfIPTables() bool {
	tables := []string{"filter", "nat", "mangle", "raw", "security"}
	return c.Origin == Legacy || (c.Family == "ip" || c.Family == "ip6") && slices.Contains(tables, c.Table)
}

// Command is iptables' or ip6tables', for the chain's table.
func (c Chain) Command() string {
	name, variant := "iptables", "nft"
	if c.Family == "ip6" {
		name = "ip6tables"
	}
	if c.Origin == Legacy {
		variant = "legacy"
	}
	return fmt.Sprintf("%s-%s -t %s", name, variant, c.Table)
}

// Rule is a rule of another program's.
type Rule struct {
	Chain
	// Handle is nf_tables' number of it, Spec the rest of it as iptables-legacy-save
	// writes it, in words.
	Handle uint64
	Spec   []string
	// Places are where it is passed; none where no packet comes to it.
	Places []Place
	// Writes are the marks that it writes, Compares those that it compares; NoTrack is set
	// where it keeps packets out of conntrack.
	Writes   []Write
	Compares []Compare
	NoTrack  bool
	// Source and Destination are the only ones it is for; zero for any, or for what
	// was not understood. Loopback is set for a rule of lo.
	Source, Destination netip.Prefix
	Loopback            bool
}

// String names the rule so that it can be found.
func (r Rule) String() string {
	if r.Origin == Legacy {
		return fmt.Sprintf("'%s -A %s %s'", r.Command(), r.Name, strings.Join(r.Spec, " "))
	}
	return fmt.Sprintf("rule %d of chain %s %s %s", r.Handle, r.Family, r.Table, r.Name)
}

// All is every bit of a mark.
const All = 0xffffffff

// Write is what a rule does to a mark.
type Write struct {
	Field Field
	// Bits are those that may change.
	Bits uint32
	// Saves is set where it copies the packet mark into the conntrack mark.
	Saves bool
	// Text is the statement, as iptables or nft write it.
	Text string
}

// Compare is a comparison of a mark.
type Compare struct {
	Field Field
	// Mask are the bits that are looked at, Value what they are compared with. Among is set
	// where that is more than one value, which are not known, and Not where the rule is for
	// the others.
	Mask, Value uint32
	Among, Not  bool
}

func (c Compare) String() string {
	name, not, value := "meta mark", "==", fmt.Sprintf("%#x", c.Value)
	if c.Field == ConntrackMark {
		name = "ct mark"
	}
	if c.Not {
		not = "!="
	}
	if c.Among {
		value = "{ ... }"
	}
	if c.Mask == All {
		return fmt.Sprintf("%s %s %s", name, not, value)
	}
	return fmt.Sprintf("%s & %#x %s %s", name, c.Mask, not, value)
}

// interesting reports whether the rule does something that matters here.
func (r Rule) interesting() bool { return len(r.Writes)+len(r.Compares) > 0 || r.NoTrack }

// setXmark is MARK or CONNMARK --set-xmark, which all other ways to set are: the
// bits of mask are cleared, and those of value are turned over.
func setXmark(field Field, value, mask uint32) Write {
	target := "MARK"
	if field == ConntrackMark {
		target = "CONNMARK"
	}
	return Write{Field: field, Bits: value | mask, Text: fmt.Sprintf("%s --set-xmark %#x/%#x", target, value, mask)}
}

// setMark is SET --map-mark: the set says what the mark becomes.
var setMark = Write{Field: PacketMark, Bits: All, Text: "SET --map-mark"}

// tproxy is TPROXY --tproxy-mark, which sets as MARK --set-xmark does.
func tproxy(value, mask uint32) Write {
	return Write{Field: PacketMark, Bits: value | mask, Text: fmt.Sprintf("TPROXY --tproxy-mark %#x/%#x", value, mask)}
}

// computed are targets that make the whole packet mark of the packet's header; IPMARK is of
// xtables-addons.
var computed = []string{"HMARK", "IPMARK"}

// computes notes the write of a target that makes the packet mark by itself.
func (r *Rule) computes(target string) {
	if slices.Contains(computed, target) {
		r.Writes = append(r.Writes, Write{Field: PacketMark, Bits: All, Text: target + " ..."})
	}
}

// Modes of CONNMARK, as the kernel numbers them (XT_CONNMARK_SET and on).
const (
	connmarkSet = iota
	connmarkSave
	connmarkRestore
)

// connmark is CONNMARK. To save, the conntrack mark becomes itself without the bits
// of ctmask, turned over in those of the packet mark below nfmask; to restore is the
// other way round. What is turned over is shifted to the left before, or to the right
// with a negative shift (net/netfilter/xt_connmark.c).
func connmark(ctmark, ctmask, nfmask uint32, mode byte, shift int) Write {
	shifted := func(mask uint32) uint32 {
		if shift < 0 {
			return mask >> -shift
		}
		return mask << shift
	}
	masks := fmt.Sprintf("--nfmask %#x --ctmask %#x", nfmask, ctmask)
	switch mode {
	case connmarkSave:
		return Write{Field: ConntrackMark, Bits: ctmask | shifted(nfmask), Saves: true, Text: "CONNMARK --save-mark " + masks}
	case connmarkRestore:
		return Write{Field: PacketMark, Bits: nfmask | shifted(ctmask), Text: "CONNMARK --restore-mark " + masks}
	}
	w := setXmark(ConntrackMark, ctmark, ctmask)
	if shift != 0 { // of the mark as a whole
		w.Bits = All
	}
	return w
}
