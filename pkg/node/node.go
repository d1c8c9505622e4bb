// Package node carries a node from one desired state to the next: it decides
// what changes, in an order in which a crash leaves a pod closed and never open,
// and lets a backend do it.
//
// It is where the plugin, podmarkctl and the daemon meet: each calls the methods
// of [Node], and each of those holds the node's lock while it changes anything.
package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"time"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/dataplane"
	"github.com/podmark/podmark/pkg/dataplane/hostport"
	"github.com/podmark/podmark/pkg/dataplane/iptables"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/mark"
	"github.com/podmark/podmark/pkg/state"
)

// Errors that callers branch on.
var (
	// ErrBackend: nothing on this node can enforce.
	ErrBackend = errors.New("backend unusable")
	// ErrLayout: the mask differs from the one that live endpoints were given.
	ErrLayout = errors.New("iptablesMarkMask is not that of the node's endpoints")
	// ErrNotFound: there is no such attachment, or its ADD never came to an end.
	ErrNotFound = errors.New("attachment is not known")
	// ErrTaken: bits of the mask belong to another program on the node, or no bits are free.
	ErrTaken = errors.New("bits of iptablesMarkMask are another program's")
)

// Node is one node's state directory with the means to change what it enforces.
type Node struct {
	Store       state.Store
	LockTimeout time.Duration
	// RemoteMembers, if set, adds to the peer and tuple sets of a state the pods elsewhere of
	// which [Node.UpdatePolicies] was told; known is false where they are not known yet. Where
	// nobody knows, those who are in the kernel's sets stay there.
	RemoteMembers func(desired.State) (complete desired.State, known bool)
	// Cache, if set, keeps what was read of the state directory.
	Cache *Cache
	// Programs is set in a process that may attach BPF programs: the plugin and podmarkctl.
	// podmarkd sees whether they are there, and does without the rights.
	Programs bool
	// Step, if set, is called after each step of a change with its name: tests
	// end the process there.
	Step func(string)
	// Warn, if set, is told what a mask that begins has in common with others, and need not
	// be refused.
	Warn func(string)
	// deferred are attachments that are nobody's any more, and cannot be removed now.
	deferred map[attachment.Key]bool
	// fake, if set, stands in for the kernel, in tests.
	fake kernel
}

// Settings are the part of a network configuration that is the node's.
//
// Layout is zero where the node is to choose one. A zero Backend is that of no settings.
type Settings struct {
	Layout        mark.Layout
	MarkCollision config.MarkCollision
	NodePorts     []desired.PortRange
	Backend       config.Backend
	// AllowTunnels lets endpoints send what the node's tunnels unwrap.
	AllowTunnels bool
}

// SettingsOf takes the node's part out of a network configuration.
func SettingsOf(c config.Config) Settings {
	return Settings{Layout: c.Layout, MarkCollision: c.MarkCollision, NodePorts: c.NodePorts, Backend: c.Backend, AllowTunnels: c.AllowTunnels}
}

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
	// Checksums is "bpf" where the kernel looks where checksums go, and "none" where it
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
	// were written by somebody who does not know which pods elsewhere belong to the sets.
	Kubernetes bool `json:"kubernetes,omitempty"`
	Incomplete bool `json:"incomplete,omitempty"`
	// Indexed is set once every record has the numbers of its links: those of an older
	// podmark had names alone.
	Indexed bool `json:"indexed,omitempty"`
	// Migration is set while endpoints move to another mask, which Mask is already.
	Migration *migration `json:"moving,omitempty"`
	// Synced is false from the moment something whole-node was decided until the
	// kernel has it. Whoever comes next finishes that first.
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
		return desired.Node{}, fmt.Errorf("%w: %s: epoch %d is not in 1..%d", state.ErrDamaged, state.NodeFile, f.Epoch, layout.Max())
	}
	if f.Backend != "" && f.Backend != config.NFTables && variants[f.Backend] == "" {
		return desired.Node{}, fmt.Errorf("%w: %s: there is no backend %q", state.ErrDamaged, state.NodeFile, f.Backend)
	}
	node := desired.Node{Layout: layout, Epoch: f.Epoch, NodePorts: f.NodePorts, SCTPPorts: f.NodePorts, Unfiltered: f.Unfiltered, Unlogged: f.Log != logByNFLOG}
	if f.Migration != nil {
		former, err := mark.NewLayout(f.Migration.Mask)
		if err != nil {
			return desired.Node{}, fmt.Errorf("%w: %s: %w", state.ErrDamaged, state.NodeFile, err)
		}
		for _, id := range f.Migration.IDs {
			if uint32(id.From) > former.Max() || uint32(id.To) > layout.Max() {
				return desired.Node{}, fmt.Errorf("%w: %s: ID %d in mask %#x cannot become %d in %#x", state.ErrDamaged, state.NodeFile, id.From, former.Mask(), id.To, f.Mask)
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

func (n Node) step(name string) {
	if n.Step != nil {
		n.Step(name)
	}
}

// lock creates the state directory if need be and takes its lock.
func (n Node) lock(ctx context.Context) (func(), error) {
	return n.Store.Lock(ctx, n.LockTimeout)
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

// adoptSettings loads node.json and makes it agree with settings, deciding the backend
// if nobody has. What it changed is unsynced and not saved yet.
func (n Node) adoptSettings(ctx context.Context, settings Settings) (f nodeFile, changed bool, err error) {
	f, err = n.load()
	if errors.Is(err, errUninstalling) {
		if err := n.finishUninstall(ctx); err != nil {
			return nodeFile{}, false, err
		}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nodeFile{}, false, err
	}
	begins := false
	if errors.Is(err, fs.ErrNotExist) {
		f.PoliciesHash = noFile
		if err := n.Store.Remove(state.PoliciesFile); err != nil { // of an earlier life
			return nodeFile{}, false, err
		}
	}
	if wanted := settings.Layout.Mask(); f.Mask == 0 || wanted != 0 && f.Mask != wanted {
		empty, err := n.Store.Empty()
		if err != nil {
			return nodeFile{}, false, err
		}
		switch {
		case !empty && f.Mask == 0:
			return nodeFile{}, false, fmt.Errorf("%w: %s is missing although there are attachments; %s", state.ErrDamaged, state.NodeFile, startOver)
		case !empty:
			return nodeFile{}, false, fmt.Errorf("%w: it is %#x and the node's endpoints were given IDs in %#x; podmarkd moves them once every network says so; without it set the mask back, or drain the node first", ErrLayout, wanted, f.Mask)
		}
		begins = true
	}
	if f.AllowTunnels != settings.AllowTunnels {
		f.AllowTunnels, changed = settings.AllowTunnels, true
	}
	if !slices.Equal(f.NodePorts, settings.NodePorts) {
		f.NodePorts, changed = settings.NodePorts, true
	}
	backend, auto, bridge := f.Backend, f.Auto, f.Bridge
	if err := n.kernel().choose(&f, settings.Backend); err != nil {
		return nodeFile{}, false, err
	}
	if f.Backend != backend || f.Auto != auto || f.Bridge != bridge {
		changed = true
	}
	if f.Backend != backend {
		f.Log, f.LogLacks, f.Has = "", "", nil
	}
	if begins {
		layout, err := n.begins(ctx, f, settings)
		if err != nil {
			return nodeFile{}, false, err
		}
		f.Mask, f.Epoch, f.Indexed, changed = layout.Mask(), 1, true, true
		// Of another mask, or of an earlier life of podmark.
		if err := n.kernel().clearOtherEpochs(layout.ID(mark.None)); err != nil {
			return nodeFile{}, false, err
		}
		// No flow was judged, so nothing is narrowed.
		if f, err = n.fresh(f); err != nil {
			return nodeFile{}, false, err
		}
	}
	if changed {
		f.Synced = false
	}
	return f, changed, nil
}

// readRecords lists the attachments that are complete, each with the addresses that
// are still its own.
func (n Node) readRecords() ([]attachment.Record, error) {
	all, err := n.Store.List()
	if err != nil {
		return nil, err
	}
	var live []attachment.Record
	for _, r := range all {
		if r = n.owned(r); r.Committed && len(r.Addresses) > 0 {
			live = append(live, r)
		}
	}
	return live, nil
}

// owned is r with the addresses that no later attachment has taken over.
func (n Node) owned(r attachment.Record) attachment.Record {
	addresses := r.Addresses
	r.Addresses = nil
	for _, a := range addresses {
		if n.Store.Owns(r.Key, a) {
			r.Addresses = append(r.Addresses, a)
		}
	}
	return r
}

// unclaimed is r with the addresses that no other attachment has: also those that were taken from
// it before an earlier call ended.
func (n Node) unclaimed(r attachment.Record) attachment.Record {
	r.Addresses = slices.DeleteFunc(slices.Clone(r.Addresses), func(a addr) bool { return n.Store.Others(r.Key, a) })
	return r
}

// sync brings the whole node to what f and the attachments say, with those of
// coming among them, and notes it in f. A node that is moving arrives.
func (n Node) sync(ctx context.Context, f nodeFile, coming ...attachment.Record) (nodeFile, error) {
	f, err := n.index(f)
	if err != nil {
		return f, err
	}
	if f.Migration != nil {
		if f, err = n.rewrite(ctx, f); err != nil {
			return f, err
		}
		n.step("understands both")
		if f, err = n.finishMigration(f); err != nil {
			return f, err
		}
	}
	if f, _, err = n.surveyNow(f); err != nil {
		return f, err
	}
	return n.rewrite(ctx, f, coming...)
}

// index gives the records of an older podmark the numbers of their links.
func (n Node) index(f nodeFile) (nodeFile, error) {
	if f.Indexed {
		return f, nil
	}
	links, err := n.kernel().links()
	if err != nil {
		return f, err
	}
	known := hostport.LinksOf(links)
	records, err := n.Store.List()
	if err != nil {
		return f, err
	}
	for _, r := range records {
		if r.HostVethIndex != 0 {
			continue
		}
		if r.Endpoint = known.Locate(r.Endpoint); r.HostVethIndex == 0 {
			continue // its link is gone
		}
		if err := n.Store.Put(r); err != nil {
			return f, err
		}
	}
	f.Indexed = true
	return f, nil // saved with what follows
}

// rewrite makes the kernel hold what f and the attachments say, and notes that in f.
func (n Node) rewrite(ctx context.Context, f nodeFile, coming ...attachment.Record) (nodeFile, error) {
	if n.Programs {
		f.syncChecksums()
	}
	if err := n.kernel().ask(ctx, &f, n.LockTimeout); err != nil {
		return f, err
	}
	state, err := n.state(f, coming...)
	if err != nil {
		return f, err
	}
	// Half-way through, the sets can look complete while no hook leads to the rules.
	if f.Synced {
		f.Synced = false
		if err := n.saveBestEffort(f); err != nil {
			return f, err
		}
	}
	complete, err := n.fillSets(ctx, f, state)
	if err == nil {
		err = n.backend(f).Sync(ctx, state)
	}
	if err != nil {
		return f, fmt.Errorf("%w: %w", ErrBackend, err)
	}
	// Until here both judged, by the same IDs and the same epoch.
	if err := n.removeFormer(ctx, f); err != nil {
		return f, err
	}
	// Whoever has narrowed what is allowed may have ended before it came to this.
	f.reclaimed.add(n.reclaim(state))
	f.Former, f.Synced, f.Incomplete = nil, f.Migration == nil, !complete
	return f, n.saveBestEffort(f)
}

// saveBestEffort is save for a note that may be left out where there is no room: without it, whoever comes
// next does the same again. What is freed must not depend on room.
func (n Node) saveBestEffort(f nodeFile) error {
	err := n.save(f)
	if errors.Is(err, state.ErrNoRoom) {
		return nil
	}
	return err
}

// fillSets makes peer and tuple sets hold exactly who belongs there, one after the other: all
// of them together are large. It reports whether that is known.
func (n Node) fillSets(ctx context.Context, f nodeFile, state desired.State) (known bool, err error) {
	for set := range state.Sets() {
		if f.Kubernetes {
			if n.RemoteMembers == nil {
				return false, nil
			}
			if set, known = n.RemoteMembers(set); !known {
				return false, nil
			}
		}
		if _, err := n.backend(f).Fill(ctx, set); err != nil {
			return false, err
		}
	}
	return true, nil
}

// state derives the whole node's state, of the committed attachments and coming. Pods
// elsewhere are not in its sets.
func (n Node) state(f nodeFile, coming ...attachment.Record) (desired.State, error) {
	node, err := f.node()
	if err != nil {
		return desired.State{}, err
	}
	if node.HostAddresses, err = n.kernel().addresses(); err != nil {
		return desired.State{}, err
	}
	records, err := n.records()
	if err != nil {
		return desired.State{}, err
	}
	former := map[attachment.Key]mark.ID{}
	for i, r := range records {
		if f.Migration == nil {
			break
		}
		if id, ok := f.Migration.IDs[r.Hash()]; ok {
			records[i].ID, former[r.Key] = id.To, id.From
		}
	}
	if err := fits(node.Layout, records...); err != nil {
		return desired.State{}, err
	}
	s := desired.Build(node, f.Policies, append(records, coming...))
	for i, e := range s.Endpoints {
		s.Endpoints[i].FormerID = former[e.Key]
	}
	s.Applied = f.applied()
	return s, nil
}

// applied reports whether the node was ever given policies, be it none.
func (f nodeFile) applied() bool { return f.Kubernetes || f.PoliciesHash != noFile }

// fits is ErrDamaged where the layout has no bits for the ID of a record, and names its file.
func fits(layout mark.Layout, records ...attachment.Record) error {
	for _, r := range records {
		if uint32(r.ID) > layout.Max() {
			return fmt.Errorf("%w: \"attachments/%s\": ID %d does not fit iptablesMarkMask %#x, which has those up to %d; run 'podmarkctl gc'", state.ErrDamaged, r.Hash(), r.ID, layout.Mask(), layout.Max())
		}
	}
	return nil
}

// share derives the part of the state that is these records', which fit. It knows the
// epoch and the layout but not the host's addresses.
func (f nodeFile) share(records ...attachment.Record) (desired.State, error) {
	node, err := f.node()
	if err != nil {
		return desired.State{}, err
	}
	if err := fits(node.Layout, records...); err != nil {
		return desired.State{}, err
	}
	return desired.Build(node, f.Policies, records), nil
}

// prepare brings a node that is unsynced, or whose frame is gone, up to date before
// r comes. The rules that r will need are written on the way, with nobody in them, so that
// its ADD needs no second restore.
func (n Node) prepare(ctx context.Context, f nodeFile, r attachment.Record) (nodeFile, error) {
	node, err := f.node()
	if err != nil {
		return f, err
	}
	if f.Synced {
		err := n.backend(f).Stands(ctx, node)
		if err == nil {
			return f, nil
		}
		if !dataplane.Drifted(err) {
			return f, fmt.Errorf("%w: %w", ErrBackend, err)
		}
	}
	r.Addresses, r.Gateways = nil, nil
	if f, err = n.sync(ctx, f, r); err != nil {
		return f, err
	}
	n.step("synced")
	return f, nil
}

// update moves the node from the attachments of before to those of kept, which are
// noted, and of coming, which are not yet. A node that is unsynced or whose frame
// is gone is rewritten whole instead.
func (n Node) update(ctx context.Context, f nodeFile, before, kept []attachment.Record, coming ...attachment.Record) error {
	sharers, err := n.sharers(before, slices.Concat(before, kept, coming))
	if err != nil {
		return err
	}
	from, errFrom := f.share(slices.Concat(before, sharers)...)
	to, errTo := f.share(slices.Concat(kept, coming, sharers)...)
	if err := errors.Join(errFrom, errTo); err != nil {
		return err
	}
	if !f.Synced {
		_, err := n.sync(ctx, f, coming...)
		return err
	}
	err = n.backend(f).Update(ctx, from, to)
	switch {
	case err == nil:
		return nil
	case dataplane.Drifted(err):
		_, err = n.sync(ctx, f, coming...)
		return err
	}
	// Half a change may be in the kernel: let the next one start from scratch.
	f.Synced = false
	return errors.Join(fmt.Errorf("%w: %w", ErrBackend, err), n.save(f))
}

// sharers are the attachments, but for those of known, that have a further source prefix of
// one of leaving. Behind IPVS, iptables knows such a prefix by its profile alone, so it stays
// there with the last that has it.
func (n Node) sharers(leaving, known []attachment.Record) ([]attachment.Record, error) {
	if !slices.ContainsFunc(leaving, func(r attachment.Record) bool { return len(r.AllowedSources) > 0 }) {
		return nil, nil
	}
	records, err := n.records()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(slices.Clone(records), func(other attachment.Record) bool {
		return slices.ContainsFunc(known, func(r attachment.Record) bool { return r.Key == other.Key }) ||
			!slices.ContainsFunc(leaving, func(r attachment.Record) bool {
				return slices.ContainsFunc(r.AllowedSources, func(p netip.Prefix) bool { return slices.Contains(other.AllowedSources, p) })
			})
	}), nil
}
