package policy_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/mark"
	"github.com/podmark/podmark/pkg/policy"
)

// comparePolicies lets cmp look at compiled policies, and takes nil for empty.
var comparePolicies = cmp.Options{cmpopts.EquateComparable(netip.Prefix{}), cmpopts.EquateEmpty()}

// cast is the pods every case is about: two namespaces with pods of the same
// labels, a third that no manifest need mention. Each has 10.0.0.N and fd00::N.
var cast = []struct {
	name   string // namespace/pod
	labels map[string]string
}{
	{"web/client", map[string]string{"role": "client"}},
	{"web/server", map[string]string{"app": "server", "tier": "front"}},
	{"web/bare", nil},
	{"db/client", map[string]string{"role": "client"}},
	{"db/server", map[string]string{"app": "server", "tier": "back"}},
	{"default/other", map[string]string{"role": "client"}},
}

func records() []attachment.Record {
	var records []attachment.Record
	for i, c := range cast {
		namespace, pod, _ := strings.Cut(c.name, "/")
		iface := fmt.Sprintf("veth%d", i+1)
		records = append(records, attachment.Record{
			Key: attachment.Key{Network: "pods", ContainerID: c.name, IfName: "eth0"},
			ID:  mark.First + mark.ID(i),
			Endpoint: attachment.Endpoint{
				Namespace: namespace, Pod: pod, Labels: c.labels, L3Interface: iface, HostVeth: iface,
				Addresses: []netip.Addr{
					netip.MustParseAddr(fmt.Sprintf("10.0.0.%d", i+1)),
					netip.MustParseAddr(fmt.Sprintf("fd00::%d", i+1)),
				},
			},
			Policed:   true,
			Committed: true,
		})
	}
	return records
}

// compile compiles one source and builds the state of a node that runs the cast.
func compile(t *testing.T, manifest string) desired.State {
	t.Helper()
	policies, _, err := policy.Options{}.Compile(policy.Source{Name: "test.yaml", Data: []byte(manifest)})
	if err != nil {
		t.Fatalf("Compile: %v", err)
	}
	return build(t, policies)
}

func build(t *testing.T, policies desired.Policies) desired.State {
	t.Helper()
	layout, err := mark.NewLayout(0xffff0000)
	if err != nil {
		t.Fatal(err)
	}
	return desired.Build(desired.Node{Layout: layout, Epoch: 1}, policies, records())
}

// packet reads "SRC DST PROTOCOL[/PORT]", as in "web/client db/server tcp/80".
// SRC and DST are a pod of the cast, an address beyond eth0, or "node".
func packet(t *testing.T, flow string) desired.Packet {
	t.Helper()
	part := strings.Fields(flow)
	if len(part) != 3 {
		t.Fatalf("flow %q: want SRC DST PROTOCOL[/PORT]", flow)
	}
	protocols := map[string]desired.Protocol{
		"tcp": desired.TCP, "udp": desired.UDP, "sctp": desired.SCTP, "icmp": 1, "gre": 47,
	}
	name, number, _ := strings.Cut(part[2], "/")
	p := desired.Packet{Protocol: protocols[name]}
	if p.Protocol == 0 {
		t.Fatalf("flow %q: unknown protocol", flow)
	}
	if number != "" {
		port, err := strconv.ParseUint(number, 10, 16)
		if err != nil {
			t.Fatalf("flow %q: %v", flow, err)
		}
		p.DstPort = uint16(port)
	}
	// Pods speak IPv6 to IPv6 addresses, else IPv4.
	family := 0
	if strings.Contains(flow, ":") {
		family = 1
	}
	p.In, p.Src = locate(t, part[0], family)
	p.Out, p.Dst = locate(t, part[1], family)
	return p
}

func locate(t *testing.T, name string, family int) (iface string, addr netip.Addr) {
	t.Helper()
	if name == "node" {
		return "", netip.MustParseAddr([]string{"198.51.100.1", "2001:db8::1"}[family])
	}
	for i, r := range records() {
		if cast[i].name == name {
			return r.L3Interface, r.Addresses[family]
		}
	}
	addr, err := netip.ParseAddr(name)
	if err != nil {
		t.Fatalf("%q is no pod of the cast: %v", name, err)
	}
	return "eth0", addr
}

func check(t *testing.T, state desired.State, allow, deny []string) {
	t.Helper()
	for _, flow := range allow {
		if v := state.Evaluate(packet(t, flow)); !v.Allowed {
			t.Errorf("%s: denied by %q, want allowed", flow, v.By)
		}
	}
	for _, flow := range deny {
		if v := state.Evaluate(packet(t, flow)); v.Allowed {
			t.Errorf("%s: allowed by %q, want denied", flow, v.By)
		}
	}
}

// np writes a NetworkPolicy web/NAME with a spec in YAML's flow style.
func np(name, spec string) string {
	return fmt.Sprintf("---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: %s, namespace: web}\nspec: %s\n", name, spec)
}

// prefixes returns the blocks of the first ingress rule of the first policy.
func prefixes(t *testing.T, manifest string) []string {
	t.Helper()
	policies, _, err := policy.Options{}.Compile(policy.Source{Name: "test.yaml", Data: []byte(manifest)})
	if err != nil {
		t.Fatalf("Compile: %v", err)
	}
	var text []string
	for _, p := range policies.Policies[0].Ingress.Rules[0].Blocks {
		text = append(text, p.String())
	}
	slices.Sort(text)
	return text
}
