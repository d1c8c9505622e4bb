package desired_test

import (
	"strings"
	"testing"

	"github.com/podmark/podmark/pkg/desired"
)

// audited is the policy under another name, tried out.
func audited(name string, p desired.Policy) desired.Policy {
	p.Name, p.Audit = name, true
	return p
}

// What an audited policy would deny passes and is said, but only where no enforced
// policy isolates the pod; there it neither denies nor allows.
func TestAudit(t *testing.T) {
	open := desired.Policy{Namespace: "shop", Name: "open", Pods: app("web"), Ingress: &desired.Isolation{Rules: []desired.Rule{{}}}}
	mute := desired.Policy{Namespace: "shop", Name: "mute", Pods: app("other"), Egress: &desired.Isolation{}}
	tests := []struct {
		name             string
		policies         []desired.Policy
		from             string
		allowed, audited bool
		by               string // what the reason holds
	}{
		{"what it allows", []desired.Policy{audited("trial", web())}, "client", true, false, "shop/trial ingress[0]"},
		{"what it would deny", []desired.Policy{audited("trial", web())}, "other", true, true, "ingress isolation"},
		{"another one allows it", []desired.Policy{audited("trial", web()), audited("trial2", open)}, "other", true, false, "shop/trial2 ingress[0]"},
		{"an enforced one denies", []desired.Policy{web(), audited("trial", open)}, "other", false, false, "ingress isolation"},
		{"an enforced one allows", []desired.Policy{web(), audited("trial", desired.Policy{Namespace: "shop", Pods: app("web"), Ingress: &desired.Isolation{}})}, "client", true, false, "shop/web ingress[0]"},
		{"an enforced one isolates the other direction", []desired.Policy{audited("trial", web()), {Namespace: "shop", Name: "out", Pods: app("web"), Egress: &desired.Isolation{}}}, "other", true, true, "ingress isolation"},
		{"the source is audited", []desired.Policy{audited("trial", mute)}, "other", true, true, "egress isolation"},
		{"the source is audited and the destination allows", []desired.Policy{audited("trial", mute), open}, "other", true, true, "shop/open ingress[0]"},
		{"the source is audited and the destination denies", []desired.Policy{audited("trial", mute), web()}, "other", false, false, "ingress isolation"},
	}
	for _, tt := range tests {
		s := state(t, tt.policies, pod(2, "web", "10.1.0.2"), pod(3, "client", "10.1.0.3"), pod(4, "other", "10.1.0.4"))
		src := map[string]string{"client": "10.1.0.3", "other": "10.1.0.4"}[tt.from]
		v := s.Evaluate(desired.Packet{In: "veth-" + tt.from, Out: "veth-web", Src: addr(src), Dst: addr("10.1.0.2"), Protocol: desired.TCP, DstPort: 80})
		if v.Allowed != tt.allowed || v.Audited != tt.audited || !strings.Contains(v.By, tt.by) {
			t.Errorf("%s: %+v, want allowed %t, audited %t, by %q", tt.name, v, tt.allowed, tt.audited, tt.by)
		}
	}
}

// The rules of a trial and those of the same policies in force are not mixed up.
func TestAuditHasAProfileOfItsOwn(t *testing.T) {
	trial := web()
	trial.Audit = true
	tried, enforced := state(t, []desired.Policy{trial}, pod(2, "web", "10.1.0.2")), state(t, []desired.Policy{web()}, pod(2, "web", "10.1.0.2"))
	a, b := tried.Endpoints[0].Profiles[desired.Ingress], enforced.Endpoints[0].Profiles[desired.Ingress]
	if a == "" || a == b {
		t.Errorf("profile %q audits and %q enforces", a, b)
	}
	if !tried.Profiles[a].Audit() || enforced.Profiles[b].Audit() {
		t.Errorf("%+v and %+v", tried.Profiles[a], enforced.Profiles[b])
	}
}

func TestNarrowsByAudit(t *testing.T) {
	trial := web()
	trial.Audit = true
	open := desired.Policy{Namespace: "shop", Name: "open", Pods: app("web"), Ingress: &desired.Isolation{Rules: []desired.Rule{{}}}}
	openTrial := open
	openTrial.Audit = true
	tests := []struct {
		name     string
		from, to []desired.Policy
		narrows  bool
	}{
		{"a trial begins", nil, []desired.Policy{trial}, false},
		{"a trial ends", []desired.Policy{trial}, nil, false},
		{"a trial has fewer rules", []desired.Policy{openTrial, trial}, []desired.Policy{trial}, false},
		{"a trial is enforced", []desired.Policy{trial}, []desired.Policy{web()}, true},
		{"a policy is only tried any more", []desired.Policy{web()}, []desired.Policy{trial}, false},
		{"one of two is only tried any more, which allowed more", []desired.Policy{open, web()}, []desired.Policy{openTrial, web()}, true},
		{"one of two is enforced, which allows more", []desired.Policy{openTrial, web()}, []desired.Policy{open, web()}, false},
		{"another policy is enforced beside a trial", []desired.Policy{trial}, []desired.Policy{trial, open}, true},
	}
	records := pod(2, "web", "10.1.0.2")
	for _, tt := range tests {
		if got := state(t, tt.from, records).Restricts(state(t, tt.to, records)); got != tt.narrows {
			t.Errorf("%s: narrows %t, want %t", tt.name, got, tt.narrows)
		}
	}
}
