package main

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/podmark/podmark/pkg/node/cluster"
)

// policyMetrics are what following the Kubernetes API comes to.
type policyMetrics struct {
	took                    prometheus.Histogram
	whole, failures         prometheus.Counter
	policies, watches, pods prometheus.Gauge
}

func newPolicyMetrics() policyMetrics {
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
	}
	return policyMetrics{
		took: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "podmark_policy_change_seconds", Help: "How long it took to enforce what the Kubernetes API said, with the wait for the node's lock.",
			Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}),
		whole:    counter("podmark_policy_rewrites_total", "Changes for which everything was written anew: the first, and those that found something missing."),
		failures: counter("podmark_policy_failures_total", "Changes that could not be enforced, and are tried again."),
		policies: gauge("podmark_policies", "Policies of the Kubernetes API that are in force on the node."),
		watches:  gauge("podmark_policy_watches", "Watches of the Kubernetes API that policies need."),
		pods:     gauge("podmark_policy_pods", "Pods of the Kubernetes API that are known, the node's own among them."),
	}
}

func (p policyMetrics) all() []prometheus.Collector {
	return []prometheus.Collector{p.took, p.whole, p.failures, p.policies, p.watches, p.pods}
}

// round counts a change that the Kubernetes API brought.
func (m *metrics) round(r cluster.Round) {
	p := m.followed
	p.took.Observe(r.Took.Seconds())
	p.watches.Set(float64(r.Watches))
	p.pods.Set(float64(r.Pods))
	if r.Err != nil {
		p.failures.Inc()
		return
	}
	p.policies.Set(float64(r.Applied.Policies))
	if r.Applied.Whole {
		p.whole.Inc()
	}
}
