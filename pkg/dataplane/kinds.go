package dataplane

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/dataplane/ipset"
	"github.com/podmark/podmark/pkg/dataplane/iptables"
	"github.com/podmark/podmark/pkg/dataplane/nftables"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/explain"
)

// Enforcer is a backend of which what it has in the kernel can be read.
type Enforcer interface {
	Backend
	Reader
}

// Options are what backends of one kind differ in from node to node.
type Options struct {
	// Wait is how long to wait for other users of xtables.
	Wait time.Duration
	// Step, if set, is called after each step with its name.
	Step func(string)
	// Lacks are the features that iptables does without.
	Lacks []iptables.Feature
	// Former are kinds of which something may be left in the kernel.
	Former []config.Kind
	// Guarded has nftables guard the ports of bridges beside iptables.
	Guarded bool
}

// Kind is a row of the registry: what there is to know of a kind of backend without a node. Code
// that is about each kind ranges over [Kinds].
type Kind struct {
	Name config.Kind
	// New makes a backend of the kind.
	New func(o Options) Enforcer
	// Render is what a Sync writes, as text.
	Render func(desired.State) Rendered
	// GuardsBridges is set where the backend judges what the ports of a bridge send each other. Beside
	// others, nftables does.
	GuardsBridges bool
	// SCTPInRules is set where a change of the NodePorts of SCTP is a change of rules.
	SCTPInRules bool
	// ByName is set where rules know links by their names, and not by their numbers.
	ByName bool
	// Modules are those of the kernel that the backend needs, and LogModules those that it needs to
	// log what it drops.
	Modules, LogModules []string
	// Chains are what explain names.
	Chains explain.Chains
	// Usable is why this node cannot have it; nil where it can.
	Usable func() error
	// Logs is what is lacking to log what it drops; nil where nothing is. err is why that is not
	// known.
	Logs func(ctx context.Context, wait time.Duration) (lacking, err error)
	// Lacks is why the kind must do without a feature; nil where it need not. Of a kind that can do
	// without none, the func is nil.
	Lacks func(ctx context.Context, wait time.Duration, f iptables.Feature) (lacking, err error)
}

// Rendered is what a backend writes: a ruleset in the form of nft, and for iptables two families. The
// ruleset beside those guards the ports of bridges.
type Rendered struct {
	Ruleset  string              `json:"ruleset,omitempty"`
	Families []iptables.Rendered `json:"families,omitempty"`
}

// Kinds is the registry, in the order in which a node is searched for what is left of them.
var Kinds = []Kind{
	{
		Name:   config.NFTables,
		New:    func(o Options) Enforcer { return nftables.Backend{Step: o.Step} },
		Render: func(s desired.State) Rendered { return Rendered{Ruleset: nftables.Render(s)} },

		GuardsBridges: true,
		Modules:       []string{"nf_tables", "nft_ct", "nft_fib_inet", "nft_meta_bridge"},
		LogModules:    []string{"nfnetlink_log", "nft_log"},

		Chains: explain.Chains{
			Guard: "bridge-ports", Between: "between-ports", Sender: "sender", Input: "input",
			Host: "host", Forward: "forward", Output: "output",
		},
		Usable: nftables.Probe,
		Logs:   func(context.Context, time.Duration) (lacking, err error) { return nftables.Logs(), nil },
	},
	ofIPTables(config.IPTablesNFT, iptables.NFT),
	ofIPTables(config.IPTablesLegacy, iptables.Legacy),
}

func ofIPTables(name config.Kind, v iptables.Variant) Kind {
	return Kind{
		Name: name,
		New: func(o Options) Enforcer {
			b := iptables.Backend{Variant: v, Wait: o.Wait, Step: o.Step, Lacks: o.Lacks, Former: variantsOf(o.Former)}
			if o.Guarded {
				return Guarded{Backend: b, Guard: nftables.Guard{Step: o.Step}}
			}
			return b
		},
		Render: func(s desired.State) Rendered {
			return Rendered{Ruleset: nftables.RenderGuard(s), Families: iptables.Render(s)}
		},
		SCTPInRules: true,
		ByName:      true,
		Modules: []string{
			"ip_set", "xt_set", "ip_set_hash_netiface", "ip_set_hash_net", "ip_set_hash_ip",
			"ip_set_bitmap_port",
		},
		LogModules: []string{"nfnetlink_log", "xt_NFLOG", "xt_limit"},
		Chains: explain.Chains{
			Guard: "bridge-ports", Between: "between-ports", Sender: "PODMARK-SENDER",
			Input: "PODMARK-INPUT", Forward: "PODMARK-FORWARD", Output: "PODMARK-OUTPUT", Unmark: "PODMARK-CLEAR",
		},
		Usable: func() error { return iptables.Usable(v) },
		Logs: func(ctx context.Context, wait time.Duration) (lacking, err error) {
			return iptables.Logs(ctx, v, wait)
		},
		Lacks: func(ctx context.Context, wait time.Duration, f iptables.Feature) (lacking, err error) {
			return iptables.Lacking(ctx, v, wait, f)
		},
	}
}

// variantsOf are the variants of iptables among kinds.
func variantsOf(kinds []config.Kind) []iptables.Variant {
	var out []iptables.Variant
	for _, k := range kinds {
		switch k {
		case config.IPTablesNFT:
			out = append(out, iptables.NFT)
		case config.IPTablesLegacy:
			out = append(out, iptables.Legacy)
		}
	}
	return out
}

// KindOf is the row of that name; ok is false where there is none.
func KindOf(name config.Kind) (k Kind, ok bool) {
	i := slices.IndexFunc(Kinds, func(k Kind) bool { return k.Name == name })
	if i < 0 {
		return Kind{}, false
	}
	return Kinds[i], true
}

// OfBackend is the first row of a backend; ok is false where there is none.
func OfBackend(b config.Backend) (k Kind, ok bool) {
	i := slices.IndexFunc(Kinds, func(k Kind) bool { return k.Name.Backend() == b })
	if i < 0 {
		return Kind{}, false
	}
	return Kinds[i], true
}

// ChainsOf are the chains of a backend.
func ChainsOf(b config.Backend) explain.Chains {
	k, _ := OfBackend(b)
	return k.Chains
}

// Detect is the kind that "auto" stands for on this node: nftables where the kernel can, else
// the iptables that the node uses.
func Detect() (config.Kind, error) {
	lacking := nftables.Probe()
	if lacking == nil {
		return config.NFTables, nil
	}
	k, err := DetectIPTables()
	if err != nil {
		return "", fmt.Errorf("%w; %w", lacking, err)
	}
	return k, nil
}

// DetectIPTables is the kind of iptables that the node uses.
func DetectIPTables() (config.Kind, error) {
	v, err := iptables.Detect()
	return config.Kind("iptables-" + string(v)), err
}

// UsableIPTables is why this node can have no kind of iptables; nil where it can. It starts no
// process, so which it would be is not known.
func UsableIPTables() error { return iptables.Usable("") }

// Leftovers are the kinds of which something may be in the kernel although no file says so.
func Leftovers() []config.Kind {
	kinds := []config.Kind{config.NFTables}
	conn, err := ipset.Dial()
	if err != nil {
		return kinds // and no set can be there
	}
	defer conn.Close()
	if names, err := conn.Names(); err != nil || slices.ContainsFunc(names, iptables.Owns) {
		for _, k := range Kinds {
			if k.Name != config.NFTables && k.Usable() == nil {
				kinds = append(kinds, k.Name)
			}
		}
	}
	return kinds
}

// Remove takes everything of backends of these kinds out of the kernel.
func Remove(ctx context.Context, wait time.Duration, kinds []config.Kind) error {
	if slices.Contains(kinds, config.NFTables) {
		if err := (nftables.Backend{}).Remove(ctx); err != nil {
			return fmt.Errorf("removing what %s has: %w", config.NFTables, err)
		}
	}
	variants := variantsOf(kinds)
	if len(variants) == 0 {
		return nil
	}
	// Their sets are the same ones, so they go together.
	if err := (iptables.Backend{Variant: variants[0], Former: variants[1:], Wait: wait}).Remove(ctx); err != nil {
		return fmt.Errorf("removing what iptables has: %w", err)
	}
	return nil
}
