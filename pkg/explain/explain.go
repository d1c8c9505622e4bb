// Package explain tells where a packet from one side to another is judged on a node,
// by whom, and what comes of it.
//
// [Parse] reads the question, [Query.Addresses] lists what the kernel must be asked
// about, [Query.Explain] answers. Each verdict is [desired.State.Evaluate]'s: what is here
// knows which hooks a packet passes and with which addresses, and nothing of policies.
// The package is pure: no file, no kernel, no clock.
package explain

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/mark"
)

// Facts are what an answer follows from.
type Facts struct {
	State desired.State
	// Backend is nftables or iptables: they judge at different places.
	Backend config.Backend
	// Host is what "host" stands for, at most one address a family.
	Host []netip.Addr
	// Elsewhere are the addresses of pods of other nodes, by NAMESPACE/NAME, of those that
	// the question names.
	Elsewhere map[string][]netip.Addr
	IPVS      IPVS
	// Routes tell how the node sends to an address.
	Routes map[netip.Addr]Route
	// PastHooks4 and PastHooks6 are set where frames between two ports of a bridge pass
	// no hook of IP: br_netfilter is off.
	PastHooks4, PastHooks6 bool
	// Watched is whether podmarkd runs.
	Watched bool
	// Proposed is set where the policies of State are not the node's, Unsettled where
	// sets may lack pods of other nodes.
	Proposed, Unsettled bool
}

// IPVS is what the kernel says about services.
type IPVS struct {
	// Loaded is whether the kernel has IPVS at all, Used whether kube-proxy uses it.
	Loaded, Used bool
	// Services are those of the addresses that were asked about.
	Services []Service
	// ByMark counts the services that are not an address's but a fwmark's.
	ByMark int
}

// Service is a virtual service of IPVS.
type Service struct {
	Protocol     desired.Protocol
	At           netip.AddrPort
	Destinations []Destination
}

// Destination is one of a service's destinations.
type Destination struct {
	At netip.AddrPort `json:"at"`
	// Weight 0 gets no new connection.
	Weight int `json:"weight"`
	// Method is how IPVS forwards to it; kube-proxy uses Masquerade.
	Method Method `json:"method"`
}

// Method is a forwarding method of IPVS.
type Method string

// The methods.
const (
	Masquerade  Method = "masquerade"
	LocalNode   Method = "local"
	Tunnel      Method = "tunnel"
	DirectRoute Method = "route"
)

// Route is how the node sends to an address.
type Route struct {
	// Interface by which it leaves.
	Interface string
	// Local is set for the node's addresses, those of services included, Many for
	// multicast and broadcast.
	Local, Many bool
	// Error says why there is none.
	Error string
}

// Answer is what is known about a question.
type Answer struct {
	Source      string         `json:"source"`
	Destination string         `json:"destination"`
	Backend     config.Backend `json:"backend"`
	// Allowed is whether all walks are that a new connection can take.
	Allowed bool   `json:"allowed"`
	Walks   []Walk `json:"walks"`
	// Unknown lists what could not be known, in sentences.
	Unknown []string `json:"unknown"`
}

// Walk is the way of one packet: of each family, and to each backend of a service.
type Walk struct {
	From Party `json:"from"`
	// To is who answers: behind a service, the backend.
	To Party `json:"to"`
	// Service is the address that was asked for, and Backend what answers; nil without a
	// service, and for one that has no backend.
	Service string       `json:"service,omitempty"`
	Backend *Destination `json:"realServer,omitempty"`
	Steps   []Step       `json:"steps"`
	Allowed bool         `json:"allowed"`
	// By is who decided, in words.
	By string `json:"by"`
}

// Party is one end of a walk.
type Party struct {
	// Name is a pod's, "host" or "outside"; empty for an address that nobody here has.
	Name    string     `json:"name,omitempty"`
	Address netip.Addr `json:"address"`
	Port    uint16     `json:"port,omitempty"`
}

// Step is what happens at one hook.
type Step struct {
	Hook string `json:"hook"`
	// Chain is podmark's, or who else acts there.
	Chain    string     `json:"chain"`
	Action   string     `json:"action"`
	Decision []Decision `json:"decisions,omitempty"`
}

// Decision is what the policies of one pod say.
type Decision struct {
	Direction string  `json:"direction"`
	Pod       string  `json:"pod"`
	ID        mark.ID `json:"id"`
	// Policed is whether policies hold for the pod at all.
	Policed bool `json:"policed"`
	// Profile and Policies are empty where no policy isolates the pod.
	Profile  desired.ProfileID `json:"profile,omitempty"`
	Policies []string          `json:"policies,omitempty"`
	// Rule is the one that allows; empty where none does, and where none is asked.
	Rule    string `json:"rule,omitempty"`
	Allowed bool   `json:"allowed"`
	// Audited is set where it is allowed because the policies are audited only.
	Audited bool `json:"audited,omitempty"`
}

// String is the judgement in words.
func (j Decision) String() string {
	who := fmt.Sprintf("%s of %s: ", j.Direction, j.Pod)
	switch {
	case !j.Policed:
		return who + `no policy holds for it, by "policy": "none" or failOpen of its network`
	case j.Profile == "":
		return who + "no policy isolates it"
	case j.Rule != "":
		return who + fmt.Sprintf("isolated by %s, and %s allows this", strings.Join(j.Policies, ", "), j.Rule)
	case j.Audited:
		return who + fmt.Sprintf("audited by %s, and no rule allows this: it is logged, and passes", strings.Join(j.Policies, ", "))
	default:
		return who + fmt.Sprintf("isolated by %s, and no rule allows this", strings.Join(j.Policies, ", "))
	}
}

// String is the party as the text shows it.
func (p Party) String() string {
	at := p.Address.String()
	switch {
	case p.Port != 0:
		at = netip.AddrPortFrom(p.Address, p.Port).String()
	case !p.Address.IsValid():
		at = ""
	}
	return strings.TrimSpace(p.Name + " " + at)
}
