package doctor

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/podmark/podmark/pkg/ident"
)

const whyBits = "these bits carry the ID of the pod in the packet mark, and the policy under which a flow was allowed in the conntrack mark: when others write them, a packet passes for another pod's, or for one that was judged"

func checkUsers(f Facts) []Finding {
	var out []Finding
	for _, u := range seenUsers(f) {
		overlap := u.bits & f.mask().Mask()
		if overlap == 0 {
			continue
		}
		what := fmt.Sprintf("%s (%s) uses the bits %#x, and podmark's mask %#x has %#x of them", u.Name, u.by, u.bits, f.mask().Mask(), overlap)
		if len(u.rules) > 0 {
			what += fmt.Sprintf(", as in %s", u.rules[0])
		}
		out = append(out, Finding{Severity: Error, What: what, Why: whyBits, Mend: otherMask(f, u.Move)})
	}
	return out
}

func checkRules(f Facts) []Finding {
	var out []Finding
	mask := f.mask().Mask()
	for _, r := range f.Rules {
		for _, w := range r.Writes {
			if w.Bits&mask == 0 {
				continue
			}
			known := slices.ContainsFunc(Users(), func(u User) bool { return u.has(r.Chain) })
			switch {
			case w.Bits == all:
				out = append(out, Finding{
					Severity: Error, Why: whyBits,
					What: fmt.Sprintf("%s writes all of %s, without a mask: %s. Have whoever wrote it leave the bits %#x alone, or it comes back", r, w.Field, w.Text, mask),
					Mend: r.remove(),
				})
			case !known: // that of a known one is a finding of checkUsers
				out = append(out, Finding{
					Severity: Error, Why: whyBits,
					What: fmt.Sprintf("%s writes %#x of podmark's mask %#x in %s: %s", r, w.Bits&mask, mask, w.Field, w.Text),
					Mend: otherMask(f),
				})
			}
		}
	}
	return out
}

func checkNoTrack(f Facts) []Finding {
	var out []Finding
	for _, r := range f.Rules {
		if !r.NoTrack || r.Loopback || !r.reaches(f) {
			continue
		}
		out = append(out, Finding{
			Severity: Warning,
			What:     fmt.Sprintf("%s keeps packets out of conntrack, and can be for those of podmark's pods. Have whoever wrote it leave them out, or it comes back", r),
			Why:      "a reply that is not tracked is not known as one: it is judged as if the pod had begun, and so are services that IPVS answers",
			Mend:     r.remove(),
		})
	}
	return out
}

// reaches reports whether the rule can be for an endpoint's packets: it is for
// any address, or for an endpoint's.
func (r Rule) reaches(f Facts) bool {
	if !r.Source.IsValid() && !r.Destination.IsValid() {
		return true
	}
	return slices.ContainsFunc(f.State.Records, func(e ident.Record) bool {
		return slices.ContainsFunc(e.Addresses, func(a netip.Addr) bool { return r.Source.Contains(a) || r.Destination.Contains(a) })
	})
}
