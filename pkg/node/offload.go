package node

import (
	"fmt"

	"go4.org/netipx"

	"github.com/podmark/podmark/pkg/dataplane/conntrack"
	"github.com/podmark/podmark/pkg/dataplane/flowtable"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/mark"
)

// Reclaimed says what a change did about flows that another program's flowtable carries
// past the hooks: it may forbid them, and they would go on.
type Reclaimed struct {
	// Flows is how many go through the hooks again, and are judged there.
	Flows int `json:"flowsReclaimed,omitempty"`
	// Offloaded is how many the kernel did not let go of. They go on unjudged.
	Offloaded int `json:"offloaded,omitempty"`
	// OffloadError is why some may be neither, or had to begin again.
	OffloadError string `json:"offloadError,omitempty"`
}

// Trouble says in words what could not be done; empty where all was.
func (r Reclaimed) Trouble() string {
	switch {
	case r.Offloaded > 0:
		return fmt.Sprintf("%d live connections stay in a flowtable, past all rules, whatever the policy says: this kernel does not let them go", r.Offloaded)
	case r.OffloadError != "":
		return "live connections may stay in a flowtable, past all rules: " + r.OffloadError
	}
	return ""
}

func (r *Reclaimed) add(other Reclaimed) {
	r.Flows += other.Flows
	r.Offloaded = other.Offloaded // the same flows again
	r.OffloadError = other.OffloadError
}

// reclaim takes back from flowtables what has not been judged by s, which is in the kernel.
// It fails no change: that is in force, for all that the hooks see.
func (n Node) reclaim(s desired.State) Reclaimed {
	set, err := isolated(s)
	if err != nil {
		return Reclaimed{OffloadError: err.Error()}
	}
	if len(set.Ranges()) == 0 {
		return Reclaimed{}
	}
	done, err := n.kernel().reclaim(epochOf(s), set)
	out := Reclaimed{Flows: done.Taken, Offloaded: done.Left}
	if err != nil {
		out.OffloadError = err.Error()
	}
	return out
}

// Offloaded returns the flowtables that there are, and how many flows they carry of endpoints
// that a policy isolates, without that the policy in force has judged them;
// fs.ErrNotExist when podmark has never run here. It needs no lock: during a change, flows
// may count that are about to be taken back.
func (n Node) Offloaded() (tables []flowtable.Flowtable, unjudged int, err error) {
	if tables, err = flowtable.List(); err != nil || len(tables) == 0 {
		return nil, 0, err
	}
	s, err := n.State()
	if err != nil {
		return nil, 0, err
	}
	set, err := isolated(s)
	if err != nil || len(set.Ranges()) == 0 {
		return tables, 0, err
	}
	unjudged, err = conntrack.Offloaded(epochOf(s), set)
	return tables, unjudged, err
}

// Reevaluate has the flows of these addresses judged at their next packet, whatever judged them
// before; fs.ErrNotExist when podmark has never run here. It is not done while it is not known
// who is in the policies' sets, since a flow that they allow would be dropped. It needs no lock.
func (n Node) Reevaluate(addrs *netipx.IPSet) (done bool, err error) {
	f, err := n.load()
	if err != nil || f.Incomplete || !f.Synced {
		return false, err
	}
	s, err := n.stateOf(f)
	if err != nil {
		return false, err
	}
	if err := n.kernel().reevaluate(epochOf(s), addrs); err != nil {
		return false, err
	}
	n.reclaim(s) // what stays in a flowtable is told by Offloaded
	return true, nil
}

// epochOf is what the flows carry in their conntrack mark that s has judged.
func epochOf(s desired.State) mark.Mark { return s.Layout.Mark(s.Epoch) }

// isolated is what the endpoints send from to which something may be forbidden: their
// addresses, and their further prefixes.
func isolated(s desired.State) (*netipx.IPSet, error) {
	var b netipx.IPSetBuilder
	for _, e := range s.Endpoints {
		if !s.Isolates(e.Profiles[desired.Ingress]) && !s.Isolates(e.Profiles[desired.Egress]) {
			continue
		}
		for _, a := range e.Addresses {
			b.Add(a)
		}
		for _, p := range e.AllowedSources {
			b.AddPrefix(p)
		}
	}
	set, err := b.IPSet()
	if err != nil {
		return nil, fmt.Errorf("collecting what isolated endpoints send from: %w", err)
	}
	return set, nil
}
