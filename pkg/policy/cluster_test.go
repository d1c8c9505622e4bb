package policy_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"
	"sigs.k8s.io/yaml"

	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/policy"
)

// clusterPolicy reads the spec of a policy of tier Admin about all pods, which may say otherwise.
func clusterPolicy(t *testing.T, spec string) *v1alpha2.ClusterNetworkPolicy {
	t.Helper()
	p := &v1alpha2.ClusterNetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: "p"}}
	p.Spec.Tier = v1alpha2.AdminTier
	if err := yaml.UnmarshalStrict([]byte(spec), &p.Spec); err != nil {
		t.Fatalf("%s: %v", spec, err)
	}
	if p.Spec.Subject == (v1alpha2.ClusterNetworkPolicySubject{}) && !strings.Contains(spec, "subject") {
		p.Spec.Subject.Namespaces = &metav1.LabelSelector{}
	}
	return p
}

func in(key string, values ...string) desired.Selector {
	return desired.Selector{{Key: key, Op: desired.In, Values: values}}
}

func tcp(first, last uint16) desired.Port {
	return desired.Port{Protocol: desired.TCP, PortRange: desired.PortRange{First: first, Last: last}}
}

// What is not understood of a policy that an API server has stored fails closed, by the action of its
// rule; and what is understood says what it says.
func TestClusterObject(t *testing.T) {
	everyone := []desired.Peer{{}}
	web := []desired.Peer{{NamespaceSelector: in("team", "a"), Pods: in("app", "web")}}
	denyAll := desired.Rule{Action: desired.Deny}
	for name, tt := range map[string]struct {
		spec            string
		ingress, egress []desired.Rule // nil for a side that the policy says nothing about
		unclear         string         // in the error; empty for none
	}{
		"a rule of pods": {
			"ingress: [{name: r, action: Accept, from: [{pods: {namespaceSelector: {matchLabels: {team: a}}, podSelector: {matchLabels: {app: web}}}}]}]",
			[]desired.Rule{{Name: "r", Peers: web}},
			nil, "",
		},
		"a rule of namespaces": {
			"ingress: [{action: Pass, from: [{namespaces: {matchLabels: {team: a}}}]}]",
			[]desired.Rule{{Action: desired.Pass, Peers: []desired.Peer{{NamespaceSelector: in("team", "a")}}}},
			nil, "",
		},
		"peers of a rule that denies are those of which nobody is sure, too": {
			"ingress: [{action: Deny, from: [{namespaces: {}}]}]",
			[]desired.Rule{{Action: desired.Deny, Peers: []desired.Peer{{Unsure: true}}}},
			nil, "",
		},
		"networks, joined, with host bits": {
			`egress: [{action: Deny, to: [{networks: ["10.0.0.1/9", "10.128.0.0/9"]}, {networks: ["fd00::/8"]}]}]`,
			nil,
			[]desired.Rule{{Action: desired.Deny, Blocks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}}},
			"",
		},
		"nodes": {
			"egress: [{action: Deny, to: [{nodes: {matchLabels: {pool: gold}}}]}]",
			nil,
			[]desired.Rule{{Action: desired.Deny, Peers: []desired.Peer{{Namespace: desired.Nodes, Pods: in("pool", "gold")}}}},
			"",
		},
		"names of domains are nobody": {
			`egress: [{action: Accept, to: [{domainNames: ["kubernetes.io"]}]}, {action: Accept, to: [{domainNames: ["*.kubernetes.io"]}, {namespaces: {}}]}]`,
			nil,
			[]desired.Rule{{MatchNone: true}, {Peers: everyone}},
			"",
		},
		"protocols": {
			`ingress: [{action: Accept, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 80}}}, {tcp: {destinationPort: {range: {start: 81, end: 90}}}}, {udp: {destinationPort: {number: 53}}}]}]`,
			[]desired.Rule{{Peers: everyone, Ports: []desired.Port{tcp(80, 90), {Protocol: desired.UDP, PortRange: desired.PortRange{First: 53, Last: 53}}}}},
			nil, "",
		},
		"a named port is of any protocol": {
			`ingress: [{action: Accept, from: [{namespaces: {}}], protocols: [{destinationNamedPort: http}, {destinationNamedPort: http}]}]`,
			[]desired.Rule{{Peers: everyone, NamedPorts: []desired.NamedPort{{Protocol: desired.TCP, Name: "http"}, {Protocol: desired.UDP, Name: "http"}, {Protocol: desired.SCTP, Name: "http"}}}},
			nil, "",
		},
		"no peer, where it accepts":                 {"ingress: [{action: Accept, from: []}]", []desired.Rule{{MatchNone: true}}, nil, "spec.ingress[0].from: Required"},
		"no peer, where it denies":                  {"ingress: [{action: Deny, from: []}]", []desired.Rule{denyAll}, nil, "spec.ingress[0].from: Required"},
		"no peer, where it passes":                  {"ingress: [{action: Pass, from: []}]", []desired.Rule{denyAll}, nil, "spec.ingress[0].from: Required"},
		"an unknown peer, where it accepts":         {"ingress: [{action: Accept, from: [{}]}]", []desired.Rule{{MatchNone: true}}, nil, "spec.ingress[0].from[0]: Required"},
		"an unknown peer beside others":             {"ingress: [{action: Accept, from: [{}, {namespaces: {}}]}]", []desired.Rule{{Peers: everyone}}, nil, "from[0]: Required"},
		"an unknown peer, where it denies":          {"egress: [{action: Deny, to: [{networks: [10.0.0.0/8]}, {}], protocols: [{tcp: {destinationPort: {number: 80}}}]}]", nil, []desired.Rule{denyAll}, "spec.egress[0].to[1]: Required"},
		"an unknown peer, where it passes":          {"egress: [{action: Pass, to: [{}]}]", nil, []desired.Rule{denyAll}, "spec.egress[0].to[0]: Required"},
		"a peer of two kinds, where it accepts":     {"egress: [{action: Accept, to: [{namespaces: {}, nodes: {}}]}]", nil, []desired.Rule{{MatchNone: true}}, "spec.egress[0].to[0]: Forbidden"},
		"a peer of two kinds, where it denies":      {"egress: [{action: Deny, to: [{namespaces: {}, nodes: {}}]}]", nil, []desired.Rule{denyAll}, "spec.egress[0].to[0]: Forbidden"},
		"no CIDR, where it accepts":                 {`egress: [{action: Accept, to: [{networks: [everywhere, 10.0.0.0/8]}]}]`, nil, []desired.Rule{{Blocks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}}, "networks[0]: Invalid"},
		"no CIDR, where it denies":                  {`egress: [{action: Deny, to: [{networks: [everywhere, 10.0.0.0/8]}]}]`, nil, []desired.Rule{denyAll}, "networks[0]: Invalid"},
		"names of domains, where it denies":         {`egress: [{action: Deny, to: [{domainNames: [kubernetes.io]}]}]`, nil, []desired.Rule{denyAll}, "domainNames: Forbidden"},
		"an unknown operator, where it accepts":     {"ingress: [{action: Accept, from: [{namespaces: {matchExpressions: [{key: a, operator: Near}]}}]}]", []desired.Rule{{MatchNone: true}}, nil, "operator"},
		"an unknown operator, where it denies":      {"ingress: [{action: Deny, from: [{namespaces: {matchExpressions: [{key: a, operator: Near}]}}]}]", []desired.Rule{denyAll}, nil, "operator"},
		"an unknown protocol, where it accepts":     {"ingress: [{action: Accept, from: [{namespaces: {}}], protocols: [{}]}]", []desired.Rule{{MatchNone: true}}, nil, "protocols[0]: Required"},
		"an unknown protocol beside others":         {"ingress: [{action: Accept, from: [{namespaces: {}}], protocols: [{}, {tcp: {destinationPort: {number: 80}}}]}]", []desired.Rule{{Peers: everyone, Ports: []desired.Port{tcp(80, 80)}}}, nil, "protocols[0]: Required"},
		"an unknown protocol, where it denies":      {"ingress: [{action: Deny, from: [{namespaces: {}}], protocols: [{}]}]", []desired.Rule{denyAll}, nil, "protocols[0]: Required"},
		"two protocols in one, where it denies":     {"ingress: [{action: Deny, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 80}}, destinationNamedPort: http}]}]", []desired.Rule{denyAll}, nil, "protocols[0]: Forbidden"},
		"an unknown attribute of TCP":               {"ingress: [{action: Accept, from: [{namespaces: {}}], protocols: [{tcp: {}}]}]", []desired.Rule{{MatchNone: true}}, nil, "protocols[0].tcp.destinationPort: Required"},
		"an unknown attribute, where it denies":     {"ingress: [{action: Deny, from: [{namespaces: {}}], protocols: [{sctp: {}}]}]", []desired.Rule{denyAll}, nil, "protocols[0].sctp.destinationPort: Required"},
		"a range that ends where it begins":         {"ingress: [{action: Accept, from: [{namespaces: {}}], protocols: [{udp: {destinationPort: {range: {start: 5, end: 5}}}}]}]", []desired.Rule{{MatchNone: true}}, nil, "start must be less than end"},
		"a number that is no port":                  {"ingress: [{action: Deny, from: [{namespaces: {}}], protocols: [{udp: {destinationPort: {number: 65536}}}]}]", []desired.Rule{denyAll}, nil, "ports are 1 to 65535"},
		"an unknown action":                         {"ingress: [{action: Log, from: [{namespaces: {}}]}]", []desired.Rule{{Action: desired.Deny, Peers: []desired.Peer{{Unsure: true}}}}, nil, "action: Unsupported"},
		"an unknown subject counts where it denies": {"{subject: {}, ingress: [{action: Accept, from: [{namespaces: {}}]}, {action: Pass, from: [{namespaces: {}}]}, {action: Deny, from: [{namespaces: {}}]}]}", []desired.Rule{{MatchNone: true}, {MatchNone: true}, {Action: desired.Deny, Peers: []desired.Peer{{Unsure: true}}}}, nil, "spec.subject: Required"},
		"an unknown tier counts where it denies":    {"{tier: Middle, ingress: [{action: Accept, from: [{namespaces: {}}]}]}", []desired.Rule{{MatchNone: true}}, nil, "spec.tier: Unsupported"},
	} {
		p := clusterPolicy(t, tt.spec)
		before := p.DeepCopy()
		got, err := policy.ClusterObject(p)
		if diff := cmp.Diff(before, p); diff != "" {
			t.Errorf("%s: it changes the object: %s", name, diff)
		}
		if (err == nil) != (tt.unclear == "") || err != nil && !strings.Contains(err.Error(), tt.unclear) {
			t.Errorf("%s: error %v, want %q", name, err, tt.unclear)
		}
		want := desired.Policy{Tier: desired.AdminTier, Name: "p"}
		if tt.ingress != nil {
			want.Ingress = &desired.Isolation{Rules: tt.ingress}
		}
		if tt.egress != nil {
			want.Egress = &desired.Isolation{Rules: tt.egress}
		}
		if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// A policy is about the pods that its subject picks; of a subject that is not understood, about more.
func TestClusterSubject(t *testing.T) {
	for subject, want := range map[string]desired.Policy{
		"{namespaces: {matchLabels: {team: a}}}": {NamespaceSelector: in("team", "a")},
		"{namespaces: {}}":                       {},
		"{pods: {namespaceSelector: {matchLabels: {team: a}}, podSelector: {}}}":  {NamespaceSelector: in("team", "a")},
		"{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}}": {Pods: in("app", "web")},
		"{pods: {podSelector: {matchLabels: {app: web}}}}":                        {Pods: in("app", "web")},
		"{}": {},
		"{namespaces: {matchExpressions: [{key: a, operator: Near}], matchLabels: {team: a}}}":   {NamespaceSelector: in("team", "a")},
		"{namespaces: {matchLabels: {team: a}}, pods: {podSelector: {matchLabels: {app: web}}}}": {},
	} {
		got, _ := policy.ClusterObject(clusterPolicy(t, "subject: "+subject))
		want.Tier, want.Name = desired.AdminTier, "p"
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", subject, diff)
		}
	}
}

// A policy that an API server would refuse is refused in files, and says why.
func TestValidateCluster(t *testing.T) {
	many := func(item string, n int) string { return strings.TrimSuffix(strings.Repeat(item+",", n), ",") }
	rule := "{action: Accept, from: [{namespaces: {}}]}"
	for spec, wrong := range map[string]string{
		"ingress: [" + many(rule, 25) + "]": "",
		"ingress: [" + many(rule, 26) + "]": "spec.ingress: Too many",
		"priority: 1000":                    "",
		"priority: 1001":                    "spec.priority: Invalid",
		"priority: -1":                      "spec.priority: Invalid",
		"tier: NetworkPolicy":               "spec.tier: Unsupported",
		"ingress: [{action: Accept, from: [" + many("{namespaces: {}}", 26) + "]}]":                       "spec.ingress[0].from: Too many",
		"ingress: [{action: Accept, name: " + strings.Repeat("é", 100) + ", from: [{namespaces: {}}]}]":   "",
		"ingress: [{action: Accept, name: " + strings.Repeat("é", 101) + ", from: [{namespaces: {}}]}]":   "spec.ingress[0].name: Too long",
		"ingress: [{action: Accept, from: [{namespaces: {}}], protocols: []}]":                            "protocols: Invalid",
		"egress: [{action: Accept, to: [{networks: []}]}]":                                                "networks: Invalid",
		"egress: [{action: Accept, to: [{networks: [10.0.0.1/8]}]}]":                                      "",
		"egress: [{action: Accept, to: [{networks: [010.0.0.0/8]}]}]":                                     "networks[0]: Invalid",
		"egress: [{action: Accept, to: [{networks: ['::ffff:10.0.0.0/104']}]}]":                           "networks[0]: Invalid",
		"egress: [{action: Accept, to: [{networks: [10.0.0.0/8, 10.0.0.0/8]}]}]":                          "networks[1]: Duplicate",
		"egress: [{action: Accept, to: [{domainNames: ['*.kubernetes.io', kubernetes.io.]}]}]":            "",
		"egress: [{action: Accept, to: [{domainNames: ['www.*.io']}]}]":                                   "domainNames[0]: Invalid",
		"egress: [{action: Accept, to: [{nodes: {}}], protocols: [{destinationNamedPort: http}]}]":        "protocols: Forbidden",
		"egress: [{action: Accept, to: [{namespaces: {}}], protocols: [{destinationNamedPort: http}]}]":   "",
		"ingress: [{action: Accept, from: [{namespaces: {matchExpressions: [{key: a, operator: In}]}}]}]": "values: Required",
	} {
		errs := policy.ValidateCluster(clusterPolicy(t, spec), []byte(`{"spec": {"priority": 0}}`))
		switch {
		case wrong == "" && len(errs) > 0:
			t.Errorf("%s: %v", spec, errs)
		case wrong != "" && (len(errs) != 1 || !strings.Contains(errs[0].Error(), wrong)):
			t.Errorf("%s: %v, want %s", spec, errs, wrong)
		}
	}
}

// What is required and has a valid zero value must be in the manifest.
func TestRequiredOfCluster(t *testing.T) {
	p := clusterPolicy(t, "ingress: [{action: Accept, from: [{pods: {podSelector: {}}}]}]")
	p.Spec.Egress = []v1alpha2.ClusterNetworkPolicyEgressRule{{
		Action: v1alpha2.ClusterNetworkPolicyRuleActionPass, To: []v1alpha2.ClusterNetworkPolicyEgressPeer{{Pods: &v1alpha2.NamespacedPod{}}},
	}}
	for manifest, want := range map[string][]string{
		`{"spec": {"priority": 0, "subject": {"pods": {"podSelector": {}}}, "ingress": [{"from": [{"pods": {"podSelector": {}}}]}], "egress": [{"to": [{"pods": {"podSelector": {}}}]}]}}`: nil,
		`{"spec": {"subject": {"pods": {}}, "ingress": [{"from": [{"pods": {}}]}], "egress": [{"to": [{"namespaces": {}}, {"pods": {"namespaceSelector": {}}}]}]}}`: {
			"spec.priority", "spec.subject.pods.podSelector", "spec.ingress[0].from[0].pods.podSelector", "spec.egress[0].to[1].pods.podSelector",
		},
	} {
		var got []string
		for _, err := range policy.ValidateCluster(p, []byte(manifest)) {
			got = append(got, err.Field)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", manifest, diff)
		}
	}
}
