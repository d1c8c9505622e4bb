package agent_test

import (
	"testing"
	"time"

	"github.com/podmark/podmark/pkg/agent"
)

// Since when policies are in force, or are not, is known across looks.
func TestPolicyStatusSince(t *testing.T) {
	start := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	var p agent.PolicyStatus
	for i, tt := range []struct {
		now    agent.PolicyStatus
		synced bool
		since  int // the look, of one a minute
	}{
		{agent.PolicyStatus{Source: agent.FromNobody}, true, 0},
		{agent.PolicyStatus{Source: agent.FromKubernetes, Error: "a"}, false, 1},
		{agent.PolicyStatus{Source: agent.FromKubernetes, Error: "b"}, false, 1},
		{agent.PolicyStatus{Source: agent.FromKubernetes, Policies: 3}, true, 3},
		{agent.PolicyStatus{Source: agent.FromKubernetes, Policies: 4}, true, 3},
		{agent.PolicyStatus{Source: agent.FromDirectory, Policies: 4}, true, 5},
	} {
		p = tt.now.After(p, start.Add(time.Duration(i)*time.Minute))
		if want := start.Add(time.Duration(tt.since) * time.Minute); p.Synced != tt.synced || !p.Since.Equal(want) || p.Policies != tt.now.Policies {
			t.Errorf("look %d: %+v, want %t since %v", i, p, tt.synced, want)
		}
	}
}
