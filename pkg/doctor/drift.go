package doctor

import (
	"fmt"

	"github.com/podmark/podmark/pkg/dataplane"
	"github.com/podmark/podmark/pkg/dataplane/hostport"
	"github.com/podmark/podmark/pkg/node"
)

// checkDrift finds what others did to links of endpoints. One that is gone is leaked.
func checkDrift(f Facts) []Finding {
	var out []Finding
	for _, d := range f.State.Drifts {
		if d.Change == hostport.Gone {
			continue
		}
		why, fix := driftWhy(f.kind(), d), ""
		switch {
		case d.Change == hostport.Ungrouped:
			fix = fmt.Sprintf("ip link set dev %s group %d", quote(d.Link), hostport.Group)
		case d.Change == hostport.Renamed:
			fix = fmt.Sprintf("ip link set dev %s name %s", quote(d.Link), quote(d.Was))
		case d.Was == "":
			fix = "ip link set dev " + quote(d.Link) + " nomaster"
		default:
			fix = fmt.Sprintf("ip link set dev %s master %s", quote(d.Link), quote(d.Was))
		}
		out = append(out, Finding{Severity: Error, What: d.String(), Why: why, Fix: fix})
	}
	return out
}

func driftWhy(kind dataplane.Kind, d node.EndpointDrift) string {
	const again = ". Whoever did it may do it again"
	switch {
	case d.Change == hostport.Ungrouped:
		return "by the group the rules know the host veths that podmark manages. podmarkd puts it back by itself" + again
	case d.Change == hostport.Renamed && !kind.ByName:
		return "the rules go by the number of the link, so the pod is judged as before; CHECK fails, and what goes by the name does not find it. Before Linux 6.2 the link must be down for it" + again
	case d.Change == hostport.Renamed:
		return "the sets of iptables go by the name of the link, so what the pod sends by another is dropped: it has no network. Before Linux 6.2 the link must be down for it" + again
	}
	return "the pod's packets come in by another interface than its own, and are dropped there: it has no network. Its policy is not that interface's" + again
}
