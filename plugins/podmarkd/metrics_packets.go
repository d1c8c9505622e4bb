package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/podmark/podmark/pkg/agent"
	"github.com/podmark/podmark/pkg/dataplane/counters"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/node"
)

// The totals of dropped packets, and of those that an audit would drop.
var (
	spoofed      = prometheus.NewDesc("podmark_spoofed_packets_total", "Packets dropped because their source is not the endpoint's own, or the endpoint is not complete.", nil, nil)
	unclassified = prometheus.NewDesc("podmark_unclassified_packets_total", "Packets dropped because no endpoint has their ID, or their destination behind a pod's veth.", nil, nil)
	policyDrops  = prometheus.NewDesc("podmark_policy_dropped_packets_total", "Packets dropped because no policy of those that select the endpoint allows them.", []string{"direction", "profile", "policies"}, nil)
	policyAudits = prometheus.NewDesc("podmark_policy_audited_packets_total", "Packets that passed, and would be dropped if the policies that select the endpoint, all audited, were enforced.", []string{"direction", "profile", "policies"}, nil)
)

const (
	// packetsAge is how old totals may be before the kernel is asked again.
	packetsAge = 2 * time.Second
	// packetsTimeout bounds that.
	packetsTimeout = 5 * time.Second
)

// packetMetrics is what the kernel's rules drop, since the daemon's first reconciliation.
type packetMetrics struct {
	node node.Node
	read func(error)

	mu     sync.Mutex
	totals counters.Totals
	asked  time.Time // when the kernel was asked last
	// policies are the label of each profile that was seen; current are those that the
	// last reconciliation found.
	policies map[desired.ProfileID]string
	current  map[desired.ProfileID][]string
}

func newPacketMetrics(n node.Node, read func(error)) *packetMetrics {
	return &packetMetrics{node: n, read: read, policies: map[desired.ProfileID]string{}}
}

// reconciled takes over which policies a profile stands for. The first reconciliation is where
// counting begins.
func (m *packetMetrics) reconciled(l agent.Reconciliation) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if l.Repaired.Policies != nil {
		m.current = l.Repaired.Policies
	}
	for id, names := range m.current {
		m.policies[id] = policiesLabel(names)
	}
	if (l.Repaired.Drift != nil || l.ChangedMask != 0) && l.ApplyErr == nil && m.asked.Before(l.Time) {
		m.totals.Rewritten()
	}
	if m.asked.IsZero() {
		m.refresh()
	}
}

// refresh reads the kernel's counters.
func (m *packetMetrics) refresh() {
	ctx, cancel := context.WithTimeout(context.Background(), packetsTimeout)
	defer cancel()
	asked := time.Now()
	rules, err := m.node.Counters(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		rules, err = nil, nil
	}
	m.read(err)
	if err != nil {
		return
	}
	m.totals.Add(rules)
	m.asked = asked
	byKey := map[desired.ProfileID]bool{}
	for k := range m.totals.ByKey() {
		byKey[k.Profile] = true
	}
	for id := range m.policies {
		if _, ok := m.current[id]; !ok && !byKey[id] {
			delete(m.policies, id)
		}
	}
}

// Describe implements prometheus.Collector.
func (m *packetMetrics) Describe(out chan<- *prometheus.Desc) {
	out <- spoofed
	out <- unclassified
	out <- policyDrops
	out <- policyAudits
}

// Collect implements prometheus.Collector. A profile whose policies are not known yet is
// counted, and shown after the next reconciliation.
func (m *packetMetrics) Collect(out chan<- prometheus.Metric) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if time.Since(m.asked) > packetsAge {
		m.refresh()
	}
	set := func(d *prometheus.Desc, value uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(value), labels...)
	}
	byKey := m.totals.ByKey()
	set(spoofed, byKey[counters.Key{Reason: counters.Spoofed}])
	set(unclassified, byKey[counters.Key{Reason: counters.Unclassified}])
	of := map[counters.Reason]*prometheus.Desc{counters.Policy: policyDrops, counters.Audit: policyAudits}
	for k, n := range byKey {
		if names, known := m.policies[k.Profile]; known && of[k.Reason] != nil {
			set(of[k.Reason], n, k.Direction.String(), string(k.Profile), names)
		}
	}
}

// maxLabel bounds the names in a label, in bytes; the profile tells two lists apart that
// begin alike.
const maxLabel = 256

// policiesLabel lists policies, as many as there is room for: "shop/web,shop/all,+3".
func policiesLabel(names []string) string {
	var b strings.Builder
	for i, name := range names {
		if i > 0 {
			b.WriteByte(',')
		}
		if more := len(names) - i; b.Len()+len(name) > maxLabel && i > 0 {
			fmt.Fprintf(&b, "+%d", more)
			break
		}
		b.WriteString(name)
	}
	return b.String()
}
