package verdict_test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/test/netns"
	"github.com/podmark/podmark/test/wait"
)

// wire is a link of the node with a socket at its far end.
type wire struct {
	name  string // of the node's end
	index int    // of that
	l3    string // where IP sees it: the same, or the bridge that it is a port of
	mac   net.HardwareAddr
	far   net.HardwareAddr
	addrs []netip.Addr // routed out by it
	sock  int
}

const (
	bridgeName   = "br0"
	bridgedCount = 4 // the last stays unknown to podmark
)

// bench is a node with wires, in a network namespace of the test's own. The far
// ends are in the same namespace: nothing but the sockets reads what arrives there.
type bench struct {
	t      *testing.T
	wires  []*wire
	pods   int // how many of the wires, the first, are pods
	host   []netip.Addr
	bridge net.HardwareAddr           // the MAC address of the bridge
	local  map[desired.Protocol][]int // raw sockets that see what the node is given
	number uint32
	port   uint16
}

// newBench makes a node with routed pods, others on a bridge, and two outside networks.
func newBench(t *testing.T, pods int) *bench { return newBenchOf(t, pods, bridgedCount) }

func newBenchOf(t *testing.T, pods, onBridge int) *bench {
	netns.Enter(t)
	_ = exec.Command("modprobe", "-a", "nf_conntrack", "br_netfilter", "ip_set", "sctp").Run() // where there are modules
	b := &bench{
		t: t, port: 20000, pods: pods + onBridge,
		host:  []netip.Addr{netip.MustParseAddr("192.168.50.1"), netip.MustParseAddr("fd00:50::1")},
		local: map[desired.Protocol][]int{},
	}
	for path, value := range map[string]string{
		"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1",
		"net/ipv6/conf/all/disable_ipv6": "0", "net/ipv6/conf/all/accept_dad": "0",
		"net/ipv6/conf/default/accept_dad": "0", "net/ipv6/conf/default/accept_ra": "0",
		// However long a round takes on a busy machine, its flows are there.
		"net/netfilter/nf_conntrack_udp_timeout": "3600", "net/netfilter/nf_conntrack_udp_timeout_stream": "3600",
		// Frames have no valid checksum above IP, and no rate limit of the node's
		// own answers may depend on how many there are.
		"net/netfilter/nf_conntrack_checksum": "0", "net/netfilter/nf_conntrack_tcp_be_liberal": "1",
		"net/ipv4/conf/all/rp_filter": "0", "net/ipv4/conf/default/rp_filter": "0",
		"net/ipv4/conf/all/send_redirects": "0", "net/ipv4/conf/default/send_redirects": "0",
		"net/ipv4/icmp_echo_ignore_all": "1", "net/ipv6/icmp/echo_ignore_all": "1",
		"net/bridge/bridge-nf-call-iptables": "1", "net/bridge/bridge-nf-call-ip6tables": "1",
	} {
		if err := os.WriteFile(filepath.Join("/proc/sys", path), []byte(value), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b.run("ip", "link", "set", "lo", "up")
	b.run("ip", "link", "add", bridgeName, "type", "bridge", "mcast_snooping", "0")
	b.run("ip", "link", "set", bridgeName, "up", "addrgenmode", "none", "address", "02:00:00:00:bb:01")
	b.bridge = net.HardwareAddr{2, 0, 0, 0, 0xbb, 1}
	for i := range pods {
		b.addWire(fmt.Sprintf("pod%d", i), podAddrs(i))
	}
	for i := range onBridge {
		b.addWire(fmt.Sprintf("port%d", i), podAddrs(64+i))
	}
	b.addWire("eth0", []netip.Addr{netip.MustParseAddr("192.168.50.2"), netip.MustParseAddr("fd00:50::2")})
	b.addWire("eth1", []netip.Addr{netip.MustParseAddr("10.2.0.9"), netip.MustParseAddr("fd00:10:2::9")})
	for _, a := range b.host {
		b.run("ip", "address", "add", netip.PrefixFrom(a, a.BitLen()).String(), "dev", "eth0", "nodad")
	}
	for _, proto := range []desired.Protocol{desired.TCP, desired.UDP, desired.SCTP, icmp, desired.ICMPv6, etherIP} {
		for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
			fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(proto))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { unix.Close(fd) })
			b.local[proto] = append(b.local[proto], fd)
		}
	}
	return b
}

// filters has br_netfilter hand what goes from port to port to IP, but for the families of not,
// which it returns.
func (b *bench) filters(not desired.Unfiltered) desired.Unfiltered {
	b.t.Helper()
	for name, off := range map[string]bool{"iptables": not.IPv4, "ip6tables": not.IPv6} {
		value := map[bool]string{false: "1", true: "0"}[off]
		if err := os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-"+name, []byte(value), 0o644); err != nil {
			b.t.Fatal(err)
		}
	}
	return not
}

// services gives each wire a service address, which leads to its own at any port. nf_tables does
// what IPVS does to a packet, at its priority: it sends a copy on, which has no socket, goes
// through OUTPUT and has what INPUT has put on it.
func (b *bench) services() {
	b.t.Helper()
	rules := [2]string{}
	for i, w := range b.wires {
		for f, family := range []string{"ip", "ip6"} {
			rules[f] += fmt.Sprintf("%s daddr %v %s daddr set %v dup to %v drop\n", family, serviceAddrs(i)[f], family, w.addrs[f], w.addrs[f])
		}
	}
	b.run("ip", "route", "add", "local", "10.96.0.0/24", "dev", "lo")
	b.run("ip", "route", "add", "local", "fd00:96::/64", "dev", "lo")
	for f, family := range []string{"ip", "ip6"} {
		b.run("nft", fmt.Sprintf("table %s services {\nchain input {\ntype filter hook input priority 98\n%s}\n}", family, rules[f]))
	}
}

// serviceAddrs are those of the service of a wire.
func serviceAddrs(i int) []netip.Addr {
	return []netip.Addr{netip.AddrFrom4([4]byte{10, 96, 0, byte(1 + i)}), netip.MustParseAddr(fmt.Sprintf("fd00:96::%x", 1+i))}
}

// nobody is the priority of an agent that is not there.
const nobody = -1

// agent has another program take podmark's bits off the mark in INPUT, at a priority.
func (b *bench) agent(mask uint32, priority int) {
	b.t.Helper()
	text := "table inet agent\ndelete table inet agent\n"
	if priority != nobody {
		text += fmt.Sprintf("table inet agent {\nchain input {\ntype filter hook input priority %d\nmeta mark set meta mark & %#x\n}\n}", priority, ^mask)
	}
	b.run("nft", text)
}

func podAddrs(i int) []netip.Addr {
	return []netip.Addr{
		netip.AddrFrom4([4]byte{10, 1, 0, byte(2 + i)}),
		netip.MustParseAddr(fmt.Sprintf("fd00:10:1::%x", 2+i)),
	}
}

func (b *bench) run(name string, args ...string) {
	b.t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		b.t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

// addWire makes a link with routes to addrs and their neighbour entries.
func (b *bench) addWire(name string, addrs []netip.Addr) {
	b.t.Helper()
	far := name + "-far"
	b.run("ip", "link", "add", name, "type", "veth", "peer", "name", far)
	// What arrives there is for the socket, which sees it first.
	b.run("nft", "add", "table", "netdev", "far")
	b.run("nft", "add", "chain", "netdev", "far", name, fmt.Sprintf("{ type filter hook ingress device %s priority 0; policy drop; }", far))
	b.run("ip", "link", "set", far, "up", "addrgenmode", "none")
	b.run("ip", "link", "set", name, "up")
	near, errNear := netlink.LinkByName(name)
	end, errFar := netlink.LinkByName(far)
	if errNear != nil || errFar != nil {
		b.t.Fatal(errNear, errFar)
	}
	w := &wire{name: name, l3: name, index: near.Attrs().Index, mac: near.Attrs().HardwareAddr, far: end.Attrs().HardwareAddr, addrs: addrs}
	if strings.HasPrefix(name, "port") {
		w.l3, w.mac = bridgeName, b.bridge
		b.run("ip", "link", "set", name, "master", bridgeName)
		b.run("bridge", "link", "set", "dev", name, "learning", "off")
		b.run("bridge", "fdb", "replace", w.far.String(), "dev", name, "master", "static")
	}
	for _, a := range addrs {
		b.run("ip", "route", "add", netip.PrefixFrom(a, a.BitLen()).String(), "dev", w.l3)
		b.run("ip", "neighbour", "add", a.String(), "lladdr", w.far.String(), "dev", w.l3, "nud", "permanent")
	}
	var err error
	const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // network byte order
	if w.sock, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, all); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { unix.Close(w.sock) })
	if err := unix.Bind(w.sock, &unix.SockaddrLinklayer{Protocol: all, Ifindex: end.Attrs().Index}); err != nil {
		b.t.Fatal(err)
	}
	// What is injected here is seen here too, as outgoing.
	if err := unix.SetsockoptInt(w.sock, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1); err != nil {
		b.t.Fatal(err)
	}
	if err := unix.SetsockoptInt(w.sock, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20); err != nil {
		b.t.Fatal(err)
	}
	b.wires = append(b.wires, w)
}

func (b *bench) wire(name string) *wire {
	for _, w := range b.wires {
		if w.name == name {
			return w
		}
	}
	b.t.Fatalf("no wire %q", name)
	return nil
}

// at is the wire behind which an address is, nil for the node's and for nobody's.
func (b *bench) at(a netip.Addr) *wire {
	for _, w := range b.wires {
		if slices.Contains(w.addrs, a) {
			return w
		}
	}
	return nil
}

// out names the interface by which a packet to dst leaves; empty for the node.
func (b *bench) out(dst netip.Addr) string {
	if w := b.at(dst); w != nil {
		return w.l3
	}
	return ""
}

// send injects packets and returns where each came out: an interface's name,
// "node", or nothing.
func (b *bench) send(packets []desired.Packet) []string {
	b.t.Helper()
	list := make([]injection, len(packets))
	for i, p := range packets {
		list[i] = injection{wire: b.wire(p.In), packet: p}
	}
	out := make([]string, len(packets))
	for i, places := range b.inject(list) {
		out[i] = strings.Join(places, "+")
	}
	return out
}

// injection is a packet on its way into a wire. Its source port is its number where it has
// none.
type injection struct {
	wire   *wire
	packet desired.Packet
	// from and to are MAC addresses, those of the wire's ends where nil.
	from, to net.HardwareAddr
	// about is the packet that an error is about.
	about *desired.Packet
	// flags are those of TCP, SYN when 0.
	flags byte
	// cut has it sent in two fragments.
	cut bool
}

// inject sends packets and returns where each came out, sorted: names of interfaces, and
// "node". The source port of those without one is set in the list.
func (b *bench) inject(list []injection) [][]string {
	b.t.Helper()
	first := b.number + 1
	write := func(in *injection) {
		b.number++
		b.port++
		if b.port < 20000 {
			b.port = 20000
		}
		if in.packet.SrcPort == 0 {
			in.packet.SrcPort = b.port
		}
		from, to := in.wire.far, in.wire.mac
		if in.from != nil {
			from = in.from
		}
		if in.to != nil {
			to = in.to
		}
		frames := [][]byte{ethernet(from, to, *in, b.number)}
		if in.cut {
			frames = fragments(frames[0], b.number)
		}
		for _, f := range frames {
			if _, err := unix.Write(in.wire.sock, f); err != nil {
				b.t.Fatalf("injecting on %s: %v", in.wire.name, err)
			}
		}
	}
	for i := range list {
		write(&list[i])
	}
	// Packets of one sender are handled in order: what comes behind the others
	// and is always allowed says that they were.
	fence := injection{wire: b.wire("eth1"), packet: desired.Packet{
		Src: b.wire("eth1").addrs[0], Dst: b.wire("eth0").addrs[0], Protocol: desired.UDP, DstPort: 9,
	}}
	write(&fence)
	out := make([][]string, len(list)+1)
	for deadline := time.Now().Add(wait.Still); out[len(list)] == nil; {
		if time.Now().After(deadline) {
			b.t.Fatal("the last packet, which nothing forbids, does not come out")
		}
		b.collect(first, out)
	}
	b.collect(first, out)
	for _, places := range out {
		slices.Sort(places)
	}
	return out[:len(list)]
}

// collect reads every socket empty.
func (b *bench) collect(first uint32, out [][]string) {
	buf := make([]byte, 2048)
	note := func(number uint32, ok bool, where string) {
		if i := int(number - first); ok && i >= 0 && i < len(out) && !slices.Contains(out[i], where) {
			out[i] = append(out[i], where)
		}
	}
	for _, w := range b.wires {
		for {
			n, err := unix.Read(w.sock, buf)
			if err != nil {
				break
			}
			if n > 14 {
				number, ok := numberOf(buf[14:n])
				note(number, ok, w.name)
			}
		}
	}
	for proto, sockets := range b.local {
		for i, fd := range sockets {
			for {
				n, err := unix.Read(fd, buf)
				if err != nil {
					break
				}
				if i == 0 { // a raw IPv4 socket gives the header too
					number, ok := numberOf(buf[:n])
					note(number, ok, "node")
				} else {
					number, ok := numberIn(proto, buf[:n])
					note(number, ok, "node")
				}
			}
		}
	}
}
