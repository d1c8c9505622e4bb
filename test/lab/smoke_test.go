package lab_test

import (
	"net/netip"
	"testing"

	"github.com/podmark/podmark/test/lab"
)

// These tests hold without podmark. They prove that the lab is a node on which
// everything is reachable, so that what podmark's tests find blocked is blocked
// by podmark.

// Ports of the tests. IPVS services of one address need a port each.
const (
	podPort    = 8080
	hostPort   = 9090
	vipPort    = 80
	nodePort   = 30080
	oddPort    = 40080 // a NodePort outside the usual range
	localPort  = 30081 // a NodePort that keeps the client's address
	hostedPort = 81    // a service whose backend is a process of the node
	remotePort = 82    // a service whose backend is a pod of another node
)

// A cluster is a node with what most tests need: two pods, a host outside, one
// that stands for a pod of another node, and services.
type cluster struct {
	*lab.Node
	a, b            *lab.Pod
	outside, remote *lab.Host
	vips, externals map[lab.Family]netip.Addr
}

// newCluster makes a cluster in which everything listens. Backend of every
// service is pod b, but for hostedPort's and remotePort's.
func newCluster(t *testing.T, o lab.Options, network func(*lab.Node) lab.Network) *cluster {
	t.Helper()
	node := lab.NewNode(t, o)
	c := &cluster{
		Node:      node,
		outside:   node.AddHost("outside"),
		remote:    node.AddHost("remote", "10.2.0.1/24", "fd00:10:2::1/64"),
		a:         node.AddPod(lab.PodSpec{Name: "a", Labels: map[string]string{"app": "a"}, Network: network(node)}),
		b:         node.AddPod(lab.PodSpec{Name: "b", Labels: map[string]string{"app": "b"}, Network: network(node)}),
		vips:      map[lab.Family]netip.Addr{lab.V4: netip.MustParseAddr("10.96.0.10"), lab.V6: netip.MustParseAddr("fd00:96::10")},
		externals: map[lab.Family]netip.Addr{lab.V4: netip.MustParseAddr("203.0.113.10"), lab.V6: netip.MustParseAddr("2001:db8::10")},
	}
	var services []lab.Service
	for _, p := range lab.Protocols {
		for _, ns := range []*lab.NS{c.a.NS, c.b.NS, c.outside.NS, c.remote.NS} {
			ns.Listen(p, podPort)
		}
		node.Listen(p, hostPort)
		var pods, host, elsewhere []netip.AddrPort
		for _, f := range lab.Families {
			pods = append(pods, c.b.At(f, podPort))
			host = append(host, node.At(f, hostPort))
			elsewhere = append(elsewhere, c.remote.At(f, podPort))
		}
		for _, f := range lab.Families {
			services = append(
				services,
				lab.Service{Kind: lab.ClusterIP, Protocol: p, Address: c.vips[f], Port: vipPort, Backends: pods},
				lab.Service{Kind: lab.ClusterIP, Protocol: p, Address: c.vips[f], Port: hostedPort, Backends: host},
				lab.Service{Kind: lab.ClusterIP, Protocol: p, Address: c.vips[f], Port: remotePort, Backends: elsewhere},
				lab.Service{Kind: lab.ExternalIP, Protocol: p, Address: c.externals[f], Port: vipPort, Backends: pods},
			)
		}
		services = append(
			services,
			lab.Service{Kind: lab.NodePort, Protocol: p, Port: nodePort, Backends: pods},
			lab.Service{Kind: lab.NodePort, Protocol: p, Port: oddPort, Backends: pods},
			lab.Service{Kind: lab.NodePort, Protocol: p, Port: localPort, Local: true, Backends: pods},
		)
	}
	node.AddServices(services...)
	return c
}

func (c *cluster) vip(_ lab.Protocol, f lab.Family) netip.AddrPort {
	return netip.AddrPortFrom(c.vips[f], vipPort)
}

func (c *cluster) hosted(_ lab.Protocol, f lab.Family) netip.AddrPort {
	return netip.AddrPortFrom(c.vips[f], hostedPort)
}

func (c *cluster) elsewhere(_ lab.Protocol, f lab.Family) netip.AddrPort {
	return netip.AddrPortFrom(c.vips[f], remotePort)
}

func (c *cluster) external(_ lab.Protocol, f lab.Family) netip.AddrPort {
	return netip.AddrPortFrom(c.externals[f], vipPort)
}

// at is port on an address of ns, for [lab.Cross].
func at(ns *lab.NS, port uint16) func(lab.Protocol, lab.Family) netip.AddrPort {
	return func(_ lab.Protocol, f lab.Family) netip.AddrPort { return ns.At(f, port) }
}

// everything is a row for every flow that reaches its destination on a node
// without policies.
func (c *cluster) everything() []lab.Row {
	var rows []lab.Row
	for _, flow := range []struct {
		name string
		from *lab.NS
		to   func(lab.Protocol, lab.Family) netip.AddrPort
		by   string
	}{
		{"pod to pod", c.a.NS, at(c.b.NS, podPort), "b"},
		{"pod to remote pod", c.a.NS, at(c.remote.NS, podPort), "remote"},
		{"remote pod to pod", c.remote.NS, at(c.b.NS, podPort), "b"},
		{"pod to outside", c.a.NS, at(c.outside.NS, podPort), "outside"},
		{"outside to pod", c.outside.NS, at(c.b.NS, podPort), "b"},
		{"pod to host process", c.a.NS, at(c.Node.NS, hostPort), "node"},
		{"host process to pod", c.Node.NS, at(c.b.NS, podPort), "b"},
		{"pod to ClusterIP", c.a.NS, c.vip, "b"},
		{"pod to ClusterIP of host process", c.a.NS, c.hosted, "node"},
		{"pod to ClusterIP of remote pod", c.a.NS, c.elsewhere, "remote"},
		{"host process to ClusterIP", c.Node.NS, c.vip, "b"},
		{"pod to own ClusterIP", c.b.NS, c.vip, "b"},
		{"outside to ClusterIP", c.outside.NS, c.vip, "b"},
		{"pod to NodePort", c.a.NS, at(c.Node.NS, nodePort), "b"},
		{"pod to odd NodePort", c.a.NS, at(c.Node.NS, oddPort), "b"},
		{"outside to NodePort", c.outside.NS, at(c.Node.NS, nodePort), "b"},
		{"outside to odd NodePort", c.outside.NS, at(c.Node.NS, oddPort), "b"},
		{"outside to local NodePort", c.outside.NS, at(c.Node.NS, localPort), "b"},
		{"pod to external IP", c.a.NS, c.external, "b"},
		{"outside to external IP", c.outside.NS, c.external, "b"},
	} {
		rows = append(rows, lab.Cross(lab.Row{Name: flow.name, From: flow.from, By: flow.by}, flow.to)...)
	}
	return rows
}

func TestEverythingReachesRoutedPods(t *testing.T) {
	t.Parallel()
	lab.Variants(t, func(t *testing.T, variant lab.Variant) {
		c := newCluster(t, lab.Options{Variant: variant}, func(n *lab.Node) lab.Network { return n.PTP() })
		lab.Table(t, c.everything())
	})
}

func TestEverythingReachesBridgedPods(t *testing.T) {
	t.Parallel()
	lab.Variants(t, func(t *testing.T, variant lab.Variant) {
		c := newCluster(t, lab.Options{Variant: variant}, func(n *lab.Node) lab.Network { return n.Bridge() })
		lab.Table(t, c.everything())
	})
}
