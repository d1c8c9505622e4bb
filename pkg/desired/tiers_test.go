package desired_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/desired"
)

// says is a rule about the shop's pods of a label; about anyone where there is none.
func says(a desired.Action, peer string) desired.Rule {
	r := desired.Rule{Action: a}
	if peer != "" {
		r.Peers = []desired.Peer{{Namespace: "shop", Pods: app(peer)}}
	}
	return r
}

// tiered is a policy about what comes to web: of the shop, or of all namespaces.
func tiered(tier desired.Tier, priority int32, name string, rules ...desired.Rule) desired.Policy {
	p := desired.Policy{Tier: tier, Priority: priority, Name: name, Pods: app("web"), Ingress: &desired.Isolation{Rules: rules}}
	if !p.Cluster() {
		p.Namespace = "shop"
	}
	return p
}

func admin(priority int32, name string, rules ...desired.Rule) desired.Policy {
	return tiered(desired.AdminTier, priority, name, rules...)
}

// The first rule that matches decides, in the order of tiers, priorities, names and rules; a Pass
// skips the rest of its tier; and only a NetworkPolicy isolates.
func TestTiers(t *testing.T) {
	allow, deny, pass := desired.Allow, desired.Deny, desired.Pass
	np := func(rules ...desired.Rule) desired.Policy {
		return tiered(desired.NetworkPolicyTier, 0, "np", rules...)
	}
	baseline := func(rules ...desired.Rule) desired.Policy {
		return tiered(desired.BaselineTier, 0, "base", rules...)
	}
	try := func(p desired.Policy) desired.Policy { p.Audit = true; return p }
	trial := func(rules ...desired.Rule) desired.Policy { return try(np(rules...)) }
	for name, tt := range map[string]struct {
		policies []desired.Policy
		allowed  bool
		by       string
	}{
		"nothing": {nil, true, "not isolated"},
		"a policy of no tier but NetworkPolicy isolates":  {[]desired.Policy{admin(1, "a", says(deny, "other")), baseline(says(deny, "other"))}, true, "no policy denies it"},
		"an admin denies what a NetworkPolicy allows":     {[]desired.Policy{admin(1, "a", says(deny, "client")), np(says(allow, ""))}, false, "Admin/a ingress[0]"},
		"an admin allows what a NetworkPolicy denies":     {[]desired.Policy{admin(1, "a", says(allow, "client")), np()}, true, "Admin/a ingress[0]"},
		"an admin passes to a NetworkPolicy":              {[]desired.Policy{admin(1, "a", says(pass, "client"), says(deny, "")), np(says(allow, "client"))}, true, "shop/np ingress[0]"},
		"an admin passes to one that denies":              {[]desired.Policy{admin(1, "a", says(pass, "client"), says(allow, "")), np()}, false, "ingress isolation, no rule allows it"},
		"a pass skips the whole tier":                     {[]desired.Policy{admin(1, "a", says(pass, "client")), admin(2, "b", says(deny, ""))}, true, "no policy denies it"},
		"a pass to the baseline":                          {[]desired.Policy{admin(1, "a", says(pass, "")), baseline(says(deny, "client"))}, false, "Baseline/base ingress[0]"},
		"lower priorities come first":                     {[]desired.Policy{admin(9, "a", says(deny, "")), admin(1, "b", says(allow, ""))}, true, "Admin/b ingress[0]"},
		"names decide among equals":                       {[]desired.Policy{admin(5, "b", says(deny, "")), admin(5, "a", says(allow, ""))}, true, "Admin/a ingress[0]"},
		"rules keep their order":                          {[]desired.Policy{admin(5, "a", says(allow, "client"), says(deny, ""))}, true, "Admin/a ingress[0]"},
		"rules keep their order, and others fall through": {[]desired.Policy{admin(5, "a", says(allow, "other"), says(deny, ""))}, false, "Admin/a ingress[1]"},
		"a NetworkPolicy keeps the baseline out":          {[]desired.Policy{np(says(allow, "client")), baseline(says(deny, ""))}, true, "shop/np ingress[0]"},
		"the baseline decides where none isolates":        {[]desired.Policy{baseline(says(deny, ""))}, false, "Baseline/base ingress[0]"},
		"the baseline allows":                             {[]desired.Policy{baseline(says(allow, "client"), says(deny, ""))}, true, "Baseline/base ingress[0]"},
		"a trial keeps no baseline out":                   {[]desired.Policy{trial(says(allow, "client")), baseline(says(deny, ""))}, false, "Baseline/base ingress[0]"},
		"a trial that would deny":                         {[]desired.Policy{trial()}, true, "audit of ingress isolation, no rule allows it"},
		"a trial, then the baseline":                      {[]desired.Policy{trial(), baseline(says(allow, ""))}, true, "audit of ingress isolation, no rule allows it; Baseline/base ingress[0]"},
		"an admin's trial":                                {[]desired.Policy{try(admin(1, "a", says(deny, ""))), np(says(allow, ""))}, true, "audit of Admin/a ingress[0]; shop/np ingress[0]"},
		"an admin's trial allows nothing":                 {[]desired.Policy{try(admin(1, "a", says(allow, ""))), np()}, false, "ingress isolation, no rule allows it"},
		"an admin's trial passes nothing":                 {[]desired.Policy{try(admin(1, "a", says(pass, ""))), admin(2, "b", says(deny, ""))}, false, "Admin/b ingress[0]"},
		"a trial's own rules keep their order":            {[]desired.Policy{try(admin(1, "a", says(pass, "client"), says(deny, "")))}, true, "Admin/a ingress[0]"},
		"a trial after one that allows":                   {[]desired.Policy{admin(1, "a", says(allow, "client")), try(admin(2, "b", says(deny, "")))}, true, "Admin/a ingress[0]"},
		"a trial after one that passes":                   {[]desired.Policy{admin(1, "a", says(pass, "client")), try(admin(2, "b", says(deny, "")))}, true, "no policy denies it"},
		"a trial after one that is about others":          {[]desired.Policy{admin(1, "a", says(allow, "other")), try(admin(2, "b", says(deny, ""))), admin(3, "c", says(allow, ""))}, true, "audit of Admin/b ingress[0]; Admin/c ingress[0]"},
		"a trial before one that denies":                  {[]desired.Policy{try(admin(1, "a", says(deny, ""))), admin(2, "b", says(deny, ""))}, false, "Admin/b ingress[0]"},
		"each trial by itself":                            {[]desired.Policy{try(admin(1, "a", says(allow, ""))), try(admin(2, "b", says(deny, "")))}, true, "audit of Admin/b ingress[0]; Admin/a ingress[0]"},
	} {
		s := state(t, tt.policies, pod(2, "web", "10.1.0.2"), pod(3, "client", "10.1.0.3"), pod(4, "other", "10.1.0.4"))
		v := s.Evaluate(desired.Packet{In: "veth-client", Out: "veth-web", Src: addr("10.1.0.3"), Dst: addr("10.1.0.2"), Protocol: desired.TCP, DstPort: 80})
		if v.Allowed != tt.allowed || v.By != tt.by {
			t.Errorf("%s: allowed %t by %q, want %t by %q", name, v.Allowed, v.By, tt.allowed, tt.by)
		}
	}
}

// A backend that renders NetworkPolicies alone refuses a state of others.
func TestOnlyNetworkPolicies(t *testing.T) {
	web2 := pod(2, "web", "10.1.0.2")
	for name, tt := range map[string]struct {
		policies []desired.Policy
		want     error
	}{
		"none":               {nil, nil},
		"a NetworkPolicy":    {[]desired.Policy{web()}, nil},
		"an audited one":     {[]desired.Policy{audited("trial", web())}, nil},
		"an admin's":         {[]desired.Policy{admin(1, "a", says(desired.Allow, ""))}, desired.ErrStages},
		"a baseline beside":  {[]desired.Policy{web(), tiered(desired.BaselineTier, 0, "b", says(desired.Deny, ""))}, desired.ErrStages},
		"a rule that denies": {[]desired.Policy{tiered(desired.NetworkPolicyTier, 0, "b", says(desired.Deny, ""))}, desired.ErrStages},
		"a rule that passes": {[]desired.Policy{tiered(desired.NetworkPolicyTier, 0, "b", says(desired.Pass, ""))}, desired.ErrStages},
		"one about no pod":   {[]desired.Policy{{Tier: desired.AdminTier, Pods: app("none"), Name: "a", Ingress: &desired.Isolation{}}}, nil},
	} {
		if err := state(t, tt.policies, web2).OnlyNetworkPolicies(); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
	}
	if err := (desired.State{}).OnlyNetworkPolicies(); !errors.Is(err, desired.ErrEmpty) {
		t.Errorf("the zero state: %v", err)
	}
}

// What a change forbids of what was allowed, it is said to restrict, whatever tiers it is of.
func TestRestrictsAcrossTiers(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	names := []string{"web", "client", "other"}
	policies := func(most int) (out []desired.Policy) {
		for i := range random.IntN(most) {
			p := desired.Policy{
				Tier: desired.Tiers[random.IntN(3)], Priority: random.Int32N(3), Name: fmt.Sprint("p", i),
				Pods: app(names[random.IntN(3)]), Audit: random.IntN(8) == 0,
			}
			if !p.Cluster() {
				p.Namespace, p.Priority = "shop", 0
			}
			for _, side := range []**desired.Isolation{&p.Ingress, &p.Egress} {
				if random.IntN(3) == 0 {
					continue
				}
				*side = &desired.Isolation{}
				for range random.IntN(4) {
					r := says(desired.Action(random.IntN(3)), append(names, "")[random.IntN(4)])
					if p.Tier == desired.NetworkPolicyTier {
						r.Action = desired.Allow
					}
					(*side).Rules = append((*side).Rules, r)
				}
			}
			out = append(out, p)
		}
		return out
	}
	restricted, forbidding := 0, 0
	for range 5000 {
		old := policies(5)
		next := slices.Clone(old)
		i := random.IntN(len(next) + 1)
		switch random.IntN(4) {
		case 0:
			next = policies(5)
		case 1: // one comes
			for _, p := range policies(3) {
				p.Name += "-new"
				next = slices.Insert(next, i, p)
			}
		case 2: // or goes
			if i < len(next) {
				next = slices.Delete(next, i, i+1)
			}
		default: // or has another place in the order
			if i < len(next) && next[i].Cluster() {
				next[i].Priority = random.Int32N(3)
			}
		}
		pods := []string{"10.1.0.2", "10.1.0.3", "10.1.0.4"}
		records := []attachment.Record{pod(2, "web", pods[0]), pod(3, "client", pods[1]), pod(4, "other", pods[2])}
		from := state(t, old, records...)
		if random.IntN(3) == 0 { // who is in a set changes, too
			next, records[2].Labels = old, map[string]string{"app": names[random.IntN(2)]}
		}
		to := state(t, next, records...)
		forbids := ""
		for i := range names {
			for j := range names {
				if p := (desired.Packet{In: "veth-" + names[i], Out: "veth-" + names[j], Src: addr(pods[i]), Dst: addr(pods[j]), Protocol: desired.TCP, DstPort: 80}); i != j {
					if from.Evaluate(p).Allowed && !to.Evaluate(p).Allowed {
						forbids = names[i] + " to " + names[j]
					}
				}
			}
		}
		switch restricts := from.Restricts(to); {
		case forbids != "" && !restricts:
			t.Fatalf("it forbids %s and does not restrict: %v, then %v", forbids, old, next)
		case restricts:
			restricted++
		}
		if forbids != "" {
			forbidding++
		}
	}
	if forbidding < 100 || restricted == 5000 {
		t.Errorf("of 5000 changes %d forbid something and %d restrict: the test finds nothing", forbidding, restricted)
	}
}

// A policy of the cluster that is audited is tried after the policies before it, which pass what they
// decide.
func TestTrialStages(t *testing.T) {
	trial := admin(2, "trial", says(desired.Deny, ""))
	trial.Audit = true
	s := state(t, []desired.Policy{
		admin(1, "a", says(desired.Allow, "client"), says(desired.Deny, "other")), trial, admin(3, "b", says(desired.Pass, "")),
	}, pod(2, "web", "10.1.0.2"))
	stages := s.Profiles[s.Endpoints[0].Profiles[desired.Ingress]].Stages
	type rule struct {
		Origin string
		Action desired.Action
	}
	var got [][]rule
	for _, stage := range stages {
		var rules []rule
		for _, r := range stage.Rules {
			rules = append(rules, rule{r.Origin, r.Action})
		}
		got = append(got, rules)
	}
	want := [][]rule{
		{{"", desired.Pass}, {"", desired.Pass}, {"Admin/trial ingress[0]", desired.Deny}},
		{{"Admin/a ingress[0]", desired.Allow}, {"Admin/a ingress[1]", desired.Deny}, {"Admin/b ingress[0]", desired.Pass}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// What is stored is what it was, and a NetworkPolicy is stored as before there were tiers.
func TestStoredTiers(t *testing.T) {
	for want, p := range map[string]desired.Policy{
		`{"namespace":"shop","name":"np","pods":[{"key":"app","op":"In","values":["web"]}],"ingress":{"rules":[{}]}}`:                                                            tiered(desired.NetworkPolicyTier, 0, "np", says(desired.Allow, "")),
		`{"tier":"Admin","priority":7,"namespace":"","name":"a","pods":[{"key":"app","op":"In","values":["web"]}],"ingress":{"rules":[{"action":"Deny"},{"action":"Pass"},{}]}}`: admin(7, "a", says(desired.Deny, ""), says(desired.Pass, ""), says(desired.Allow, "")),
		`{"tier":"Baseline","namespace":"","name":"b","pods":[{"key":"app","op":"In","values":["web"]}],"ingress":{}}`:                                                           tiered(desired.BaselineTier, 0, "b"),
	} {
		b, err := json.Marshal(p)
		if err != nil || string(b) != want {
			t.Errorf("%s is stored as\n%s, want\n%s: %v", p, b, want, err)
		}
		var back desired.Policy
		if err := json.Unmarshal(b, &back); err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(p, back); diff != "" {
			t.Error(diff)
		}
	}
	for _, bad := range []string{`{"tier":"admin"}`, `{"tier":3}`, `{"ingress":{"rules":[{"action":"Reject"}]}}`} {
		if err := json.Unmarshal([]byte(bad), &desired.Policy{}); err == nil {
			t.Errorf("%s is taken", bad)
		}
	}
}
