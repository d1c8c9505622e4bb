package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/dataplane/counters"
	"github.com/podmark/podmark/pkg/dataplane/drift"
	"github.com/podmark/podmark/pkg/dataplane/ipset"
	"github.com/podmark/podmark/pkg/dataplane/iptables"
	"github.com/podmark/podmark/pkg/dataplane/nftables"
	"github.com/podmark/podmark/pkg/desired"
)

// Backend makes the kernel agree with a state. Its user holds the node's lock, but
// for Counters.
type Backend interface {
	// Sync makes the kernel hold exactly want. Of peer and tuple sets it makes those of want,
	// and leaves in them who is there besides. Like Update, it takes desired.ErrEmpty's state
	// for a fault and changes nothing.
	Sync(ctx context.Context, want desired.State) error
	// Remove takes everything of the backend's out of the kernel.
	Remove(ctx context.Context) error
	// Fill makes the peer and tuple sets of want hold exactly who is in them there, and
	// says how many elements came and went. It makes those that are not there, and looks
	// at nothing else.
	Fill(ctx context.Context, want desired.State) (changed int, err error)
	// Holds reports whether the kernel's peer and tuple sets hold everybody who is in those
	// of want.
	Holds(ctx context.Context, want desired.State) (bool, error)
	// Update moves the endpoints of from to what to says and touches nothing else.
	Update(ctx context.Context, from, to desired.State) error
	// Stands reports whether the rules are there that do not depend on who is on the node, by
	// their number: it costs next to nothing.
	Stands(ctx context.Context, n desired.Node) error
	// Check reports what of want is not in place, changing nothing, as far as no process is
	// needed to tell: also a rule of the frame, or of want's profiles, that another one has taken the place of.
	Check(ctx context.Context, want desired.State) error
	// Verify does too, and looks closer: at what only a process can tell.
	Verify(ctx context.Context, want desired.State) error
	// Keep is Verify, with more. What belongs to the node and not to an
	// endpoint it brings up to date, without writing a rule, and names it.
	Keep(ctx context.Context, want desired.State) (replaced []string, err error)
	// Counters reads what each rule that drops has counted since it was written. It
	// changes nothing, and needs no lock.
	Counters(ctx context.Context) ([]counters.Rule, error)
}

// incomplete holds for what a backend returns that a Sync would fix.
func incomplete(err error) bool {
	return errors.Is(err, drift.Err)
}

// variants are the kinds that iptables enforces.
var variants = map[config.Kind]iptables.Variant{config.IPTablesNFT: iptables.NFT, config.IPTablesLegacy: iptables.Legacy}

func kindOf(v iptables.Variant) config.Kind { return config.Kind("iptables-" + string(v)) }

func (n Node) backend(f nodeFile) Backend {
	if n.Programs && f.Checksums == checksumsByBPF {
		return Checksummed{n.kernel().backend(n, f)}
	}
	return n.kernel().backend(n, f)
}

// judge is the backend without what is beside each of them.
func (n Node) judge(f nodeFile) Backend {
	if f.Backend == config.NFTables {
		return nftables.Backend{Step: n.Step}
	}
	b := iptables.Backend{Variant: variants[f.Backend], Wait: n.LockTimeout, Step: n.Step, Lacks: f.lacks()}
	for _, k := range f.Former {
		if v, ok := variants[k]; ok {
			b.Former = append(b.Former, v)
		}
	}
	if f.Bridge == bridgeByNFTables {
		return Guarded{Backend: b, Guard: nftables.Guard{Step: n.Step}}
	}
	return b
}

// choose decides what enforces. What auto finds out is noted, and not asked again.
func (f *nodeFile) choose(wanted config.Backend) error {
	kind := f.Backend
	switch {
	case wanted == config.BackendAuto && f.Auto == "":
		var err error
		if f.Auto, err = detect(); err != nil {
			return err
		}
		kind = f.Auto
	case wanted == config.BackendAuto:
		kind = f.Auto
	case wanted == config.BackendNFTables && kind != config.NFTables:
		if err := nftables.Probe(); err != nil {
			return fmt.Errorf("%w: %w", ErrBackend, err)
		}
		kind = config.NFTables
	case wanted == config.BackendIPTables && variants[kind] == "":
		v, err := iptables.Detect()
		if err != nil {
			return fmt.Errorf("%w: %w", ErrBackend, err)
		}
		kind = kindOf(v)
	}
	if kind != config.NFTables && f.Bridge == "" {
		f.askBridge()
	}
	if kind == f.Backend {
		return nil
	}
	if f.Backend == "" {
		f.Former = leftovers()
	} else {
		f.Former = append(f.Former, f.Backend)
	}
	f.Former = slices.DeleteFunc(f.Former, func(k config.Kind) bool { return k == kind })
	f.Backend = kind
	return nil
}

// What file.Log says.
const (
	logByNFLOG = "nflog"
	logNowhere = "none"
)

// askLog notes whether what the backend drops can be logged. Where it cannot, podmark
// enforces all the same, and asks again when it writes everything anew.
func (f *nodeFile) askLog(ctx context.Context, wait time.Duration) error {
	if f.Log == logByNFLOG {
		return nil
	}
	var lacking, err error
	if v, ok := variants[f.Backend]; ok {
		if lacking, err = iptables.Logs(ctx, v, wait); err != nil {
			return fmt.Errorf("%w: %w", ErrBackend, err)
		}
	} else {
		lacking = nftables.Logs()
	}
	f.Log, f.LogLacks = logByNFLOG, ""
	if lacking != nil {
		f.Log, f.LogLacks = logNowhere, lacking.Error()
	}
	return nil
}

// What file.Bridge says.
const (
	bridgeByNFTables = "nftables"
	bridgeUnfiltered = "none"
)

// askBridge notes whether nftables can ask for senders and guard the ports of bridges beside
// iptables. Where it cannot, podmark asks again when it writes everything anew.
func (f *nodeFile) askBridge() {
	if f.Bridge == bridgeByNFTables {
		return
	}
	f.Bridge, f.BridgeLacks = bridgeByNFTables, ""
	if lacking := nftables.ProbeGuard(); lacking != nil {
		f.Bridge, f.BridgeLacks = bridgeUnfiltered, lacking.Error()
	}
}

// askKernel notes what of that the kernel can do which the backend can do without. It asks
// again what was lacking.
func (f *nodeFile) askKernel(ctx context.Context, wait time.Duration) error {
	if err := f.askLog(ctx, wait); err != nil {
		return err
	}
	v, ok := variants[f.Backend]
	if !ok {
		return nil
	}
	f.askBridge()
	for _, feature := range f.lacks() {
		lacking, err := iptables.Lacking(ctx, v, wait, feature)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrBackend, err)
		}
		if lacking == nil {
			f.Has = append(f.Has, feature)
		}
	}
	return nil
}

// lacks lists what iptables does without.
func (f nodeFile) lacks() []iptables.Feature {
	return slices.DeleteFunc(iptables.Features(), func(feature iptables.Feature) bool { return slices.Contains(f.Has, feature) })
}

// Unlogged says what is lacking to log the packets that are dropped; empty where they
// are logged, and where podmark has not asked yet.
func (n Node) Unlogged() (string, error) {
	f, err := n.load()
	return f.LogLacks, err
}

// usable reports why what choose would choose cannot be used. It changes nothing.
func (f nodeFile) usable(wanted config.Backend) error {
	kind := f.Backend
	switch {
	case wanted == config.BackendAuto:
		kind = f.Auto
	case wanted == config.BackendNFTables:
		kind = config.NFTables
	case variants[kind] == "":
		kind = kindOf("") // whichever variant there is
	}
	var err error
	switch {
	case kind == "":
		_, err = detect()
	case kind != config.NFTables:
		err = iptables.Usable(variants[kind])
	case f.Backend != config.NFTables:
		err = nftables.Probe()
	}
	if err != nil && !errors.Is(err, ErrBackend) {
		err = fmt.Errorf("%w: %w", ErrBackend, err)
	}
	return err
}

// detect finds what auto stands for.
func detect() (config.Kind, error) {
	lacking := nftables.Probe()
	if lacking == nil {
		return config.NFTables, nil
	}
	v, err := iptables.Detect()
	if err != nil {
		return "", fmt.Errorf("%w: %w; %w", ErrBackend, lacking, err)
	}
	return kindOf(v), nil
}

// leftovers are the backends of which something may be in the kernel although no
// file says so.
func leftovers() []config.Kind {
	kinds := []config.Kind{config.NFTables}
	conn, err := ipset.Dial()
	if err != nil {
		return kinds // and no set can be there
	}
	defer conn.Close()
	if names, err := conn.Names(); err != nil || slices.ContainsFunc(names, iptables.Owns) {
		for k, v := range variants {
			if iptables.Usable(v) == nil {
				kinds = append(kinds, k)
			}
		}
	}
	return kinds
}

// removeFormer takes what is left of the former backends out of the kernel. A
// variant of iptables has done that with the other one's rules, and its guard with
// nftables'.
func (n Node) removeFormer(ctx context.Context, f nodeFile) error {
	var rest []config.Kind
	for _, k := range f.Former {
		if variants[f.Backend] == "" || k == config.NFTables && f.Bridge != bridgeByNFTables {
			rest = append(rest, k)
		}
	}
	return n.kernel().remove(ctx, n.LockTimeout, rest)
}

// remove takes everything of these backends out of the kernel.
func remove(ctx context.Context, wait time.Duration, kinds []config.Kind) error {
	var of []iptables.Variant
	for _, k := range kinds {
		if k != config.NFTables {
			of = append(of, variants[k])
			continue
		}
		if err := (nftables.Backend{}).Remove(ctx); err != nil {
			return fmt.Errorf("%w: removing what %s has: %w", ErrBackend, k, err)
		}
	}
	if len(of) == 0 {
		return nil
	}
	// Their sets are the same ones, so they go together.
	if err := (iptables.Backend{Variant: of[0], Former: of[1:], Wait: wait}).Remove(ctx); err != nil {
		return fmt.Errorf("%w: removing what iptables has: %w", ErrBackend, err)
	}
	return nil
}
