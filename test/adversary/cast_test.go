package adversary_test

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/test/frame"
	"github.com/podmark/podmark/test/lab"
	"github.com/podmark/podmark/test/mutant"
	"github.com/podmark/podmark/test/needs"
	"github.com/podmark/podmark/test/wait"
)

// policies are in force at the beginning of each attack.
const policies = `
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: denied},
 spec: {podSelector: {matchLabels: {app: denied}}, policyTypes: [Ingress, Egress]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: client},
 spec: {podSelector: {matchLabels: {app: client}}, policyTypes: [Ingress, Egress],
  egress: [{to: [{ipBlock: {cidr: 192.168.50.2/32}}, {ipBlock: {cidr: "fd00:50::2/128"}}],
   ports: [{protocol: UDP, port: 53}, {protocol: TCP, port: 53}, {protocol: SCTP, port: 53}]}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: server},
 spec: {podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress],
  ingress: [{from: [{podSelector: {matchLabels: {app: free}}}, {ipBlock: {cidr: 10.44.1.5/32}}, {ipBlock: {cidr: "fd00:44::5/128"}}],
   ports: [{protocol: UDP, port: 80}, {protocol: TCP, port: 80}, {protocol: SCTP, port: 80}]}]}}
`

// cast is a node and who is around it. They stay for all attacks on the node.
type cast struct {
	*lab.Node
	at attachment

	// x is the resolver, a machine outside; y another one outside.
	x, y *actor
	// denied may send and take nothing. client and twin may ask x on port 53, and take
	// nothing. server takes port 80, from pods like free and from an address of another
	// node. free and other have no policy.
	denied, client, twin, server, free, other *actor
	// node has a socket for whatever protocol it is sent.
	node *actor

	actors  []*actor
	buf     []byte
	markers uint32
	ports   uint16

	whole    *testing.T // the test of all attacks on the node
	movables []*movable
}

// actor is who sends and gets frames.
type actor struct {
	name string
	ns   *lab.NS
	pod  *lab.Pod // nil for others
	// sock gives and takes what is on the link; for the node, -1.
	sock int
	// raw are the node's sockets, by family to send and by whatever they are told.
	send map[lab.Family]int
	hear []int
	// mac is the link's own address, gateway the one of the node's end, or of the bridge.
	mac, gateway net.HardwareAddr
	// dev is the node's link to it, bridge the bridge that this is; empty for none.
	dev, bridge string
	addrs       map[lab.Family]netip.Addr
}

func (a *actor) String() string { return a.name }

// newCast makes the node and everybody around it.
func newCast(t *testing.T, backend lab.Backend, at attachment) *cast {
	t.Helper()
	c := &cast{Node: lab.NewNode(t, lab.Options{Backend: backend, Plain: !needs.Lab()}), at: at, whole: t, ports: 10000, buf: make([]byte, 1<<16)}
	for _, path := range []string{"all", "default"} {
		c.Sysctl("net/ipv4/conf/"+path+"/rp_filter", "0")
	}
	// A flow that ends for want of packets would be one that nobody knows: attacks take longer
	// on a busy machine.
	c.Sysctl("net/netfilter/nf_conntrack_udp_timeout", "3600")
	c.Sysctl("net/netfilter/nf_conntrack_udp_timeout_stream", "3600")
	c.Sysctl("net/bridge/bridge-nf-call-iptables", "1")
	c.Sysctl("net/bridge/bridge-nf-call-ip6tables", "1")
	var links []string
	switch at {
	case vlan:
		links = append(links, "link add cni0 type bridge vlan_filtering 1")
	case vrf:
		links = append(links, "link add red type vrf table 100", "link set red up")
	}
	if err := c.ip(links...); err != nil {
		t.Fatal(err)
	}
	for i, a := range []**actor{&c.x, &c.y} {
		h := c.AddHost([]string{"x", "y"}[i])
		if err := c.ip(c.intoVRF(h.Link, h.Addr(lab.V6).Prev().String()+"/64")...); err != nil {
			t.Fatal(err)
		}
		*a = c.enter(t, h.NS, nil, h.Link)
	}
	c.addTunnels(t)
	for _, p := range []struct {
		of   **actor
		name string
		app  string
	}{
		{&c.denied, "denied", "denied"},
		{&c.client, "client", "client"},
		{&c.twin, "twin", "client"},
		{&c.server, "server", "server"},
		{&c.free, "free", "free"},
		{&c.other, "other", "other"},
	} {
		*p.of = c.addPod(t, p.name, p.app)
	}
	c.addNode(t)
	c.apply(t, policies)
	return c
}

// ip changes the node's links, by lines of ip's own.
func (c *cast) ip(lines ...string) error {
	if lines == nil {
		return nil
	}
	_, err := c.TryInput(strings.Join(lines, "\n"), "ip", "-batch", "-")
	return err
}

// intoVRF are the lines that move a link of the node into the VRF, if there is one. The
// kernel takes IPv6 addresses and routes off a link that moves.
func (c *cast) intoVRF(link string, addresses ...string) (lines []string) {
	if c.at != vrf {
		return nil
	}
	lines = append(lines, "link set "+link+" master red")
	for _, a := range addresses {
		lines = append(lines, "address replace "+a+" dev "+link+" nodad")
	}
	return lines
}

// network is the node's network without podmark.
func (c *cast) network() lab.Network {
	if c.at == bridged || c.at == vlan {
		return c.Bridge()
	}
	return c.PTP()
}

// podmark is its entry of the network.
func (c *cast) podmark() lab.Plugin { return c.Podmark(lab.Plugin{"policy": "files"}) }

// addPod attaches a pod. In a VRF its link is in there before podmark hears of it.
func (c *cast) addPod(t *testing.T, name, app string) *actor {
	t.Helper()
	pod := c.NewPod(lab.PodSpec{Name: name, Labels: map[string]string{"app": app}, Network: c.network()})
	if err := pod.Add(); err != nil {
		t.Fatal(err)
	}
	c.podIntoVRF(t, pod)
	if err := pod.Chain(c.podmark()); err != nil {
		t.Fatal(err)
	}
	c.mutate(t)
	if c.onBridge() {
		a := c.enter(t, pod.NS, pod, "cni0")
		a.bridge = "cni0"
		return a
	}
	return c.enter(t, pod.NS, pod, pod.HostVeth)
}

// podIntoVRF moves the link of a pod into the VRF, if there is one, with its routes.
func (c *cast) podIntoVRF(t *testing.T, pod *lab.Pod) {
	t.Helper()
	if c.at != vrf {
		return
	}
	lines := c.intoVRF(pod.HostVeth, "fd00:10:1::1/128") // as ptp gives it
	for _, addr := range pod.Addresses {
		lines = append(lines, fmt.Sprintf("route replace %v dev %s table 100", addr, pod.HostVeth))
	}
	if err := c.ip(lines...); err != nil {
		t.Fatal(err)
	}
}

func (c *cast) onBridge() bool { return c.at == bridged || c.at == vlan }

// enter makes an actor of a namespace with a link eth0, which the node reaches by dev: its
// own kernel says nothing any more, and the node need not ask where it is.
func (c *cast) enter(t *testing.T, ns *lab.NS, pod *lab.Pod, dev string) *actor {
	t.Helper()
	a := &actor{name: ns.Name, ns: ns, pod: pod, dev: dev, mac: ns.MAC("eth0"), gateway: c.MAC(dev), addrs: map[lab.Family]netip.Addr{}}
	for _, f := range lab.Families {
		a.addrs[f] = ns.Addr(f)
		if err := c.knows(a.addrs[f], a.mac, dev); err != nil {
			t.Fatal(err)
		}
	}
	ns.Sysctl("net/ipv6/conf/eth0/disable_ipv6", "1")
	err := ns.Do(func() (err error) {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		addresses, err := netlink.AddrList(link, netlink.FAMILY_V4)
		if err != nil {
			return err
		}
		for _, a := range addresses {
			if err := netlink.AddrDel(link, &a); err != nil {
				return err
			}
		}
		const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // network byte order
		if a.sock, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, all); err != nil {
			return err
		}
		t.Cleanup(func() { unix.Close(a.sock) })
		if err := unix.SetsockoptInt(a.sock, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1); err != nil {
			return err
		}
		// Tags are shown where the kernel took them off.
		if err := unix.SetsockoptInt(a.sock, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20); err != nil {
			return err
		}
		return unix.Bind(a.sock, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Attrs().Index})
	})
	if err != nil {
		t.Fatalf("listening to %q: %v", ns.Name, err)
	}
	c.waitUp(t, a)
	c.actors = append(c.actors, a)
	return a
}

// knows tells the node where an address is, so that it need not ask.
func (c *cast) knows(addr netip.Addr, mac net.HardwareAddr, dev string) error {
	return c.Do(func() error {
		link, err := netlink.LinkByName(dev)
		if err != nil {
			return err
		}
		return netlink.NeighSet(&netlink.Neigh{LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: addr.AsSlice(), HardwareAddr: mac})
	})
}

// waitUp waits until both ends of an actor's link work. The kernel says so, a moment after
// the link was set up, and drops everything before: what nobody gets then proves nothing.
func (c *cast) waitUp(t *testing.T, a *actor) {
	t.Helper()
	peer := 0
	up := func(ns *lab.NS, find func() (netlink.Link, error)) (up bool) {
		err := ns.Do(func() error {
			l, err := find()
			if err == nil {
				peer, up = l.Attrs().ParentIndex, l.Attrs().OperState == netlink.OperUp
			}
			return err
		})
		return err == nil && up
	}
	both := func() bool {
		return up(a.ns, func() (netlink.Link, error) { return netlink.LinkByName("eth0") }) &&
			up(c.NS, func() (netlink.Link, error) { return netlink.LinkByIndex(peer) })
	}
	wait.For(t, fmt.Sprintf("the link of %v is up", a), both)
}

// addNode gives the node raw sockets: they get what its netfilter lets in, whoever
// listens.
func (c *cast) addNode(t *testing.T) {
	t.Helper()
	a := &actor{
		name: "node", ns: c.NS, sock: -1, send: map[lab.Family]int{}, addrs: map[lab.Family]netip.Addr{},
		mac: make(net.HardwareAddr, 6), gateway: make(net.HardwareAddr, 6), // its kernel knows
	}
	socket := func(domain, protocol int) int {
		var fd int
		err := c.Do(func() (err error) {
			fd, err = unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, protocol)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	for f, domain := range map[lab.Family]int{lab.V4: unix.AF_INET, lab.V6: unix.AF_INET6} {
		a.addrs[f] = c.Addr(f)
		a.send[f] = socket(domain, unix.IPPROTO_RAW)
		if c.at == vrf {
			if err := unix.BindToDevice(a.send[f], "red"); err != nil {
				t.Fatal(err)
			}
		}
		for _, p := range append([]byte{frame.ICMP, frame.TCP, frame.UDP, frame.SCTP, frame.ICMPv6}, tunnelProtocols...) {
			a.hear = append(a.hear, socket(domain, int(p)))
		}
	}
	c.node = a
	c.actors = append(c.actors, a)
}

// write sends a frame; the node's kernel makes its own Ethernet header.
func (a *actor) write(b []byte) error {
	if a.sock >= 0 {
		_, err := unix.Write(a.sock, b)
		return err
	}
	packet := b[14:]
	if packet[0]>>4 == 4 {
		return unix.Sendto(a.send[lab.V4], packet, 0, &unix.SockaddrInet4{Addr: [4]byte(packet[16:20])})
	}
	return unix.Sendto(a.send[lab.V6], packet, 0, &unix.SockaddrInet6{Addr: [16]byte(packet[24:40])})
}

// read hands what has arrived since the last time to each, one by one.
func (a *actor) read(buf []byte, each func([]byte)) {
	for _, fd := range append([]int{a.sock}, a.hear...) {
		for fd >= 0 {
			n, err := unix.Read(fd, buf)
			if err != nil {
				break
			}
			each(bytes.Clone(buf[:n]))
		}
	}
}

// apply makes manifests the node's policy.
func (c *cast) apply(t *testing.T, manifests string) {
	t.Helper()
	file := filepath.Join(c.Dir, "policy.yaml")
	if err := os.WriteFile(file, []byte(manifests), 0o600); err != nil {
		t.Fatal(err)
	}
	path, err := filepath.Abs("../../bin/podmarkctl")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Try(path, "--state-dir", c.StateDir, "--lock-timeout", lab.LockTimeout, "apply", "-f", file); err != nil {
		t.Fatal(err)
	}
	c.mutate(t)
}

// mutate takes out the rule that TestMutants names, if it runs this. An ADD puts it back.
func (c *cast) mutate(t *testing.T) {
	t.Helper()
	if without, ok := mutant.FromEnv(); ok {
		if err := without.TakeOut(c.Try); err != nil {
			t.Fatal(err)
		}
	}
}

// vxlans are the node's links that unwrap VXLAN, by UDP port: flannel's, and the one
// that IANA gives.
var vxlans = map[uint16]uint32{8472: 1, 4789: 2}

// addTunnels gives the node VXLAN links, one of each family and port. The address of
// each is that of the family's first host link.
func (c *cast) addTunnels(t *testing.T) {
	t.Helper()
	var lines []string
	for port, vni := range vxlans {
		for _, f := range lab.Families {
			link := fmt.Sprintf("vx%d-%d", port, f)
			lines = append(lines, fmt.Sprintf("link add %s type vxlan id %d dstport %d local %v dev eth0 nolearning", link, vni, port, c.Addr(f)))
			lines = append(append(lines, c.intoVRF(link)...), "link set "+link+" up")
		}
	}
	if err := c.ip(lines...); err != nil {
		t.Fatal(err)
	}
}
