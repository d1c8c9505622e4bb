package checksum_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/dataplane/checksum"
	"github.com/podmark/podmark/pkg/dataplane/drift"
	"github.com/podmark/podmark/test/bpffs"
	"github.com/podmark/podmark/test/frame"
	"github.com/podmark/podmark/test/needs"
	"github.com/podmark/podmark/test/netns"
	"github.com/podmark/podmark/test/wait"
)

func TestMain(m *testing.M) {
	bpffs.Main()
	os.Exit(m.Run())
}

// router is a network namespace that forwards from one link to another, which writes no
// checksums. Packets are put on the one and taken from the other.
type router struct {
	t       *testing.T
	in, out int
	// to are the MAC addresses that the packets go to.
	to      net.HardwareAddr
	markers int
	cpu     unix.CPUSet // one alone
}

var (
	src4, dst4 = netip.MustParseAddr("10.7.0.2"), netip.MustParseAddr("10.8.0.2")
	src6, dst6 = netip.MustParseAddr("fd00:7::2"), netip.MustParseAddr("fd00:8::2")
)

func newRouter(t *testing.T) *router {
	t.Helper()
	needs.All(t, needs.Checksums)
	netns.Enter(t)
	for path, value := range map[string]string{
		"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1", "ipv6/conf/default/accept_dad": "0",
		"ipv4/conf/all/rp_filter": "0", "ipv4/conf/default/rp_filter": "0",
	} {
		if err := os.WriteFile("/proc/sys/net/"+path, []byte(value), 0); err != nil {
			t.Fatal(err)
		}
	}
	r := &router{t: t}
	var all unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		t.Fatal(err)
	}
	for cpu := range 1024 {
		if all.IsSet(cpu) {
			r.cpu.Set(cpu)
			break
		}
	}
	ends := map[string]netlink.Link{}
	for _, pair := range [][2]string{{"pod", "node0"}, {"node1", "outside"}} {
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: pair[0]}, PeerName: pair[1]}); err != nil {
			t.Fatal(err)
		}
		for _, name := range pair {
			l, err := netlink.LinkByName(name)
			if err == nil {
				err = netlink.LinkSetUp(l)
			}
			if err != nil {
				t.Fatal(err)
			}
			ends[name] = l
		}
	}
	// What comes out is in the same namespace, and must not come back.
	for path, value := range map[string]string{"ipv4/conf/outside/forwarding": "0", "ipv6/conf/outside/disable_ipv6": "1"} {
		if err := os.WriteFile("/proc/sys/net/"+path, []byte(value), 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := netns.WithoutChecksums("node1"); err != nil {
		t.Fatal(err)
	}
	r.to = ends["node0"].Attrs().HardwareAddr
	for _, dst := range []netip.Addr{dst4, dst6} {
		out := ends["node1"].Attrs().Index
		err := errors.Join(
			netlink.RouteAdd(&netlink.Route{LinkIndex: out, Dst: &net.IPNet{IP: dst.AsSlice(), Mask: net.CIDRMask(dst.BitLen(), dst.BitLen())}}),
			netlink.NeighSet(&netlink.Neigh{LinkIndex: out, State: netlink.NUD_PERMANENT, IP: dst.AsSlice(), HardwareAddr: ends["outside"].Attrs().HardwareAddr}),
		)
		if err != nil {
			t.Fatal(err)
		}
	}
	r.in, r.out = r.socket(ends["pod"], unix.PACKET_VNET_HDR), r.socket(ends["outside"], unix.PACKET_IGNORE_OUTGOING)
	// The kernel drops what comes before a link works, and says nothing.
	wait.For(t, "the links are up", func() bool {
		up := true
		for name := range ends {
			l, err := netlink.LinkByName(name)
			up = up && err == nil && l.Attrs().OperState == netlink.OperUp
		}
		return up
	})
	return r
}

func (r *router) socket(l netlink.Link, option int) int {
	r.t.Helper()
	const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // network byte order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, all)
	if err == nil {
		r.t.Cleanup(func() { unix.Close(fd) })
		err = errors.Join(unix.SetsockoptInt(fd, unix.SOL_PACKET, option, 1), unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: l.Attrs().Index}))
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return fd
}

// packet is something to send, without its marker.
type packet struct {
	// bytes begin with an IP header. The checksum begins at start and goes to target, both
	// counted from there; where partial is false, nothing is left to the kernel.
	bytes         []byte
	partial       bool
	start, target int
	segments      byte
	size, headers int
}

// send sends it with a marker behind, and says what came out of the router: frames behind their
// Ethernet headers. Behind it comes one that passes, on the same way.
func (r *router) send(p packet) (got [][]byte) {
	r.t.Helper()
	// A processor handles what it is given in order, and two of them do not.
	runtime.LockOSThread() // never unlocked: the runtime ends the thread with the test
	if err := unix.SchedSetaffinity(0, &r.cpu); err != nil {
		r.t.Fatal(err)
	}
	mark := func() []byte {
		r.markers++
		return fmt.Appendf(nil, "marker-%08d", r.markers)
	}
	key, fence := mark(), mark()
	const ethernet = 14
	write := func(p packet, key []byte) {
		b := append(bytes.Clone(p.bytes), key...)
		if b[0]>>4 == 4 {
			binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
			b[10], b[11] = 0, 0
			binary.BigEndian.PutUint16(b[10:], frame.Checksum(b[:4*(b[0]&0xf)]))
		} else {
			binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40))
		}
		o := frame.Offload{Start: ethernet + p.start, Offset: p.target - p.start, Segments: p.segments, Size: p.size, Headers: ethernet + p.headers}
		b = o.Frame(frame.Ethernet(net.HardwareAddr{2, 0, 0, 0, 0, 1}, r.to, b))
		if !p.partial {
			copy(b, make([]byte, 10))
		}
		if _, err := unix.Write(r.in, b); err != nil {
			r.t.Fatalf("sending %+v: %v", p, err)
		}
	}
	write(p, key)
	write(packet{bytes: udp(src4, dst4).bytes}, fence)
	buf := make([]byte, 1<<16)
	for deadline := time.Now().Add(wait.Still); time.Now().Before(deadline); {
		n, err := unix.Read(r.out, buf)
		if err != nil {
			if _, err := unix.Poll([]unix.PollFd{{Fd: int32(r.out), Events: unix.POLLIN}}, 1000); err != nil && err != unix.EINTR {
				r.t.Fatal(err)
			}
			continue
		}
		switch b := buf[:n]; {
		case bytes.Contains(b, fence):
			return got
		case bytes.Contains(b, key), p.segments != 0 && bytes.Contains(b, filler):
			got = append(got, bytes.Clone(b[ethernet:]))
		}
	}
	r.t.Fatal("a packet that nothing forbids does not come out")
	return nil
}

func (r *router) passes(p packet) bool { r.t.Helper(); return len(r.send(p)) > 0 }

// filler is data of segments that have no marker.
var filler = []byte("segment-segment-")

const (
	fragmentMore = 0x2000
	srcPort      = 1000
	dstPort      = 53
)

// ip is a packet of both families, by that of the addresses.
func ip(src, dst netip.Addr, protocol byte, payload []byte) packet {
	return packet{bytes: frame.IP{Src: src, Dst: dst, Protocol: protocol}.Packet(payload)}
}

// udp is a datagram whose checksum nobody left to the kernel, nor made.
func udp(src, dst netip.Addr) packet {
	b := make([]byte, 8)
	binary.BigEndian.PutUint16(b, srcPort)
	binary.BigEndian.PutUint16(b[2:], dstPort)
	return ip(src, dst, frame.UDP, b)
}

// tcp is a segment.
func tcp(src, dst netip.Addr, data []byte) packet {
	b := make([]byte, 20, 20+len(data))
	binary.BigEndian.PutUint16(b, srcPort)
	binary.BigEndian.PutUint16(b[2:], dstPort)
	b[12], b[13] = 5<<4, frame.ACK
	return ip(src, dst, frame.TCP, append(b, data...))
}

// to leaves the checksum to the kernel, from the transport header at th, to go to target.
func (p packet) to(th, target int) packet {
	p.partial, p.start, p.target = true, min(th, target), target
	return p
}

// with is the packet with something of its IP header changed.
func (p packet) with(change func([]byte)) packet {
	p.bytes = bytes.Clone(p.bytes)
	change(p.bytes)
	return p
}

// behind is an IPv6 packet with these extension headers before its transport header.
func (p packet) behind(headers ...extension) packet {
	next, b := p.bytes[6], p.bytes[40:]
	for i := len(headers) - 1; i >= 0; i-- {
		h := bytes.Clone(headers[i].bytes)
		h[0] = next
		next, b = headers[i].protocol, append(h, b...)
	}
	p.bytes = append(bytes.Clone(p.bytes[:40]), b...)
	p.bytes[6] = next
	return p
}

// extension is an IPv6 extension header.
type extension struct {
	protocol byte
	bytes    []byte
}

var (
	hopByHop    = extension{0, []byte{0, 0, 1, 4, 0, 0, 0, 0}} // an option that pads
	destination = extension{60, []byte{0, 1, 1, 12, 15: 0}}
	fragment    = extension{44, make([]byte, 8)}
	// ah counts its length in other units: 24 bytes.
	ah = extension{51, []byte{1: 4, 23: 0}}
)

func repeat(e extension, n int) (list []extension) {
	for range n {
		list = append(list, e)
	}
	return list
}

// A checksum that the kernel writes behind the hooks changes nothing that is judged, and what
// anybody's kernel sends passes.
func TestProgram(t *testing.T) {
	r := newRouter(t)
	if err := checksum.Sync(); err != nil {
		t.Fatal(err)
	}
	const ip4, ip6 = 20, 40
	udp4, udp6 := udp(src4, dst4), udp(src6, dst6)
	tcp4, tcp6 := tcp(src4, dst4, nil), tcp(src6, dst6, nil)
	large := bytes.Repeat(filler, 200)
	segmented := func(p packet, kind byte, th int) packet {
		p = p.to(th, th+16)
		p.segments, p.size, p.headers = kind, 1000, th+20
		return p
	}
	fragmented := func(field uint16) packet {
		return udp4.with(func(b []byte) { binary.BigEndian.PutUint16(b[6:], field) }).to(ip4, ip4+6)
	}
	withOptions := func(p packet) packet { // 8 bytes of no operation
		b := append(bytes.Clone(p.bytes[:20]), 1, 1, 1, 1, 1, 1, 1, 1)
		b[0] = 0x47
		p.bytes = append(b, p.bytes[20:]...)
		return p
	}
	inner4, inner6 := ip(src4, dst4, frame.IPv6, udp6.bytes), ip(src6, dst6, frame.IPIP, udp4.bytes)
	vxlan := udp4.with(func([]byte) {})
	vxlan.bytes = append(vxlan.bytes, frame.VXLAN(1, frame.Ethernet(r.to, r.to, udp6.bytes))...)
	echo4, echo6 := ip(src4, dst4, frame.ICMP, []byte{8, 0, 0, 0, 0, 1, 0, 1}), ip(src6, dst6, frame.ICMPv6, []byte{128, 0, 0, 0, 0, 1, 0, 1})
	type test struct {
		name string
		packet
		pass bool
	}
	tests := []test{
		{"IPv4 UDP", udp4.to(ip4, ip4+6), true},
		{"IPv4 TCP", tcp4.to(ip4, ip4+16), true},
		{"IPv4 SCTP", ip(src4, dst4, frame.SCTP, make([]byte, 12)).to(ip4, ip4+8), true},
		{"IPv4 GRE", ip(src4, dst4, frame.GRE, make([]byte, 8)).to(ip4, ip4+4), true},
		{"IPv4 UDP behind options", withOptions(udp4).to(ip4+8, ip4+14), true},
		{"IPv4 UDP of SIT", inner4.to(ip4+ip6, ip4+ip6+6), true},
		{"IPv4 UDP in VXLAN", vxlan.to(ip4+8+8+14+ip6, ip4+8+8+14+ip6+6), true},
		{"IPv4 large TCP", segmented(tcp(src4, dst4, large), frame.SegmentsTCPv4, ip4), true},
		{"IPv6 UDP", udp6.to(ip6, ip6+6), true},
		{"IPv6 TCP", tcp6.to(ip6, ip6+16), true},
		{"IPv6 UDP in IPv6", inner6.to(ip6+ip4, ip6+ip4+6), true},
		{"IPv6 large TCP", segmented(tcp(src6, dst6, large), frame.SegmentsTCPv6, ip6), true},
		{"IPv6 TCP behind hop-by-hop options", tcp6.behind(hopByHop).to(ip6+8, ip6+8+16), true},
		{"IPv6 UDP behind three headers", udp6.behind(hopByHop, destination, ah).to(ip6+48, ip6+48+6), true},
		{"IPv6 UDP behind eight headers", udp6.behind(repeat(destination, 8)...).to(ip6+128, ip6+128+6), true},

		{"IPv4 UDP without", fragmentOf(udp4, 0), true},
		{"IPv4 first fragment without", fragmentOf(udp4, fragmentMore), true},
		{"IPv4 last fragment without", fragmentOf(udp4, 1), true},
		{"IPv4 ICMP without", echo4, true},
		{"IPv6 fragment without", udp6.behind(fragment), true},
		{"IPv6 ICMP without", echo6, true},
		{"IPv6 UDP behind nine headers, without", udp6.behind(repeat(destination, 9)...), true},

		{"IPv4 first fragment", fragmented(fragmentMore), false},
		{"IPv4 fragment between", fragmented(fragmentMore | 1), false},
		{"IPv4 last fragment", fragmented(1), false},
		{"IPv4 ports behind options", withOptions(udp4).to(ip4, ip4+10), false},
		{"IPv4 options", withOptions(udp4).to(ip4+4, ip4+4), false},
		{"IPv4 echo", echo4.to(ip4, ip4+6), false},
		{"IPv6 fragment", udp6.behind(fragment).to(ip6+8, ip6+8+6), false},
		{"IPv6 fragment behind options", udp6.behind(hopByHop, fragment).to(ip6+16, ip6+16+6), false},
		{"IPv6 port behind options", udp6.behind(hopByHop).to(ip6+8, ip6+8+2), false},
		{"IPv6 options", udp6.behind(hopByHop).to(ip6, ip6+6), false},
		{"IPv6 last options", udp6.behind(hopByHop, destination).to(ip6+8, ip6+8+6), false},
		{"IPv6 last byte of AH", udp6.behind(ah).to(ip6+23, ip6+23), false},
		{"IPv6 UDP behind nine headers", udp6.behind(repeat(destination, 9)...).to(ip6+144, ip6+144+6), false},
		{"IPv6 echo", echo6.to(ip6, ip6+6), false},
	}
	for at := range 4 {
		for _, p := range []struct {
			name string
			packet
			ip int
		}{{"IPv4 UDP", udp4, ip4}, {"IPv4 TCP", tcp4, ip4}, {"IPv6 UDP", udp6, ip6}, {"IPv6 TCP", tcp6, ip6}} {
			tests = append(tests, test{fmt.Sprintf("%s, byte %d", p.name, at), p.to(p.ip, p.ip+at), false})
		}
	}
	// A packet socket of Linux 6.12 refuses less.
	const least4, least6 = 6, 26
	for at := least4; at < ip4; at++ {
		tests = append(tests, test{fmt.Sprintf("IPv4 header, byte %d", at), udp4.to(at, at), false})
	}
	for at := least6; at < ip6; at++ {
		tests = append(tests, test{fmt.Sprintf("IPv6 header, byte %d", at), udp6.to(at, at), false})
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := r.send(tt.packet); len(got) > 0 != tt.pass {
				t.Errorf("%d frames came out, want any: %v", len(got), tt.pass)
			}
		})
	}
}

// fragmentOf is a packet with this offset, flags in it.
func fragmentOf(p packet, field uint16) packet {
	return p.with(func(b []byte) { binary.BigEndian.PutUint16(b[6:], field) })
}

// What it is for: without the program a datagram leaves for another port than it came with.
func TestWithout(t *testing.T) {
	r := newRouter(t)
	for _, p := range []struct {
		packet
		ip int
	}{{udp(src4, dst4), 20}, {udp(src6, dst6), 40}} {
		attack := p.to(p.ip, p.ip+2)
		port := func(b []byte) uint16 { return binary.BigEndian.Uint16(b[p.ip+2:]) }
		got := r.send(attack)
		if len(got) != 1 || port(got[0]) == dstPort {
			t.Errorf("without the program: %x came out, want one datagram to another port than %d", got, dstPort)
		}
		if err := checksum.Sync(); err != nil {
			t.Fatal(err)
		}
		if got := r.send(attack); len(got) != 0 {
			t.Errorf("with the program: %x came out, want nothing", got)
		}
		if err := checksum.Remove(); err != nil {
			t.Fatal(err)
		}
		if got := r.send(attack); len(got) != 1 {
			t.Errorf("after Remove: %x came out, want one datagram", got)
		}
	}
}

// links are what is pinned for the namespaces that there are.
func links(t *testing.T) []string {
	t.Helper()
	list, err := filepath.Glob(checksum.Mount + "/podmark-*/*")
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// Sync puts back what is missing, and what another program left in its place goes: there is
// no moment without any.
func TestSync(t *testing.T) {
	r := newRouter(t)
	attack := udp(src4, dst4).to(20, 22)
	if err := checksum.Check(); !errors.Is(err, drift.Err) {
		t.Errorf("Check before Sync says %v, want %v", err, drift.Err)
	}
	sync := func() {
		t.Helper()
		if err := errors.Join(checksum.Sync(), checksum.Check()); err != nil {
			t.Fatal(err)
		}
		if r.passes(attack) {
			t.Error("a datagram got through after Sync")
		}
		if got := links(t); len(got) != 2 {
			t.Errorf("after Sync there are %q, want one for each family", got)
		}
	}
	sync()
	sync()
	for _, path := range links(t) {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if err := checksum.Check(); !errors.Is(err, drift.Err) {
			t.Errorf("Check without %q says %v, want %v", path, err, drift.Err)
		}
		sync()
	}
	// As an upgrade finds it.
	for _, path := range links(t) {
		if err := os.Rename(path, filepath.Join(filepath.Dir(path), "older"+filepath.Base(path))); err != nil {
			t.Fatal(err)
		}
	}
	if r.passes(attack) {
		t.Error("a datagram got through before the upgrade")
	}
	sync()
	if err := errors.Join(checksum.Remove(), checksum.Remove()); err != nil {
		t.Error(err)
	}
	if got := links(t); len(got) != 0 {
		t.Errorf("after Remove there is %q, want nothing", got)
	}
}

// Nodes on one kernel have a program each.
func TestNamespaces(t *testing.T) {
	needs.All(t, needs.Checksums)
	enter := func(t *testing.T) {
		t.Helper()
		netns.Enter(t)
		if err := checksum.Check(); !errors.Is(err, drift.Err) {
			t.Errorf("Check of a new namespace says %v, want %v", err, drift.Err)
		}
		if err := errors.Join(checksum.Sync(), checksum.Check()); err != nil {
			t.Error(err)
		}
	}
	enter(t)
	t.Run("another", enter)
	if err := checksum.Check(); err != nil {
		t.Errorf("Check behind another namespace's Remove says %v", err)
	}
}

// Whoever sends by sockets has every byte delivered: large segments, datagrams with the checksum
// left to the kernel, and a datagram that its own kernel fragments.
func TestSockets(t *testing.T) {
	needs.All(t, needs.Checksums)
	netns.Enter(t)
	// The node's end is this namespace, the pod's another.
	node, err := vnetns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer node.Close()
	pod, err := vnetns.New()
	if err == nil {
		err = vnetns.Set(node)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer pod.Close()
	if err := checksum.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "pod"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(pod)}); err != nil {
		t.Fatal(err)
	}
	setUp := func(name string, addresses ...string) {
		t.Helper()
		l, err := netlink.LinkByName(name)
		for _, a := range addresses {
			ip, parsed := netlink.ParseAddr(a)
			if err = errors.Join(err, parsed); err == nil {
				ip.Flags = unix.IFA_F_NODAD
				err = netlink.AddrAdd(l, ip)
			}
		}
		if err == nil {
			err = netlink.LinkSetUp(l)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	setUp("pod", "10.7.0.1/24", "fd00:7::1/64")
	inPod := func(f func()) {
		t.Helper()
		if err := vnetns.Set(pod); err != nil {
			t.Fatal(err)
		}
		f()
		if err := vnetns.Set(node); err != nil {
			t.Fatal(err)
		}
	}
	inPod(func() { setUp("eth0", "10.7.0.2/24", "fd00:7::2/64") })
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // 1 MiB
	for _, address := range []string{"10.7.0.1:9", "[fd00:7::1]:9"} {
		t.Run(address, func(t *testing.T) {
			runtime.LockOSThread() // a subtest has a thread of its own
			if err := vnetns.Set(node); err != nil {
				t.Fatal(err)
			}
			listener, err := net.Listen("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer listener.Close()
			datagrams, err := net.ListenPacket("udp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer datagrams.Close()
			var stream, datagram net.Conn
			inPod(func() {
				var errStream, errDatagram error
				stream, errStream = net.DialTimeout("tcp", address, 10*time.Second)
				datagram, errDatagram = net.Dial("udp", address)
				if err := errors.Join(errStream, errDatagram); err != nil {
					t.Fatal(err)
				}
			})
			if stream.LocalAddr().(*net.TCPAddr).IP.Equal(stream.RemoteAddr().(*net.TCPAddr).IP) {
				t.Fatalf("%v is not the pod's", stream.LocalAddr())
			}
			defer stream.Close()
			defer datagram.Close()
			go func() {
				_, _ = stream.Write(data)
				_ = stream.(*net.TCPConn).CloseWrite()
			}()
			got, err := listener.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer got.Close()
			_ = got.SetDeadline(time.Now().Add(wait.Still))
			if all, err := io.ReadAll(got); err != nil || !bytes.Equal(all, data) {
				t.Errorf("%d bytes of %d came, %v", len(all), len(data), err)
			}
			for _, n := range []int{1, 1000, 8192, 60000} {
				if _, err := datagram.Write(data[:n]); err != nil {
					t.Fatal(err)
				}
				_ = datagrams.SetDeadline(time.Now().Add(wait.Still))
				buf := make([]byte, 1<<16)
				if m, _, err := datagrams.ReadFrom(buf); err != nil || !bytes.Equal(buf[:m], data[:n]) {
					t.Errorf("a datagram of %d bytes came as %d, %v", n, m, err)
				}
			}
		})
	}
}
