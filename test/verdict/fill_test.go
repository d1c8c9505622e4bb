package verdict_test

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/podmark/podmark/pkg/desired"
)

// Sets of policies are filled one by one, whatever was in them, and a Sync that knows of
// nobody leaves in them who is there.
func TestFill(t *testing.T) {
	for name, backend := range backends() {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			b := newBench(t, podCount)
			policies := desired.Policies{Policies: []desired.Policy{{Namespace: "one", Name: "out", Egress: &desired.Isolation{Rules: []desired.Rule{{
				Peers:      []desired.Peer{{Namespace: "one"}},
				NamedPorts: []desired.NamedPort{{Protocol: desired.SCTP, Name: "bulk"}},
			}}}}}}
			nobody, ports := desired.Build(nodeOf(t, b), policies, nil), records(b)[3].NamedPorts
			with := func(from, to int) desired.State {
				var pods []desired.Pod
				for i := from; i < to; i++ {
					pods = append(pods, desired.Pod{Namespace: "one", Name: fmt.Sprint(i), Ports: ports, Addresses: []netip.Addr{
						netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)}), netip.MustParseAddr(fmt.Sprintf("fd00:9::%x", i)),
					}})
				}
				return nobody.WithMembers(policies.Members(pods...))
			}
			fill := func(s desired.State, want int) {
				t.Helper()
				if n, err := backend.Fill(ctx, s); err != nil || n != want {
					t.Fatalf("%d elements changed, want %d: %v", n, want, err)
				}
			}
			holds := func(s desired.State, want bool) {
				t.Helper()
				if ok, err := backend.Holds(ctx, s); err != nil || ok != want {
					t.Fatalf("holds: %t, want %t: %v", ok, want, err)
				}
			}
			holds(with(0, 1), false)
			fill(with(0, 6000), 4*6000) // two addresses, each in a set of peers and in one of ports
			holds(with(17, 18), true)
			if err := backend.Sync(ctx, nobody); err != nil {
				t.Fatal(err)
			}
			holds(with(0, 6000), true)
			holds(with(6000, 6001), false)
			fill(with(0, 6000), 0)
			fill(with(10, 6010), 4*20)
			holds(with(9, 10), false)
			peers := slices.Collect(maps.Keys(nobody.PeerSets))[0]
			if name == "nftables" {
				b.run("nft", "flush", "set", "inet", "podmark", "p4-"+string(peers))
			} else {
				b.run("ipset", "flush", "podmark-p4-"+string(peers))
			}
			fill(with(10, 6010), 6000)
			fill(nobody, 4*6000)
			holds(with(17, 18), false)
			// Without its policies no set is left.
			if err := backend.Sync(ctx, desired.Build(nodeOf(t, b), desired.Policies{}, nil)); err != nil {
				t.Fatal(err)
			}
			fill(nobody, 0)
			if err := backend.Remove(ctx); err != nil {
				t.Fatal(err)
			}
		})
	}
}
