package node

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/dataplane"
	"github.com/podmark/podmark/pkg/dataplane/iptables"
	"github.com/podmark/podmark/pkg/dataplane/nftables"
)

// backendOf enforces what f says.
func (n Node) backendOf(f nodeFile) dataplane.Backend {
	if n.Programs && f.Checksums == checksumsByBPF {
		return dataplane.Checksummed{Backend: n.kernel().backend(n, f)}
	}
	return n.kernel().backend(n, f)
}

// reader tells what the backend has in the kernel.
func (n Node) reader(f nodeFile) dataplane.Reader { return n.kernel().backend(n, f) }

// kind is that of the backend; a file that names none counts as one of iptables.
func (f nodeFile) kind() dataplane.Kind {
	if k, ok := dataplane.KindOf(f.Backend); ok {
		return k
	}
	k, _ := dataplane.KindOf(config.IPTablesNFT)
	return k
}

// judge is the backend without what is beside each of them.
func (n Node) judge(f nodeFile) dataplane.Enforcer {
	return f.kind().New(dataplane.Options{
		Wait: n.LockTimeout, Step: n.Step, Lacks: f.lacks(), Former: f.Former,
		Guarded: f.Bridge == bridgeByNFTables,
	})
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
	case wanted == config.BackendIPTables && !ofIPTables(kind):
		var err error
		if kind, err = dataplane.DetectIPTables(); err != nil {
			return fmt.Errorf("%w: %w", ErrBackend, err)
		}
	}
	if kind != config.NFTables && f.Bridge == "" {
		f.askBridge()
	}
	if kind == f.Backend {
		return nil
	}
	if f.Backend == "" {
		f.Former = dataplane.Leftovers()
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
// enforces all the same, and asks again when it writes everything again.
func (f *nodeFile) askLog(ctx context.Context, wait time.Duration) error {
	if f.Log == logByNFLOG {
		return nil
	}
	lacking, err := f.kind().Logs(ctx, wait)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrBackend, err)
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
// iptables. Where it cannot, podmark asks again when it writes everything again.
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
	kind := f.kind()
	if kind.Lacks == nil {
		return nil
	}
	f.askBridge()
	for _, feature := range f.lacks() {
		lacking, err := kind.Lacks(ctx, wait, feature)
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
	return slices.DeleteFunc(iptables.Features(),
		func(feature iptables.Feature) bool { return slices.Contains(f.Has, feature) })
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
	case !ofIPTables(kind): // whichever variant there is
		if err := dataplane.UsableIPTables(); err != nil {
			return fmt.Errorf("%w: %w", ErrBackend, err)
		}
		return nil
	}
	if kind == "" {
		_, err := detect()
		return err
	}
	if kind == config.NFTables && f.Backend == config.NFTables {
		return nil // its rules are there
	}
	row, _ := dataplane.KindOf(kind)
	if err := row.Usable(); err != nil {
		return fmt.Errorf("%w: %w", ErrBackend, err)
	}
	return nil
}

// ofIPTables reports whether iptables enforces.
func ofIPTables(k config.Kind) bool { return k != "" && k.Backend() == config.BackendIPTables }

// detect finds what auto stands for.
func detect() (config.Kind, error) {
	kind, err := dataplane.Detect()
	if err != nil {
		err = fmt.Errorf("%w: %w", ErrBackend, err)
	}
	return kind, err
}
