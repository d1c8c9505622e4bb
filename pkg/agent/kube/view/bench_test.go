package view

import (
	"fmt"
	"testing"
	"time"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/dataplane/iptables"
	"github.com/podmark/podmark/pkg/dataplane/nftables"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/mark"
)

// sized is a policy of so many rules, each of so many ports and selectors. No two rules have
// a selector in common.
func sized(rules, ports, selectors int) *Policy {
	p := isolating("x")
	for r := range rules {
		var rule desired.Rule
		for n := range ports { // that do not touch
			rule.Ports = append(rule.Ports, desired.Port{Protocol: desired.TCP, PortRange: desired.PortRange{First: uint16(2*n + 1), Last: uint16(2*n + 1)}})
		}
		for n := range selectors {
			rule.Peers = append(rule.Peers, desired.Peer{Namespace: "shop", Pods: selects(app(fmt.Sprintf("peer-%d-%d", r, n)))})
		}
		p.Ingress.Rules = append(p.Ingress.Rules, rule)
	}
	return p
}

// BenchmarkSize is what a policy costs a node by its size: the decision, the state that
// follows, and its rules, of which an ADD of another namespace waits for one round's.
func BenchmarkSize(b *testing.B) {
	for _, size := range [][3]int{{1, 1, 1}, {10, 20, 10}, {100, 20, 50}, {100, 200, 50}} {
		p := sized(size[0], size[1], size[2])
		policies := desired.Policies{Policies: []desired.Policy{p.Policy}}
		r := attachment.Record{Key: key("a"), ID: 1, Policed: true}
		r.Namespace, r.Pod, r.Labels = "shop", "web", app("x")
		other := r
		other.Key, other.ID, other.Namespace = key("b"), 2, "other"
		layout, err := mark.NewLayout(0xffff0000)
		if err != nil {
			b.Fatal(err)
		}
		node := desired.Node{Layout: layout, Epoch: 1}
		name := fmt.Sprintf("%d rules, %d ports, %d selectors/", size[0], size[1], size[2])
		b.Run(name+"decide", func(b *testing.B) {
			for b.Loop() {
				v := New("node", nil)
				v.watches[Watch{Kind: Policies, Namespace: "shop"}] = &watchState{Watch: Watch{Kind: Policies, Namespace: "shop"}}
				v.Attach([]attachment.Record{r})
				v.Listed(Watch{Kind: Policies, Namespace: "shop"}, []Object{p}, 1, time.Unix(1, 0))
				v.Plan(time.Unix(1, 0))
				v.Decide([]attachment.Record{r}, time.Unix(100, 0))
			}
		})
		b.Run(name+"build", func(b *testing.B) {
			for b.Loop() {
				desired.Build(node, policies, []attachment.Record{r})
			}
		})
		b.Run(name+"build for another", func(b *testing.B) {
			for b.Loop() {
				desired.Build(node, policies, []attachment.Record{other})
			}
		})
		state := desired.Build(node, policies, []attachment.Record{r})
		b.Run(name+"nftables", func(b *testing.B) {
			size := 0
			for b.Loop() {
				size = len(nftables.Render(state))
			}
			b.ReportMetric(float64(size), "bytes")
		})
		b.Run(name+"iptables", func(b *testing.B) {
			size := 0
			for b.Loop() {
				size = 0
				for _, part := range iptables.Render(state) {
					size += len(part.Sets) + len(part.Rules)
				}
			}
			b.ReportMetric(float64(size), "bytes")
		})
	}
}
