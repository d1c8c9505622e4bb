package apply

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/podmark/podmark/pkg/desired"
)

// Ports are the ports that IPVS may take on the node's own addresses, as the daemon
// found them out. They stand in for what the plugin's configuration says.
type Ports struct {
	Ranges []desired.PortRange `json:"ranges"`
	// SCTP are those of SCTP. When they change, rules are written.
	SCTP []desired.PortRange `json:"sctp"`
	// Source is who said so, for who reads the state folder.
	Source string `json:"source"`
}

func (p *Ports) equal(other Ports) bool {
	return p != nil && p.Source == other.Source && slices.Equal(p.Ranges, other.Ranges) && slices.Equal(p.SCTP, other.SCTP)
}

// Configured are the NodePort ranges of the plugin's configuration; fs.ErrNotExist
// when podmark has never run here.
func (n Node) Configured() ([]desired.PortRange, error) {
	f, err := n.load()
	return f.NodePorts, err
}

// Kept says what Keep found and did.
type Kept struct {
	// Missing is what the kernel lacked, which is back; nil when nothing was.
	Missing error
	// Replaced names the sets whose content had gone stale.
	Replaced []string
}

// Keep makes the kernel hold what the node should enforce, and looks closer than
// an ADD does: at every element, and at what others have done to hooks and chains.
// The sets that belong to the node rather than to an endpoint, host addresses and
// NodePorts, are brought up to date without a rule being written. A nil ports
// leaves those as they are. fs.ErrNotExist when podmark has never run here.
func (n Node) Keep(ctx context.Context, ports *Ports) (Kept, error) {
	if _, err := n.load(); err != nil { // creates no folder where podmark is not in use
		return Kept{}, err
	}
	unlock, err := n.lock(ctx)
	if err != nil {
		return Kept{}, err
	}
	defer unlock()
	f, err := n.load()
	if err != nil {
		return Kept{}, err
	}
	old, err := f.node()
	if err != nil {
		return Kept{}, err
	}
	if ports != nil && !f.Ports.equal(*ports) {
		f.Ports = ports
		// In iptables a rule has them. Whoever comes after a crash finishes that.
		rewrite := f.Backend != NFTables && !slices.Equal(old.SCTPPorts, ports.SCTP)
		f.Synced = f.Synced && !rewrite
		if err := n.save(f); err != nil {
			return Kept{}, err
		}
		if rewrite {
			_, err := n.sync(ctx, f)
			return Kept{}, err
		}
	}
	missing := errUnfinished
	if f.Synced {
		want, err := n.state(f)
		if err != nil {
			return Kept{}, err
		}
		var replaced []string
		if replaced, missing = n.backend(f).Keep(ctx, want); missing == nil {
			return Kept{Replaced: replaced}, nil
		}
		if !incomplete(missing) {
			return Kept{}, fmt.Errorf("%w: %w", ErrBackend, missing)
		}
	}
	_, err = n.sync(ctx, f)
	return Kept{Missing: missing}, err
}

// errUnfinished is what Keep finds where a change was interrupted.
var errUnfinished = errors.New("a change was not finished")
