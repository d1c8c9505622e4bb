package nftables

import (
	"errors"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/mark"
)

func layout(t testing.TB, mask uint32) mark.Layout {
	t.Helper()
	l, err := mark.NewLayout(mask)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func addrs(list ...string) []netip.Addr {
	out := make([]netip.Addr, len(list))
	for i, s := range list {
		out[i] = netip.MustParseAddr(s)
	}
	return out
}

func prefixes(list ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(list))
	for i, s := range list {
		out[i] = netip.MustParsePrefix(s)
	}
	return out
}

func labelled(app string) desired.Selector {
	return desired.Selector{{Key: "app", Op: desired.In, Values: []string{app}}}
}

// pod is an attachment with one address of each family; the last digit of its
// addresses is its ID.
func pod(id mark.ID, app, iface string) attachment.Record {
	n := string(rune('0' + id))
	index := 100 + int(id)
	if iface == "cni0" {
		index = 100
	}
	return attachment.Record{
		Key: attachment.Key{Network: "net", ContainerID: app, IfName: "eth0"}, ID: id, Policed: true, Committed: true,
		Endpoint: attachment.Endpoint{
			Namespace: "shop", Pod: app, Labels: map[string]string{"app": app},
			L3Interface: iface, HostVeth: "veth" + n, L3InterfaceIndex: index, HostVethIndex: 100 + int(id), MAC: "02:00:00:00:00:0" + n,
			Addresses: addrs("10.22.0."+n, "fd00:22::"+n),
			NamedPorts: []attachment.NamedPort{
				{Name: "http", Protocol: uint8(desired.TCP), Number: 8000 + uint16(id)},
				{Name: "bulk", Protocol: uint8(desired.SCTP), Number: 99},
			},
		},
	}
}

// records are a routed web, a db on a bridge and a routed client that nothing isolates,
// which is a router.
func records() []attachment.Record {
	client := pod(4, "client", "veth4")
	client.AllowedSources = prefixes("172.30.0.0/24", "192.168.7.5/32", "fd00:30::/48")
	db := pod(3, "db", "cni0")
	db.AllowedSources = prefixes("172.31.0.0/24", "fd00:31::/48")
	return []attachment.Record{pod(2, "web", "veth2"), db, client}
}

// policies isolate web and db, with one of everything in the rules.
func policies() desired.Policies {
	return desired.Policies{Policies: []desired.Policy{
		{
			Namespace: "shop", Name: "db", Pods: labelled("db"),
			Egress: &desired.Isolation{Rules: []desired.Rule{
				{Ports: []desired.Port{{Protocol: desired.UDP, PortRange: desired.AllPorts}}},
				{NamedPorts: []desired.NamedPort{{Protocol: desired.TCP, Name: "http"}}},
				{Blocks: prefixes("10.22.0.0/16"), NamedPorts: []desired.NamedPort{{Protocol: desired.SCTP, Name: "bulk"}}},
			}},
		},
		{
			Namespace: "shop", Name: "web", Pods: labelled("web"),
			Ingress: &desired.Isolation{Rules: []desired.Rule{
				{
					Peers:  []desired.Peer{{Namespace: "shop", Pods: labelled("db")}},
					Blocks: prefixes("192.0.2.0/25", "192.0.2.128/25", "192.0.3.0/24", "198.51.100.7/32", "2001:db8::/32"),
					Ports: []desired.Port{
						{Protocol: desired.TCP, PortRange: desired.PortRange{First: 80, Last: 80}},
						{Protocol: desired.TCP, PortRange: desired.PortRange{First: 8000, Last: 8100}},
						{Protocol: desired.TCP, PortRange: desired.PortRange{First: 8050, Last: 8200}},
						{Protocol: desired.SCTP, PortRange: desired.PortRange{First: 65535, Last: 65535}},
					},
				},
				{Blocks: prefixes("0.0.0.0/0"), Ports: []desired.Port{{Protocol: desired.UDP, PortRange: desired.PortRange{First: 53, Last: 53}}}},
			}},
			Egress: &desired.Isolation{},
		},
	}}
}

// node is the state of a node with records.
func node(t testing.TB, mask uint32, records ...attachment.Record) desired.State {
	t.Helper()
	tunnels := desired.Tunnels{UDPPorts: []uint16{4789, 8472}, Protocols: []uint8{4, 41, 47}}
	return desired.Build(desired.Node{Layout: layout(t, mask), Epoch: 1, Tunnels: tunnels}, policies(), records)
}

// run runs a command that must succeed, on the calling thread's namespace.
func run(t testing.TB, stdin, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// wire is a link into the calling thread's namespace, which forwards what comes in by it.
type wire struct {
	fd        int
	near, far net.HardwareAddr
}

func newWire(t testing.TB) wire {
	t.Helper()
	run(t, "", "ip", "link", "set", "lo", "up")
	run(t, "", "ip", "link", "add", "near", "type", "veth", "peer", "name", "far")
	run(t, "", "ip", "link", "set", "near", "up")
	run(t, "", "ip", "link", "set", "far", "up")
	run(t, "", "ip", "route", "add", "198.51.100.0/24", "dev", "near")
	run(t, "", "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.near.rp_filter=0")
	near, errNear := net.InterfaceByName("near")
	far, errFar := net.InterfaceByName("far")
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err := errors.Join(errNear, errFar, err, unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: far.Index})); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return wire{fd, near.HardwareAddr, far.HardwareAddr}
}

// send has an IPv4 packet without content come in. The call returns when it is handled.
func (w wire) send(t testing.TB, from, to string, protocol byte) {
	t.Helper()
	ip := make([]byte, 28)
	ip[0], ip[3], ip[8], ip[9], ip[25] = 0x45, 28, 64, protocol, 8
	copy(ip[12:], netip.MustParseAddr(from).AsSlice())
	copy(ip[16:], netip.MustParseAddr(to).AsSlice())
	sum := uint32(0)
	for i := 0; i < 20; i += 2 {
		sum += uint32(ip[i])<<8 | uint32(ip[i+1])
	}
	sum = ^(sum&0xffff + sum>>16)
	ip[10], ip[11] = byte(sum>>8), byte(sum)
	if _, err := unix.Write(w.fd, slices.Concat(w.near, w.far, []byte{8, 0}, ip)); err != nil {
		t.Fatal(err)
	}
}
