package metrics_test

import (
	"math"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
)

// steady stays what it is; from begins there and grows by a step a scrape.
func steady(v float64) func(int) float64 { return func(int) float64 { return v } }

func from(v, step float64) func(int) float64 {
	return func(i int) float64 { return v + step*float64(i) }
}

// of is a series of node-1, with labels as names and values in turn.
func of(name string, value func(int) float64, more ...string) series {
	return series{labels.FromStrings(append(more, "__name__", name, "instance", "node-1", "job", "podmark")...), value}
}

// elsewhere is a series of node-2, which is well.
func elsewhere(name string) series {
	return series{labels.FromStrings("__name__", name, "instance", "node-2", "job", "podmark"), steady(1)}
}

// once grows by n a few minutes before the end.
func once(n float64) func(int) float64 {
	return func(i int) float64 {
		if i > int(spent/every)-16 {
			return n
		}
		return 0
	}
}

// gone ends a few minutes before the end, as that of a target that is no more scraped.
func gone(v float64) func(int) float64 {
	return func(i int) float64 {
		if i > int(spent/every)-16 {
			return math.Float64frombits(value.StaleNaN)
		}
		return v
	}
}

// alertCase is where an alert is due, and where things are as they are at times.
type alertCase struct{ due, not []store }

func alertCases() map[string]alertCase {
	now := float64(end.Unix())
	const bucket = "podmark_plugin_call_duration_seconds_bucket"
	latency := func(le1 float64) store {
		return store{
			of(bucket, from(0, le1), "verb", "ADD", "le", "1"), of(bucket, from(0, 1), "verb", "ADD", "le", "10"), of(bucket, from(0, 1), "verb", "ADD", "le", "+Inf"),
			of(bucket, from(0, 0), "verb", "DEL", "le", "1"), of(bucket, from(0, 9), "verb", "DEL", "le", "10"), of(bucket, from(0, 9), "verb", "DEL", "le", "+Inf"),
		}
	}
	return map[string]alertCase{
		"PodmarkNotKept":    {[]store{{of("podmark_last_reconcile_success", steady(0))}}, []store{{of("podmark_last_reconcile_success", steady(1))}}},
		"PodmarkApplyFails": {[]store{{of("podmark_last_dataplane_sync_error", steady(1))}}, []store{{of("podmark_last_dataplane_sync_error", steady(0))}}},
		"PodmarkStale": {
			[]store{{of("podmark_last_reconcile_timestamp_seconds", steady(now-301))}},
			[]store{{of("podmark_last_reconcile_timestamp_seconds", steady(now-60))}},
		},
		"PodmarkDown": {
			[]store{
				{},
				{of("podmark_last_reconcile_success", gone(1)), of("up", steady(0)), elsewhere("podmark_last_reconcile_success"), elsewhere("up")},
				{of("podmark_last_reconcile_success", gone(1)), of("up", gone(1)), elsewhere("podmark_last_reconcile_success"), elsewhere("up")},
				{of("up", steady(0)), elsewhere("podmark_last_reconcile_success"), elsewhere("up")}, // never well
			},
			[]store{
				{of("podmark_last_reconcile_success", steady(0)), of("up", steady(1))},
				{of("podmark_last_reconcile_success", steady(1)), of("up", steady(1)), {labels.FromStrings("__name__", "up", "job", "another", "instance", "node-1"), steady(0)}},
			},
		},
		"PodmarkPodsUnpoliced": {
			[]store{{of("podmark_pods_unpoliced", steady(2), "reason", "unmarked"), of("podmark_pods_unpoliced", steady(0), "reason", "unanswered")}},
			[]store{{of("podmark_pods_unpoliced", steady(2), "reason", "none"), of("podmark_pods_unpoliced", steady(0), "reason", "unmarked")}},
		},
		"PodmarkNotInstalled": {[]store{{of("podmark_installed", steady(0))}}, []store{{of("podmark_installed", steady(1))}}},
		"PodmarkPoliciesTroubled": {
			[]store{{of("podmark_policies_unsynced", steady(2), "reason", "Forbidden")}},
			[]store{{of("podmark_policies_unsynced", steady(0), "reason", "Forbidden")}},
		},
		"PodmarkPoliciesNotSynced": {[]store{{of("podmark_policies_synced", steady(0))}}, []store{{of("podmark_policies_synced", steady(1))}}},
		"PodmarkFlowsUnjudged":     {[]store{{of("podmark_offloaded_flows_bypassing", steady(3))}}, []store{{of("podmark_offloaded_flows_bypassing", steady(0))}}},
		"PodmarkMaskExhausted": {
			[]store{{of("podmark_allocation_failures_total", once(1))}},
			[]store{{of("podmark_allocation_failures_total", steady(7))}},
		},
		"PodmarkMaskNearlyExhausted": {
			[]store{{of("podmark_ids_in_use", steady(230)), of("podmark_ids_capacity", steady(254))}},
			[]store{
				{of("podmark_ids_in_use", steady(200)), of("podmark_ids_capacity", steady(254))},
				{of("podmark_ids_in_use", steady(0)), of("podmark_ids_capacity", steady(0))}, // before the first ADD
			},
		},
		"PodmarkAddFails": {
			[]store{{of("podmark_plugin_calls_total", once(2), "verb", "ADD", "code", "102"), of("podmark_plugin_calls_total", from(0, 1), "verb", "ADD", "code", "0")}},
			[]store{{of("podmark_plugin_calls_total", from(0, 1), "verb", "DEL", "code", "101"), of("podmark_plugin_calls_total", from(0, 1), "verb", "ADD", "code", "0")}},
		},
		"PodmarkAddSlow": {[]store{latency(0.9)}, []store{latency(0.99)}},
		"PodmarkRepairs": {
			[]store{{of("podmark_repairs_total", from(0, 0.1), "kind", "chain")}},
			[]store{{of("podmark_repairs_total", once(2), "kind", "chain"), of("podmark_repairs_total", once(2), "kind", "hook")}},
		},
		"PodmarkSpoofing": {
			[]store{{of("podmark_spoofed_packets_total", from(0, 30))}},
			[]store{{of("podmark_spoofed_packets_total", from(0, 3))}, {of("podmark_spoofed_packets_total", steady(1e9))}},
		},
		"PodmarkUnclassified": {
			[]store{{of("podmark_unclassified_packets_total", from(0, 30))}},
			[]store{{of("podmark_unclassified_packets_total", from(0, 3))}},
		},
		"PodmarkNodePortOutsideRange": {
			[]store{{of("podmark_node_ports_outside_range", steady(1))}},
			[]store{{of("podmark_node_ports_outside_range", steady(0))}},
		},
		"PodmarkEndpointDrift": {
			[]store{{of("podmark_endpoint_drift", steady(1), "change", "moved")}},
			[]store{{of("podmark_endpoint_drift", steady(0), "change", "moved")}},
		},
		"PodmarkFelixMaskDiffers": {[]store{{of("podmark_felix_mask_differs", steady(1))}}, []store{{of("podmark_felix_mask_differs", steady(0))}}},
		"PodmarkMarkCollision": {
			[]store{{of("podmark_mark_collision_bits", steady(2), "user", "kube-router")}},
			[]store{{of("podmark_mark_collision_bits", steady(0), "user", "kube-router")}},
		},
		"PodmarkSysctlNotSet": {
			[]store{{of("podmark_sysctl_ok", steady(0), "name", "net.ipv4.vs.conntrack")}},
			[]store{{of("podmark_sysctl_ok", steady(1), "name", "net.ipv4.vs.conntrack")}},
		},
		"PodmarkCallsNotCounted": {
			[]store{{of("podmark_spool_full_total", once(1))}, {of("podmark_source_errors_total", from(0, 1), "source", "packets")}},
			[]store{{of("podmark_spool_full_total", steady(1)), of("podmark_source_errors_total", once(2), "source", "packets")}},
		},
	}
}

// Each alert is due where it should be, and not where things are as they are at times.
func TestAlerts(t *testing.T) {
	cases := alertCases()
	rules := alerts(t)
	for _, r := range rules {
		c, ok := cases[r.Alert]
		if !ok {
			t.Errorf("alert %s has no case here", r.Alert)
		}
		for i, s := range c.due {
			result, err := s.evaluate(r.Expr)
			if err != nil || len(result) != 1 {
				t.Errorf("alert %s is not due in case %d: %v, %v", r.Alert, i, result, err)
			}
			text := r.Annotations["summary"] + r.Annotations["description"]
			if lacking := unnamed(text, result); lacking != nil {
				t.Errorf("alert %s has annotations with labels that it lacks: %q", r.Alert, lacking)
			}
		}
		for i, s := range c.not {
			if result, err := s.evaluate(r.Expr); err != nil || len(result) != 0 {
				t.Errorf("alert %s is due in case %d of those where it should not be: %v, %v", r.Alert, i, result, err)
			}
		}
	}
	if len(rules) != len(cases) {
		t.Errorf("%d alerts, and cases for %d", len(rules), len(cases))
	}
}
