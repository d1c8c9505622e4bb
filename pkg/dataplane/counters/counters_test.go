package counters_test

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/podmark/podmark/pkg/dataplane/counters"
	"github.com/podmark/podmark/pkg/desired"
)

var (
	spoofed = counters.Key{Reason: counters.Spoofed}
	web     = counters.Key{Reason: counters.Policy, Direction: desired.Egress, Profile: "web"}
)

func rule(k counters.Key, id string, packets uint64) counters.Rule {
	return counters.Rule{Key: k, ID: id, Packets: packets}
}

// Whatever becomes of the rules, totals only grow, by what the rules count.
func TestTotals(t *testing.T) {
	const rewritten = "under the old IDs, as somebody says"
	var totals counters.Totals
	for _, step := range []struct {
		name  string
		rules []counters.Rule
		want  map[counters.Key]uint64
	}{
		{"what was before is the beginning", []counters.Rule{rule(spoofed, "1", 100), rule(spoofed, "2", 0)}, map[counters.Key]uint64{spoofed: 0}},
		{"two rules of a key", []counters.Rule{rule(spoofed, "1", 103), rule(spoofed, "2", 1)}, map[counters.Key]uint64{spoofed: 4}},
		{"nothing new", []counters.Rule{rule(spoofed, "1", 103), rule(spoofed, "2", 1)}, map[counters.Key]uint64{spoofed: 4}},
		{"a profile comes", []counters.Rule{rule(spoofed, "1", 103), rule(spoofed, "2", 1), rule(web, "3", 0)}, map[counters.Key]uint64{spoofed: 4, web: 0}},
		{"it has counted", []counters.Rule{rule(spoofed, "1", 103), rule(spoofed, "2", 1), rule(web, "3", 7)}, map[counters.Key]uint64{spoofed: 4, web: 7}},
		{"all are written anew", []counters.Rule{rule(spoofed, "4", 0), rule(spoofed, "5", 0), rule(web, "6", 0)}, map[counters.Key]uint64{spoofed: 4, web: 7}},
		{"and have counted more than before already", []counters.Rule{rule(spoofed, "7", 200), rule(spoofed, "8", 0), rule(web, "9", 1)}, map[counters.Key]uint64{spoofed: 204, web: 8}},
		{"anew under the old ID", []counters.Rule{rule(spoofed, "7", 3), rule(spoofed, "8", 0), rule(web, "9", 1)}, map[counters.Key]uint64{spoofed: 207, web: 8}},
		{"all are gone", nil, map[counters.Key]uint64{spoofed: 207, web: 8}},
		{"and come back", []counters.Rule{rule(spoofed, "7", 2), rule(web, "9", 1)}, map[counters.Key]uint64{spoofed: 209, web: 9}},
		{rewritten, []counters.Rule{rule(spoofed, "7", 5), rule(web, "9", 1)}, map[counters.Key]uint64{spoofed: 214, web: 10}},
	} {
		if step.name == rewritten {
			totals.Rewritten()
		}
		totals.Add(step.rules)
		if diff := cmp.Diff(step.want, totals.ByKey()); diff != "" {
			t.Fatalf("%s:\n%s", step.name, diff)
		}
	}
}

// Profiles that come and go do not add up for ever.
func TestTotalsAreBounded(t *testing.T) {
	var totals counters.Totals
	for i := range 10000 {
		p := counters.Key{Reason: counters.Policy, Profile: desired.ProfileID(fmt.Sprint(i))}
		totals.Add([]counters.Rule{rule(spoofed, "1", uint64(i)), rule(p, fmt.Sprint("p", i), 1)})
		if n := len(totals.ByKey()); n > 600 {
			t.Fatalf("%d totals", n)
		}
	}
	if got := totals.ByKey()[spoofed]; got != 9999 {
		t.Errorf("%d spoofed, want 9999", got)
	}
}
