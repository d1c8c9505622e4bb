package testnode

import (
	"slices"
	"strings"
	"testing"

	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/dataplane"
	"github.com/podmark/podmark/test/share"
)

// Backend is what enforces on a test's node.
type Backend struct {
	Name    string // as node.json has it
	Key     string // as the conflist has it; "" leaves the key out
	Variant string // of iptables, in which the kubelet has its chain; "" is a node without kubelet
}

// String is its name.
func (b Backend) String() string { return b.Name }

// The backends. A test that is about all of them ranges over [Backends].
var (
	NFTables       = backendOf(config.NFTables)
	IPTablesNFT    = backendOf(config.IPTablesNFT)
	IPTablesLegacy = backendOf(config.IPTablesLegacy)
)

// Backends are those of [dataplane.Kinds].
var Backends = func() (all []Backend) {
	for _, k := range dataplane.Kinds {
		all = append(all, backendOf(k.Name))
	}
	return all
}()

// Variants are those of iptables.
var Variants = func() (all []string) {
	for _, b := range Backends {
		if !slices.Contains(all, b.Variant) {
			all = append(all, b.Variant)
		}
	}
	return all
}()

func backendOf(kind config.Kind) Backend {
	variant, is := strings.CutPrefix(string(kind), "iptables-")
	if !is {
		variant = "nft" // shares the kernel's nf_tables with nftables
	}
	return Backend{Name: string(kind), Key: string(kind.Backend()), Variant: variant}
}

// Each runs test on a node of each backend, all at once; of a share, on a node of one. newNode
// makes the node: a program's tests have methods of their own on it.
func Each[N any](t *testing.T, list []Backend, newNode func(*testing.T, Backend) N, test func(*testing.T, N)) {
	t.Parallel()
	for _, b := range share.OneOf(t, list) {
		t.Run(b.Name, func(t *testing.T) {
			t.Parallel()
			test(t, newNode(t, b))
		})
	}
}
