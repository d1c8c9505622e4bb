package nftables

import (
	"github.com/google/nftables"

	"github.com/podmark/podmark/pkg/dataplane/counters"
	"github.com/podmark/podmark/pkg/desired"
)

// Where our base chains stand among the others, in the order of a packet's way:
//
//	bridge prerouting  -200 bridge-ports          0 br_netfilter hands the frame to IP
//	prerouting         -301 sender             -300 raw, -200 conntrack
//	input                97 input                98 IPVS, 100 nat, 101 host
//	forward            -150 forward              99 IPVS (replies)
//	output             -401 output             -300 raw, -200 conntrack, -150 mangle
//	bridge forward     -200 between-ports
//	bridge postrouting -200 to-ports
//
// Who sends is asked before conntrack sees the packet: what is forged touches no flow.
// The ID is in the mark between 97 of input and -401 of output, where only IPVS is, or 101
// of input.
var (
	hookBridge  = hook{nftables.ChainHookPrerouting, -200, "type filter hook prerouting priority filter; policy accept;"}
	hookBetween = hook{nftables.ChainHookForward, -200, "type filter hook forward priority filter; policy accept;"}
	hookTo      = hook{nftables.ChainHookPostrouting, -200, "type filter hook postrouting priority filter; policy accept;"}
	hookSender  = hook{nftables.ChainHookPrerouting, -301, "type filter hook prerouting priority raw - 1; policy accept;"}
	hookInput   = hook{nftables.ChainHookInput, 97, "type filter hook input priority 97; policy accept;"}
	hookHost    = hook{nftables.ChainHookInput, 101, "type filter hook input priority 101; policy accept;"}
	hookForward = hook{nftables.ChainHookForward, -150, "type filter hook forward priority mangle; policy accept;"}
	hookOutput  = hook{nftables.ChainHookOutput, -401, "type filter hook output priority -401; policy accept;"}
)

// A frameUse is a static chain with how many rules it has and jumps and gotos that lead to
// it, as the kernel counts them; logs are those of the rules that a kernel which cannot log
// is not given, ports and protocols those for tunnels of the kind, guard is what is left of uses
// where Guard alone is there, and unfiltered are those for each family that bridges keep from IP.
type chainUse struct {
	chain
	uses, logs, ports, protocols, guard, unfiltered int
}

// baseChainUses lists the static chains. An ADD asks for the counts and renders no frame: that
// takes longer than the kernel's answer.
var baseChainUses = []chainUse{
	{chain{table: inet, name: chainSender}, 8, 0, 0, 0, 8, 0},
	{chain{table: inet, name: chainStranger}, 9, 0, 0, 0, 9, 0},
	{chain{table: inet, name: chainOpening}, 7, 0, 1, 0, 0, 0},
	{chain{table: inet, name: chainRelated}, 13, 0, 0, 0, 0, 0},
	{chain{table: inet, name: chainAnswer}, 12, 0, 0, 0, 0, 0},
	{chain{table: inet, name: chainClient}, 7, 0, 0, 0, 0, 0},
	{chain{table: inet, name: chainServer}, 5, 0, 0, 0, 0, 0},
	{chain{table: inet, name: chainUnusual}, 9, 0, 0, 1, 0, 0},
	{chain{table: inet, name: chainTunnel}, 5, 0, 2, 1, 0, 0},
	{chain{table: inet, name: chainClassify}, 9, 0, 0, 0, 0, 0},
	{chain{table: inet, name: chainOrigin}, 8, 0, 0, 0, 0, 0},
	{chain{table: inet, name: chainEgress}, 4, 0, 0, 0, 0, 0},
	{chain{table: inet, name: chainIngress}, 10, 0, 0, 0, 0, 0},
	{chain{table: inet, name: chainSpoofed}, 19, 1, 0, 0, 9, 0},
	{chain{table: inet, name: chainUnclassified}, 9, 1, 0, 0, 0, 0},
	{chain{table: inet, name: chainEncapsulated}, 7, 1, 2, 0, 0, 0},
	{chain{table: inet, name: chainInput}, 8, 0, 1, 0, 0, 0},
	{chain{table: inet, name: chainRemark}, 0, 0, 0, 0, 2, 0},
	{chain{table: inet, name: chainHost}, 4, 0, 1, 0, 0, 0},
	{chain{table: inet, name: chainForward}, 5, 0, 0, 0, 0, 0},
	{chain{table: inet, name: chainOutput}, 7, 0, 1, 0, 0, 0},
	{chain{table: bridge, name: chainBridge}, 8, 0, 0, 0, 8, 0},
	{chain{table: bridge, name: chainTagged}, 11, 0, 0, 0, 11, 0},
	{chain{table: bridge, name: chainGuard}, 14, 0, 0, 0, 14, 0},
	{chain{table: bridge, name: chainARP}, 5, 0, 0, 0, 5, 0},
	{chain{table: bridge, name: chainND}, 11, 0, 0, 0, 11, 0},
	{chain{table: bridge, name: chainNDOwn}, 9, 0, 0, 0, 9, 0},
	{chain{table: bridge, name: chainFrom}, 2, 0, 0, 0, 2, 2},
	{chain{table: bridge, name: chainTo}, 1, 0, 0, 0, 1, 0},
	{chain{table: bridge, name: chainArrive}, 13, 0, 0, 0, 13, 0},
	{chain{table: bridge, name: chainFrames}, 30, 1, 0, 0, 30, 0},
	{chain{table: bridge, name: chainStray}, 11, 1, 0, 0, 11, 2},
}

// usesOf is how many uses each of the static chains has in a node's frame, and guardUses in
// what Guard has of it.
func usesOf(n desired.Node) map[string]int {
	return countUses(n, func(f chainUse) int { return f.uses })
}

func guardUses(n desired.Node) map[string]int {
	return countUses(n, func(f chainUse) int { return f.guard })
}

func countUses(n desired.Node, of func(chainUse) int) map[string]int {
	out := map[string]int{}
	for _, f := range baseChainUses {
		uses := of(f)
		if uses == 0 {
			continue
		}
		if n.Unlogged {
			uses -= f.logs
		}
		if len(n.Tunnels.UDPPorts) > 0 {
			uses += f.ports
		}
		if len(n.Tunnels.Protocols) > 0 {
			uses += f.protocols
		}
		for _, is := range []bool{n.Unfiltered.IPv4, n.Unfiltered.IPv6} {
			if is {
				uses += f.unfiltered
			}
		}
		out[f.name] = uses
	}
	return out
}

// baseChains renders the static chains: all that does not depend on who is on the node.
func baseChains(s desired.State) []chain {
	return append(inetBaseChains(s), bridgeBaseChains(s.Node)...)
}

// inetBaseChains renders those of table inet: what is jumped to, and then what is at hooks.
func inetBaseChains(s desired.State) []chain {
	return []chain{
		senderChain(),
		strangerChain(),
		openingChain(s),
		relatedChain(),
		answerChain(s),
		clientChain(),
		serverChain(),
		unusualChain(s.Tunnels),
		tunnelChain(),
		classifyChain(s.Layout),
		originChain(),
		egressChain(s.Layout),
		ingressChain(),
		end(inet, chainSpoofed, counters.Spoofed, s.Unlogged),
		end(inet, chainUnclassified, counters.Unclassified, s.Unlogged),
		end(inet, chainEncapsulated, counters.Encapsulated, s.Unlogged),
		inputChain(s),
		hostChain(s),
		forwardChain(s),
		outputChain(s),
	}
}

// bridgeBaseChains renders those of table bridge.
func bridgeBaseChains(n desired.Node) []chain {
	return []chain{
		bridgeChain(),
		taggedChain(),
		guardChain(),
		arpChain(),
		ndChain(),
		ndOwnChain(),
		fromChain(n.Unfiltered),
		toChain(),
		arriveChain(),
		end(bridge, chainFrames, counters.Spoofed, n.Unlogged),
		end(bridge, chainStray, counters.Stray, n.Unlogged),
	}
}

// end is a chain that drops what no policy is asked about, and logs it first. Only what
// ends there goes there, so the rest does not pay for it.
//
//	limit rate 10/second burst 50 packets log prefix "podmark:drop:spoofed" group 1886 snaplen 128
//	counter drop
func end(t nftables.Table, name string, why counters.Reason, unlogged bool) chain {
	c := chain{table: t, name: name}
	if !unlogged {
		c.rules = rules(logged(counters.Key{Reason: why}))
	}
	c.rules = append(c.rules, rule{parts: on(counter(), drop())})
	return c
}
