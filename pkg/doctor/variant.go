package doctor

import (
	"fmt"
	"slices"

	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/foreign"
	"github.com/podmark/podmark/pkg/xtables"
)

func checkMix(f Facts) []Finding {
	count := map[foreign.Origin]int{}
	for _, c := range f.Chains {
		if c.OfIPTables() && !c.Own() {
			count[c.Origin] += c.Rules
		}
	}
	if count[foreign.Legacy] == 0 || count[foreign.NFTables] == 0 {
		return nil
	}
	fewer := "legacy"
	kubelet, ok := kubeletVariant(f)
	if ok && kubelet == foreign.Legacy || !ok && count[foreign.NFTables] < count[foreign.Legacy] {
		fewer = "nft"
	}
	return []Finding{{
		Severity: Warning,
		What:     fmt.Sprintf("iptables-legacy has %d rules and iptables-nft %d; the kernel asks both", count[foreign.Legacy], count[foreign.NFTables]),
		Why:      "what looks allowed or marked in one is dropped or marked again in the other, and each variant shows its own rules only. Most often those of one were left by a program that has changed to the other",
		Fix:      fmt.Sprintf("iptables-%[1]s-save; ip6tables-%[1]s-save  # whose are these? Have that program use the other variant; a reboot takes away what one has left", fewer),
	}}
}

// kubeletVariant is the firewall that has the kubelet's chains; false when none or
// both have.
func kubeletVariant(f Facts) (foreign.Origin, bool) {
	found := map[foreign.Origin]bool{}
	for _, c := range f.Chains {
		if c.OfIPTables() && c.Table == "mangle" && slices.Contains(xtables.KubeletHints(), c.Name) {
			found[c.Origin] = true
		}
	}
	if len(found) != 1 {
		return "", false
	}
	if found[foreign.Legacy] {
		return foreign.Legacy, true
	}
	return foreign.NFTables, true
}

// enforces are the backends that iptables shows, by where their rules are.
var enforces = map[config.Kind]foreign.Origin{
	config.IPTablesNFT:    foreign.NFTables,
	config.IPTablesLegacy: foreign.Legacy,
}

func checkVariant(f Facts) []Finding {
	kubelet, found := kubeletVariant(f)
	own, ok := enforces[f.State.Kind]
	if !found || !ok || own == kubelet {
		return nil
	}
	return []Finding{{
		Severity: Warning,
		What:     fmt.Sprintf("podmark enforces with %s, and the kubelet has its chains in the other variant", f.State.Kind),
		Why:      "the node has changed its variant since podmark chose one: kube-proxy's rules are in the other, and podmark's are not in an order with them. With the nftables backend, from the next pod on, there is no variant; to go back to \"iptables\" afterwards chooses again",
		Fix:      toNFTables(f, "# drain the node, run podmarkctl uninstall, apply the policies again, and uncordon it: podmark chooses the variant again"),
	}}
}
