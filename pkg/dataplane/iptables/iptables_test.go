package iptables

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/dataplane/drift"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/mark"
	"github.com/podmark/podmark/test/netns"
	"github.com/podmark/podmark/test/saved"
	"github.com/podmark/podmark/test/share"
	"github.com/podmark/podmark/test/wait"
)

var variants = []Variant{NFT, Legacy}

// records are so many policed endpoints, each behind a veth of its own.
func records(n int) []attachment.Record {
	var out []attachment.Record
	for i := range n {
		name := fmt.Sprintf("veth%d", i)
		out = append(out, attachment.Record{
			Key: attachment.Key{Network: "net", ContainerID: name, IfName: "eth0"}, ID: mark.First + mark.ID(i), Policed: true, Committed: true,
			Endpoint: attachment.Endpoint{
				Namespace: "one", Pod: name, L3Interface: name, HostVeth: name,
				Addresses:      []netip.Addr{netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), netip.MustParseAddr(fmt.Sprintf("fd00:1::%x", i+1))},
				AllowedSources: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 2, byte(i), 0}), 24), netip.MustParsePrefix(fmt.Sprintf("fd00:2:%x::/48", i))},
			},
		})
	}
	return out
}

// stateOf is a node with these endpoints, all of them denied everything, or audited.
func stateOf(t *testing.T, audit bool, records ...attachment.Record) desired.State {
	t.Helper()
	layout, err := mark.NewLayout(0xffff0000)
	if err != nil {
		t.Fatal(err)
	}
	ports := []desired.PortRange{{First: 30000, Last: 32767}}
	node := desired.Node{
		Layout: layout, Epoch: 1, NodePorts: ports, SCTPPorts: ports, HostAddresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
		Tunnels: desired.Tunnels{UDPPorts: []uint16{4789, 8472}, Protocols: []uint8{4, 47}},
	}
	deny := desired.Policy{Namespace: "one", Name: "deny", Ingress: &desired.Isolation{}, Egress: &desired.Isolation{}, Audit: audit}
	return desired.Build(node, desired.Policies{Policies: []desired.Policy{deny}}, records)
}

// eachVariant runs test in a network namespace of its own.
func eachVariant(t *testing.T, test func(t *testing.T, b Backend)) {
	for _, v := range share.OneOf(t, variants) {
		t.Run(string(v), func(t *testing.T) {
			netns.Enter(t)
			test(t, Backend{Variant: v, Wait: 30 * time.Second})
		})
	}
}

// rules are those of ours that both families have.
func rules(t *testing.T, b Backend) string {
	t.Helper()
	var out strings.Builder
	for _, f := range []string{"iptables-", "ip6tables-"} {
		for line := range strings.Lines(saved.Rules(t, f+string(b.Variant))) {
			if strings.Contains(line, ChainPrefix) {
				out.WriteString(f + line)
			}
		}
	}
	return out.String()
}

// The kernel keeps 64 interfaces behind one prefix, and a node may have more endpoints.
// What came with them goes with them.
func TestManyEndpoints(t *testing.T) {
	eachVariant(t, func(t *testing.T, b Backend) {
		ctx := context.Background()
		list := records(150)
		nobody, all := stateOf(t, false), stateOf(t, false, list...)
		if err := b.Sync(ctx, nobody); err != nil {
			t.Fatal(err)
		}
		before := rules(t, b)
		if err := b.Update(ctx, desired.Share{State: nobody}, desired.Share{State: all}); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(b.Check(ctx, all, drift.Content), b.Check(ctx, all, drift.Deep)); err != nil {
			t.Error(err)
		}
		if err := b.Update(ctx, desired.Share{State: stateOf(t, false, list[60:]...)}, desired.Share{State: nobody}); err != nil {
			t.Fatal(err)
		}
		left := stateOf(t, false, list[:60]...)
		if err := errors.Join(b.Check(ctx, left, drift.Content), b.Check(ctx, left, drift.Deep)); err != nil {
			t.Error(err)
		}
		if err := b.Update(ctx, desired.Share{State: left}, desired.Share{State: nobody}); err != nil {
			t.Fatal(err)
		}
		if after := rules(t, b); after != before {
			t.Errorf("left behind:\n%s\nof\n%s", after, before)
		}
		if err := b.Sync(ctx, all); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(b.Check(ctx, all, drift.Content), b.Check(ctx, all, drift.Deep)); err != nil {
			t.Error(err)
		}
		whole := rules(t, b)
		for _, err := range []error{b.Sync(ctx, desired.State{}), b.Update(ctx, desired.Share{State: all}, desired.Share{State: desired.State{}})} {
			if !errors.Is(err, desired.ErrEmpty) {
				t.Errorf("no node's state: %v", err)
			}
		}
		if after := rules(t, b); after != whole {
			t.Errorf("no node's state has left\n%s\nof\n%s", after, whole)
		}
		if err := b.Remove(ctx); err != nil {
			t.Fatal(err)
		}
		if after := rules(t, b); after != "" {
			t.Errorf("left behind:\n%s", after)
		}
	})
}

// A profile is everybody's who is in it by an address of any family: it goes with the last of
// them, and not with the last of one family.
func TestFamilyOfOne(t *testing.T) {
	eachVariant(t, func(t *testing.T, b Backend) {
		ctx := context.Background()
		ipv4 := records(2)
		for i := range ipv4 {
			ipv4[i].Addresses, ipv4[i].AllowedSources = ipv4[i].Addresses[:1], nil
		}
		both := records(3)[2]
		for name, order := range map[string][]attachment.Record{
			"IPv4 only": ipv4, "both first": {both, ipv4[0]}, "both last": {ipv4[0], both},
		} {
			nobody, all := stateOf(t, false), stateOf(t, false, order...)
			if err := b.Sync(ctx, nobody); err != nil {
				t.Fatal(err)
			}
			before := rules(t, b)
			if err := errors.Join(b.Update(ctx, desired.Share{State: nobody}, desired.Share{State: all}), b.Check(ctx, all, drift.Content)); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			left := stateOf(t, false, order[1:]...)
			if err := b.Update(ctx, desired.Share{State: stateOf(t, false, order[0])}, desired.Share{State: nobody}); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if err := errors.Join(b.Check(ctx, left, drift.Content), b.Check(ctx, left, drift.Deep)); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if err := b.Update(ctx, desired.Share{State: left}, desired.Share{State: nobody}); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if after := rules(t, b); after != before {
				t.Errorf("%s: left behind:\n%s\nof\n%s", name, after, before)
			}
		}
	})
}

// What the kernel lacks is left out, comes when it is there, and goes again.
func TestFeatures(t *testing.T) {
	eachVariant(t, func(t *testing.T, b Backend) {
		ctx := context.Background()
		for _, f := range Features() {
			lacking, err := Lacking(ctx, b.Variant, b.Wait, f)
			if lacking != nil || err != nil {
				t.Fatalf("this kernel lacks %s: %v, %v", f, lacking, err)
			}
		}
		if left := rules(t, b); left != "" {
			t.Errorf("asking has left\n%s", left)
		}
		s, next := stateOf(t, true, records(1)...), stateOf(t, true, records(1)...)
		next.Epoch++
		for _, lacks := range [][]Feature{{Security}, nil, {BPF}, Features()} {
			b.Lacks = lacks
			if err := errors.Join(b.Sync(ctx, s), b.Check(ctx, s, drift.Deep), b.Update(ctx, desired.Share{State: s}, desired.Share{State: next}), b.Check(ctx, next, drift.Deep)); err != nil {
				t.Fatalf("without %q: %v", lacks, err)
			}
			all := rules(t, b)
			for what, f := range map[string]Feature{chainClear: Security, "-m bpf": BPF} {
				if there := strings.Contains(all, what); there == slices.Contains(lacks, f) {
					t.Errorf("without %q: %s is there: %t", lacks, what, there)
				}
			}
		}
	})
}

// Whichever chain with a set in it another program empties, an ADD notices. The references that
// the frame is expected to have are those that the kernel counts.
func TestEveryChainCounts(t *testing.T) {
	eachVariant(t, func(t *testing.T, b Backend) {
		ctx := context.Background()
		s := stateOf(t, true, records(1)...)
		f := map[Variant]family{NFT: v4, Legacy: v6}[b.Variant]
		for _, c := range chainsOf(s, naming{f, genA}) {
			if !slices.ContainsFunc(c.rules, func(r string) bool { return strings.Contains(r, "-set ") }) {
				continue
			}
			if err := errors.Join(b.Sync(ctx, s), b.Check(ctx, s, drift.Content)); err != nil {
				t.Fatal(err)
			}
			if err := b.Variant.restore(ctx, f, b.Wait, "*"+c.table+"\n-F "+c.name+"\nCOMMIT\n"); err != nil {
				t.Fatal(err)
			}
			var err error
			wait.For(t, "the rules are missed", func() bool { err = b.Check(ctx, s, drift.Content); return err != nil }) // the kernel frees them later
			if drift.KindOf(err) != drift.Chain {
				t.Errorf("IPv%s: without the rules of %s: %v", f.digit, c.name, err)
			}
		}
	})
}
