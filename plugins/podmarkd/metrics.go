package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/bits"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/podmark/podmark/pkg/agent"
	"github.com/podmark/podmark/pkg/dataplane/drift"
	"github.com/podmark/podmark/pkg/dataplane/hostport"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/foreign"
	"github.com/podmark/podmark/pkg/node"
)

// metrics is what the daemon exports. What the node's files and the kernel say is read
// when it is asked for; what looks found is kept. docs/monitoring.md has the list.
type metrics struct {
	node     node.Node
	registry *prometheus.Registry
	last     atomic.Pointer[agent.Reconciliation]
	packets  *packetMetrics
	mode     atomic.Pointer[agent.Mode]

	reconciles *prometheus.CounterVec
	repairs    *prometheus.CounterVec
	collected  prometheus.Counter
	adopted    prometheus.Counter
	replaced   *prometheus.CounterVec
	failures   prometheus.Counter
	followed   policyMetrics
	takenBack  prometheus.Counter
	// offloadRead is told how flowtables were read.
	offloadRead func(error)
}

func newMetrics(n node.Node, log *slog.Logger) *metrics {
	m := &metrics{
		node: n, registry: prometheus.NewRegistry(),
		reconciles: counterVec("podmark_reconciles_total", "Reconciliations of the node, by what triggered them.", "trigger"),
		repairs:    counterVec("podmark_repairs_total", "Times that something was missing in the kernel and was put back, by its kind.", "kind"),
		collected:  counter("podmark_garbage_collected_total", "Attachments of pods that were gone and had no DEL."),
		adopted:    counter("podmark_adopted_total", "Pods from before podmark that got an ID while they ran."),
		replaced:   counterVec("podmark_replaced_sets_total", "Sets of the node that had gone stale, by name.", "set"),
		failures:   counter("podmark_reconcile_failures_total", "Reconciliations that ended in an error."),
		followed:   newPolicyMetrics(),
		takenBack:  counter("podmark_offloaded_flows_reclaimed_total", "Live connections that were taken out of another program's flowtable because a change of the policies may forbid them."),
	}
	// A counter that is not there until it is 1 never seems to grow.
	for _, k := range drift.Kinds() {
		m.repairs.WithLabelValues(string(k))
	}
	unread := unreadMetrics{log: log, failures: counterVec("podmark_source_errors_total", "Times that a source of metrics could not be read for a scrape.", "source")}
	m.packets, m.offloadRead = newPacketMetrics(n, unread.of("packets")), unread.of("flowtables")
	m.registry.MustRegister(
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		m.reconciles, m.repairs, m.collected, m.adopted, m.replaced, m.failures, m.takenBack, m,
		unread.failures, m.packets, newCallMetrics(n.Store, unread.of("calls")), buildInfo(),
	)
	m.registry.MustRegister(m.followed.all()...)
	return m
}

func counter(name, help string) prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
}

func counterVec(name, help string, labels ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
}

// unreadMetrics counts what cannot be read for a scrape, which goes on without it.
type unreadMetrics struct {
	log      *slog.Logger
	failures *prometheus.CounterVec
}

// of returns what is told of each try to read one source.
func (u unreadMetrics) of(source string) func(error) {
	failures := u.failures.WithLabelValues(source)
	var before atomic.Pointer[string]
	return func(err error) {
		text := ""
		if err != nil {
			failures.Inc()
			text = err.Error()
		}
		if old := before.Swap(&text); text != "" && (old == nil || *old != text) {
			u.log.Warn("Failed to read a source of metrics", "source", source, "error", text)
		}
	}
}

// reconciled counts a reconciliation.
func (m *metrics) reconciled(l agent.Reconciliation) {
	m.last.Store(&l)
	m.packets.reconciled(l)
	m.reconciles.WithLabelValues(string(l.Trigger)).Inc()
	if l.Repaired.Drift != nil {
		m.repairs.WithLabelValues(string(drift.KindOf(l.Repaired.Drift))).Inc()
	}
	m.collected.Add(float64(len(l.Collected.Attachments)))
	m.adopted.Add(float64(len(l.Adopted)))
	for _, set := range l.Repaired.Replaced {
		m.replaced.WithLabelValues(set).Inc()
	}
	if l.Err != nil {
		m.failures.Inc()
	}
}

// The gauges, which are read off the last reconciliation and the node's files.
var (
	pods         = gauge("podmark_pods", "Pods that are known on the node, those without podmark among them; hostNetwork pods have no endpoint and do not count.")
	podsPoliced  = gauge("podmark_pods_policed", "Those of them that are policed.")
	podsOpen     = gauge("podmark_pods_unpoliced", "Those that are not, by reason: none (their network asks for no policy), unanswered (failOpen, or from before podmark), unmarked (started without podmark).", "reason")
	installedAt  = gauge("podmark_installed", "0 where podmark is not in the conflist that the runtime takes, or something that the list calls is missing: the next pod starts without it, or not at all. 0 too where its entry has unknown keys or no policy.")
	idsInUse     = gauge("podmark_ids_in_use", "IDs that endpoints have.")
	idsCapacity  = gauge("podmark_ids_capacity", "Endpoints that iptablesMarkMask has IDs for; 0 before the first ADD.")
	proxyIPVS    = gauge("podmark_proxy_ipvs", "1 where kube-proxy uses IPVS: there are services, and kube-ipvs0.")
	ipvsServices = gauge("podmark_ipvs_services", "Virtual services of IPVS.")
	portsInfo    = gauge("podmark_node_ports_info", "1, with whose NodePort ranges are used, and how.", "source",
		"mode")
	portsOutside     = gauge("podmark_node_ports_outside_range", "NodePorts in use are outside the configured ranges.")
	felixDiffers     = gauge("podmark_felix_mask_differs", "1 where the mask of FelixConfiguration is not the node's.")
	collisions       = gauge("podmark_mark_collision_bits", "Bits of the mask that a known program uses, or an unknown rule (other) writes where they matter.", "user")
	sysctlOK         = gauge("podmark_sysctl_ok", "1 where a kernel parameter that the node needs is what it should be; one that is not needed is left out.", "name")
	reconcileTime    = gauge("podmark_last_reconcile_timestamp_seconds", "When the node was last reconciled.")
	reconcileSeconds = gauge("podmark_last_reconcile_duration_seconds", "How long that took.")
	reconcileOK      = gauge("podmark_last_reconcile_success", "1 when it ended without an error.")
	applySeconds     = gauge("podmark_last_dataplane_sync_duration_seconds", "How long it took last to make the kernel agree with the node's state.")
	driftedLinks     = gauge("podmark_endpoint_drift", "Links of endpoints that others have changed and not changed back, by what they did.", "change")
	applyError       = gauge("podmark_last_dataplane_sync_error", "1 where the kernel could not be made to agree.")
	unjudged         = gauge("podmark_offloaded_flows_bypassing", "Live connections of isolated pods that another program's flowtable carries past the policy in force.")
)

func gauge(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		pods, podsPoliced, podsOpen, installedAt, idsInUse, idsCapacity, proxyIPVS, ipvsServices, portsInfo, portsOutside,
		felixDiffers, collisions, sysctlOK,
		reconcileTime, reconcileSeconds, reconcileOK, applySeconds, driftedLinks, applyError, unjudged,
	} {
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
	_, flows, err := m.node.Offloaded()
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if m.offloadRead(err); err == nil {
		set(unjudged, float64(flows))
	}
	if mode := m.mode.Load(); mode != nil {
		set(proxyIPVS, number(mode.IPVS))
		set(ipvsServices, float64(mode.Services))
	}
	l := m.last.Load()
	if l == nil {
		return
	}
	set(pods, float64(l.Coverage.Pods))
	set(podsPoliced, float64(l.Coverage.Policed))
	set(installedAt, number(l.NotInstalled == nil))
	for _, reason := range desired.Gaps() {
		set(podsOpen, float64(l.Coverage.Of(reason)), string(reason))
	}
	if !l.Idle {
		set(portsInfo, 1, l.Ports.Source, string(l.Ports.Mode))
		set(portsOutside, float64(len(l.Ports.Outside)))
		set(felixDiffers, number(l.FelixMask != nil))
		set(applySeconds, l.Applied.Seconds())
		set(applyError, number(l.ApplyErr != nil))
		for _, change := range hostport.Changes() {
			n := 0
			for _, d := range l.Repaired.EndpointDrift {
				if d.Change == change {
					n++
				}
			}
			set(driftedLinks, float64(n), string(change))
		}
	}
	for user, overlap := range collided(*l) {
		set(collisions, float64(bits.OnesCount32(overlap)), user)
	}
	for _, s := range l.Sysctls {
		set(sysctlOK, number(s.OK()), s.Name)
	}
	set(reconcileTime, float64(l.Time.UnixMilli())/1000)
	set(reconcileSeconds, l.Took.Seconds())
	set(reconcileOK, number(l.Err == nil))
}

// collided are the bits of the mask that each user has, none where it is not seen.
func collided(l agent.Reconciliation) map[string]uint32 {
	out := map[string]uint32{foreign.Collision{}.Name(): 0}
	for _, u := range foreign.Users() {
		out[u.Name] = 0
	}
	for _, c := range l.Collisions {
		out[c.Name()] |= c.Overlap
	}
	return out
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// handler serves the metrics and what probes ask: /healthz is well while looks
// come, /readyz while they end without an error and leave no pod open that should be policed.
func (m *metrics) handler(interval time.Duration) http.Handler {
	mux := http.NewServeMux()
	// To compress them takes more memory than they have, each time.
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{DisableCompression: true}))
	answer := func(path string, ill func(*agent.Reconciliation) error) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			l := m.last.Load()
			if l == nil {
				http.Error(w, "the node has not been reconciled yet", http.StatusServiceUnavailable)
			} else if err := ill(l); err != nil {
				http.Error(w, err.Error(), http.StatusServiceUnavailable)
			} else {
				fmt.Fprintln(w, l.Coverage)
			}
		})
	}
	stale := func(l *agent.Reconciliation) error {
		if time.Since(l.Time) < 3*interval+30*time.Second {
			return nil
		}
		return fmt.Errorf("the node was last reconciled %s", l.Time.Format(time.RFC3339))
	}
	answer("/healthz", stale)
	answer("/readyz", func(l *agent.Reconciliation) error { return errors.Join(stale(l), l.Unready()) })
	return mux
}
