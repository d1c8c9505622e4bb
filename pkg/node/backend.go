package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/dataplane"
	"github.com/podmark/podmark/pkg/dataplane/ipset"
	"github.com/podmark/podmark/pkg/dataplane/iptables"
	"github.com/podmark/podmark/pkg/dataplane/nftables"
)

// variants are the kinds that iptables enforces.
var variants = map[config.Kind]iptables.Variant{config.IPTablesNFT: iptables.NFT, config.IPTablesLegacy: iptables.Legacy}

func kindOf(v iptables.Variant) config.Kind { return config.Kind("iptables-" + string(v)) }

func (n Node) backend(f nodeFile) dataplane.Backend {
	if n.Programs && f.Checksums == checksumsByBPF {
		return dataplane.Checksummed{Backend: n.kernel().backend(n, f)}
	}
	return n.kernel().backend(n, f)
}

// judge is the backend without what is beside each of them.
func (n Node) judge(f nodeFile) dataplane.Backend {
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
		return dataplane.Guarded{Backend: b, Guard: nftables.Guard{Step: n.Step}}
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
