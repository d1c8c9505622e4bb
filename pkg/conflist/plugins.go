package conflist

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/containernetworking/cni/libcni"
)

// ErrMain: podmark cannot work behind the list's main plugin.
var ErrMain = errors.New("podmark cannot work behind this main plugin")

// podmark needs a veth with its host's end in the node's network namespace, addresses in
// the plugin's result, and packets that pass netfilter on their way. It is what ADD asks
// of a pod's interface, and doctor of the datapath.
const (
	noVeth  = "the pod gets no veth, so the host has no interface of its own for it: every ADD would fail with code 104"
	ovs     = "its Open vSwitch forwards packets past netfilter, where podmark judges: every ADD would fail with code 104"
	noIP    = "it gives the pod no address: every ADD would fail with code 7"
	bpf     = "its BPF programs hand packets from pod to pod past netfilter, where podmark judges: policies would not be in force"
	another = "it calls other plugins: podmark belongs into the conflist of the network that it calls"
)

// mains are the main plugins that are known, each with why podmark cannot work behind
// it; empty where it can.
var mains = map[string]string{
	"bridge":              "",
	"ptp":                 "",
	"flannel":             "",
	"calico":              "",
	"aws-cni":             "",
	"azure-vnet":          "",
	"cni-kindnet":         "",
	"weave-net":           "",
	"macvlan":             noVeth,
	"ipvlan":              noVeth,
	"vlan":                noVeth,
	"host-device":         noVeth,
	"sriov":               noVeth,
	"ib-sriov":            noVeth,
	"ipoib":               noVeth,
	"accelerated-bridge":  noVeth,
	"tap":                 noVeth,
	"dummy":               noVeth,
	"bond":                noVeth,
	"vrf":                 noIP,
	"loopback":            noIP,
	"portmap":             noIP,
	"bandwidth":           noIP,
	"tuning":              noIP,
	"firewall":            noIP,
	"sbr":                 noIP,
	"istio-cni":           noIP,
	"linkerd-cni":         noIP,
	"ovs":                 ovs,
	"antrea":              ovs,
	"kube-ovn":            ovs,
	"openshift-sdn":       ovs,
	"ovn-k8s-cni-overlay": ovs,
	"cilium-cni":          bpf,
	"multus":              another,
	"multus-shim":         another,
}

// mainPlugin is what a main plugin is told that matters here.
type mainPlugin struct {
	Type string
	IPAM struct{ Type string }
	// Of bridge.
	VLAN      int
	VLANTrunk []any
	// Of flannel.
	Delegate struct{ Type string }
}

// calls is the plugin that makes the pod's interface: flannel has another one do it.
func (m mainPlugin) calls() string {
	if m.Type == "flannel" {
		return cmp.Or(m.Delegate.Type, "bridge")
	}
	return m.Type
}

// Behind judges whether an ADD of podmark behind the list's main plugin could work. It
// returns what to look after where that is not known, and ErrMain where it cannot.
func Behind(conf []byte) (warning string, err error) {
	plugins, err := others(conf, "podmark")
	if err != nil || len(plugins) == 0 {
		return "", err // all of them are in files of their own
	}
	m := plugins[0]
	why, known := mains[m.calls()]
	switch {
	case !known:
		return fmt.Sprintf("the main plugin %q is not known to podmark, which needs a veth and packets that pass netfilter; every ADD fails with code 104 without", m.calls()), nil
	case why != "":
	case m.Type == "bridge" && (m.VLAN != 0 || len(m.VLANTrunk) > 0):
		why = "it puts pods into a VLAN of the bridge: every ADD would fail with code 104; take \"vlan\" and \"vlanTrunk\" away"
	case (m.Type == "bridge" || m.Type == "ptp") && m.IPAM.Type == "":
		why = "it has no \"ipam\", so " + noIP
	}
	if why != "" {
		return "", fmt.Errorf("%w: %q: %s", ErrMain, m.calls(), why)
	}
	return "", nil
}

// Programs are the plugins that must be in the runtime's directory for the list, but for
// that of type plugin.
func Programs(conf []byte, plugin string) ([]string, error) {
	plugins, err := others(conf, plugin)
	if err != nil {
		return nil, err
	}
	var out []string
	add := func(program string) {
		if program != "" && !slices.Contains(out, program) {
			out = append(out, program)
		}
	}
	for _, m := range plugins {
		add(m.Type)
		add(m.calls())
		// Others may have their own within themselves.
		if m.Type == "bridge" || m.Type == "ptp" {
			add(m.IPAM.Type)
		}
	}
	return out, nil
}

// others are the plugins of the list but those of that type.
func others(conf []byte, plugin string) ([]mainPlugin, error) {
	list, err := libcni.NetworkConfFromBytes(conf)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSyntax, err)
	}
	var out []mainPlugin
	for _, p := range list.Plugins {
		if p.Network.Type == plugin {
			continue
		}
		m := mainPlugin{}
		// A value of another kind is for the plugin to refuse.
		_ = json.Unmarshal(p.Bytes, &m)
		m.Type = p.Network.Type
		out = append(out, m)
	}
	return out, nil
}

// AddsNoAddress reports whether a plugin behind podmark's does neither give addresses nor
// change what podmark relies on: service meshes want to be last, too, and only write rules
// inside the pod.
func AddsNoAddress(plugin string) bool {
	return slices.Contains([]string{"istio-cni", "linkerd-cni", "kuma-cni"}, plugin)
}
