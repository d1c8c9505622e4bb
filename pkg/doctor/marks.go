package doctor

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/dataplane"
	"github.com/podmark/podmark/pkg/foreign"
)

const (
	whyForged = "these bits carry the ID of the pod in the packet mark, and the policy under which a flow was allowed in the conntrack mark: when others write them there, a packet passes for another pod's, or a flow for one that was judged"
	whyMisled = "iptables finds policies by addresses, so they hold. But the bits carry the ID of the pod while a packet is on its way to a service: what a router in a pod wraps, from a further prefix, can pass for what comes from outside, and be sent on to another node's tunnel by way of a service. With bits of their own neither minds the other"
	whyShared = "verdicts stay right, but podmark writes these bits of packets to the node and to services, and takes them off again: what the other program had in them is lost, and what it does elsewhere may come in between. With bits of their own neither minds the other"
	whySeen   = "until the ID is taken off again, the packet is not the one that is asked for: a whole mark with an ID in it equals no other, and an ID can equal what others mean by these bits. So their rule, route or service does not hold for these packets, or holds for others"
)

// backend is what enforces, or would for the next endpoint.
func (f Facts) backend() config.Backend {
	if f.State.Kind != "" {
		return f.State.Kind.Backend()
	}
	if n, ok := f.active(); ok && n.Err == nil && n.Config.Backend == config.BackendIPTables {
		return config.BackendIPTables
	}
	return config.BackendNFTables
}

// kind is that of the backend that enforces; one of iptables where none could be chosen.
func (f Facts) kind() dataplane.Kind {
	k, ok := dataplane.KindOf(f.State.Kind)
	if !ok {
		k, _ = dataplane.KindOf(config.IPTablesNFT)
	}
	return k
}

// collisions are those of well-known programs, or of rules of nobody known.
func (f Facts) collisions(known bool) []foreign.Collision {
	all := f.Collisions(f.backend(), f.mask().Mask())
	return slices.DeleteFunc(all, func(c foreign.Collision) bool { return (c.User.Name != "") != known })
}

func checkUsers(f Facts) []Finding {
	var out []Finding
	for _, c := range f.collisions(true) {
		out = append(out, colliding(c, otherMask(f, c.User.Move)))
	}
	return out
}

func checkRules(f Facts) []Finding {
	var out []Finding
	for _, c := range f.collisions(false) {
		fix := otherMask(f)
		if c.Whole {
			fix = fmt.Sprintf("# no other mask helps: have whoever wrote the rule give it one, %#x or less of it, as podmark does; iptables: --set-xmark, --nfmask and --ctmask; nft: and, or", ^f.mask().Mask())
		}
		out = append(out, colliding(c, fix))
	}
	return out
}

func colliding(c foreign.Collision, fix string) Finding {
	found := Finding{Severity: Error, What: c.String(), Why: whyForged, Fix: fix}
	switch c.Harm {
	case foreign.Forged:
	case foreign.Misled:
		found.Why = whyMisled
	default:
		found.Severity, found.Why = Warning, whyShared
	}
	return found
}

func checkCompares(f Facts) []Finding {
	var out []Finding
	backend, mask := f.backend(), f.mask().Mask()
	theirs := fmt.Sprintf("# have whoever wrote it compare with a mask, %#x or less of it", ^mask)
	note := func(severity Severity, what string, compared uint32, elsewhere bool) {
		found := Finding{Severity: severity, What: what, Why: whySeen}
		switch {
		case elsewhere && backend == config.BackendIPTables:
			found.Fix = toNFTables(f, theirs)
		case compared != foreign.All:
			found.Fix = otherMask(f)
		default:
			found.Fix = theirs
		}
		out = append(out, found)
	}
	without := f.Comparisons(config.BackendNFTables, mask)
	for _, c := range f.Comparisons(backend, mask) {
		still := slices.ContainsFunc(without, func(o foreign.Comparison) bool { return o.Rule.String() == c.Rule.String() })
		note(Warning, fmt.Sprintf("%s, in %s, where a pod's ID is in the packet mark, asks for %s", c.Rule, c.Place, c.Compare), c.Compare.Mask, !still)
	}
	for _, l := range f.Lookups {
		if !l.Breaks(backend, mask) {
			continue
		}
		if l.Kind != foreign.IPVSService {
			note(Warning, fmt.Sprintf("%s is for a packet mark, and there may be a pod's ID in it", l.Text), l.Mask, !l.Breaks(config.BackendNFTables, mask))
			continue
		}
		out = append(out, Finding{
			Severity: Error, What: fmt.Sprintf("%s gets no packet: IPVS compares the whole packet mark, and podmark's ID is in it", l.Text), Why: whySeen,
			Fix: "# give the service an address and a port in place of a firewall mark; kube-router: without the annotation kube-router.io/service.dsr",
		})
	}
	return out
}

// The kernel parameters that give what the node sends the mark of what it was sent.
const (
	fwmarkReflect4  = "net.ipv4.fwmark_reflect"
	fwmarkReflect6  = "net.ipv6.fwmark_reflect"
	tcpFwmarkAccept = "net.ipv4.tcp_fwmark_accept"
)

// checkReflects finds what lets an ID out. With nftables a process of the node is given packets
// without, and IPVS alone has one with.
func checkReflects(f Facts) []Finding {
	var out []Finding
	for _, name := range f.Reflects {
		what := "errors, resets and echo replies of the node's kernel"
		switch onIPTables := f.backend() == config.BackendIPTables; {
		case !onIPTables && (name == tcpFwmarkAccept || !f.Mode.IPVS):
			continue
		case !onIPTables:
			what = "ICMP errors of IPVS"
		case name == tcpFwmarkAccept:
			what = "what the node's processes send on TCP connections that they accept"
		}
		out = append(out, Finding{
			Severity: Warning,
			What:     fmt.Sprintf("sysctl %s is on", name),
			Why:      what + ", to pods and by way of the node, have a pod's ID in the packet mark. Verdicts stay right, since the node is not judged. But a routing rule, route or rule of another program that goes by marks may take them for what they are not. If a program of the node has turned it on, a VPN for one, have it do without",
			Fix:      fmt.Sprintf("sysctl -w %s=0  # unless another program needs it", name),
		})
	}
	return out
}

func checkNoTrack(f Facts) []Finding {
	var out []Finding
	for _, r := range f.Rules {
		if !r.NoTrack || r.Loopback || !reaches(r, f) {
			continue
		}
		out = append(out, Finding{
			Severity: Warning,
			What:     fmt.Sprintf("%s keeps packets out of conntrack, and can be for those of podmark's pods", r),
			Why:      "a reply that is not tracked is not known as one: it is judged as if the pod had begun, and so are services that IPVS answers",
			Fix:      "# have whoever wrote the rule leave out the addresses of podmark's pods, which 'podmarkctl list' shows; their other traffic may stay untracked",
		})
	}
	return out
}

// reaches reports whether the rule can be for an endpoint's packets: it is for
// any address, or for an endpoint's.
func reaches(r foreign.Rule, f Facts) bool {
	if !r.Source.IsValid() && !r.Destination.IsValid() {
		return true
	}
	return slices.ContainsFunc(f.State.Records, func(e attachment.Record) bool {
		return slices.ContainsFunc(e.Addresses,
			func(a netip.Addr) bool { return r.Source.Contains(a) || r.Destination.Contains(a) })
	})
}

// otherMask is the command that gives podmark other bits.
func otherMask(f Facts, move ...string) string {
	free, ok := f.Free()
	if !ok {
		return "# no two bits are free; change " + cmp.Or(cmp.Or(move...), "the bits of the other program, or take it off this node")
	}
	return remasked(f, install(f, map[string]any{"iptablesMarkMask": fmt.Sprintf("%#x", free.Mask())}))
}
