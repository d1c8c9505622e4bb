package foreign

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/mdlayher/netlink"
	"github.com/podmark/podmark/pkg/nfnetlink"
	"golang.org/x/sys/unix"
)

// readNFTables reads what nf_tables has, over netlink: rules of iptables-nft are
// among it, and neither nft nor iptables has to be installed, which add tables
// where they list them. A kernel without nf_tables has nothing.
//
// It reads expressions itself. google/nftables leaves out kinds that it does not
// know, the register that a ct statement reads, and the operation of a bitwise one
// (v0.3.0), so that what a rule writes cannot be told; 'nft -j' has no targets.
func readNFTables() ([]Chain, []Rule, error) {
	chains, rules, err := dumpNFTables()
	if err != nil {
		return nil, nil, err
	}
	return parseNFTables(chains, rules)
}

// dumpNFTables reads the chains and rules of nf_tables as the kernel has them.
func dumpNFTables() (chains, rules []message, err error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, nil, fmt.Errorf("connecting to nf_tables: %w", err)
	}
	defer conn.Close()
	chains, err = dump(conn, unix.NFT_MSG_GETCHAIN)
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EINVAL) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("listing the chains of nf_tables: %w", err)
	}
	rules, err = dump(conn, unix.NFT_MSG_GETRULE)
	if err != nil {
		return nil, nil, fmt.Errorf("listing the rules of nf_tables: %w", err)
	}
	return chains, rules, nil
}

// parseNFTables finds out what the rules do. Of them it returns those that [ParseLegacy] does.
func parseNFTables(chainList, ruleList []message) ([]Chain, []Rule, error) {
	var chains []Chain
	ways := newPassages()
	for _, m := range chainList {
		c := newChain(m, unix.NFTA_CHAIN_TABLE, unix.NFTA_CHAIN_NAME)
		chains = append(chains, c)
		if place, ok := m.place(); ok {
			ways.bases[c] = place
		}
	}
	ways.chains = slices.Clone(chains)
	counts := make([]int, len(chains))
	var rules []Rule
	for _, m := range ruleList {
		c := newChain(m, unix.NFTA_RULE_TABLE, unix.NFTA_RULE_CHAIN)
		i := slices.Index(chains, c)
		if i < 0 || c.Own() { // package node examines those
			continue
		}
		rule := Rule{Chain: c, Handle: m.attributes.long(unix.NFTA_RULE_HANDLE)}
		expressions, err := decodeExpressions(m.attributes[unix.NFTA_RULE_EXPRESSIONS])
		if err != nil {
			return nil, nil, fmt.Errorf("reading rule %d of chain %s %s %s: %w", rule.Handle, c.Family, c.Table, c.Name, err)
		}
		if ways.pass(c, expressions) {
			continue
		}
		counts[i]++
		if rule.follow(expressions); rule.interesting() {
			rules = append(rules, rule)
		}
	}
	places := ways.places()
	for i, r := range rules {
		rules[i].Places = places[r.id()]
	}
	for i := range chains {
		chains[i].Rules = counts[i]
	}
	return chains, rules, nil
}

// pass notes where a rule of a chain leads, and reports whether it is one of podmark's hooks.
func (p passages) pass(c Chain, rule []expression) (hook bool) {
	for _, e := range rule {
		target := e.leadsTo()
		if target != "" {
			p.jumps[c] = append(p.jumps[c], c.sibling(target))
		}
		hook = hook || leads(target)
		p.maps[c] = p.maps[c] || e.mapped()
	}
	return hook
}

// message is an object of nf_tables.
type message struct {
	family     string
	attributes attributes
}

// attributes are by their type.
type attributes map[uint16][]byte

// tries is how often a list is read again that changes while it is read.
const tries = 10

// dump reads all objects of a kind, of all families.
func dump(conn *netlink.Conn, kind uint16) ([]message, error) {
	request := nfnetlink.Message(netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8|kind), netlink.Dump,
		unix.NFPROTO_UNSPEC, nil)
	for range tries {
		replies, err := conn.Execute(request)
		if err != nil {
			return nil, err
		}
		changed := func(m netlink.Message) bool { return m.Header.Flags&netlink.DumpInterrupted != 0 }
		if slices.ContainsFunc(replies, changed) {
			continue
		}
		var out []message
		for _, r := range replies {
			if len(r.Data) < 4 { // struct nfgenmsg
				continue
			}
			a, err := decodeAttributes(r.Data[4:])
			if err != nil {
				return nil, err
			}
			out = append(out, message{familyNames[r.Data[0]], a})
		}
		return out, nil
	}
	return nil, fmt.Errorf("it changed during each of %d tries", tries)
}

// familyNames are nft's.
var familyNames = map[byte]string{
	unix.NFPROTO_IPV4: "ip", unix.NFPROTO_IPV6: "ip6", unix.NFPROTO_INET: "inet",
	unix.NFPROTO_BRIDGE: "bridge", unix.NFPROTO_ARP: "arp", unix.NFPROTO_NETDEV: "netdev",
}

func newChain(m message, table, name uint16) Chain {
	return Chain{Origin: NFTables, Family: m.family, Table: m.attributes.text(table), Name: m.attributes.text(name)}
}

func decodeAttributes(b []byte) (attributes, error) {
	d, err := netlink.NewAttributeDecoder(b)
	if err != nil {
		return nil, err
	}
	out := attributes{}
	for d.Next() {
		out[d.Type()] = d.Bytes()
	}
	return out, d.Err()
}

func (a attributes) text(kind uint16) string { return text(a[kind]) }

// number is a number in the order of the network; 0 without it.
func (a attributes) number(kind uint16) uint32 {
	if len(a[kind]) != 4 {
		return 0
	}
	return binary.BigEndian.Uint32(a[kind])
}

// long is a number of 64 bits in the order of the network; 0 without it.
func (a attributes) long(kind uint16) uint64 {
	if len(a[kind]) != 8 {
		return 0
	}
	return binary.BigEndian.Uint64(a[kind])
}

// has reports whether the attribute is there.
func (a attributes) has(kind uint16) bool { return a[kind] != nil }

// data is what a nested NFTA_DATA_VALUE holds; nil without it.
func (a attributes) data(kind uint16) []byte {
	nested, err := decodeAttributes(a[kind])
	if err != nil {
		return nil
	}
	return nested[unix.NFTA_DATA_VALUE]
}

// expression is a step of a rule.
type expression struct {
	name string
	attributes
}

func decodeExpressions(b []byte) ([]expression, error) {
	list, err := netlink.NewAttributeDecoder(b)
	if err != nil {
		return nil, err
	}
	var out []expression
	for list.Next() {
		e, err := decodeAttributes(list.Bytes())
		if err != nil {
			return nil, err
		}
		inner, err := decodeAttributes(e[unix.NFTA_EXPR_DATA])
		if err != nil {
			return nil, err
		}
		out = append(out, expression{e.text(unix.NFTA_EXPR_NAME), inner})
	}
	return out, list.Err()
}

// leadsTo is the chain that the expression jumps or goes to; empty for none.
func (e expression) leadsTo() string {
	if e.name != "immediate" {
		return ""
	}
	data, err := decodeAttributes(e.attributes[unix.NFTA_IMMEDIATE_DATA])
	if err != nil {
		return ""
	}
	verdict, err := decodeAttributes(data[unix.NFTA_DATA_VERDICT])
	if err != nil {
		return ""
	}
	return verdict.text(unix.NFTA_VERDICT_CHAIN)
}

// mapped reports whether the expression looks a verdict up.
func (e expression) mapped() bool {
	return e.name == "lookup" && e.has(unix.NFTA_LOOKUP_DREG) && e.number(unix.NFTA_LOOKUP_DREG) == unix.NFT_REG_VERDICT
}

// place is where a base chain is passed.
func (m message) place() (Place, bool) {
	hook, err := decodeAttributes(m.attributes[unix.NFTA_CHAIN_HOOK])
	if err != nil || !hook.has(unix.NFTA_HOOK_HOOKNUM) {
		return Place{}, false
	}
	p := Place{Priority: int32(hook.number(unix.NFTA_HOOK_PRIORITY))}
	number := hook.number(unix.NFTA_HOOK_HOOKNUM)
	if slices.Contains([]string{"ip", "ip6", "inet"}, m.family) && number < uint32(len(hooks)) {
		p.Hook = hooks[number]
	}
	return p, true
}
