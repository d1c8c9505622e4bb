package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/mark"
)

// The hooks, as people know them.
const (
	bridgeHook    = "bridge PREROUTING"
	bridgeForward = "bridge FORWARD"
	prerouting    = "PREROUTING"
	input         = "INPUT"
	forward       = "FORWARD"
	output        = "OUTPUT"
)

// Those that act at hooks beside podmark.
const (
	ipvs      = "IPVS"
	kubeProxy = "kube-proxy"
)

// Explain answers the question. Facts must hold the routes and services of all
// [Query.Addresses].
func (q Query) Explain(f Facts) (Answer, error) {
	a := Answer{Source: q.Src.String(), Destination: q.text(), Backend: f.Backend, Allowed: true, Unknown: []string{}}
	pairs, err := q.pairs(f)
	if err != nil {
		return a, err
	}
	for _, p := range pairs {
		w := walker{Facts: f, Query: q, pair: p, unknown: &a.Unknown}
		walks, err := w.walks()
		if err != nil {
			return a, err
		}
		a.Walks = append(a.Walks, walks...)
	}
	taken := slices.DeleteFunc(slices.Clone(a.Walks), Walk.idle)
	if len(taken) == 0 {
		taken = a.Walks
	}
	a.Allowed = !slices.ContainsFunc(taken, func(w Walk) bool { return !w.Allowed })
	return a, nil
}

// idle holds for a walk that no new connection takes.
func (w Walk) idle() bool { return w.Backend != nil && w.Backend.Weight == 0 }

// walker follows the packets of one pair of addresses.
type walker struct {
	Facts
	Query
	pair
	unknown *[]string
}

// walks follows a packet to wherever it may come out.
func (w walker) walks() ([]Walk, error) {
	p := w.pair
	packet := desired.Packet{In: w.in(p.src), Src: p.src, Dst: p.dst, Protocol: w.Protocol, DstPort: w.Port}
	if w.Protocol == icmp && p.dst.Is6() {
		packet.Protocol, packet.ICMPType = desired.ICMPv6, 128
	}
	walk := Walk{From: w.party(p.src, 0), To: w.party(p.dst, w.Port)}
	if w.Src.Name == Outside {
		walk.From.Name = Outside
	}
	if w.Dst.Name == Outside {
		walk.To.Name = Outside
	}
	route := w.route(p.dst)
	if route.Local && walk.To.Name == "" && w.Port == 0 && w.Protocol != icmp {
		if ports := w.served(p.dst); ports != nil {
			return nil, fmt.Errorf("%s is an address of services: name one of its ports, %s", p.dst, strings.Join(ports, ", "))
		}
	}
	from := w.endpoint(p.src)
	var walks []Walk
	switch {
	case from != nil && slices.Contains(from.Addresses, p.dst):
		walks = []Walk{walk.end(true, "it does not leave the pod")}
	case route.Local || route.Many:
		walks = w.toNode(walk, packet, route)
	default:
		walks = []Walk{w.through(walk, packet, route)}
	}
	w.note(walks)
	return walks, nil
}

// in is the interface by which the node gets what an address sends; empty where that is
// the node itself.
func (w walker) in(src netip.Addr) string {
	if e := w.endpoint(src); e != nil {
		return e.L3Interface
	}
	r := w.route(src)
	switch {
	case r.Local:
		return ""
	case r.Interface == "":
		return Outside
	}
	return r.Interface
}

// route is how the node sends to an address. What stands for all that is outside can
// always be sent to.
func (w walker) route(a netip.Addr) Route {
	r, known := w.Routes[a]
	switch {
	case w.Dst.Name == Outside && a == w.outside(a.Is4()) && (!known || r.Error != ""):
		return Route{Interface: Outside}
	case !known:
		return Route{Error: "the node was not asked for one"}
	}
	return r
}

// through follows a packet that the node forwards, or sends.
func (w walker) through(walk Walk, p desired.Packet, r Route) Walk {
	if p.In == "" {
		walk = walk.step(output, w.Chains.Output, "has no ID: it is the node's own, and passes")
	} else if walk = w.sent(walk, p); walk.By != "" {
		return walk
	}
	if r.Error != "" {
		return walk.end(false, fmt.Sprintf("the node has no route to %s: %s", p.Dst, r.Error))
	}
	p.Out = r.Interface
	switch {
	case p.In == "":
		return w.evaluate(walk, p)
	case w.pastHooks(p):
		walk = walk.step("bridge", p.In, "the frame goes from port to port, past all hooks of IP")
		if w.dropped(p) {
			return walk.step(bridgeForward, w.Chains.Between, "drops it: no policy can be asked").
				end(false, "br_netfilter is off, 'podmarkctl doctor' has the command")
		}
		return walk.end(true, "not judged: br_netfilter is off, 'podmarkctl doctor' has the command")
	}
	return w.evaluate(walk.step(forward, w.Chains.Forward, "judges both ends"), p)
}

// pastHooks holds for what goes from one port of a bridge to another where br_netfilter
// is off.
func (w walker) pastHooks(p desired.Packet) bool {
	off := w.PastHooks4
	if p.Dst.Is6() {
		off = w.PastHooks6
	}
	return off && p.In == p.Out && slices.ContainsFunc(w.State.Endpoints,
		func(e desired.Endpoint) bool { return !e.Routed() && e.L3Interface == p.In })
}

// dropped holds for what the rules know to pass all hooks of IP, from or to an isolated pod.
func (w walker) dropped(p desired.Packet) bool {
	isolated := func(a netip.Addr, d desired.Direction) bool {
		e := w.State.Owner(a)
		return e != nil && w.State.Isolates(e.Profiles[d])
	}
	return w.State.Unfiltered.Of(p.Dst) && (isolated(p.Src, desired.Egress) || isolated(p.Dst, desired.Ingress))
}

// toNode follows a packet to an address of the node, or to one that it has for services.
func (w walker) toNode(walk Walk, p desired.Packet, r Route) []Walk {
	service := w.service(w.Protocol, netip.AddrPortFrom(p.Dst, p.DstPort))
	hook := input
	if p.In == "" {
		hook = output
		walk = walk.step(output, w.Chains.Output, "has no ID: it is the node's own, and passes")
	} else {
		if walk = w.sent(walk, p); walk.By == "" {
			walk = w.classified(walk, p, r)
		}
		if walk.By != "" {
			return []Walk{walk}
		}
	}
	switch {
	case service == nil && !r.Many && !slices.Contains(w.State.HostAddresses, p.Dst):
		w.unsure("kube-proxy's rules were not read: it rejects what is for a service's address and for no service.")
		return []Walk{walk.step(input, kubeProxy, "rejects it: IPVS has no such service").end(false,
			"kube-proxy rejects it: no service has this port")}
	case service == nil:
		return []Walk{w.delivered(walk, p)}
	}
	walk.Service = fmt.Sprintf("%s/%s", service.At, name(service.Protocol))
	if len(service.Destinations) == 0 {
		return []Walk{walk.step(hook, ipvs, "takes it, and has no backend to send it to").end(false,
			"the service has no backend")}
	}
	var walks []Walk
	for _, b := range service.Destinations {
		one := walk
		one.Backend, one.To = &b, w.party(b.At.Addr(), b.At.Port())
		one = one.step(hook, ipvs, "takes it, and sends it on to "+b.At.String())
		p.Dst, p.DstPort = b.At.Addr(), b.At.Port()
		walks = append(walks, w.behind(one, p))
	}
	return walks
}

// behind follows a packet that IPVS has given its backend as destination.
func (w walker) behind(walk Walk, p desired.Packet) Walk {
	if walk.Backend.Weight == 0 {
		w.unsure("%s has weight 0: new connections go to the other backends.", walk.Backend.At)
	}
	if m := walk.Backend.Method; m != Masquerade && m != LocalNode {
		w.unsure("IPVS sends to %s by %q, which kube-proxy does not use: its packets keep the service's address, and are judged by that.", walk.Backend.At, m)
	}
	r := w.route(p.Dst)
	switch {
	case r.Local:
		return w.delivered(walk, p)
	case r.Error != "":
		return walk.end(false, fmt.Sprintf("the node has no route to %s: %s", p.Dst, r.Error))
	}
	p.Out = r.Interface
	if p.In == "" {
		return w.evaluate(walk.step(output, w.Chains.Output, "has no ID: it is the node's own, and passes"), p)
	}
	does := "has an ID, so IPVS sent it on: judges both ends"
	if w.Chains.Unmark == "" {
		does += ", and takes the ID off"
	}
	if walk = w.evaluate(walk.step(output, w.Chains.Output, does), p); walk.Allowed && w.Chains.Unmark != "" {
		walk = walk.step(output, w.Chains.Unmark, "takes the ID off")
	}
	return walk
}

// classified is the walk behind our chain at INPUT, ended there if it goes no further.
func (w walker) classified(walk Walk, p desired.Packet, r Route) Walk {
	from, _ := w.State.Origin(p.Src, p.In)
	walk = walk.step(input, w.Chains.Input, w.identity(p))
	if from == nil || w.Chains.Host != "" {
		return walk
	}
	last := &walk.Steps[len(walk.Steps)-1]
	switch {
	case r.Many || !w.maybeService(p):
		last.Action += "; for the node, as far as can be told here: judges its egress"
		if walk = w.evaluate(walk, p); walk.Allowed {
			walk.By = "" // it goes on
		}
	default:
		last.Action += "; for a service, as far as can be told here: does not judge it"
	}
	if !w.Watched {
		w.unsure("podmarkd does not run: which addresses are the node's, and which ports its services', the kernel knows as of when all rules were written last.")
	}
	return walk
}

// maybeService is what iptables takes for a packet to a service.
func (w walker) maybeService(p desired.Packet) bool {
	if !slices.Contains(w.State.HostAddresses, p.Dst) {
		return true
	}
	ranges := w.State.NodePorts
	switch p.Protocol {
	case desired.TCP, desired.UDP:
	case desired.SCTP:
		ranges = w.State.SCTPPorts
	default:
		return false
	}
	return slices.ContainsFunc(ranges, func(r desired.PortRange) bool { return r.Contains(p.DstPort) })
}

// delivered follows a packet that a process of the node gets, behind IPVS or without.
func (w walker) delivered(walk Walk, p desired.Packet) Walk {
	from, _ := w.State.Origin(p.Src, p.In)
	asked := walk.asked()
	switch {
	case p.In == "":
		return w.evaluate(walk, p)
	case w.Chains.Host != "" && from != nil:
		return w.evaluate(walk.step(input, w.Chains.Host, "IPVS did not send it elsewhere, so it is for the node: judges its egress"), p)
	case w.Chains.Host != "":
		walk = walk.step(input, w.Chains.Host, "is from outside: what comes to the node is not judged")
		return w.evaluate(walk, p)
	case from == nil:
		return w.evaluate(walk, p)
	case asked != nil:
		return walk.end(true, asked.String())
	case walk.Backend != nil:
		return walk.end(true, "not judged: iptables has no place behind IPVS to judge what a process of the node gets")
	default:
		return walk.end(true, fmt.Sprintf("not judged: port %d is in the NodePort ranges, and iptables takes it for a service's", p.DstPort))
	}
}

// asked is the first decision of the walk; nil before there is one.
func (w Walk) asked() *Decision {
	for _, s := range w.Steps {
		if s.Decision != nil {
			return &s.Decision[0]
		}
	}
	return nil
}

// sent is the walk after the chain that verifies the sender, ended there if the source is forged.
func (w walker) sent(walk Walk, p desired.Packet) Walk {
	from, posing := w.State.Origin(p.Src, p.In)
	if posing {
		return walk.step(prerouting, w.Chains.Sender,
			fmt.Sprintf("drops it: %s is no address that may come in by %s", p.Src, p.In)).
			end(false, "the source address is not the endpoint's own")
	}
	if from == nil {
		return walk
	}
	if !from.Routed() {
		walk = walk.step(bridgeHook, w.Chains.Guard, fmt.Sprintf("comes in by %s with that endpoint's own MAC address and address", from.HostVeth))
	}
	return walk.step(prerouting, w.Chains.Sender, "comes from "+nameOf(*from)+": its address, by its interface")
}

// identity says which ID a packet gets.
func (w walker) identity(p desired.Packet) string {
	from, _ := w.State.Origin(p.Src, p.In)
	if from == nil {
		return fmt.Sprintf("gives it ID %d, outside", mark.Outside)
	}
	return fmt.Sprintf("gives it ID %d, mark %s, of %s", from.ID, w.State.Layout.ID(from.ID), nameOf(*from))
}

// evaluate asks the state about a packet at the walk's last step, and ends the walk.
func (w walker) evaluate(walk Walk, p desired.Packet) Walk {
	v := w.State.Evaluate(p)
	w.noteAssumed(p, v)
	by := v.By
	walk.Steps = slices.Clone(walk.Steps)
	last := &walk.Steps[len(walk.Steps)-1]
	for _, j := range v.Evaluated {
		judgement := w.decision(j)
		last.Decision = append(last.Decision, judgement)
		if !j.Allowed {
			by = judgement.String()
		}
	}
	return walk.end(v.Allowed, by)
}

func (w walker) decision(j desired.Decision) Decision {
	out := Decision{
		Direction: j.Direction.String(), ID: j.Endpoint,
		Profile: j.Profile, Policies: w.State.Profiles[j.Profile].Policies(), Rule: j.Rule, Allowed: j.Allowed,
		Audited: j.Audited,
	}
	for _, e := range w.State.Endpoints {
		if e.ID == j.Endpoint {
			out.Pod, out.Policed = nameOf(e), e.Policed
		}
	}
	return out
}

func (w Walk) step(hook, chain, does string) Walk {
	w.Steps = append(slices.Clone(w.Steps), Step{Hook: hook, Chain: chain, Action: does})
	return w
}

func (w Walk) end(allowed bool, by string) Walk {
	w.Allowed, w.By = allowed, by
	return w
}
