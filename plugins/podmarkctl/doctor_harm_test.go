package main_test

import (
	"path/filepath"
	"slices"

	"github.com/podmark/podmark/test/needs"
	"github.com/podmark/podmark/test/rules"
	"github.com/podmark/podmark/test/testnode"
)

// harmed is something that is wrong with a node.
type harmed struct {
	name  string
	check string
	words string
	// also are other checks that find something of it.
	also []string
	// pods is how many the node has, backends are those it is for, all when nil.
	pods     int
	backends []backend
	do       func(p *patient)
	// Without a fix, the command cannot be run here.
	noMend bool
}

func harms() []harmed {
	iptables := []backend{iptablesNFT, iptablesLegacy}
	one := []backend{nftables}
	file := func(p *patient, name string) string { return filepath.Join(p.conf, name) }
	return []harmed{
		{name: "node.json damaged", check: "state", words: "node.json", pods: 1, do: func(p *patient) { write(p.T, p.Dir+"/node.json", "{") }},
		{name: "attachment damaged", check: "state", words: "attachments/", also: []string{"leaked"}, pods: 1, backends: one, do: func(p *patient) {
			write(p.T, p.Dir+"/attachments/0123456789abcdef0123456789abcdef", "{")
		}},
		{name: "state directory lost", check: "state", words: "no state", pods: 1, do: func(p *patient) { p.lose() }},
		{name: "policy lost", check: "state", words: "no state", do: func(p *patient) { p.lose() }},
		{name: "flushed", check: "kernel", words: "in the kernel", pods: 1, do: func(p *patient) {
			if p.Backend == nftables {
				p.Exec("", "nft", "flush", "chain", "inet", "podmark", "forward")
			} else {
				p.Iptables("-F")
			}
		}},
		{name: "hook not first", check: "kernel", words: "FORWARD", pods: 1, backends: iptables, do: func(p *patient) { p.Iptables("-I", "FORWARD", "1", "-j", "KUBE-IPTABLES-HINT") }},
		{name: "leaked", check: "leaked", words: "container-1", pods: 2, do: func(p *patient) { p.Exec("", "ip", "link", "del", p.veth(1)) }},
		{name: "host veth renamed", check: "drift", words: "renamed", pods: 2, do: func(p *patient) { p.Exec("", "ip", "link", "set", p.veth(1), "name", "it's") }},
		{name: "host veth on a bridge", check: "drift", words: "enslaved", pods: 1, do: func(p *patient) {
			p.Exec("", "ip", "link", "add", "other", "type", "bridge")
			p.Exec("", "ip", "link", "set", p.veth(1), "master", "other")
		}},
		{name: "host veth out of the group", check: "drift", words: "device group 0", pods: 1, do: func(p *patient) { p.Exec("", "ip", "link", "set", p.veth(1), "group", "0") }},
		{name: "leaked file", check: "leaked", words: "ids/77", pods: 1, backends: one, do: func(p *patient) {
			write(p.T, p.Dir+"/ids/77", "0123456789abcdef0123456789abcdef")
		}},
		{name: "no conflist", check: "conflist", words: "no network configuration", backends: one, noMend: true, do: func(p *patient) {
			p.Exec("", "rm", file(p, "10-net.conflist"))
		}},
		{name: "no entry", check: "conflist", words: "has no entry", backends: one, do: func(p *patient) {
			p.plugins("10-net.conflist", "net", "1.0.0", mainPlugin("ptp"))
		}},
		{name: "another conflist comes first", check: "conflist", words: "05-other", also: []string{"settings"}, backends: one, do: func(p *patient) {
			p.plugins("05-other.conflist", "other", "1.0.0", mainPlugin("bridge"))
		}},
		{name: "nothing but an unreadable conflist", check: "conflist", words: "00-broken", backends: one, noMend: true, do: func(p *patient) {
			p.Exec("", "rm", file(p, "10-net.conflist"))
			write(p.T, file(p, "00-broken.conflist"), "{")
		}},
		{name: "no entry, old version", check: "conflist", words: "has no entry", backends: one, do: func(p *patient) {
			p.plugins("10-net.conflist", "net", "0.2.0", map[string]any{"type": "ptp", "ipam": map[string]any{"type": "host-local"}})
		}},
		{name: "plugin without a list first, and a list of its name", check: "conflist", words: "single plugin", also: []string{"settings"}, backends: one, do: func(p *patient) {
			p.Exec("", "mv", file(p, "10-net.conflist"), file(p, "00-net.conflist"))
			write(p.T, file(p, "00-net.conf"), `{"cniVersion": "0.2.0", "name": "plain", "type": "ptp", "ipam": {"type": "host-local"}}`)
		}},
		{name: "unreadable conflist first", check: "conflist", words: "00-broken", backends: one, do: func(p *patient) { write(p.T, file(p, "00-broken.conflist"), "{") }},
		{name: "plugin without a list first", check: "conflist", words: "single plugin", also: []string{"settings"}, backends: one, do: func(p *patient) {
			write(p.T, file(p, "00-it's.conf"), `{"cniVersion": "1.0.0", "name": "plain", "type": "ptp", "ipam": {"type": "host-local"}}`)
		}},
		{name: "Multus has a copy", check: "conflist", words: "copy", backends: one, noMend: true, do: func(p *patient) {
			write(p.T, file(p, "00-multus.conf"), `{"cniVersion": "1.0.0", "name": "multus", "type": "multus", "delegates": [{"name": "net", "plugins": [{"type": "ptp"}]}]}`)
		}},
		{name: "Multus calls another network", check: "conflist", words: "crd", backends: one, also: []string{"settings"}, noMend: true, do: func(p *patient) {
			write(p.T, file(p, "00-multus.conf"), `{"cniVersion": "1.0.0", "name": "multus", "type": "multus", "clusterNetwork": "crd"}`)
		}},
		{name: "Multus calls a single plugin", check: "conflist", words: "single plugin", backends: one, also: []string{"settings"}, noMend: true, do: func(p *patient) {
			write(p.T, file(p, "00-multus.conf"), `{"cniVersion": "1.0.0", "name": "multus", "type": "multus", "clusterNetwork": "05-a.conf"}`)
			write(p.T, file(p, "05-a.conf"), `{"cniVersion": "1.0.0", "name": "plain", "type": "ptp"}`)
		}},
		{name: "Multus' file cut off", check: "conflist", words: "00-multus", backends: one, noMend: true, do: func(p *patient) {
			write(p.T, file(p, "00-multus.conf"), `{"cniVersion": "1.0.0", "name": "mult`)
		}},
		{name: "podmark first", check: "conflist-order", words: "comes first", backends: one, do: func(p *patient) {
			p.plugins("10-net.conflist", "net", "1.0.0", p.entry(nil), mainPlugin("ptp"))
		}},
		{name: "podmark alone", check: "conflist-order", words: "comes first", backends: one, noMend: true, do: func(p *patient) {
			p.plugins("10-net.conflist", "net", "1.0.0", p.entry(nil))
		}},
		{name: "podmark before portmap", check: "conflist-order", words: "portmap", backends: one, do: func(p *patient) {
			p.plugins("10-net.conflist", "net", "1.0.0", mainPlugin("ptp"), p.entry(nil), map[string]any{"type": "portmap", "x": "a 'b' \"c\" $(d)"})
		}},
		{name: "wrong key", check: "configuration", words: "iptablesMarkMask", pods: 1, backends: one, do: func(p *patient) {
			p.list("10-net.conflist", "net", map[string]any{"iptablesMarkMask": "0xc000", "policy": 7})
		}},
		{name: "wrong labels", check: "configuration", words: "args.cni.labels", pods: 1, backends: one, noMend: true, do: func(p *patient) {
			p.list("10-net.conflist", "net", map[string]any{"args": map[string]any{"cni": map[string]any{"labels": 7}}})
		}},
		{name: "version to come", check: "configuration", words: "7.0.0", backends: one, do: func(p *patient) {
			p.plugins("10-net.conflist", "net", "7.0.0", mainPlugin("ptp"), p.entry(nil))
		}},
		{name: "wrong key in a drop-in", check: "configuration", words: "50-podmark.conf", backends: one, do: func(p *patient) {
			p.dropIn(map[string]any{"iptablesMarkMask": "0xc000"})
		}},
		{name: "old version", check: "configuration", words: "0.2.0", backends: one, do: func(p *patient) {
			p.plugins("10-net.conflist", "net", "0.2.0", mainPlugin("ptp"), p.entry(nil))
		}},
		{name: "another mask", check: "settings", words: "0xff0000", pods: 1, backends: one, do: func(p *patient) {
			p.list("10-net.conflist", "net", map[string]any{"iptablesMarkMask": "0xff0000"})
		}},
		{name: "networks differ", check: "settings", words: "iptablesMarkMask, kubeNodePortRanges, backend, allowTunnels, stateDir", backends: one, do: func(p *patient) {
			p.list("20-other.conflist", "other", map[string]any{"iptablesMarkMask": "0xff0000", "kubeNodePortRanges": []int{1}, "backend": "iptables", "allowTunnels": true, "stateDir": "/run/other"})
		}},
		{name: "another state directory", check: "settings", words: "/run/other", backends: one, noMend: true, do: func(p *patient) {
			p.list("10-net.conflist", "net", map[string]any{"stateDir": "/run/other"})
		}},
		{name: "plugin missing", check: "plugin", words: "no such file", backends: one, do: func(p *patient) { p.Exec("", "rm", p.bin+"/podmark") }},
		{name: "plugin is a link to nothing", check: "plugin", words: "leads to nothing", backends: one, do: func(p *patient) {
			p.Exec("", "ln", "-sf", "/nonexistent", p.bin+"/podmark")
		}},
		{name: "behind Cilium", check: "conflist-plugins", words: "cilium-cni", backends: one, noMend: true, do: func(p *patient) {
			p.plugins("10-net.conflist", "net", "1.0.0", map[string]any{"type": "cilium-cni"}, p.entry(nil))
			p.Exec("", "cp", p.bin+"/ptp", p.bin+"/cilium-cni")
		}},
		{name: "a further network behind macvlan", check: "conflist-plugins", words: "20-other", backends: one, noMend: true, do: func(p *patient) {
			p.plugins("20-other.conflist", "other", "1.0.0", mainPlugin("macvlan"), p.entry(nil))
		}},
		{name: "the main plugin missing", check: "conflist-plugins", words: "ptp", backends: one, noMend: true, do: func(p *patient) { p.Exec("", "rm", p.bin+"/ptp") }},
		{name: "a further plugin not executable", check: "conflist-plugins", words: "host-local", backends: one, noMend: true, do: func(p *patient) {
			p.Exec("", "chmod", "0644", p.bin+"/host-local")
		}},
		{name: "plugin not executable", check: "plugin", words: "executable", backends: one, do: func(p *patient) { p.Exec("", "chmod", "0644", p.bin+"/podmark") }},
		{name: "bridge not filtered", check: "bridge-netfilter", words: "bridge-nf-call-ip", backends: one, do: func(p *patient) {
			needs.All(p.T, needs.BridgeNetfilter)
			p.plugins("10-net.conflist", "net", "1.0.0", mainPlugin("bridge"), p.entry(nil))
			p.well()
			p.Exec("", "sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=0", "net.bridge.bridge-nf-call-ip6tables=0")
		}},
		{name: "Calico's bits", check: "mark-users", words: "Calico (chain ip", pods: 1, do: func(p *patient) {
			p.Iptables("-N", "cali-PREROUTING")
			p.Iptables("-A", "cali-PREROUTING", "-j", "MARK", "--set-xmark", "0x10000/0x10000")
		}},
		{name: "kube-router's netpol", check: "mark-users", words: "kube-router (chain ip filter KUBE-", pods: 1, do: func(p *patient) {
			p.Exec(rules.KubeRouter, "iptables-nft-restore", "--noflush")
		}},
		{name: "Tailscale's bits", check: "mark-users", words: "link tailscale0", backends: one, do: func(p *patient) {
			p.Exec("", "ip", "link", "add", "tailscale0", "type", "bridge")
		}},
		{name: "mix", check: "iptables-mix", words: "rules", pods: 1, do: func(p *patient) {
			for _, v := range testnode.Variants {
				p.Exec("", "iptables-"+v, "-t", "filter", "-A", "FORWARD", "-j", "ACCEPT")
			}
		}, noMend: true}, // they are others'
		{name: "kubelet changed its variant", check: "iptables-variant", words: "variant", pods: 1, backends: iptables, do: func(p *patient) {
			other := testnode.Variants[1-slices.Index(testnode.Variants, p.Backend.Variant)]
			for _, f := range []string{"iptables", "ip6tables"} {
				p.Exec("", f+"-"+p.Backend.Variant, "-t", "mangle", "-X", "KUBE-IPTABLES-HINT")
				p.Exec("", f+"-"+other, "-t", "mangle", "-N", "KUBE-KUBELET-CANARY")
			}
		}, noMend: true}, // see TestDoctorVariant
		{name: "no iptables", check: "backend", words: "iptables", also: []string{"could-not-look"}, backends: iptables, noMend: true, do: func(p *patient) { p.Path = "/nonexistent" }},
	}
}
