package desired_test

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/desired"
)

func label(key, value string) desired.Selector {
	return desired.Selector{{Key: key, Op: desired.In, Values: []string{value}}}
}

func lacks(key string) desired.Selector {
	return desired.Selector{{Key: key, Op: desired.DoesNotExist}}
}

// A policy of the cluster is about the pods of the namespaces that it picks. Where nobody knows the
// labels of one, what it denies is denied and nothing else of it counts.
func TestSubjects(t *testing.T) {
	anyone := desired.Rule{Action: desired.Allow}
	deny := desired.Rule{Action: desired.Deny, Peers: []desired.Peer{{Pods: app("client")}}}
	pass := desired.Rule{Action: desired.Pass}
	known := map[string]map[string]string{"shop": {"team": "a"}}
	for name, tt := range map[string]struct {
		namespaces, pods desired.Selector
		rules            []desired.Rule
		declared         map[string]map[string]string
		listed           bool
		uid              string // of the pod's namespace; the one there is now has "new"
		outside          bool   // of Kubernetes
		allowed          bool
	}{
		"all namespaces":                         {rules: []desired.Rule{deny}},
		"its pods are others":                    {pods: app("db"), rules: []desired.Rule{deny}, allowed: true},
		"outside of Kubernetes":                  {rules: []desired.Rule{deny}, outside: true, allowed: true},
		"by the name":                            {namespaces: label(desired.MetadataName, "shop"), rules: []desired.Rule{deny}},
		"by another name":                        {namespaces: label(desired.MetadataName, "bank"), rules: []desired.Rule{deny}, allowed: true},
		"by the name, of one not known":          {namespaces: label(desired.MetadataName, "bank"), rules: []desired.Rule{deny}, listed: true, allowed: true},
		"by a label":                             {namespaces: label("team", "a"), declared: known, rules: []desired.Rule{deny}},
		"by a label that is another":             {namespaces: label("team", "b"), declared: known, rules: []desired.Rule{deny}, allowed: true},
		"by a label that no file declares":       {namespaces: label("team", "a"), rules: []desired.Rule{deny}, allowed: true},
		"by the lack of one":                     {namespaces: lacks("team"), rules: []desired.Rule{deny}},
		"by a label not known":                   {namespaces: label("team", "b"), listed: true, rules: []desired.Rule{deny}},
		"by a label of a former namespace":       {namespaces: label("team", "b"), declared: known, uid: "old", rules: []desired.Rule{deny}},
		"by a label of the present namespace":    {namespaces: label("team", "b"), declared: known, uid: "new", rules: []desired.Rule{deny}, allowed: true},
		"unsure, an Allow does not count":        {namespaces: label("team", "b"), listed: true, rules: []desired.Rule{anyone, deny}},
		"unsure, a Pass does not count":          {namespaces: label("team", "b"), listed: true, rules: []desired.Rule{pass, deny}},
		"sure, an Allow counts":                  {namespaces: label("team", "a"), declared: known, rules: []desired.Rule{anyone, deny}, allowed: true},
		"unsure, and its pods are others":        {namespaces: label("team", "b"), pods: app("db"), listed: true, rules: []desired.Rule{deny}, allowed: true},
		"the name and a label that is not known": {namespaces: append(label(desired.MetadataName, "bank"), lacks("team")...), listed: true, rules: []desired.Rule{deny}},
	} {
		target, client := pod(2, "web", "10.1.0.2"), pod(3, "client", "10.1.0.3")
		client.Namespace, target.NamespaceUID = "bank", tt.uid
		if tt.outside {
			target.Namespace = ""
		}
		policies := desired.Policies{
			Policies: []desired.Policy{{
				Tier: desired.AdminTier, Name: "a", NamespaceSelector: tt.namespaces, Pods: tt.pods, Ingress: &desired.Isolation{Rules: tt.rules},
			}},
			Namespaces: tt.declared, Listed: tt.listed, NamespaceUIDs: map[string]string{"shop": "new"},
		}
		s := desired.Build(node(t), policies, []attachment.Record{target, client})
		v := s.Evaluate(desired.Packet{In: "veth-client", Out: "veth-web", Src: addr("10.1.0.3"), Dst: addr("10.1.0.2"), Protocol: desired.TCP, DstPort: 80})
		if v.Allowed != tt.allowed {
			t.Errorf("%s: allowed %t by %q", name, v.Allowed, v.By)
		}
	}
}

// Two endpoints have one profile only where the same rules of the same policies count for both.
func TestSubjectsProfiles(t *testing.T) {
	policies := desired.Policies{Listed: true, NamespaceUIDs: map[string]string{"shop": "new"}, Policies: []desired.Policy{{
		Tier: desired.AdminTier, Name: "a", NamespaceSelector: lacks("team"),
		Ingress: &desired.Isolation{Rules: []desired.Rule{says(desired.Allow, ""), says(desired.Deny, "")}},
	}}, Namespaces: map[string]map[string]string{"shop": {}}}
	sure, unsure, same := pod(2, "web", "10.1.0.2"), pod(3, "client", "10.1.0.3"), pod(4, "other", "10.1.0.4")
	unsure.Namespace = "bank"
	s := desired.Build(node(t), policies, []attachment.Record{sure, unsure, same})
	if of := func(i int) desired.ProfileID { return s.Endpoints[i].Profiles[desired.Ingress] }; of(0) == of(1) || of(0) != of(2) {
		t.Errorf("profiles %q", []desired.ProfileID{of(0), of(1), of(2)})
	}
}

// What a rule denies to namespaces by their labels it denies to those whose labels nobody knows; what
// it allows, it does not.
func TestUnsurePeers(t *testing.T) {
	peers := []desired.Peer{{NamespaceSelector: label("team", "a")}, {NamespaceSelector: label("team", "a"), Unsure: true}}
	policies := desired.Policies{
		Listed: true, Namespaces: map[string]map[string]string{"a": {"team": "a"}, "b": {"team": "b"}},
		NamespaceUIDs: map[string]string{"a": "new"},
		Policies:      []desired.Policy{{Tier: desired.AdminTier, Name: "p", Ingress: &desired.Isolation{Rules: []desired.Rule{{Peers: peers}}}}},
	}
	for name, tt := range map[string]struct {
		namespace, uid string
		sure, unsure   bool
	}{
		"one that is picked":     {"a", "new", true, true},
		"one that is not":        {"b", "", false, false},
		"one that nobody knows":  {"c", "", false, true},
		"a former one":           {"a", "old", false, true},
		"nodes are no namespace": {desired.Nodes, "", false, false},
		"outside of Kubernetes":  {"", "", false, false},
	} {
		m := policies.Members(desired.Pod{Namespace: tt.namespace, NamespaceUID: tt.uid, Name: "pod", Addresses: []netip.Addr{addr("10.9.0.9")}})
		for id, set := range desired.Build(node(t), policies, nil).PeerSets {
			want := tt.sure
			if set.Peer.Unsure {
				want = tt.unsure
			}
			if got := len(m.Peers[id]) > 0; got != want {
				t.Errorf("%s, unsure %t: in the set %t, want %t", name, set.Peer.Unsure, got, want)
			}
		}
	}
}

// Nodes are peers by their labels, and pods with the same labels are not among them; nor are nodes
// among pods.
func TestNodesArePeers(t *testing.T) {
	gold := label("pool", "gold")
	policies := desired.Policies{Policies: []desired.Policy{{Tier: desired.AdminTier, Name: "p", Egress: &desired.Isolation{Rules: []desired.Rule{
		{Peers: []desired.Peer{{Namespace: desired.Nodes, Pods: gold}}}, {Peers: []desired.Peer{{Pods: gold}}},
	}}}}}
	s := desired.Build(node(t), policies, nil)
	for name, tt := range map[string]struct {
		pod         desired.Pod
		nodes, pods bool
	}{
		"a node of the pool":      {desired.Pod{Namespace: desired.Nodes, Name: "n1", Labels: map[string]string{"pool": "gold"}}, true, false},
		"a node of another":       {desired.Pod{Namespace: desired.Nodes, Name: "n2", Labels: map[string]string{"pool": "tin"}}, false, false},
		"a pod with such a label": {desired.Pod{Namespace: "shop", Name: "n1", Labels: map[string]string{"pool": "gold"}}, false, true},
	} {
		tt.pod.Addresses = []netip.Addr{addr("10.9.0.9")}
		m := policies.Members(tt.pod)
		for id, set := range s.PeerSets {
			want := tt.pods
			if set.Peer.Namespace == desired.Nodes {
				want = tt.nodes
			}
			if got := slices.Contains(m.Peers[id], addr("10.9.0.9")); got != want {
				t.Errorf("%s: in set %+v %t, want %t", name, set.Peer, got, want)
			}
		}
	}
}

// A stage is the same wherever the same policies make it, whatever else an endpoint has.
func TestSharedStages(t *testing.T) {
	np := web()
	s := state(t, []desired.Policy{
		np, admin(1, "a", says(desired.Deny, "client")),
		{Tier: desired.AdminTier, Priority: 2, Name: "b", Ingress: &desired.Isolation{Rules: []desired.Rule{says(desired.Deny, "")}}},
		{Tier: desired.BaselineTier, Name: "c", Ingress: &desired.Isolation{Rules: []desired.Rule{says(desired.Pass, "")}}},
	}, pod(2, "web", "10.1.0.2"), pod(3, "client", "10.1.0.3"), pod(4, "other", "10.1.0.4"))
	stages := func(i int) []desired.Stage { return s.Profiles[s.Endpoints[i].Profiles[desired.Ingress]].Stages }
	web, client, other := stages(0), stages(1), stages(2)
	if len(web) != 3 || len(client) != 2 || len(other) != 2 {
		t.Fatalf("%d, %d and %d stages", len(web), len(client), len(other))
	}
	if web[0].ID == client[0].ID || client[0].ID != other[0].ID || web[2].ID != client[1].ID {
		t.Errorf("stages %q", []desired.StageID{web[0].ID, client[0].ID, other[0].ID, web[2].ID, client[1].ID})
	}
	if want := []string{"Admin/a", "Admin/b"}; !slices.Equal(web[0].Policies, want) {
		t.Errorf("policies %q, want %q", web[0].Policies, want)
	}
}
