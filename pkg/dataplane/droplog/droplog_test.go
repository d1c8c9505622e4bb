package droplog_test

import (
	"testing"

	"github.com/podmark/podmark/pkg/dataplane/counters"
	"github.com/podmark/podmark/pkg/dataplane/droplog"
	"github.com/podmark/podmark/pkg/desired"
)

// What a rule writes is read as what it is, and fits into what iptables has room for.
func TestPrefix(t *testing.T) {
	const (
		profile = desired.ProfileID("0123456789abcdef")
		stage   = desired.StageID("0123456789abcdef")
	)
	for _, k := range []counters.Key{
		{Reason: counters.Spoofed},
		{Reason: counters.Unclassified},
		{Reason: counters.Encapsulated},
		{Reason: counters.Stray},
		{Reason: counters.Policy, Direction: desired.Ingress, Profile: profile},
		{Reason: counters.Policy, Direction: desired.Egress, Profile: profile},
		{Reason: counters.Audit, Direction: desired.Ingress, Profile: profile},
		{Reason: counters.Audit, Direction: desired.Egress, Profile: profile},
		{Reason: counters.Policy, Direction: desired.Ingress, Stage: stage, Rule: 1},
		{Reason: counters.Policy, Direction: desired.Egress, Stage: stage, Rule: 25000},
		{Reason: counters.Audit, Direction: desired.Egress, Stage: stage},
	} {
		prefix := droplog.Prefix(k)
		if got, ok := droplog.Parse(prefix); !ok || got != k {
			t.Errorf("%s: %+v, %t, want %+v", prefix, got, ok, k)
		}
		if len(prefix) > 63 {
			t.Errorf("%s: %d bytes", prefix, len(prefix))
		}
	}
	for _, s := range []string{"", "podmark", "podmark:drop:policy", "podmark:drop:ingress:", "podmark:drop:ingress:0123456789abcdeg", "podmark:drop:ingress:0123456789abcdef:", "podmark:drop:ingress:0123456789abcdef:x", "podmark:drop:spoofed:1", "xpodmark:drop:spoofed", "podmark:drop:spoofed "} {
		if k, ok := droplog.Parse(s); ok {
			t.Errorf("%q is read as %+v", s, k)
		}
	}
}
