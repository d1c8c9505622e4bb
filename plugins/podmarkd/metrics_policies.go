package main

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/podmark/podmark/pkg/agent"
	"github.com/podmark/podmark/pkg/agent/kube"
	"github.com/podmark/podmark/pkg/agent/kube/view"
)

// policyMetrics are what following the Kubernetes API comes to.
type policyMetrics struct {
	took            prometheus.Histogram
	whole, failures prometheus.Counter
	policies        prometheus.Gauge
}

func newPolicyMetrics() policyMetrics {
	return policyMetrics{
		took: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "podmark_policy_sync_duration_seconds", Help: "How long it took to enforce what the Kubernetes API said, with the wait for the node's lock.",
			Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}),
		whole:    counter("podmark_policy_rewrites_total", "Changes for which everything was written again: the first, and those that found something missing."),
		failures: counter("podmark_policy_failures_total", "Changes that could not be enforced, and are tried again."),
		policies: prometheus.NewGauge(prometheus.GaugeOpts{Name: "podmark_policies", Help: "Policies of the Kubernetes API that are in force on the node."}),
	}
}

func (p policyMetrics) all() []prometheus.Collector {
	return []prometheus.Collector{p.took, p.whole, p.failures, p.policies}
}

// following exports how much of the cluster is followed; nil where none is.
func (m *metrics) following(c *kube.Cluster) {
	size := func() view.Size {
		if c == nil {
			return view.Size{}
		}
		return c.Status().Size
	}
	for _, g := range []struct {
		name, help string
		of         func(view.Size) int
	}{
		{
			"podmark_policy_watches", "Watches of the Kubernetes API that policies need.",
			func(s view.Size) int { return s.Wanted },
		},
		{
			"podmark_policy_watches_unsynced", "Those of which not all has been seen yet.",
			func(s view.Size) int { return s.Unsynced },
		},
		{"podmark_policy_pods", "Pods of the Kubernetes API that are known, the node's own among them.", func(s view.Size) int { return s.Pods }},
	} {
		m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: g.name, Help: g.help},
			func() float64 { return float64(g.of(size())) }))
	}
}

// troubled exports how many policies are not in force as the Kubernetes API has them.
type troubled struct{ list func() []view.Trouble }

var troubledDesc = prometheus.NewDesc("podmark_policies_unsynced",
	"Policies of the Kubernetes API that are not in force as they are there, or namespaces of which none are known, by reason.", []string{"reason"}, nil)

// Describe implements [prometheus.Collector].
func (troubled) Describe(to chan<- *prometheus.Desc) { to <- troubledDesc }

// Collect implements [prometheus.Collector].
func (t troubled) Collect(to chan<- prometheus.Metric) {
	of := map[view.Reason]int{}
	for _, trouble := range t.list() {
		of[trouble.Reason]++
	}
	for _, reason := range view.Reasons {
		to <- prometheus.MustNewConstMetric(troubledDesc, prometheus.GaugeValue, float64(of[reason]), string(reason))
	}
}

// follow exports whether what is followed is in force.
func (m *metrics) follow(status func() agent.PolicyStatus) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "podmark_policies_synced", Help: "0 where the policies of the Kubernetes API or of the directory are not in force as they are there.",
	}, func() float64 { return number(status().Error == "") }))
}

// round counts a change that the Kubernetes API brought.
func (m *metrics) round(r kube.SyncResult) {
	p := m.followed
	if r.Err == nil && !r.Applied.Changed {
		p.policies.Set(float64(r.Applied.Policies))
		return // nothing that counts here was said
	}
	p.took.Observe(r.Took.Seconds())
	if r.Err != nil {
		p.failures.Inc()
		return
	}
	p.policies.Set(float64(r.Applied.Policies))
	if r.Applied.Whole {
		p.whole.Inc()
	}
}
