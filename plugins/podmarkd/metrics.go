package main

import (
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/podmark/podmark/pkg/apply"
	"github.com/podmark/podmark/pkg/node"
)

// metrics is what the daemon exports. What the node's files say is read when it is
// asked for; what looks found is kept.
type metrics struct {
	node     apply.Node
	registry *prometheus.Registry
	last     atomic.Pointer[node.Look]

	looks     *prometheus.CounterVec
	repairs   prometheus.Counter
	collected prometheus.Counter
	replaced  *prometheus.CounterVec
	failures  prometheus.Counter
}

func newMetrics(n apply.Node) *metrics {
	m := &metrics{
		node: n, registry: prometheus.NewRegistry(),
		looks:     prometheus.NewCounterVec(prometheus.CounterOpts{Name: "podmark_looks_total", Help: "Looks at the node, by reason."}, []string{"reason"}),
		repairs:   prometheus.NewCounter(prometheus.CounterOpts{Name: "podmark_repairs_total", Help: "Times that something was missing in the kernel and was put back."}),
		collected: prometheus.NewCounter(prometheus.CounterOpts{Name: "podmark_collected_total", Help: "Attachments of pods that were gone and had no DEL."}),
		replaced:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "podmark_replaced_sets_total", Help: "Sets of the node that had gone stale, by name."}, []string{"set"}),
		failures:  prometheus.NewCounter(prometheus.CounterOpts{Name: "podmark_look_failures_total", Help: "Looks that ended in an error."}),
	}
	m.registry.MustRegister(
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		m.looks, m.repairs, m.collected, m.replaced, m.failures, m,
	)
	return m
}

// looked counts a look.
func (m *metrics) looked(l node.Look) {
	m.last.Store(&l)
	m.looks.WithLabelValues(string(l.Reason)).Inc()
	if l.Kept.Missing != nil {
		m.repairs.Inc()
	}
	m.collected.Add(float64(len(l.Collected.Attachments)))
	for _, set := range l.Kept.Replaced {
		m.replaced.WithLabelValues(set).Inc()
	}
	if l.Err != nil {
		m.failures.Inc()
	}
}

// The gauges, which are read off the last look and the node's files.
var (
	idsInUse     = gauge("podmark_ids_in_use", "IDs that endpoints have.")
	idsCapacity  = gauge("podmark_ids_capacity", "Endpoints that iptablesMarkMask has IDs for; 0 before the first ADD.")
	proxyIPVS    = gauge("podmark_proxy_ipvs", "1 where kube-proxy uses IPVS: there are services, and kube-ipvs0.")
	ipvsServices = gauge("podmark_ipvs_services", "Virtual services of IPVS.")
	portsInfo    = gauge("podmark_node_ports_info", "1, with whose NodePort ranges are used, and how.", "source", "mode")
	portsOutside = gauge("podmark_node_ports_outside_range", "NodePorts in use that are in no configured range.")
	lookTime     = gauge("podmark_last_look_timestamp_seconds", "When the node was last looked at.")
	lookSeconds  = gauge("podmark_last_look_duration_seconds", "How long that took.")
	lookOK       = gauge("podmark_last_look_ok", "1 when it ended without an error.")
)

func gauge(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{idsInUse, idsCapacity, proxyIPVS, ipvsServices, portsInfo, portsOutside, lookTime, lookSeconds, lookOK} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(out chan<- prometheus.Metric) {
	set := func(d *prometheus.Desc, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	used, capacity, err := m.node.IDs()
	if err == nil {
		set(idsInUse, float64(used))
		set(idsCapacity, float64(capacity))
	}
	l := m.last.Load()
	if l == nil {
		return
	}
	set(proxyIPVS, number(l.Mode.IPVS))
	set(ipvsServices, float64(l.Mode.Services))
	if !l.Idle {
		set(portsInfo, 1, l.Ports.Source, string(l.Ports.Mode))
		set(portsOutside, float64(len(l.Ports.Outside)))
	}
	set(lookTime, float64(l.Time.UnixMilli())/1000)
	set(lookSeconds, l.Took.Seconds())
	set(lookOK, number(l.Err == nil))
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// handler serves the metrics and what probes ask: /healthz is well while looks
// come, /readyz while they end without an error.
func (m *metrics) handler(interval time.Duration) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{}))
	answer := func(well func(*node.Look) bool) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			l := m.last.Load()
			if l == nil || !well(l) {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
			if l != nil && l.Err != nil {
				fmt.Fprintln(w, l.Err)
			}
		}
	}
	fresh := func(l *node.Look) bool { return time.Since(l.Time) < 3*interval+30*time.Second }
	mux.Handle("GET /healthz", answer(fresh))
	mux.Handle("GET /readyz", answer(func(l *node.Look) bool { return fresh(l) && l.Err == nil }))
	return mux
}
