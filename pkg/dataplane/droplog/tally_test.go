package droplog_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/podmark/podmark/pkg/dataplane/counters"
	"github.com/podmark/podmark/pkg/dataplane/droplog"
	"github.com/podmark/podmark/pkg/desired"
)

// What the counters have and the log has not is told once, and not before its messages
// had time to come.
func TestTally(t *testing.T) {
	web := counters.Key{Reason: counters.Policy, Direction: desired.Egress, Profile: "web"}
	look := func(packets ...uint64) []counters.Rule { // one rule a family, and one that allows
		out := []counters.Rule{{Key: counters.Key{Reason: counters.Allowed, Direction: desired.Egress, Profile: "web"}, Packets: 99}}
		for _, n := range packets {
			out = append(out, counters.Rule{Key: web, Packets: n})
		}
		return out
	}
	var tally droplog.Tally
	for _, step := range []struct {
		name   string
		logged int
		// packets of the last message of those
		packets uint64
		look    []counters.Rule
		want    []droplog.Suppressed
		settled bool
	}{
		{"what was before is the beginning", 0, 0, look(10, 5), nil, true},
		{"all of two are logged", 2, 17, look(12, 5), nil, true},
		{"a look sees packets whose messages have not come", 1, 18, look(12, 8), nil, false},
		{"they come", 2, 20, look(12, 8), nil, true},
		{"a flood", 3, 23, look(100, 8), nil, false},
		{"what was not logged", 0, 0, look(100, 8), []droplog.Suppressed{{web, 85, 108}}, true},
		{"is told once", 0, 0, look(100, 8), nil, true},
		{"written anew", 1, 109, look(1, 0), nil, true},
		{"and goes on", 1, 2, look(2, 0), nil, true},
		{"gone", 0, 0, nil, nil, true},
		{"a new one counts from nothing", 1, 1, look(4, 0), nil, false},
		{"and all of it is told", 0, 0, look(4, 0), []droplog.Suppressed{{web, 3, 4}}, true},
	} {
		for i := range step.logged {
			if n := tally.Logged(web); i == step.logged-1 && n != step.packets {
				t.Errorf("%s: the last message is packet %d, want %d", step.name, n, step.packets)
			}
		}
		if diff := cmp.Diff(step.want, tally.Counted(step.look)); diff != "" {
			t.Errorf("%s:\n%s", step.name, diff)
		}
		if got := tally.Settled(); got != step.settled {
			t.Errorf("%s: settled %t, want %t", step.name, got, step.settled)
		}
	}
}
