package node

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/dataplane"
	"github.com/podmark/podmark/pkg/dataplane/iptables"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/mark"
	"github.com/podmark/podmark/pkg/state"
)

// nodeFile is node.json: what the node enforces besides its attachments.
type nodeFile struct {
	Mask      uint32              `json:"mask"`
	Epoch     uint32              `json:"epoch"`
	NodePorts []desired.PortRange `json:"nodePorts"`
	// Ports are used instead, once the daemon knows.
	Ports *Ports `json:"ports,omitempty"`
	// Backend enforces, Auto is what auto stands for once it was asked, and Former
	// are those that may have something left in the kernel.
	Backend config.Kind   `json:"backend"`
	Auto    config.Kind   `json:"auto,omitempty"`
	Former  []config.Kind `json:"former,omitempty"`
	// Log is "nflog" where what is dropped is logged, and "none" where the kernel or a
	// command cannot: LogLacks says why. Until it is asked, nothing is logged.
	Log      string `json:"log,omitempty"`
	LogLacks string `json:"logLacks,omitempty"`
	// Bridge is "nftables" where that guards the ports of bridges beside iptables, and
	// "none" where it cannot: BridgeLacks says why. Empty until it is asked.
	Bridge      string `json:"bridge,omitempty"`
	BridgeLacks string `json:"bridgeLacks,omitempty"`
	// Checksums is "bpf" where the kernel checks where checksums go, and "none" where it
	// cannot: ChecksumsLacks says why. Empty until one with Programs writes everything.
	Checksums      string `json:"checksums,omitempty"`
	ChecksumsLacks string `json:"checksumsLacks,omitempty"`
	// Has is what the kernel has that iptables can do without.
	Has []iptables.Feature `json:"has,omitempty"`
	// Tunnels are those that the rules were written with; nil in the file of an older
	// podmark, whose rules forbade none. AllowTunnels makes that none.
	Tunnels      *desired.Tunnels `json:"tunnels,omitempty"`
	AllowTunnels bool             `json:"allowTunnels,omitempty"`
	// Unfiltered is what bridges with endpoints kept from IP when the rules were written.
	Unfiltered desired.Unfiltered `json:"unfiltered,omitzero"`
	header
	// Uninstalling is set from when an uninstall begins: what is there still counts for nothing.
	Uninstalling bool `json:"leaving,omitempty"`
	// Policies are in a file of their own, which is written when they change. PoliciesHash is
	// what that file has, and FormerHash what it has if it has not been written yet.
	Policies     desired.Policies `json:"-"`
	PoliciesHash hash             `json:"policiesHash,omitempty"`
	FormerHash   hash             `json:"formerHash,omitempty"`
	// policiesLost is why they are not known. They are none then.
	policiesLost error
	// Kubernetes is set once they come from the Kubernetes API, and Incomplete where rules
	// were written by a process that does not know which pods elsewhere belong to the sets.
	Kubernetes bool `json:"kubernetes,omitempty"`
	Incomplete bool `json:"incomplete,omitempty"`
	// Indexed is set once every record has the numbers of its links: those of an older
	// podmark had names alone.
	Indexed bool `json:"indexed,omitempty"`
	// Migration is set while endpoints move to another mask, which Mask is already.
	Migration *migration `json:"moving,omitempty"`
	// Synced is false from the moment something whole-node was decided until the
	// kernel has it. The next change finishes that first.
	Synced bool `json:"synced"`
	// reclaimed is what this process has done about flows of flowtables.
	reclaimed Reclaimed
}

// node translates the file for package desired. The mask was validated when it
// was stored.
func (f nodeFile) node() (desired.Node, error) {
	layout, err := mark.NewLayout(f.Mask)
	if err != nil {
		return desired.Node{}, fmt.Errorf("%w: %s: %w", state.ErrDamaged, state.NodeFile, err)
	}
	if f.Epoch == 0 || f.Epoch > layout.Max() {
		return desired.Node{}, fmt.Errorf("%w: %s: epoch %d is not in 1..%d", state.ErrDamaged, state.NodeFile, f.Epoch,
			layout.Max())
	}
	if _, ok := dataplane.KindOf(f.Backend); !ok && f.Backend != "" {
		return desired.Node{}, fmt.Errorf("%w: %s: there is no backend %q", state.ErrDamaged, state.NodeFile, f.Backend)
	}
	node := desired.Node{
		Layout: layout, Epoch: f.Epoch, NodePorts: f.NodePorts, SCTPPorts: f.NodePorts,
		Unfiltered: f.Unfiltered, Unlogged: f.Log != logByNFLOG,
	}
	if f.Migration != nil {
		former, err := mark.NewLayout(f.Migration.Mask)
		if err != nil {
			return desired.Node{}, fmt.Errorf("%w: %s: %w", state.ErrDamaged, state.NodeFile, err)
		}
		for _, id := range f.Migration.IDs {
			if uint32(id.From) > former.Max() || uint32(id.To) > layout.Max() {
				return desired.Node{}, fmt.Errorf("%w: %s: ID %d in mask %#x cannot become %d in %#x", state.ErrDamaged,
					state.NodeFile, id.From, former.Mask(), id.To, f.Mask)
			}
		}
		node.Layout, node.Former = node.Layout.Over(former), former
	}
	if f.Tunnels != nil {
		node.Tunnels = *f.Tunnels
	}
	if f.Ports != nil {
		node.NodePorts, node.SCTPPorts = f.Ports.Ranges, f.Ports.SCTP
	}
	return node, nil
}

// applied reports whether the node was ever given policies, be it none.
func (f nodeFile) applied() bool { return f.Kubernetes || f.PoliciesHash != noFile }

// share derives the part of the state that is these records', which fit. It knows the
// epoch and the layout but not the host's addresses.
func (f nodeFile) share(records ...attachment.Record) (desired.Share, error) {
	node, err := f.node()
	if err != nil {
		return desired.Share{}, err
	}
	if err := fits(node.Layout, records...); err != nil {
		return desired.Share{}, err
	}
	return desired.Share{State: desired.Build(node, f.Policies, records)}, nil
}

// load reads node.json; fs.ErrNotExist before the first change.
func (n Node) load() (nodeFile, error) {
	f, err := n.loadWithoutPolicies()
	if err == nil && f.policiesLost != nil {
		return nodeFile{}, f.policiesLost
	}
	return f, err
}

// loadWithoutPolicies is load for who can do without the policies that there were.
func (n Node) loadWithoutPolicies() (nodeFile, error) {
	path := n.Store.Path(state.NodeFile)
	for {
		now := stamp(path)
		f, err := n.readNodeFile()
		// Who reads without the lock may have read node.json before a change and policies.json
		// after it. They are lost only where node.json is still the one that was read.
		if f.policiesLost == nil || now.same(stamp(path)) {
			return f, err
		}
	}
}

// readNodeFile reads node.json and the policies that it names.
func (n Node) readNodeFile() (nodeFile, error) {
	f, err := n.decodeNodeFile()
	if err == nil && f.Uninstalling {
		return nodeFile{}, errUninstalling
	}
	if err == nil {
		_, err = f.node()
	}
	if errors.Is(err, state.ErrDamaged) {
		return nodeFile{}, fmt.Errorf("%w; %s", err, startOver)
	}
	if err == nil {
		f, err = n.withPolicies(f)
	}
	// The first change after an upgrade writes everything, with the numbers of links.
	f.Synced = f.Synced && f.Indexed && f.policiesLost == nil && (f.Checksums != "" || !n.Programs)
	return f, err
}

// startOver is what to do without node.json: it holds the policy, and going on
// without one would open every pod.
const startOver = "run 'podmarkctl uninstall --yes', apply the policy again and restart the node's pods"

func (n Node) save(f nodeFile) error {
	f.header = header{format, reads}
	b, err := encode(f)
	if err != nil {
		return err
	}
	return n.Store.Write(state.NodeFile, b)
}

func encode(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encoding %T: %w", v, err)
	}
	return b, nil
}
