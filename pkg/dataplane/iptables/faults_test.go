package iptables

import (
	"context"
	"errors"
	"flag"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/dataplane/drift"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/test/needs"
)

var update = flag.Bool("update", false, "write the golden anew")

// stateBy is a node with these endpoints, judged by policies.
func stateBy(t *testing.T, epoch uint32, policies []desired.Policy, records ...attachment.Record) desired.State {
	t.Helper()
	s := stateOf(t, false, nil...)
	s.Epoch = epoch
	return desired.Build(s.Node, desired.Policies{Policies: policies}, records)
}

func denies(name string, rules ...desired.Rule) desired.Policy {
	return desired.Policy{Namespace: "one", Name: name, Ingress: &desired.Isolation{Rules: rules}, Egress: &desired.Isolation{}}
}

// A change that fails at any of its steps, before or after what the step does, leaves nobody
// unjudged. A Sync then ends as if it had not, with nothing left behind.
func TestFaults(t *testing.T) {
	needs.All(t, needs.Time)
	list := records(35) // more than one set of host veths
	deny := []desired.Policy{denies("deny")}
	blocks := desired.Rule{Blocks: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")}}
	peers := desired.Rule{Peers: []desired.Peer{{Namespace: "one"}}, NamedPorts: []desired.NamedPort{{Protocol: desired.TCP, Name: "http"}}}
	other := []desired.Policy{denies("deny", blocks, peers)}
	more := []desired.Policy{denies("another"), denies("deny", blocks)}
	nobody, one, two, far := stateBy(t, 1, deny), stateBy(t, 1, deny, list[0]), stateBy(t, 1, deny, list[:2]...), stateBy(t, 1, deny, list[0], list[34])
	for _, tt := range []struct {
		name     string
		from, to desired.State
		sync     bool
	}{
		{"the first Sync", desired.State{}, two, true},
		{"another Sync", two, stateBy(t, 2, other, list[:2]...), true},
		{"the first of a profile", nobody, one, false},
		{"one more", one, two, false},
		{"one of another set of host veths", one, far, false},
		{"one of two goes", two, one, false},
		{"the last of a set of host veths goes", far, one, false},
		{"the last goes", one, nobody, false},
		{"rules that peers are named in", two, stateBy(t, 2, other, list[:2]...), false},
		{"rules without peers again", stateBy(t, 1, other, list[:2]...), stateBy(t, 2, deny, list[:2]...), false},
		{"another profile", two, stateBy(t, 2, more, list[:2]...), false},
		{"no policy", two, stateBy(t, 1, nil, list[:2]...), false},
		{"a policy", stateBy(t, 1, nil, list[:2]...), stateBy(t, 2, deny, list[:2]...), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx := context.Background()
			before := newNode(t)
			if tt.from.Filled() == nil {
				if err := before.backend().Sync(ctx, tt.from); err != nil {
					t.Fatal(err)
				}
			}
			begin := func() (*node, func() error) {
				n := before.copy()
				n.look = n.closed(tt.from, tt.to)
				return n, func() error {
					if tt.sync {
						return n.backend().Sync(ctx, tt.to)
					}
					from, to := desired.Diff(desired.Share{State: tt.from}, desired.Share{State: tt.to})
					return n.backend().Update(ctx, from, to)
				}
			}
			n, change := begin()
			if err := change(); err != nil {
				t.Fatal(err)
			}
			n.restored()
			if err := n.backend().Check(ctx, tt.to, drift.Deep); err != nil {
				t.Error(err)
			}
			did, has := n.did, n.has()
			if err := n.backend().Sync(ctx, tt.to); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(n.has(), has); diff != "" {
				t.Fatalf("a Sync and %s differ\n%s", tt.name, diff)
			}
			// Of what is done to one set some steps stand for all.
			const most = 6
			step, number := max(1, len(did)/most), 0
			for at := 1; at <= len(did); at++ {
				if restore := strings.HasPrefix(did[at-1], "restore"); at%step != 0 && !restore {
					continue
				}
				number++
				{
					late := number%2 == 0
					n, change := begin()
					n.harm(at, late)
					err := change()
					if n.restored(); err == nil {
						t.Fatalf("%d, %s: no error", at, did[at-1])
					}
					if n.look(); t.Failed() {
						t.Fatalf("it failed at %d, %s", at, did[at-1])
					}
					n.harm(0, false)
					if err := n.backend().Sync(ctx, tt.to); err != nil {
						t.Fatalf("after %d, %s: %v", at, did[at-1], err)
					}
					if diff := cmp.Diff(has, n.has()); diff != "" {
						t.Fatalf("failed at %d, %s, late is %t: left\n%s", at, did[at-1], late, diff)
					}
				}
			}
			t.Logf("%d steps", len(did))
		})
	}
}

// An endpoint goes by its own share of the node's state. What others need stays.
func TestShareOfOne(t *testing.T) {
	ctx, deny, list := context.Background(), []desired.Policy{denies("deny")}, records(2)
	n := newNode(t)
	b := n.backend()
	if err := b.Sync(ctx, stateBy(t, 1, deny, list...)); err != nil {
		t.Fatal(err)
	}
	nobody := stateBy(t, 1, deny)
	for i := range list {
		left := stateBy(t, 1, deny, list[i+1:]...)
		if err := b.Update(ctx, desired.Share{State: stateBy(t, 1, deny, list[i])}, desired.Share{State: nobody}); err != nil {
			t.Fatal(err)
		}
		if err := b.Check(ctx, left, drift.Deep); err != nil {
			t.Fatal(err)
		}
		has := n.has()
		if err := b.Sync(ctx, left); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(n.has(), has); diff != "" {
			t.Fatalf("without %d, a Sync and an Update differ\n%s", i, diff)
		}
	}
}

// Packets in flight are waited for before an endpoint leaves its profile, and not before it is
// unknown.
func TestDrain(t *testing.T) {
	ctx, deny := context.Background(), []desired.Policy{denies("deny")}
	one, nobody := stateBy(t, 1, deny, records(1)...), stateBy(t, 1, deny)
	n := newNode(t)
	if err := n.backend().Sync(ctx, one); err != nil {
		t.Fatal(err)
	}
	n.harm(0, false)
	if err := n.backend().Update(ctx, desired.Share{State: one}, desired.Share{State: nobody}); err != nil {
		t.Fatal(err)
	}
	n.restored()
	if n.drained == 0 {
		t.Fatalf("nothing is waited for: %q", n.did)
	}
	profile := slices.IndexFunc(n.did, func(s string) bool { return strings.HasPrefix(s, "delete from podmark-i4") })
	known := slices.IndexFunc(n.did, func(s string) bool { return strings.HasPrefix(s, "delete from podmark-ep4") })
	if profile < 0 || known < 0 || known > profile {
		t.Errorf("it leaves its profile at %d, and is unknown at %d: %q", profile, known, n.did)
	}
	last := slices.IndexFunc(n.did, func(s string) bool { return strings.HasPrefix(s, "delete from podmark-i6") })
	if before := slices.IndexFunc(n.did, func(s string) bool { return strings.HasPrefix(s, "delete from podmark-ep6") }); n.drained <= before || n.drained > last {
		t.Errorf("packets are waited for at %d, between %d and %d: %q", n.drained, before, last, n.did)
	}
}

// What another program did is found out, and put back; what is not podmark's stays.
func TestRepair(t *testing.T) {
	ctx := context.Background()
	s := stateBy(t, 1, []desired.Policy{denies("deny")}, records(2)...)
	for _, tt := range []struct {
		name, line string
		kind       drift.Kind
		unseen     bool // by a Check
	}{
		{"a hook is gone", "-D INPUT ! -i lo -j " + chainInput, drift.Hook, true},
		{"a hook is not the first", "-I PREROUTING 1 -j ACCEPT", drift.Hook, true},
		{"a hook is there twice", "-A FORWARD -j " + chainForward, drift.Hook, true},
		{"a chain is empty", "-F " + chainMark, drift.Chain, false},
		{"a profile's chain is empty", "-F " + chainOf(s.Profiles[s.ProfileIDs()[0]], answered), drift.Chain, false},
		{"a rule more", "-I " + chainPolice + " 1 -j ACCEPT", drift.Chain, true},
		{"a rule without a set", "-D " + chainInput + " -j " + chainMark, drift.Chain, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t)
			b := n.backend()
			if err := b.Sync(ctx, s); err != nil {
				t.Fatal(err)
			}
			has := n.has()
			if err := b.Variant.restore(ctx, v4, b.Wait, "*mangle\n"+tt.line+"\nCOMMIT\n"); err != nil {
				t.Fatal(err)
			}
			if err := b.Check(ctx, s, drift.Content); (err == nil) != tt.unseen || err != nil && drift.KindOf(err) != tt.kind {
				t.Errorf("Check = %v", err)
			}
			if _, err := b.Refresh(ctx, s); drift.KindOf(err) != tt.kind {
				t.Errorf("Keep = %v, want %s", err, tt.kind)
			}
			if err := b.Sync(ctx, s); err != nil {
				t.Fatal(err)
			}
			if strings.Contains(tt.line, "ACCEPT") && strings.Contains(tt.line, "PREROUTING") {
				has["4manglePREROUTING"] += "\n-j ACCEPT" // another's stays, behind ours
			}
			if diff := cmp.Diff(has, n.has()); diff != "" {
				t.Errorf("a Sync has left\n%s", diff)
			}
			if err := b.Remove(ctx); err != nil {
				t.Fatal(err)
			}
			for name, is := range n.has() {
				if strings.Contains(name, "podmark-") || strings.Contains(name+is, ChainPrefix) {
					t.Errorf("a Remove has left %s: %s", name, is)
				}
			}
			if is := n.has()["4mangleINPUT"]; is != "-j KUBE-FIREWALL" {
				t.Errorf("of others a Remove has left %q", is)
			}
		})
	}
}

// The node's own sets follow what it has, without a restore, and sets of peers are filled.
func TestRefresh(t *testing.T) {
	ctx := context.Background()
	policy := denies("deny", desired.Rule{Peers: []desired.Peer{{Namespace: "one"}}})
	s := stateBy(t, 1, []desired.Policy{policy}, records(2)...)
	synced := newNode(t)
	if err := synced.backend().Sync(ctx, s); err != nil {
		t.Fatal(err)
	}
	n := synced.copy()
	b := n.backend()
	if replaced, err := b.Refresh(ctx, s); err != nil || replaced != nil {
		t.Errorf("Keep = %q, %v, want nothing to do", replaced, err)
	}
	next := s
	next.HostAddresses = append(slices.Clone(s.HostAddresses), netip.MustParseAddr("192.0.2.9"))
	next.NodePorts = []desired.PortRange{{First: 80, Last: 80}}
	n.harm(0, false)
	replaced, err := b.Refresh(ctx, next)
	if want := []string{"podmark-host4a", "podmark-port4a", "podmark-port6a"}; err != nil || !slices.Equal(replaced, want) {
		t.Errorf("Keep = %q, %v, want %q", replaced, err, want)
	}
	if n.restored(); slices.ContainsFunc(n.did, func(s string) bool { return strings.HasPrefix(s, "restore") }) {
		t.Errorf("rules are written: %q", n.did)
	}
	for at := 1; at <= len(n.did); at++ {
		broken := synced.copy()
		broken.harm(at, false)
		if _, err := broken.backend().Refresh(ctx, next); err == nil {
			t.Errorf("%d: no error", at)
		}
		broken.harm(0, false)
		if _, err := broken.backend().Refresh(ctx, next); err != nil {
			t.Error(err)
		}
		if err := broken.backend().Sync(ctx, next); err != nil { // a set that was swapped may have stayed
			t.Error(err)
		}
		if diff := cmp.Diff(n.has(), broken.has()); diff != "" {
			t.Errorf("failed at %d, left\n%s", at, diff)
		}
	}
	if replaced, err := n.copy().backend().Refresh(ctx, s); err != nil || !slices.Contains(replaced, "podmark-host4a") {
		t.Errorf("Keep = %q, %v, of an address that has gone", replaced, err)
	}
	id := s.PeerSetIDs()[0]
	set := s.PeerSets[id]
	away := netip.MustParseAddr("10.9.9.9")
	set.Addrs = append(slices.Clone(set.Addrs[1:]), away)
	filled := desired.State{PeerSets: map[desired.PeerSetID]desired.PeerSet{id: set}}
	if changed, err := b.FillSet(ctx, desired.Set{State: filled}); err != nil || changed != 2 {
		t.Errorf("Fill = %d, %v, want 2", changed, err)
	}
	if changed, err := b.FillSet(ctx, desired.Set{State: filled}); err != nil || changed != 0 {
		t.Errorf("Fill = %d, %v, want nothing to do", changed, err)
	}
	if holds, err := b.Holds(ctx, desired.Set{State: filled}); err != nil || !holds {
		t.Errorf("Holds = %t, %v", holds, err)
	}
	if holds, err := b.Holds(ctx, desired.Set{State: s}); err != nil || holds {
		t.Errorf("Holds = %t, %v, of one who has gone", holds, err)
	}
}

func TestRestoreSaysWhichLine(t *testing.T) {
	n := newNode(t)
	err := n.backend().Variant.restore(context.Background(), v4, 0, "*mangle\n-A NOWHERE -j RETURN\nCOMMIT\n")
	if err == nil || !strings.Contains(err.Error(), `our line 2 is "-A NOWHERE -j RETURN"`) {
		t.Errorf("restore = %v", err)
	}
}

func TestChainsIn(t *testing.T) {
	got := chainsIn("# x\n*mangle\n:INPUT ACCEPT [1:2]\n:PODMARK-A - [0:0]\n-A INPUT ! -i lo -j PODMARK-A\n-A PODMARK-A -m comment --comment \"a -A b\" -j DROP\nCOMMIT\n")
	want := map[string][]string{"INPUT": {"! -i lo -j PODMARK-A"}, "PODMARK-A": {`-m comment --comment "a -A b" -j DROP`}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// What is rendered of a node with a bit of everything is in testdata, for people to read: see
// what changes there as what changes on nodes. -update writes it again.
func TestRendered(t *testing.T) {
	everyone := []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("2001:db8::/32")}
	var ports []desired.Port
	for p := range uint16(16) {
		ports = append(ports, desired.Port{Protocol: desired.TCP, PortRange: desired.PortRange{First: 1000 + 2*p, Last: 1000 + 2*p + p%2}})
	}
	policies := []desired.Policy{
		denies("deny", desired.Rule{Blocks: everyone, Ports: ports}, desired.Rule{Peers: []desired.Peer{{Namespace: "one"}}, NamedPorts: []desired.NamedPort{{Protocol: desired.UDP, Name: "dns"}}}),
		{Namespace: "two", Name: "audit", Audit: true, Egress: &desired.Isolation{Rules: []desired.Rule{{Ports: []desired.Port{{Protocol: desired.SCTP, PortRange: desired.AllPorts}}}}}},
	}
	list := records(34)
	list[1].Namespace, list[33].VRF = "two", "red"
	list[0].Gateways = []netip.Addr{netip.MustParseAddr("10.1.0.254")}
	var got strings.Builder
	for _, r := range Render(stateBy(t, 5, policies, list[0], list[1], list[33])) {
		got.WriteString("# " + r.Family + "\n" + r.Sets + r.Rules)
	}
	const file = "testdata/rendered.txt"
	if *update {
		if err := errors.Join(os.MkdirAll("testdata", 0o755), os.WriteFile(file, []byte(got.String()), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got.String(), "\n")); diff != "" {
		t.Errorf("rendered is another than %s has:\n%s", file, diff)
	}
}
