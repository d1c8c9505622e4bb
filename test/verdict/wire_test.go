package verdict_test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/test/netns"
)

// wire is a link of the node with a socket at its far end.
type wire struct {
	name  string // of the node's end
	mac   net.HardwareAddr
	far   net.HardwareAddr
	addrs []netip.Addr // routed out by it
	sock  int
}

// bench is a node with wires, in a network namespace of the test's own. The far
// ends are in the same namespace and have no addresses: nothing but the sockets
// reads what arrives there.
type bench struct {
	t      *testing.T
	wires  []*wire
	host   []netip.Addr
	local  map[desired.Protocol][]int // raw sockets that see what the node is given
	number uint32
	port   uint16
}

// newBench makes a node with pods and two outside networks.
func newBench(t *testing.T, pods int) *bench {
	netns.Enter(t)
	b := &bench{
		t: t, port: 20000,
		host:  []netip.Addr{netip.MustParseAddr("192.168.50.1"), netip.MustParseAddr("fd00:50::1")},
		local: map[desired.Protocol][]int{},
	}
	for path, value := range map[string]string{
		"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1",
		"net/ipv6/conf/all/disable_ipv6": "0", "net/ipv6/conf/all/accept_dad": "0",
		"net/ipv6/conf/default/accept_dad": "0", "net/ipv6/conf/default/accept_ra": "0",
		// Frames have no valid checksum above IP, and no rate limit of the node's
		// own answers may depend on how many there are.
		"net/netfilter/nf_conntrack_checksum": "0",
		"net/ipv4/conf/all/rp_filter":         "0", "net/ipv4/conf/default/rp_filter": "0",
	} {
		if err := os.WriteFile(filepath.Join("/proc/sys", path), []byte(value), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b.run("ip", "link", "set", "lo", "up")
	for i := range pods {
		b.addWire(fmt.Sprintf("pod%d", i), podAddrs(i))
	}
	b.addWire("eth0", []netip.Addr{netip.MustParseAddr("192.168.50.2"), netip.MustParseAddr("fd00:50::2")})
	b.addWire("eth1", []netip.Addr{netip.MustParseAddr("10.2.0.9"), netip.MustParseAddr("fd00:10:2::9")})
	for _, a := range b.host {
		b.run("ip", "address", "add", netip.PrefixFrom(a, a.BitLen()).String(), "dev", "eth0", "nodad")
	}
	for _, proto := range []desired.Protocol{desired.TCP, desired.UDP, desired.SCTP, icmp, desired.ICMPv6} {
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
	b.run("ip", "link", "set", far, "up", "addrgenmode", "none")
	b.run("ip", "link", "set", name, "up")
	near, errNear := netlink.LinkByName(name)
	end, errFar := netlink.LinkByName(far)
	if errNear != nil || errFar != nil {
		b.t.Fatal(errNear, errFar)
	}
	w := &wire{name: name, mac: near.Attrs().HardwareAddr, far: end.Attrs().HardwareAddr, addrs: addrs}
	for _, a := range addrs {
		b.run("ip", "route", "add", netip.PrefixFrom(a, a.BitLen()).String(), "dev", name)
		b.run("ip", "neighbour", "add", a.String(), "lladdr", w.far.String(), "dev", name, "nud", "permanent")
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

// out names the interface by which a packet to dst leaves; empty for the node.
func (b *bench) out(dst netip.Addr) string {
	for _, w := range b.wires {
		for _, a := range w.addrs {
			if a == dst {
				return w.name
			}
		}
	}
	return ""
}

// send injects packets and returns where each came out: an interface's name,
// "node", or nothing.
func (b *bench) send(packets []desired.Packet) []string {
	b.t.Helper()
	first := b.number + 1
	inject := func(p desired.Packet) {
		b.number++
		b.port++
		if b.port < 20000 {
			b.port = 20000
		}
		w := b.wire(p.In)
		if _, err := unix.Write(w.sock, ethernet(w.far, w.mac, p, b.port, b.number)); err != nil {
			b.t.Fatalf("injecting on %s: %v", w.name, err)
		}
	}
	for _, p := range packets {
		inject(p)
	}
	// Packets of one sender are handled in order: what comes behind the others
	// and is always allowed says that they were.
	fence := desired.Packet{
		In: "eth1", Src: b.wire("eth1").addrs[0], Dst: b.wire("eth0").addrs[0], Protocol: desired.UDP, DstPort: 9,
	}
	inject(fence)
	out := make([]string, len(packets)+1)
	for deadline := time.Now().Add(10 * time.Second); out[len(packets)] == ""; {
		if time.Now().After(deadline) {
			b.t.Fatal("the last packet, which nothing forbids, does not come out")
		}
		b.collect(first, out)
	}
	b.collect(first, out)
	return out[:len(packets)]
}

// collect reads every socket empty.
func (b *bench) collect(first uint32, out []string) {
	buf := make([]byte, 2048)
	note := func(number uint32, ok bool, where string) {
		if i := int(number - first); ok && i >= 0 && i < len(out) {
			out[i] = where
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
