package lab_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/podmark/podmark/pkg/dataplane/conntrack"
	"github.com/podmark/podmark/test/lab"
	"github.com/podmark/podmark/test/share"
	"github.com/podmark/podmark/test/wait"
)

// fastpath has another tool carry every live flow past the hooks that comes in by one of
// the links, as firewalld and Calico can: with a flowtable, to which a rule gives them at
// FORWARD, with this priority.
func fastpath(n *lab.Node, priority string, links ...string) {
	n.Run("sysctl", "-qw", "net.netfilter.nf_flowtable_udp_timeout=600", "net.netfilter.nf_flowtable_tcp_timeout=600")
	n.RunInput(fmt.Sprintf(`
table inet other {
	flowtable fastpath {
		hook ingress priority filter
		devices = { %s }
	}
	chain flows {
		type filter hook forward priority %s
		meta l4proto { tcp, udp } flow add @fastpath
	}
}
`, strings.Join(links, ", "), priority), "nft", "-f", "-")
}

// carried counts the flows that flowtables have, as conntrack(8) does.
func carried(n *lab.Node) int {
	count := 0
	for _, family := range []string{"ipv4", "ipv6"} {
		count += strings.Count(n.Run("conntrack", "-L", "-f", family), "OFFLOAD]")
	}
	return count
}

// becomeCarried uses flows until flowtables have them all.
func becomeCarried(t *testing.T, n *lab.Node, when string, flows []liveFlow, total int) {
	t.Helper()
	wait.Until(t, when, func() error {
		there := carried(n)
		if there >= total {
			return nil
		}
		pingAll(t, when, flows, nil)
		return fmt.Errorf("%d flows are in the flowtable, want %d", there, total)
	})
}

// A flow that another program's flowtable carries past every hook is judged all the
// same when the policy changes, and stops where it is forbidden now. What is still allowed
// goes on, with the port that masquerading gave it, and may be carried again.
func TestFlowtable(t *testing.T) {
	t.Parallel()
	type way struct {
		backend lab.Backend
		network func(*lab.Node) lab.Network
		name    string
	}
	for _, way := range share.OneOf(t, []way{
		{lab.NFTables, routed, "routed"},
		{lab.NFTables, bridged, "bridged"},
		{lab.IPTablesNFT, routed, "routed"},
		{lab.IPTablesLegacy, bridged, "bridged"},
	}) {
		t.Run(way.backend.Name+"/"+way.name, func(t *testing.T) {
			t.Parallel()
			testFlowtable(t, newCluster(t, lab.Options{Backend: way.backend}, way.network))
		})
	}
}

func testFlowtable(t *testing.T, c *cluster) {
	t.Helper()
	links, between := []string{c.outside.Link, c.a.HostVeth, c.b.HostVeth}, true
	if c.a.Spec.Network.Name == "bridged" {
		// Frames between two ports of a bridge are not routed: no flowtable has them.
		links, between = []string{c.outside.Link, "cni0"}, false
	}
	c.RunInput(`
table inet outwards {
	chain postrouting {
		type nat hook postrouting priority srcnat
		oifname `+c.outside.Link+` meta l4proto { tcp, udp } masquerade
	}
}
`, "nft", "-f", "-")
	fastpath(c.Node, "filter + 10", links...)
	var flows []liveFlow
	for _, p := range []lab.Protocol{lab.TCP, lab.UDP} {
		for _, f := range lab.Families {
			open := func(name string, from *lab.NS, to *lab.NS) {
				s := from.Stream(lab.Request{Protocol: p, To: to.At(f, podPort)})
				flows = append(flows, live(name+" "+p.String()+" "+f.String(), s))
			}
			open("a to outside", c.a.NS, c.outside.NS)
			open("b to outside", c.b.NS, c.outside.NS)
			open("outside to a", c.outside.NS, c.a.NS)
			if between {
				open("a to b", c.a.NS, c.b.NS)
				open("b to a", c.b.NS, c.a.NS)
			}
		}
	}
	blocked := func(names ...string) map[string]lab.Outcome {
		out := map[string]lab.Outcome{}
		for _, f := range flows {
			for _, n := range names {
				if strings.HasPrefix(f.name, n+" ") {
					out[f.name] = lab.Blocked
				}
			}
		}
		return out
	}
	becomeCarried(t, c.Node, "no policy", flows, len(flows))

	// Everything touches an isolated pod, and most is allowed.
	done := applyJSON(t, c.Node, isolate("a", "Egress")+allowAToB+allowBOutside)
	if done.FlowsReclaimed != len(flows) || done.Offloaded != 0 {
		t.Errorf("%+v, want %d taken back", done, len(flows))
	}
	pingAll(t, "a to b and b to outside allowed", flows, blocked("a to outside", "b to a"))
	allowed := slices.DeleteFunc(slices.Clone(flows), func(f liveFlow) bool { return *f.cut })
	becomeCarried(t, c.Node, "again", allowed, len(allowed))

	// An endpoint that comes, or is adopted, takes its own back.
	before := carried(c.Node)
	ofA := len(slices.DeleteFunc(slices.Clone(allowed), func(f liveFlow) bool { return strings.HasPrefix(f.name, "b to outside") }))
	if err := c.Do(func() error { return conntrack.ResetVerdict(c.a.Addresses, 0xffff0000) }); err != nil {
		t.Error(err)
	}
	if n := carried(c.Node); n > before-ofA {
		t.Errorf("%d flows are in the flowtable, of %d, and %d of them are of a pod that has just come", n, before, ofA)
	}
	becomeCarried(t, c.Node, "once more", allowed, len(allowed))

	// A change that only allows more lets them be.
	if done := applyJSON(t, c.Node, isolate("a", "Egress")+allowAToB+allowBOutside+allowAToEverybody); done.FlowsReclaimed != 0 || carried(c.Node) < len(allowed) {
		t.Errorf("%+v, with %d in the flowtable", done, carried(c.Node))
	}
	pingAll(t, "a may reach everybody", flows, blocked("b to a"))

	done = applyJSON(t, c.Node, strings.Join([]string{isolate("a", "Egress"), isolate("a", "Ingress"), isolate("b", "Egress"), isolate("b", "Ingress")}, "---"))
	if done.FlowsReclaimed == 0 || done.Offloaded != 0 {
		t.Errorf("%+v, want flows taken back", done)
	}
	pingAll(t, "nobody allowed", flows, blocked("a to outside", "b to outside", "outside to a", "a to b", "b to a"))
	if n := carried(c.Node); n != 0 {
		t.Errorf("%d flows are in the flowtable, and all are forbidden", n)
	}
}

// A rule that gives flows to a flowtable ahead of podmark's own puts a forbidden one there
// again, before podmark drops its packet. That is said, and gone with the rule.
func TestFlowtableAhead(t *testing.T) {
	t.Parallel()
	p := newPatient(t, newCluster(t, lab.Options{}, routed), "ptp")
	fastpath(p.Node, "mangle - 50", p.outside.Link, p.a.HostVeth)
	flows := []liveFlow{live("a to outside", p.a.Stream(lab.Request{Protocol: lab.UDP, To: p.outside.At(lab.V4, podPort)}))}
	becomeCarried(t, p.Node, "no policy", flows, 1)
	p.finds("node-ports")
	applyJSON(t, p.Node, isolate("a", "Egress"))
	wait.For(t, "the flow is in the flowtable again", func() bool {
		if carried(p.Node) > 0 {
			return true
		}
		flows[0].stream.Ping(lab.SilenceLimit)
		return false
	})
	if found := p.finds("flowtable", "node-ports"); !strings.Contains(found[0].What, "1 live connections") || !strings.Contains(found[0].What, "inet other fastpath") {
		t.Errorf("%+v", found[0])
	}
	if s := podmarkctl(t, p.Node, "status"); !strings.Contains(s, "inet other fastpath: 1 live connections") {
		t.Error(s)
	}
	p.Run("nft", "delete table inet other")
	pingAll(t, "without the flowtable", flows, map[string]lab.Outcome{"a to outside": lab.Blocked})
	p.finds("node-ports")
}

const allowBOutside = `---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: allow-b-outside}
spec:
  podSelector: {matchLabels: {app: b}}
  policyTypes: [Egress]
  egress:
  - to: [{ipBlock: {cidr: 192.168.50.0/24}}, {ipBlock: {cidr: "fd00:50::/64"}}]
`

const allowAToEverybody = `---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: allow-a-to-everybody}
spec:
  podSelector: {matchLabels: {app: a}}
  policyTypes: [Egress]
  egress: [{}]
`
