package iptables

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/podmark/podmark/pkg/foreign"
)

// shape is what a rule says, in a form that our line and that of iptables-save have in common:
// each condition and statement in one word, sorted. What decides nothing is left out: comments, how much is logged
// and under which name, and the names of matches, which their options tell.
//
//	"-m set --match-set podmark-p4-1 src -p tcp -m multiport --dports 80,8000:8100 -j RETURN"
//	"--dports 80,8000:8100 --match-set podmark-p4-1,src -j RETURN -p 6"
func shape(rule string) string {
	var words []string
	list := foreign.Words(rule)
	for i := 0; i < len(list); {
		not := ""
		if list[i] == "!" {
			not, i = "!", i+1
		}
		if i == len(list) {
			words = append(words, not) // of another program's, and wrong
			break
		}
		option := list[i]
		var values []string
		for i++; i < len(list) && list[i] != "!" && !strings.HasPrefix(list[i], "-"); i++ {
			values = append(values, value(option, list[i]))
		}
		switch option {
		case "-m", "--comment", "--limit", "--limit-burst", "--nflog-prefix", "--nflog-group", "--nflog-size",
			"--nflog-threshold":
			continue
		}
		words = append(words, strings.TrimSpace(not+option+" "+strings.Join(values, ",")))
	}
	slices.Sort(words)
	return strings.Join(words, " ")
}

// protocolNumbers are those that our rules have, as iptables-save may name them.
var protocolNumbers = map[string]string{
	"icmp": "1", "tcp": "6", "udp": "17", "ipv6-icmp": "58", "icmpv6": "58",
	"sctp": "132",
}

// value writes numbers in one way: a group is decimal or not, and a mask of all bits is none. The
// name of another protocol is up to /etc/protocols.
func value(option, text string) string {
	if option == "-p" {
		number, known := protocolNumbers[text]
		switch {
		case known:
			return number
		case slices.Contains([]string{"1", "6", "17", "58", "132"}, text):
			return text
		default:
			return "another"
		}
	}
	var parts []string
	for part := range strings.SplitSeq(text, "/") {
		n, err := strconv.ParseUint(part, 0, 32)
		if err != nil {
			return text
		}
		parts = append(parts, fmt.Sprint(n))
	}
	if len(parts) == 2 && parts[1] == "4294967295" {
		parts = parts[:1]
	}
	return strings.Join(parts, "/")
}

// differs reports the first rule that has, as iptables-save writes them, not the shape of the one that
// should be there. Those of unordered come and go with endpoints, and may be in any order
// among each other.
func differs(has, want []string, unordered map[string]bool) (number int, is, should string, any bool) {
	a, b := shapes(has, unordered), shapes(want, unordered)
	for i := range max(len(a), len(b)) {
		if i < len(a) {
			is = a[i]
		}
		if i < len(b) {
			should = b[i]
		}
		if i >= len(a) || i >= len(b) || is != should {
			return i + 1, is, should, true
		}
		is, should = "", ""
	}
	return 0, "", "", false
}

// shapes are those of rules, the unordered ones sorted in the places that they have.
func shapes(rules []string, unordered map[string]bool) []string {
	var out, loose []string
	for _, r := range rules {
		s := shape(r)
		if out = append(out, s); unordered[s] {
			loose = append(loose, s)
		}
	}
	slices.Sort(loose)
	for i, s := range out {
		if unordered[s] {
			out[i], loose = loose[0], loose[1:]
		}
	}
	return out
}
