package doctor

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/podmark/podmark/pkg/apply/iptables"
	"github.com/podmark/podmark/pkg/apply/nftables"
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

// own reports whether the chain is podmark's.
func (c Chain) own() bool {
	return strings.HasPrefix(c.Name, iptables.ChainPrefix) || c.Origin == NFTables && c.Table == nftables.Table
}

// leads reports whether a rule that goes to that chain is one of podmark's hooks.
func leads(target string) bool { return strings.HasPrefix(target, iptables.ChainPrefix) }

// ofIPTables reports whether iptables, of either variant, shows the chain.
func (c Chain) ofIPTables() bool {
	return c.Origin == Legacy || (c.Family == "ip" || c.Family == "ip6") && slices.Contains([]string{"filter", "nat", "mangle", "raw", "security"}, c.Table)
}

// variant is the variant of iptables that shows the chain.
func (c Chain) variant() iptables.Variant {
	if c.Origin == Legacy {
		return iptables.Legacy
	}
	return iptables.NFT
}

// command is iptables' or ip6tables', for the chain's table.
func (c Chain) command() string {
	name := "iptables"
	if c.Family == "ip6" {
		name = "ip6tables"
	}
	return fmt.Sprintf("%s-%s -t %s", name, c.variant(), quote(c.Table))
}

// Rule is a rule of somebody else's.
type Rule struct {
	Chain
	// Handle is nf_tables' number of it, Spec the rest of it as iptables-legacy-save
	// writes it, in words.
	Handle uint64
	Spec   []string
	// Writes are the marks that it writes; NoTrack is set where it keeps packets out
	// of conntrack.
	Writes  []Write
	NoTrack bool
	// Source and Destination are the only ones it is for; zero for any, or for what
	// was not understood. Loopback is set for a rule of lo.
	Source, Destination netip.Prefix
	Loopback            bool
}

// String names the rule so that it can be found.
func (r Rule) String() string {
	if r.Origin == Legacy {
		return fmt.Sprintf("'%s -A %s %s'", r.command(), r.Name, strings.Join(r.Spec, " "))
	}
	return fmt.Sprintf("rule %d of chain %s %s %s", r.Handle, r.Family, r.Table, r.Name)
}

// remove is the command that takes the rule away, and nothing else.
func (r Rule) remove() string {
	if r.Origin == NFTables {
		return fmt.Sprintf("nft delete rule %s %s %s handle %d", r.Family, quote(r.Table), quote(r.Name), r.Handle)
	}
	words := []string{r.command(), "-D", quote(r.Name)}
	for _, w := range r.Spec {
		words = append(words, quote(w))
	}
	return strings.Join(words, " ")
}

// Field is a mark.
type Field string

// The fields.
const (
	PacketMark    Field = "the packet mark"
	ConntrackMark Field = "the conntrack mark"
)

// all is every bit of a mark.
const all = 0xffffffff

// Write is what a rule does to a mark.
type Write struct {
	Field Field
	// Bits are those that may change.
	Bits uint32
	// Text is the statement, as iptables or nft write it.
	Text string
}

// setXmark is MARK or CONNMARK --set-xmark, which all other ways to set are: the
// bits of mask are cleared, and those of value are turned over.
func setXmark(field Field, value, mask uint32) Write {
	target := "MARK"
	if field == ConntrackMark {
		target = "CONNMARK"
	}
	return Write{Field: field, Bits: value | mask, Text: fmt.Sprintf("%s --set-xmark %#x/%#x", target, value, mask)}
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
		return Write{Field: ConntrackMark, Bits: ctmask | shifted(nfmask), Text: "CONNMARK --save-mark " + masks}
	case connmarkRestore:
		return Write{Field: PacketMark, Bits: nfmask | shifted(ctmask), Text: "CONNMARK --restore-mark " + masks}
	}
	w := setXmark(ConntrackMark, ctmark, ctmask)
	if shift != 0 { // of the mark as a whole
		w.Bits = all
	}
	return w
}

// quote makes s one word of a shell.
func quote(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_-./:,=+@%!", r)
	}
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool { return !plain(r) }) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
