package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/podmark/podmark/pkg/desired"
)

// unsure adds a sentence to what is not known, once.
func (w walker) unsure(format string, args ...any) {
	if s := fmt.Sprintf(format, args...); !slices.Contains(*w.unknown, s) {
		*w.unknown = append(*w.unknown, s)
	}
}

// note adds what could not be known of a pair's walks.
func (w walker) note(walks []Walk) {
	if w.Port == 0 && w.Protocol != icmp {
		w.unsure("No port was named: this is what holds for every %s port that no rule names.", name(w.Protocol))
	}
	w.noteSource(w.src)
	w.noteService(w.dst)
	if w.dst.Is4() && w.dst.IsLinkLocalUnicast() && w.endpoint(w.dst) == nil && !w.route(w.dst).Local {
		w.unsure("Rules of others were not read: agents that answer for a cloud's metadata give what is for %s another destination, often the node, and then it is judged by that.", w.dst)
	}
	for _, walk := range walks {
		if walk.Allowed {
			w.noteDestination(walk.To.Address)
		}
	}
	w.noteOthers(w.Src, w.src)
	w.noteOthers(w.Dst, w.dst)
}

// noteSource tells what is not known of who sends.
func (w walker) noteSource(a netip.Addr) {
	r := w.route(a)
	switch {
	case w.endpoint(a) != nil || r.Local || w.Src.Name == Outside:
	case r.Error != "":
		w.unsure("The node has no route back to %s, so by which interface it comes is not known: it is taken for outside.", a)
	case w.elsewhere(a):
		w.unsure("%s is a pod of another node: its egress is judged there.", a)
	default:
		w.unsure("%s is no pod known here. A pod of another node is judged there first, and what is masqueraded on its way, as behind another node's NodePort, comes with that node's address.", a)
	}
}

// noteDestination tells what is not known of who is sent to.
func (w walker) noteDestination(a netip.Addr) {
	r := w.route(a)
	switch {
	case w.endpoint(a) != nil || r.Local || r.Many || w.Dst.Name == Outside:
	case w.elsewhere(a):
		w.unsure("%s is a pod of another node: its ingress is judged there.", a)
	default:
		w.unsure("%s is no pod known here: what becomes of it behind this node is not known, and a pod of another node has its ingress judged there.", a)
	}
}

// noteService tells what is not known of services.
func (w walker) noteService(a netip.Addr) {
	if w.Port == 0 || w.endpoint(a) != nil || w.elsewhere(a) || w.Dst.Name == Outside {
		return
	}
	at := netip.AddrPortFrom(a, w.Port)
	served := w.service(w.Protocol, at) != nil
	switch {
	case !w.IPVS.Loaded:
		w.unsure("The kernel has no IPVS, so whether %s is a service's is not known.", at)
	case served && !w.route(a).Local:
		w.unsure("IPVS has a service at %s, and the node does not have that address: IPVS does not see its packets.", at)
	case !served && !w.IPVS.Used:
		w.unsure("kube-proxy does not use IPVS here, so whether %s is a service's is not known.", at)
	}
	if w.IPVS.ByMark > 0 {
		w.unsure("IPVS has %d services that go by a fwmark: what they take is not known.", w.IPVS.ByMark)
	}
}

// noteAssumed tells where an address stands for others that the rules decide otherwise
// about. It asks about an address of each block.
func (w walker) noteAssumed(p desired.Packet, v desired.Verdict) {
	for _, j := range v.Evaluated {
		w.noteSelected(p, j)
		side, taken := w.Src, p.Src
		if j.Direction == desired.Egress {
			side, taken = w.Dst, p.Dst
		}
		if side.Name != Outside && side.Name != Host || taken != w.src && taken != w.dst {
			continue // what IPVS puts in place of it is no assumption
		}
		var rules []string
		for _, r := range w.State.Profiles[j.Profile].Rules() {
			if !slices.Contains(rules, r.Origin) && w.otherwise(p, j, r) {
				rules = append(rules, r.Origin)
			}
		}
		if rules != nil {
			w.unsure("%s is taken to be %s: for other addresses %s may decide otherwise, so name one.", side.Name, taken, strings.Join(rules, ", "))
		}
	}
}

// otherwise reports whether a rule may decide otherwise about another address.
func (w walker) otherwise(p desired.Packet, j desired.Decision, r desired.ProfileRule) bool {
	if j.Allowed {
		everyone := func(b netip.Prefix) bool { return b.Bits() == 0 && b.Addr().Is4() == p.Src.Is4() }
		return j.Rule == r.Origin && !r.AnyPeer && !slices.ContainsFunc(r.Blocks, everyone)
	}
	return slices.ContainsFunc(r.Blocks, func(b netip.Prefix) bool {
		other := p
		if j.Direction == desired.Egress {
			other.Dst = b.Addr()
		} else {
			other.Src = b.Addr()
		}
		if b.Addr().Is4() != p.Src.Is4() {
			return false
		}
		again := w.State.Evaluate(other).Evaluated
		i := slices.IndexFunc(again, func(o desired.Decision) bool { return o.Direction == j.Direction })
		return i >= 0 && again[i].Allowed && again[i].Rule == r.Origin
	})
}

// noteSelected tells where rules may select a pod of another node, which only podmarkd
// knows: of a policy that is not applied yet, and of rules that were written without it.
func (w walker) noteSelected(p desired.Packet, j desired.Decision) {
	other := p.Src
	if j.Direction == desired.Egress {
		other = p.Dst
	}
	selects := slices.ContainsFunc(w.State.Profiles[j.Profile].Rules(),
		func(r desired.ProfileRule) bool { return r.Peers != nil })
	if j.Allowed || !selects || w.endpoint(other) != nil || w.route(other).Local {
		return
	}
	followed := slices.ContainsFunc(w.State.Endpoints, func(e desired.Endpoint) bool { return e.Kubernetes })
	switch {
	case w.Unsettled:
		w.unsure("Whether the rules select %s is not sure: they were written without podmarkd, which knows the pods of other nodes and fills the sets as soon as it runs.", other)
	case w.Proposed && followed:
		w.unsure("%s may be a pod of another node that these policies select: of those, the present policies' are known, and theirs once they are applied.", other)
	}
}

// noteOthers tells of further addresses of a pod.
func (w walker) noteOthers(s Side, a netip.Addr) {
	if s.Name == Outside || s.Name == Host || s.Name == "" {
		return
	}
	all, _ := w.addresses(s)
	var others []string
	for _, b := range all {
		if b != a && b.Is4() == a.Is4() {
			others = append(others, b.String())
		}
	}
	if others != nil {
		w.unsure("%s has other addresses too: ask by %s.", s.Name, strings.Join(others, ", "))
	}
}
