package lab_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/podmark/podmark/pkg/agent"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/test/lab"
	"github.com/podmark/podmark/test/share"
	"github.com/podmark/podmark/test/testnode"
)

// realPolicy lets a reach b and nothing else, and b be reached by a and from one
// network outside.
const realPolicy = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: a}
spec:
  podSelector: {matchLabels: {app: a}}
  policyTypes: [Egress]
  egress:
  - to: [{podSelector: {matchLabels: {app: b}}}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: b}
spec:
  podSelector: {matchLabels: {app: b}}
  policyTypes: [Ingress]
  ingress:
  - from:
    - podSelector: {matchLabels: {app: a}}
    - ipBlock: {cidr: 192.168.50.0/24}
    - ipBlock: {cidr: "fd00:50::/64"}
`

const deniedHostPort = 9091 // a process of the node that only who may not asks for

// A real kube-proxy does the services, as an API server tells it. Services come, the
// NodePort range changes, IPVS goes and comes back, and all the time clients that never
// stop ask for what they may and may not have: nothing forbidden ever passes, and
// nothing allowed fails but where kube-proxy itself has no rules. podmarkd, which is
// notified or told of everything and looks at nothing by itself for a minute, knows
// long before whether IPVS is used.
//
// Each backend runs by itself, before the tests that run in parallel: a kube-proxy is a
// lot for an emulated processor.
func TestRealKubeProxy(t *testing.T) {
	for _, backend := range share.OneOf(t, testnode.Backends) {
		t.Run(backend.Name, func(t *testing.T) { realKubeProxy(t, backend) })
	}
}

func realKubeProxy(t *testing.T, backend lab.Backend) {
	n := newRealNode(t, backend)
	n.startProxy("ipvs")
	n.awaitLink()
	n.addPods()
	for _, p := range []lab.Protocol{lab.TCP, lab.UDP} {
		n.b.Listen(p, servedTarget)
		n.Listen(p, hostPort)
	}
	var servers []*lab.Server // of what is forbidden
	for _, p := range []lab.Protocol{lab.TCP, lab.UDP} {
		servers = append(servers, n.b.Listen(p, deniedTarget), n.Listen(p, deniedHostPort), n.Listen(p, unusedNodePort))
	}
	config := n.write("podmarkd.yaml", "nodePortRanges: "+usualRange+"\n")
	startDaemon(t, n.Node, "--interval", "1m", "--listen", metricsAt, "--config", config, "--kubeconfig", n.Dir+"/kubeconfig")

	// kube-proxy runs, its link is there, and there is no service.
	becomes(t, n.Node, "a link without services", func(s agent.Status) bool { return s.Mode.Link && !s.Mode.IPVS })
	mode := watchMode(t, n.Node)

	n.createService("web", webNodePort, webDeniedPort)
	mode.becomes(true, "the first Service")
	becomes(t, n.Node, "NodePorts of the Service", portsAre(nil, webNodePort, webDeniedPort))
	denied, allowed := n.denied("web", webDeniedPort), n.allowed("web", webNodePort)
	deniedHost, allowedHost := n.deniedHost(), n.allowedHost()
	lab.Table(t, slices.Concat(reached(denied), reached(deniedHost), allowed, allowedHost))

	apply(t, n.Node, realPolicy)
	before := requests(servers)
	c := newClients(t)
	c.add(true, slices.Concat(some(denied), overTCP(allowed))...)
	c.add(false, slices.Concat(some(deniedHost), overTCP(allowedHost))...)

	if err := os.WriteFile(config, []byte("nodePortRanges: "+widenedRangeList+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	widened := []desired.PortRange{{First: 30000, Last: 32767}, {First: 40000, Last: 40999}}
	becomes(t, n.Node, "the range is another", func(s agent.Status) bool { return slices.Equal(s.Ports.Configured, widened) })
	n.createService("odd", oddNodePort, oddDeniedPort)
	becomes(t, n.Node, "NodePorts of both Services", portsAre(widened, webNodePort, webDeniedPort, oddNodePort, oddDeniedPort))
	odd, oddDenied := n.allowed("odd", oddNodePort), n.denied("odd", oddDeniedPort)
	lab.Table(t, slices.Concat(odd, oddDenied))
	c.add(true, slices.Concat(some(oddDenied), overTCP(odd))...)
	c.goOn(t, 3)

	if share.Everything() { // it takes as long as all the rest
		n.leaveIPVS(c, mode)
		n.says(false)
		c.goOn(t, 3)
		lab.Table(t, slices.Concat(allowed, denied, odd, oddDenied, allowedHost, deniedHost))

		n.returnToIPVS(c, mode)
		n.says(true)
		becomes(t, n.Node, "NodePorts as before", portsAre(widened, webNodePort, webDeniedPort, oddNodePort, oddDeniedPort))
		c.goOn(t, 3)
		lab.Table(t, slices.Concat(allowed, denied, odd, oddDenied, allowedHost, deniedHost))
	}

	c.verdicts(t)
	if got := requests(servers) - before; got != 0 {
		t.Errorf("%d forbidden requests reached a server", got)
	}
	// What was forbidden could have been answered.
	podmarkctl(t, n.Node, "apply", "--delete")
	lab.Table(t, slices.Concat(reached(denied), reached(oddDenied), reached(deniedHost)))

	// kube-proxy keeps its link when the last Service is gone.
	for name := range n.vips {
		if err := n.api.Delete(services, "default", name); err != nil {
			t.Fatal(err)
		}
	}
	mode.becomes(false, "the last Service is deleted")
	becomes(t, n.Node, "the link without services", func(s agent.Status) bool {
		return s.Mode.Link && !s.Mode.IPVS && len(s.Ports.Ranges) == 0
	})
}

// leaveIPVS has kube-proxy do the services another way: podmark polices as before.
func (n *realNode) leaveIPVS(c *clients, mode *modeWatch) {
	c.without(func() {
		n.stopProxy()
		if n.Backend() == lab.NFTables {
			n.startProxy("nftables") // takes away itself what it left
			n.awaitProxy()
			mode.becomes(false, "kube-proxy in nftables mode")
			return
		}
		n.cleanUpProxy()
		mode.becomes(false, "kube-proxy --cleanup")
		c.goOn(n.t, 1)
		n.startProxy("iptables")
		n.awaitProxy()
	})
}

// returnToIPVS is the way back.
func (n *realNode) returnToIPVS(c *clients, mode *modeWatch) {
	c.without(func() {
		n.stopProxy()
		n.startProxy("ipvs")
		n.awaitProxy()
	})
	mode.becomes(true, "kube-proxy in IPVS mode again")
}

// portsAre is whether podmarkd takes exactly these for NodePorts, and finds none of
// them outside of the configured ranges, if these are given.
func portsAre(configured []desired.PortRange, ports ...uint16) func(agent.Status) bool {
	var want []desired.PortRange
	for _, p := range ports {
		want = append(want, desired.PortRange{First: p, Last: p})
	}
	return func(s agent.Status) bool {
		return slices.Equal(s.Ports.Ranges, want) && len(s.Ports.Outside) == 0 &&
			(configured == nil || slices.Equal(s.Ports.Configured, configured))
	}
}

// says holds both that show the mode to it: podmarkctl status and the metrics.
func (n *realNode) says(ipvs bool) {
	n.t.Helper()
	var status struct {
		Running bool
		Daemon  agent.Status
	}
	if err := json.Unmarshal([]byte(podmarkctl(n.t, n.Node, "status", "-o", "json")), &status); err != nil {
		n.t.Fatal(err)
	}
	if !status.Running || status.Daemon.Mode.IPVS != ipvs {
		n.t.Errorf("podmarkctl status says %+v, want that IPVS is used: %v", status, ipvs)
	}
	// In the emulator kube-proxy may be too slow to say it.
	if proxy := status.Daemon.Mode.Proxy; proxy != "" && (proxy == "ipvs") != ipvs {
		n.t.Errorf("podmarkctl status has kube-proxy say %q, and IPVS is used: %v", proxy, ipvs)
	}
	body, err := n.get("http://" + metricsAt + "/metrics")
	if want := "\npodmark_proxy_ipvs " + map[bool]string{false: "0", true: "1"}[ipvs] + "\n"; err != nil || !strings.Contains(body, want) {
		n.t.Errorf("the metrics have no line %q: %v", want, err)
	}
}

// each is a row for TCP and for UDP, of both families.
func each(name string, from *lab.NS, want lab.Outcome, by string, to func(lab.Protocol, lab.Family) netip.AddrPort) []lab.Row {
	return slices.DeleteFunc(lab.Cross(lab.Row{Name: name, From: from, Want: want, By: by}, to), func(r lab.Row) bool { return r.Protocol == lab.SCTP })
}

// some are half of the rows, with either protocol and either family.
func some(rows []lab.Row) []lab.Row {
	return slices.DeleteFunc(slices.Clone(rows), func(r lab.Row) bool { return (r.Protocol == lab.TCP) != r.To.Addr().Is4() })
}

// overTCP are those that TCP sends again, should a packet be lost.
func overTCP(rows []lab.Row) []lab.Row {
	return slices.DeleteFunc(slices.Clone(rows), func(r lab.Row) bool { return r.Protocol != lab.TCP })
}

// reached are the rows as they are without a policy.
func reached(rows []lab.Row) []lab.Row {
	rows = slices.Clone(rows)
	for i := range rows {
		rows[i].Want = lab.OK
	}
	return rows
}

// vip is a port of a Service's own addresses.
func (n *realNode) vip(name string, port uint16) func(lab.Protocol, lab.Family) netip.AddrPort {
	return func(_ lab.Protocol, f lab.Family) netip.AddrPort { return netip.AddrPortFrom(n.vips[name][f], port) }
}

// allowed is who may reach a Service.
func (n *realNode) allowed(name string, nodePort uint16) []lab.Row {
	return slices.Concat(
		each("pod to ClusterIP of "+name, n.a.NS, lab.OK, "b", n.vip(name, servedPort)),
		each(fmt.Sprint("pod to NodePort ", nodePort), n.a.NS, lab.OK, "b", at(n.Node.NS, nodePort)),
		each(fmt.Sprint("outside to NodePort ", nodePort), n.outside.NS, lab.OK, "b", at(n.Node.NS, nodePort)),
	)
}

// denied is who may not: b's ingress does not name them.
func (n *realNode) denied(name string, nodePort uint16) []lab.Row {
	return slices.Concat(
		each("pod to ClusterIP of "+name, n.c.NS, lab.Blocked, "", n.vip(name, deniedPort)),
		each(fmt.Sprint("pod to NodePort ", nodePort), n.c.NS, lab.Blocked, "", at(n.Node.NS, nodePort)),
		each(fmt.Sprint("outside to NodePort ", nodePort), n.remote.NS, lab.Blocked, "", at(n.Node.NS, nodePort)),
	)
}

// allowedHost is what needs no kube-proxy, and deniedHost what a's egress does not name.
func (n *realNode) allowedHost() []lab.Row {
	return slices.Concat(
		each("pod to host process", n.b.NS, lab.OK, "node", at(n.Node.NS, hostPort)),
		each("pod to pod", n.a.NS, lab.OK, "b", at(n.b.NS, servedTarget)),
	)
}

func (n *realNode) deniedHost() []lab.Row {
	return slices.Concat(
		each("pod to host process", n.a.NS, lab.Blocked, "", at(n.Node.NS, deniedHostPort)),
		each("pod to host process inside the range", n.a.NS, lab.Blocked, "", at(n.Node.NS, unusedNodePort)),
	)
}
