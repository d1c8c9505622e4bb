package nftables

import (
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/endpoint"
	"github.com/podmark/podmark/pkg/ident"
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
func pod(id mark.ID, app, iface string) ident.Record {
	n := string(rune('0' + id))
	return ident.Record{
		Key: ident.Key{Network: "net", ContainerID: app, IfName: "eth0"}, ID: id, Policed: true, Committed: true,
		Endpoint: endpoint.Endpoint{
			Namespace: "shop", Pod: app, Labels: map[string]string{"app": app},
			Interface: iface, Port: "veth" + n, MAC: "02:00:00:00:00:0" + n,
			Addresses: addrs("10.22.0."+n, "fd00:22::"+n),
			Ports: []endpoint.NamedPort{
				{Name: "http", Protocol: uint8(desired.TCP), Number: 8000 + uint16(id)},
				{Name: "bulk", Protocol: uint8(desired.SCTP), Number: 99},
			},
		},
	}
}

// records are a routed web, a db on a bridge and a routed client that nothing isolates.
func records() []ident.Record {
	return []ident.Record{pod(2, "web", "veth2"), pod(3, "db", "cni0"), pod(4, "client", "veth4")}
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
func node(t testing.TB, mask uint32, records ...ident.Record) desired.State {
	t.Helper()
	return desired.Build(desired.Node{Layout: layout(t, mask), Epoch: 1}, policies(), records)
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

// sendUDP sends one packet with a fwmark.
func sendUDP(mark uint32, to string) error {
	dialer := net.Dialer{Control: func(_, _ string, c syscall.RawConn) (err error) {
		if e := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(mark)) }); e != nil {
			return e
		}
		return err
	}}
	conn, err := dialer.Dial("udp", to)
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Write([]byte("x"))
	return err
}
