package nftables

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/dataplane/counters"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/test/netns"
)

// totals sums what Counters reads, by key, and counts its rules.
func totals(t testing.TB) (sum map[counters.Key]uint64, ids map[string]bool) {
	t.Helper()
	rules, err := Backend{}.Counters(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	sum, ids = map[counters.Key]uint64{}, map[string]bool{}
	for _, r := range rules {
		sum[r.Key] += r.Packets
		if ids[r.ID] {
			t.Errorf("two rules have the ID %s", r.ID)
		}
		ids[r.ID] = true
	}
	return sum, ids
}

// Every rule that drops is counted, by its reason, and every rule that decides in a
// profile, and no other one.
func TestCounters(t *testing.T) {
	netns.Enter(t)
	if sum, _ := totals(t); len(sum) > 0 {
		t.Errorf("where there is nothing: %v", sum)
	}
	ctx := context.Background()
	s := node(t, 0xffff0000, records()...)
	if err := (Backend{}).Sync(ctx, s); err != nil {
		t.Fatal(err)
	}
	want := map[counters.Key]uint64{
		{Reason: counters.Spoofed}: 0, {Reason: counters.Unclassified}: 0, {Reason: counters.Encapsulated}: 0, {Reason: counters.Stray}: 0,
	}
	for id, p := range s.Profiles {
		key := counters.Key{Reason: counters.Policy, Direction: p.Direction, Profile: id}
		want[key] = 0
		if len(p.Rules()) > 0 {
			key.Reason = counters.Allowed
			want[key] = 0
		}
	}
	sum, ids := totals(t)
	if diff := cmp.Diff(want, sum); diff != "" {
		t.Errorf("keys:\n%s", diff)
	}
	counting := 0
	for _, c := range render(s, numbers{}.with(s)).chains {
		for _, r := range c.rules {
			counts := slices.ContainsFunc(r.parts, func(p part) bool { return p.text == "counter" })
			if counts {
				counting++
			}
			if last := r.parts[len(r.parts)-1].text; last == "drop" && !counts {
				t.Errorf("chain %s: %q counts nothing", c.name, r)
			}
		}
	}
	if len(ids) != counting {
		t.Errorf("%d rules are read, and %d count", len(ids), counting)
	}
	// Written again, they are others.
	if err := (Backend{}).Sync(ctx, s); err != nil {
		t.Fatal(err)
	}
	_, again := totals(t)
	run(t, "", "nft", "flush", "ruleset")
	if err := (Backend{}).Sync(ctx, s); err != nil {
		t.Fatal(err)
	}
	_, fromNothing := totals(t)
	for id := range ids {
		if again[id] || fromNothing[id] {
			t.Errorf("a rule has the ID %s as one before it", id)
		}
	}
}

// What the kernel counts is read as what it is.
func TestCountersCount(t *testing.T) {
	netns.Enter(t)
	s := node(t, 0xffff0000, records()...)
	if err := (Backend{}).Sync(context.Background(), s); err != nil {
		t.Fatal(err)
	}
	// Packets that come in by a link of nobody's and leave by one in the group of the pods'
	// veths, to an address that is nobody's.
	wire := newWire(t)
	run(t, "", "ip", "link", "add", "veth2", "type", "veth", "peer", "name", "peer2")
	run(t, "", "ip", "link", "set", "veth2", "up", "group", "1886")
	run(t, "", "ip", "link", "set", "peer2", "up")
	run(t, "", "ip", "addr", "add", "192.0.2.1/24", "dev", "veth2")
	run(t, "", "ip", "neigh", "add", "192.0.2.9", "lladdr", "02:00:00:00:00:09", "dev", "veth2")
	for range 4 {
		wire.send(t, "198.51.100.1", "192.0.2.9", unix.IPPROTO_UDP)
	}
	// An endpoint's address that comes in by a link of nobody's.
	for range 3 {
		wire.send(t, "10.22.0.2", "192.0.2.9", unix.IPPROTO_UDP)
	}
	sum, _ := totals(t)
	if got := sum[counters.Key{Reason: counters.Unclassified}]; got != 4 {
		t.Errorf("%d unclassified packets, want 4", got)
	}
	if got := sum[counters.Key{Reason: counters.Spoofed}]; got != 3 {
		t.Errorf("%d spoofed packets, want 3", got)
	}
	delete(sum, counters.Key{Reason: counters.Spoofed})
	delete(sum, counters.Key{Reason: counters.Unclassified})
	for k, n := range sum {
		if n != 0 {
			t.Errorf("%+v: %d packets, want 0", k, n)
		}
	}
}

// BenchmarkCounters is a scrape of a node with so many profiles of 10 rules.
func BenchmarkCounters(b *testing.B) {
	for _, profiles := range []int{10, 200} {
		b.Run(fmt.Sprint(profiles), func(b *testing.B) {
			netns.Enter(b)
			var p desired.Policies
			all := records()[:0]
			for i := range profiles {
				var rules []desired.Rule
				for port := range 10 {
					rules = append(rules, desired.Rule{Ports: []desired.Port{{Protocol: desired.TCP, PortRange: desired.PortRange{First: uint16(port + 1), Last: uint16(port + 1)}}}})
				}
				app := fmt.Sprint("app", i)
				p.Policies = append(p.Policies, desired.Policy{Namespace: "shop", Name: app, Pods: labelled(app), Ingress: &desired.Isolation{Rules: rules}})
				r := nth(i)
				r.Labels = map[string]string{"app": app}
				all = append(all, r)
			}
			s := desired.Build(desired.Node{Layout: layout(b, 0xffff0000), Epoch: 1}, p, all)
			if err := (Backend{}).Sync(context.Background(), s); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if _, ids := totals(b); len(ids) < 2*profiles {
					b.Fatal(len(ids))
				}
			}
		})
	}
}
