package nftables

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/dataplane/counters"
	"github.com/podmark/podmark/pkg/dataplane/drift"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/test/netns"
)

// stages makes policies of all tiers, of which endpoints have some in common.
func stages(random *rand.Rand) desired.Policies {
	isolation := func() *desired.Isolation {
		i := &desired.Isolation{}
		for range 1 + random.IntN(3) {
			r := desired.Rule{Action: desired.Action(random.IntN(3))}
			switch random.IntN(4) {
			case 0:
				r.Peers = []desired.Peer{{Pods: labelled([]string{"web", "db", "client"}[random.IntN(3)])}}
			case 1:
				r.Blocks = prefixes([]string{"192.0.2.0/24", "fd00:9::/64"}[random.IntN(2)])
			case 2:
				r.Ports = []desired.Port{{Protocol: desired.TCP, PortRange: desired.PortRange{First: 80, Last: 90}}}
			}
			i.Rules = append(i.Rules, r)
		}
		return i
	}
	var p desired.Policies
	for i := range random.IntN(7) {
		policy := desired.Policy{
			Tier: desired.Tiers[random.IntN(3)], Priority: random.Int32N(2), Name: fmt.Sprint("p", i), Audit: random.IntN(3) == 0,
			Ingress: isolation(), Egress: isolation(),
		}
		if random.IntN(2) == 0 {
			policy.Pods = labelled([]string{"web", "db", "client"}[random.IntN(3)])
		}
		if !policy.Cluster() {
			policy.Namespace, policy.Priority = "shop", 0
			for _, side := range []*desired.Isolation{policy.Ingress, policy.Egress} {
				for n := range side.Rules {
					side.Rules[n].Action = desired.Allow
				}
			}
		}
		p.Policies = append(p.Policies, policy)
	}
	return p
}

// A profile jumps to its stages, and goes on where they have not decided.
func TestStageRender(t *testing.T) {
	port := func(n uint16) []desired.Port {
		return []desired.Port{{Protocol: desired.TCP, PortRange: desired.PortRange{First: n, Last: n}}}
	}
	s := desired.Build(node(t, 0xffff0000).Node, desired.Policies{Policies: []desired.Policy{
		{Tier: desired.AdminTier, Name: "a", Pods: labelled("web"), Ingress: &desired.Isolation{Rules: []desired.Rule{
			{Action: desired.Allow, Ports: port(80)},
			{Action: desired.Pass, Blocks: prefixes("192.0.2.0/24")},
			{Action: desired.Deny, Blocks: prefixes("fd00:9::/64")},
			{Action: desired.Deny},
		}}},
		{Tier: desired.AdminTier, Priority: 1, Name: "trial", Audit: true, Pods: labelled("web"), Ingress: &desired.Isolation{Rules: []desired.Rule{{Ports: port(25)}, {Action: desired.Deny, Ports: port(22)}}}},
		{Namespace: "shop", Name: "web", Pods: labelled("web"), Ingress: &desired.Isolation{Rules: []desired.Rule{{Ports: port(443)}}}},
		{Tier: desired.BaselineTier, Name: "b", Pods: labelled("web"), Ingress: &desired.Isolation{Rules: []desired.Rule{{Action: desired.Deny}}}},
	}}, []attachment.Record{pod(2, "web", "veth2")})
	id := s.Endpoints[0].Profiles[desired.Ingress]
	trial, admin := string(s.Profiles[id].Stages[0].ID), string(s.Profiles[id].Stages[1].ID)
	limit := "limit rate 10/second burst 50 packets log prefix \"podmark:"
	want := map[string][]string{
		"i4-" + string(id): {
			"meta mark set meta mark & 0x0000ffff",
			"jump si4-" + trial,
			"jump si4-" + admin,
			"meta mark & 0xffff0000 == 0x00010000 meta mark set meta mark & 0x0000ffff return",
			"th dport 443 meta l4proto tcp counter return comment \"shop/web ingress[0]\"",
			limit + "drop:ingress:" + string(id) + "\" group 1886 snaplen 128",
			"counter drop comment \"shop/web\"",
		},
		"si4-" + trial: {
			"th dport 80 meta l4proto tcp return",
			"ip saddr 192.0.2.0/24 return",
			"return",
			"th dport 25 meta l4proto tcp counter return comment \"Admin/trial ingress[0]\"",
			"th dport 22 meta l4proto tcp goto si4-" + trial + "-6 comment \"Admin/trial ingress[1]\"",
		},
		"si4-" + trial + "-6": {
			limit + "audit:ingress:" + trial + ":6\" group 1886 snaplen 128",
			"counter comment \"Admin/trial ingress[1]\"",
		},
		"si4-" + admin: {
			"th dport 80 meta l4proto tcp counter meta mark set meta mark & 0x0000ffff | 0x00010000 return comment \"Admin/a ingress[0]\"",
			"ip saddr 192.0.2.0/24 counter return comment \"Admin/a ingress[1]\"",
			"goto si4-" + admin + "-4 comment \"Admin/a ingress[3]\"",
		},
		"si4-" + admin + "-4": {
			limit + "drop:ingress:" + admin + ":4\" group 1886 snaplen 128",
			"counter drop comment \"Admin/a ingress[3]\"",
		},
	}
	got := map[string][]string{}
	for _, c := range render(s, numbers{}.with(s)).chains {
		if _, ok := want[c.name]; ok || strings.HasPrefix(c.name, "si4") {
			for _, r := range c.rules {
				got[c.name] = append(got[c.name], r.String())
			}
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// However policies of all tiers and endpoints come, change and go, there is what a Sync leaves.
func TestStagesUpdate(t *testing.T) {
	netns.Enter(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	ctx, base := t.Context(), node(t, 0xffff0000)
	sync := func(s desired.State) []string {
		t.Helper()
		if err := (Backend{}).Sync(ctx, s); err != nil {
			t.Fatal(err)
		}
		return sorted(list(t))
	}
	have := records()
	from := desired.Build(base.Node, desired.Policies{}, have)
	sync(from)
	for step := range 25 {
		policies, next := stages(random), slices.Clone(records())
		random.Shuffle(len(next), func(i, j int) { next[i], next[j] = next[j], next[i] })
		next = next[:1+random.IntN(len(next))]
		to := desired.Build(base.Node, policies, next)
		before, after := desired.Diff(desired.Share{State: from}, desired.Share{State: to})
		if err := (Backend{}).Update(ctx, before, after); err != nil {
			t.Fatalf("step %d: %v", step, err)
		}
		// One leaves by itself, and comes again.
		one := desired.Share{State: desired.Build(base.Node, policies, []attachment.Record{next[0]})}
		none := desired.Share{State: desired.Build(base.Node, policies, nil)}
		for _, way := range [][2]desired.Share{{one, none}, {none, one}} {
			if err := (Backend{}).Update(ctx, way[0], way[1]); err != nil {
				t.Fatalf("step %d: %v", step, err)
			}
		}
		if err := (Backend{}).Check(ctx, to, drift.Deep); err != nil {
			t.Fatalf("step %d: %v", step, err)
		}
		got := sorted(list(t))
		if diff := cmp.Diff(sync(to), got); diff != "" {
			t.Fatalf("step %d: after updates (+) there is not what a Sync leaves (-):\n%s", step, diff)
		}
		from = to
	}
}

// What a rule of a stage decides is counted under it.
func TestStagesCount(t *testing.T) {
	netns.Enter(t)
	ctx := t.Context()
	says := func(a desired.Action, port uint16) desired.Rule {
		return desired.Rule{Action: a, Ports: []desired.Port{{Protocol: desired.UDP, PortRange: desired.PortRange{First: port, Last: port}}}}
	}
	admin := func(priority int32, name string, audit bool, rules ...desired.Rule) desired.Policy {
		return desired.Policy{Tier: desired.AdminTier, Priority: priority, Name: name, Audit: audit, Pods: labelled("web"), Ingress: &desired.Isolation{Rules: rules}}
	}
	s := node(t, 0xffff0000)
	s = desired.Build(s.Node, desired.Policies{Policies: []desired.Policy{
		admin(1, "a", false, says(desired.Allow, 1), says(desired.Deny, 2), says(desired.Pass, 3)), admin(2, "b", true, says(desired.Deny, 4)),
	}}, records())
	if err := (Backend{}).Sync(ctx, s); err != nil {
		t.Fatal(err)
	}
	rules, err := (Backend{}).Counters(ctx)
	if err != nil {
		t.Fatal(err)
	}
	profile := s.Profiles[s.Endpoints[0].Profiles[desired.Ingress]]
	trial, enforced := profile.Stages[0].ID, profile.Stages[1].ID
	type counting struct {
		counters.Key
		Origin string
	}
	want := map[counting]int{ // for each family
		{counters.Key{Reason: counters.Allowed, Stage: enforced}, "Admin/a ingress[0]"}: 2,
		{counters.Key{Reason: counters.Policy, Stage: enforced, Rule: 2}, ""}:           2,
		{counters.Key{Reason: counters.Passed, Stage: enforced}, "Admin/a ingress[2]"}:  2,
		{counters.Key{Reason: counters.Audit, Stage: trial, Rule: 4}, ""}:               2,
	}
	got := map[counting]int{}
	for _, r := range rules {
		if r.Stage != "" {
			got[counting{r.Key, r.Origin}]++
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
