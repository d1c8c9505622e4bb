package nftables

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/dataplane/drift"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/test/netns"
)

var rewrite = flag.Bool("update", false, "write the goldens anew")

// list is the ruleset as nft reads it off the kernel, counters at zero.
func list(t testing.TB) string {
	t.Helper()
	return regexp.MustCompile(`packets \d+ bytes \d+`).ReplaceAllString(run(t, "", "nft", "list", "ruleset"), "packets 0 bytes 0")
}

// The frame as nft reads it off the kernel. Where a map's value is put into the
// mark, nft shows the shifts of the value and not the old bits they let in.
func TestFrame(t *testing.T) {
	netns.Enter(t)
	empty := desired.Build(desired.Node{Layout: layout(t, 0xffff0000), Epoch: 1}, desired.Policies{}, nil)
	if err := (Backend{}).Sync(context.Background(), empty); err != nil {
		t.Fatal(err)
	}
	const golden = "testdata/frame.nft"
	got := list(t)
	if *rewrite {
		if err := os.WriteFile(golden, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("the frame differs from %s:\n%s", golden, diff)
	}
}

func TestFrameUses(t *testing.T) {
	for _, n := range []desired.Node{
		{},
		{Unlogged: true},
		{Tunnels: desired.Tunnels{UDPPorts: []uint16{4789}}},
		{Tunnels: desired.Tunnels{UDPPorts: []uint16{4789}, Protocols: []uint8{4}}},
		{Unfiltered: desired.Unfiltered{IPv4: true}},
		{Unfiltered: desired.Unfiltered{IPv4: true, IPv6: true}},
	} {
		s := node(t, 0xffff0000)
		s.Unlogged, s.Tunnels, s.Unfiltered = n.Unlogged, n.Tunnels, n.Unfiltered
		for name, of := range map[string]struct {
			chains []chain
			uses   map[string]int
		}{"the backend": {baseChains(s), usesOf(s.Node)}, "the guard": {renderGuard(s).chains, guardUses(s.Node)}} {
			want := map[string]int{}
			for _, c := range of.chains {
				uses := len(c.rules)
				for _, other := range of.chains {
					for _, r := range other.rules {
						uses += r.references(c.name)
					}
				}
				want[c.name] = uses
			}
			if diff := cmp.Diff(want, of.uses); diff != "" {
				t.Errorf("%+v: frameUses is not what %s renders:\n%s", n, name, diff)
			}
		}
	}
}

// references counts the rule's jumps and gotos to a chain.
func (r rule) references(name string) int {
	n := 0
	for _, p := range r.parts {
		for _, e := range p.exprs {
			if v, ok := e.(*expr.Verdict); ok && v.Chain == name {
				n++
			}
		}
		if p.set != nil {
			for _, e := range p.set.elements {
				if e.VerdictData != nil && e.VerdictData.Chain == name {
					n++
				}
			}
		}
	}
	return n
}

// No hook goes to a chain: where that ends, the hook ends too, and accepts.
func TestHooksDoNotGo(t *testing.T) {
	s := node(t, 0xffff0000)
	for _, c := range append(baseChains(s), renderGuard(s).chains...) {
		for _, r := range c.rules {
			if c.hook != nil && strings.Contains(r.String(), "goto ") {
				t.Errorf("%s: %s", c.name, r)
			}
		}
	}
}

// What Render prints is what Sync writes: nft, given the text, makes the kernel
// hold the same.
func TestRender(t *testing.T) {
	for name, mask := range map[string]uint32{"default mask": 0xffff0000, "mask with holes": 0xa0500f01} {
		t.Run(name, func(t *testing.T) {
			netns.Enter(t)
			s := node(t, mask, records()...)
			s.Unfiltered = desired.Unfiltered{IPv4: true, IPv6: true}
			if err := (Backend{}).Sync(context.Background(), s); err != nil {
				t.Fatal(err)
			}
			// nft can print a neighbour's address as raw bits, and not read it. It knows
			// no look-up of what a look-up found, and no part of that in a mark.
			unknown := regexp.MustCompile(`(?m)^.*(@th,64,|@nh,|igmp|by the (number|ID) in map|change places).*\n`)
			written := unknown.ReplaceAllString(list(t), "")
			run(t, "", "nft", "flush", "ruleset")
			run(t, unknown.ReplaceAllString(Render(s), ""), "nft", "-f", "-")
			if diff := cmp.Diff(written, list(t)); diff != "" {
				t.Errorf("what Sync wrote (-) is not what Render says (+):\n%s", diff)
			}
		})
	}
}

// However the endpoints came, the kernel holds the same.
func TestUpdateIsSync(t *testing.T) {
	netns.Enter(t)
	ctx := context.Background()
	all := records()
	sync := func(records ...attachment.Record) []string {
		if err := (Backend{}).Sync(ctx, node(t, 0xffff0000, records...)); err != nil {
			t.Fatal(err)
		}
		return sorted(list(t))
	}
	empty := sync()
	for _, order := range [][]int{{0, 1, 2}, {2, 1, 0}, {1, 0, 2}} {
		for _, i := range order {
			if err := (Backend{}).Update(ctx, desired.Share{State: node(t, 0xffff0000)}, desired.Share{State: node(t, 0xffff0000, all[i])}); err != nil {
				t.Fatal(err)
			}
		}
		if err := (Backend{}).Check(ctx, node(t, 0xffff0000, all...), drift.Content); err != nil {
			t.Error(err)
		}
		got := sorted(list(t))
		if diff := cmp.Diff(sync(all...), got); diff != "" {
			t.Errorf("after adding %v one by one (+) there is not what a Sync leaves (-):\n%s", order, diff)
		}
		for _, i := range order {
			if err := (Backend{}).Update(ctx, desired.Share{State: node(t, 0xffff0000, all[i])}, desired.Share{State: node(t, 0xffff0000)}); err != nil {
				t.Fatal(err)
			}
		}
		if diff := cmp.Diff(empty, sorted(list(t))); diff != "" {
			t.Errorf("after removing %v one by one:\n%s", order, diff)
		}
	}
	whole := list(t)
	for _, err := range []error{
		(Backend{}).Sync(ctx, desired.State{}), (Backend{}).Update(ctx, desired.Share{State: node(t, 0xffff0000)}, desired.Share{State: desired.State{}}),
		(Guard{}).Sync(ctx, desired.State{}), (Guard{}).Update(ctx, desired.Share{State: node(t, 0xffff0000)}, desired.Share{State: desired.State{}}),
	} {
		if !errors.Is(err, desired.ErrEmpty) {
			t.Errorf("no node's state: %v", err)
		}
	}
	if diff := cmp.Diff(whole, list(t)); diff != "" {
		t.Errorf("no node's state:\n%s", diff)
	}
	if err := (Backend{}).Remove(ctx); err != nil {
		t.Fatal(err)
	}
	if got := list(t); got != "" {
		t.Errorf("after removing everything there is:\n%s", got)
	}
}

// sorted is the listing without its order, which is that in which things came.
func sorted(listing string) []string {
	listing = regexp.MustCompile(`,\n\s+`).ReplaceAllString(listing, ", ")
	listing = regexp.MustCompile(`elements = \{ (.*) \}`).ReplaceAllStringFunc(listing, func(s string) string {
		list := strings.Split(strings.TrimSuffix(strings.TrimPrefix(s, "elements = { "), " }"), ", ")
		slices.Sort(list)
		return "elements = { " + strings.Join(list, ", ") + " }"
	})
	objects := regexp.MustCompile(`(?ms)^\t(map|set|chain) .*?^\t\}`).FindAllString(listing, -1)
	slices.Sort(objects)
	return objects
}

// A set that is full says so, and a Sync makes room for as many again.
func TestRoom(t *testing.T) {
	netns.Enter(t)
	ctx := context.Background()
	var all []attachment.Record
	come := func() error {
		all = append(all, nth(len(all)))
		return Backend{}.Update(ctx, desired.Share{State: node(t, 0xffff0000)}, desired.Share{State: node(t, 0xffff0000, all[len(all)-1])})
	}
	sync := func() {
		s := node(t, 0xffff0000, all...)
		if err := (Backend{}).Sync(ctx, s); err != nil {
			t.Fatal(err)
		}
		if err := (Backend{}).Check(ctx, s, drift.Content); err != nil {
			t.Error(err)
		}
	}
	sync()
	for _, atLeast := range []int{64, 128, 256} {
		err := come()
		for err == nil {
			err = come()
		}
		if !errors.Is(err, ErrIncomplete) || len(all) < atLeast {
			t.Fatalf("endpoint %d: %v, want ErrIncomplete and %d at least before", len(all), err, atLeast)
		}
		if last := all[len(all)-1].Addresses[0]; strings.Contains(list(t), last.String()+" ") {
			t.Errorf("something of %s is there, for which there was no room", last)
		}
		sync()
	}
}

// A rule that another one has taken the place of is seen, wherever it is, and Sync writes what
// was there.
func TestEveryRuleIsStamped(t *testing.T) {
	handle := regexp.MustCompile(`(?m)^\t\t(.*) # handle (\d+)$`)
	for name, tt := range map[string]struct {
		sync, look func(s desired.State) error
	}{
		"Backend, Check": {func(s desired.State) error { return Backend{}.Sync(t.Context(), s) }, func(s desired.State) error { return Backend{}.Check(t.Context(), s, drift.Content) }},
		"Backend, Keep": {func(s desired.State) error { return Backend{}.Sync(t.Context(), s) }, func(s desired.State) error {
			_, err := Backend{}.Refresh(t.Context(), s)
			return err
		}},
		"Guard": {func(s desired.State) error { return Guard{}.Sync(t.Context(), s) }, func(s desired.State) error { return Guard{}.Check(t.Context(), s, drift.Content) }},
	} {
		t.Run(name, func(t *testing.T) {
			netns.Enter(t)
			s := node(t, 0xffff0000, records()...)
			if err := tt.sync(s); err != nil {
				t.Fatal(err)
			}
			before := list(t)
			r := renderGuard(s)
			if name != "Guard" {
				r = render(s, numbers{}.with(s))
			}
			for _, c := range r.chains {
				for i := range c.rules {
					if name != "Backend, Check" && i != len(c.rules)/2 {
						continue // one of each chain: that takes its time
					}
					found := handle.FindAllStringSubmatch(run(t, "", "nft", "-a", "list", "chain", path(c.table), c.name), -1)
					rules := found[len(found)-len(c.rules):] // behind what is said of a hook
					args := append(append([]string{"replace", "rule"}, strings.Fields(path(c.table))...), c.name, "handle", rules[i][2], "counter")
					run(t, "", "nft", args...)
					if err := tt.look(s); !errors.Is(err, ErrIncomplete) {
						t.Errorf("rule %d of %s is another: %v, want ErrIncomplete", i, c.name, err)
					}
					if err := tt.sync(s); err != nil {
						t.Fatal(err)
					}
				}
			}
			if err := tt.look(s); err != nil {
				t.Error(err)
			}
			if diff := cmp.Diff(sorted(before), sorted(list(t))); diff != "" {
				t.Errorf("after fixing:\n%s", diff)
			}
		})
	}
}

// Each rule has a stamp of its own.
func TestStamps(t *testing.T) {
	s := node(t, 0xffff0000, records()...)
	seen := map[stamp]string{}
	for _, c := range render(s, numbers{}.with(s)).chains {
		list, err := c.stamps()
		if err != nil {
			t.Fatal(err)
		}
		for i, s := range list {
			if s == 0 || seen[s] != "" {
				t.Errorf("rule %d of %s has stamp %d, as has %s", i, c.name, s, seen[s])
			}
			seen[s] = fmt.Sprintf("rule %d of %s", i, c.name)
			if got := stampIn(stamped(userdata.AppendString(nil, userdata.TypeComment, strings.Repeat("x", maxComment)), s)); got != s {
				t.Errorf("behind a comment %d is read as %d", s, got)
			}
		}
	}
}

// Check sees what another program removed, and Sync puts it back.
func TestDamage(t *testing.T) {
	tests := []struct {
		name   string
		damage []string // arguments of nft
		gone   bool     // what every Update needs
	}{
		{"everything", []string{"flush", "ruleset"}, true},
		{"the bridge table", []string{"delete", "table", "bridge", "podmark"}, false},
		{"rules of a hook", []string{"flush", "chain", "inet", "podmark", "forward"}, false},
		{"rules of a static chain", []string{"flush", "chain", "inet", "podmark", "classify"}, false},
		{"rules of the guard", []string{"flush", "chain", "bridge", "podmark", "guard"}, false},
		{"a foreign rule", []string{"add", "rule", "inet", "podmark", "output", "accept"}, false},
		{"a table that sleeps", []string{"add", "table", "inet", "podmark", "{ flags dormant; }"}, false},
		{"rules of a profile", []string{"flush", "chain", "inet", "podmark", "PROFILE"}, false},
		{"an endpoint", []string{"delete", "element", "inet", "podmark", "senders4", "{ 102 . 10.22.0.2 }"}, false},
		{"all of a map", []string{"flush", "map", "inet", "podmark", "ingress6"}, false},
		{"the profiles", []string{"flush", "map", "inet", "podmark", "ingress-profiles"}, false},
		{"a peer set", []string{"flush", "set", "inet", "podmark", "PEERS"}, false},
		{"the guarded ports", []string{"flush", "set", "bridge", "podmark", "ports"}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			netns.Enter(t)
			ctx := context.Background()
			s := node(t, 0xffff0000, records()...)
			if err := (Backend{}).Sync(ctx, s); err != nil {
				t.Fatal(err)
			}
			if err := (Backend{}).Check(ctx, s, drift.Content); err != nil {
				t.Fatalf("before the damage: %v", err)
			}
			before := list(t)
			for i, word := range tt.damage {
				switch word {
				case "PROFILE":
					tt.damage[i] = "i4-" + string(s.Endpoints[0].Profiles[desired.Ingress])
				case "PEERS":
					tt.damage[i] = "p4-" + string(s.PeerSetIDs()[0])
				}
			}
			run(t, "", "nft", tt.damage...)
			if list(t) == before {
				t.Fatalf("nft %v did no damage", tt.damage)
			}
			if err := (Backend{}).Check(ctx, s, drift.Content); !errors.Is(err, ErrIncomplete) {
				t.Errorf("Check says %v, want ErrIncomplete", err)
			}
			err := (Backend{}).Update(ctx, desired.Share{State: node(t, 0xffff0000)}, desired.Share{State: node(t, 0xffff0000, pod(5, "other", "veth5"))})
			if tt.gone && !errors.Is(err, ErrIncomplete) {
				t.Errorf("Update says %v, want ErrIncomplete", err)
			}
			if _, err := (Backend{}).FillSet(ctx, desired.Set{State: s}); err != nil {
				t.Fatal(err)
			}
			if err := (Backend{}).Sync(ctx, s); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(sorted(before), sorted(list(t))); diff != "" {
				t.Errorf("after fixing:\n%s", diff)
			}
		})
	}
}

// What has our names and is something else gives way.
func TestStrangersUnderOurNames(t *testing.T) {
	for name, strange := range map[string]string{
		"a set of another type": "add table inet podmark\nadd set inet podmark senders4 { type mark; }\n",
		"a chain elsewhere":     "add table inet podmark\nadd chain inet podmark forward { type filter hook input priority 0; }\n",
		"chains that lead on":   "add table inet podmark\nadd chain inet podmark y\nadd chain inet podmark x\nadd rule inet podmark x jump y\n",
	} {
		t.Run(name, func(t *testing.T) {
			netns.Enter(t)
			run(t, strange, "nft", "-f", "-")
			s := node(t, 0xffff0000, records()...)
			if err := (Backend{}).Sync(context.Background(), s); err != nil {
				t.Fatal(err)
			}
			if err := (Backend{}).Check(context.Background(), s, drift.Content); err != nil {
				t.Error(err)
			}
			if got := list(t); strings.Contains(got, "chain x") || strings.Contains(got, "type mark\n") {
				t.Errorf("left:\n%s", got)
			}
		})
	}
}

// A change by another program between reading and writing is noticed, and what was
// decided is decided again.
func TestForeignChange(t *testing.T) {
	netns.Enter(t)
	ctx := context.Background()
	s := node(t, 0xffff0000, records()...)
	asked := 0
	err := Backend{}.transact(ctx, "test", func(c *conn) (change, error) {
		have, err := readAll(c, tables())
		if asked++; asked <= 3 {
			// What was read is no longer so: a transaction that adds would fail.
			run(t, "add table inet podmark\nadd chain inet podmark forward { type filter hook input priority 0; }\n", "nft", "-f", "-")
			if asked == 3 {
				run(t, "", "nft", "delete", "table", "inet", "podmark")
			}
		}
		return whole(have, render(s, numbers{}.with(s))), err
	})
	if err != nil {
		t.Fatal(err)
	}
	if asked != 4 {
		t.Errorf("decided %d times, want 4", asked)
	}
	if err := (Backend{}).Check(ctx, s, drift.Content); err != nil {
		t.Error(err)
	}
}

// A refused transaction changes nothing, and names what was refused.
func TestRefused(t *testing.T) {
	netns.Enter(t)
	c, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	wrong := chain{table: inet, name: "wrong", rules: []rule{
		{parts: on(counter(), drop())},
		{parts: on(counter(), jump("nowhere")), comment: "this one"},
		{parts: on(accept())},
	}}
	err = c.commit(0, append([]command{addTable(inet), addChain(wrong)}, fill(wrong)...))
	if err == nil || !strings.Contains(err.Error(), `add rule inet podmark wrong counter jump nowhere comment \"this one\"`) {
		t.Errorf("error %v, want one that quotes the refused rule", err)
	}
	if got := list(t); got != "" {
		t.Errorf("it left:\n%s", got)
	}
}

// A rule may name more prefixes than a message has room for.
func TestManyBlocks(t *testing.T) {
	netns.Enter(t)
	const count = 5000
	rule := desired.Rule{}
	for i := range count {
		rule.Blocks = append(rule.Blocks, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 128}), 25))
	}
	p := desired.Policies{Policies: []desired.Policy{{Namespace: "shop", Name: "many", Ingress: &desired.Isolation{Rules: []desired.Rule{rule}}}}}
	s := desired.Build(desired.Node{Layout: layout(t, 0xffff0000), Epoch: 1}, p, records())
	if err := (Backend{}).Sync(context.Background(), s); err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(run(t, "", "nft", "list", "chain", "inet", "podmark", "i4-"+string(s.ProfileIDs()[0])), ".128/25"); got != count {
		t.Errorf("%d of %d blocks are in the kernel", got, count)
	}
}

// The probe leaves nothing, and does not touch what is there.
func TestProbe(t *testing.T) {
	netns.Enter(t)
	run(t, "add table inet podmark-probe\nadd chain inet podmark-probe left-by-a-crash\n", "nft", "-f", "-")
	if err := Probe(); err != nil {
		t.Fatal(err)
	}
	if got := list(t); got != "" {
		t.Errorf("it left:\n%s", got)
	}
	if err := (Backend{}).Sync(context.Background(), node(t, 0xffff0000, records()...)); err != nil {
		t.Fatal(err)
	}
	before := list(t)
	if err := Probe(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, list(t)); diff != "" {
		t.Errorf("it changed something:\n%s", diff)
	}
}

// A node has as many profiles as its policies make: what is asked about each is answered.
func TestManyProfiles(t *testing.T) {
	netns.Enter(t)
	ctx := context.Background()
	var policies desired.Policies
	var all []attachment.Record
	for i := range 1000 {
		r := nth(i)
		r.Labels = map[string]string{"app": fmt.Sprint(i)}
		all = append(all, r)
		policies.Policies = append(policies.Policies, desired.Policy{
			Namespace: r.Namespace, Name: fmt.Sprint(i), Pods: labelled(fmt.Sprint(i)), Ingress: &desired.Isolation{}, Egress: &desired.Isolation{},
		})
	}
	nodes := func(records ...attachment.Record) desired.State {
		return desired.Build(node(t, 0xffff0000).Node, policies, records)
	}
	if err := (Backend{}).Sync(ctx, nodes(all[1:]...)); err != nil {
		t.Fatal(err)
	}
	if err := (Backend{}).Update(ctx, desired.Share{State: nodes(all[1:]...)}, desired.Share{State: nodes(all...)}); err != nil {
		t.Fatal(err)
	}
	if err := (Backend{}).Check(ctx, nodes(all...), drift.Content); err != nil {
		t.Error(err)
	}
}
