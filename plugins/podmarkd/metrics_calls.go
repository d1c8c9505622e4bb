package main

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/podmark/podmark/pkg/state"
)

// callMetrics is what the plugin does, from the spool. That is emptied when metrics
// are scraped, and not before: what was never scraped is there for the next daemon.
type callMetrics struct {
	store state.Store
	read  func(error)

	calls     *prometheus.CounterVec
	seconds   *prometheus.HistogramVec
	exhausted prometheus.Counter
	damaged   prometheus.Counter
	full      prometheus.Counter
}

// codeExhausted is the plugin's code for a mask without a free ID; see docs/configuration.md.
const codeExhausted = 100

func newCallMetrics(store state.Store, read func(error)) *callMetrics {
	m := &callMetrics{
		store: store, read: read,
		calls: counterVec("podmark_plugin_calls_total", "Calls of the plugin, by verb and CNI error code; code 0 is success.", "verb", "code"),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "podmark_plugin_call_duration_seconds", Help: "How long calls of the plugin took, without the start of its process.",
			Buckets: []float64{.0005, .001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 30},
		}, []string{"verb"}),
		exhausted: counter("podmark_allocation_failures_total", "ADDs that found no free ID in the mask."),
		damaged:   counter("podmark_spool_damaged_total", "Lines of the spool that are no call, and were not counted."),
		full:      counter("podmark_spool_full_total", "Times that the spool was found full, so that calls may not have been counted."),
	}
	for _, verb := range state.Verbs() {
		m.calls.WithLabelValues(verb, "0")
		m.seconds.WithLabelValues(verb)
	}
	return m
}

func (m *callMetrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.calls, m.seconds, m.exhausted, m.damaged, m.full}
}

// Describe implements prometheus.Collector.
func (m *callMetrics) Describe(out chan<- *prometheus.Desc) {
	for _, c := range m.collectors() {
		c.Describe(out)
	}
}

// Collect implements prometheus.Collector.
func (m *callMetrics) Collect(out chan<- prometheus.Metric) {
	calls, damaged, full, err := m.store.TakeCalls()
	m.read(err)
	for _, c := range calls {
		m.calls.WithLabelValues(c.Verb, fmt.Sprint(c.Code)).Inc()
		m.seconds.WithLabelValues(c.Verb).Observe(c.Took.Seconds())
		if c.Verb == "ADD" && c.Code == codeExhausted {
			m.exhausted.Inc()
		}
	}
	m.damaged.Add(float64(damaged))
	m.full.Add(number(full))
	for _, c := range m.collectors() {
		c.Collect(out)
	}
}
