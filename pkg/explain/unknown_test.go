package explain_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/explain"
)

// What could not be known is said, each where it matters and nothing else.
func TestUnknown(t *testing.T) {
	everywhere := desired.Policies{Policies: []desired.Policy{{Namespace: "shop", Name: "web", Pods: app("web"), Ingress: from("client", "0.0.0.0/0")}}}
	tests := []struct {
		name, src, dst string
		change         func(*explain.Facts)
		want           []string // words of each sentence, in order
	}{
		{"two pods", "client", "10.1.0.2:8080", nil, []string{"10.9.0.4"}},
		{"no port", "web", "db", nil, []string{"No port was named"}},
		{"host to a pod", "host", "db:1", nil, nil},
		{"a pod to a stranger", "web", "10.2.0.9:1", nil, []string{"10.2.0.9 is no pod known here"}},
		{"a stranger to a pod", "192.168.50.7", "db:1", nil, []string{"192.168.50.7 is no pod known here"}},
		{"no route back", "198.51.100.9", "db:1", nil, []string{"no route back"}},
		{"a pod elsewhere", "web", "10.2.0.4:1", elsewhere, []string{"10.2.0.4 is a pod of another node: its ingress"}},
		{"by a pod elsewhere", "10.2.0.4", "10.1.0.2:8080", elsewhere, []string{"10.2.0.4 is a pod of another node: its egress"}},
		{"outside, and a rule names addresses", "outside", "10.1.0.2:8080", nil, []string{"outside is taken to be 192.0.2.1: for other addresses shop/web ingress[0]"}},
		{"outside, on a port that no rule has", "outside", "10.1.0.2:80", nil, nil},
		{"outside, and a rule has all addresses", "outside", "10.1.0.2:8080", func(f *explain.Facts) { f.State = facts(t, f.Backend, everywhere).State }, nil},
		{"outside, and no policy", "outside", "10.1.0.4:1", nil, nil},
		{"host, and a rule names addresses", "mute", "host:8080", nil, []string{"host is taken to be 192.168.50.1: for other addresses shop/mute egress[0]"}},
		{"host, and IPVS sends it to a pod", "mute", "host:40080", nil, nil},
		{"denied at the node itself", "mute", "10.2.0.9:1", nil, nil},
		{"a service's address without service", "web", "10.96.0.10:82", nil, []string{"kube-proxy's rules were not read"}},
		{"no IPVS", "web", "10.2.0.9:1", func(f *explain.Facts) { f.IPVS = explain.IPVS{} }, []string{"no IPVS", "10.2.0.9 is no pod"}},
		{"IPVS is not used", "web", "192.168.50.1:30081", func(f *explain.Facts) { f.IPVS.Used = false }, []string{"kube-proxy does not use IPVS"}},
		{"IPVS and the address is not here", "web", "10.96.0.10:80", func(f *explain.Facts) { f.Routes[addr("10.96.0.10")] = explain.Route{Interface: "eth0"} }, []string{"does not have that address", "no pod known here"}},
		{"services by mark", "web", "192.168.50.1:22", func(f *explain.Facts) { f.IPVS.ByMark = 2 }, []string{"2 services that go by a fwmark"}},
		{"another method", "web", "10.96.0.10:53/udp", func(f *explain.Facts) { f.IPVS.Services[1].Destinations[0].Method = explain.Tunnel }, []string{"tunnel"}},
		{"weight 0", "web", "10.96.0.10:53/udp", func(f *explain.Facts) { f.IPVS.Services[1].Destinations[0].Weight = 0 }, []string{"weight 0"}},
		{"a policy that is not applied", "10.2.0.4", "10.1.0.2:8080", proposed, []string{"10.2.0.4 may be a pod of another node that these policies select", "10.2.0.4 is no pod known"}},
		{"a policy that is not applied, and no peers", "10.2.0.4", "10.1.0.3:8080", proposed, []string{"10.2.0.4 is no pod known"}},
		{"a policy that is not applied, and a pod of this node", "web", "10.1.0.3:8080", proposed, nil},
		{"sets that may lack somebody", "10.2.0.4", "10.1.0.2:8080", func(f *explain.Facts) { f.Unsettled = true }, []string{"without podmarkd", "10.2.0.4 is no pod known"}},
		{"sets of iptables", "web", "192.168.50.1:22", func(f *explain.Facts) { f.Backend, f.Watched = config.BackendIPTables, false }, []string{"podmarkd does not run"}},
		{"nftables has no such sets", "web", "192.168.50.1:22", func(f *explain.Facts) { f.Watched = false }, nil},
	}
	for _, tt := range tests {
		f := facts(t, config.BackendNFTables, policies)
		if tt.change != nil {
			tt.change(&f)
		}
		got := ask(t, f, tt.src, tt.dst).Unknown
		if len(got) != len(tt.want) {
			t.Errorf("%s: %q, want those of %q", tt.name, got, tt.want)
			continue
		}
		for i, w := range tt.want {
			if !strings.Contains(got[i], w) {
				t.Errorf("%s: %q does not say %q", tt.name, got[i], w)
			}
		}
	}
}

// proposed makes the policies ones that are not applied, where podmarkd follows the API.
func proposed(f *explain.Facts) { f.Proposed, f.State.Endpoints[0].Kubernetes = true, true }

// elsewhere makes the node know a client of another node, which web's rule lets in.
func elsewhere(f *explain.Facts) {
	f.State = f.State.WithMembers(policies.Members(faraway))
}

// "outside" is an address that no narrow block names.
func TestOutsideIsNobody(t *testing.T) {
	f := facts(t, config.BackendNFTables, desired.Policies{Policies: []desired.Policy{{Namespace: "shop", Name: "web", Pods: app("web"), Ingress: from("client", "192.0.2.0/24")}}})
	a := ask(t, f, "outside", "10.1.0.2:8080")
	if a.Allowed || a.Walks[0].From.Address != addr("198.51.100.1") {
		t.Errorf("allowed %t for %s, want an address that no rule names", a.Allowed, a.Walks[0].From)
	}
}

func TestParse(t *testing.T) {
	for _, tt := range []struct{ src, dst, want string }{
		{"client", "web", "client > web/tcp"},
		{"shop/client", "shop/web:80", "shop/client > shop/web:80/tcp"},
		{"web/tcp", "web/tcp", "web/tcp > web/tcp"},
		{"web/tcp", "web/tcp/UDP", "web/tcp > web/tcp/udp"},
		{"10.1.0.2", "10.1.0.3:80/sctp", "10.1.0.2 > 10.1.0.3:80/sctp"},
		{"fd00::2", "fd00::3", "fd00::2 > fd00::3/tcp"},
		{"fd00::2", "[fd00::3]", "fd00::2 > fd00::3/tcp"},
		{"::ffff:10.1.0.2", "[fd00::3]:53/udp", "10.1.0.2 > [fd00::3]:53/udp"},
		{"host", "outside:443", "host > outside:443/tcp"},
		{"outside", "web/icmp", "outside > web/icmp"},
		{"169.254.169.254", "169.254.20.10:53/udp", "169.254.169.254 > 169.254.20.10:53/udp"},
		{"::ffff:169.254.169.254", "web", "169.254.169.254 > web/tcp"},
	} {
		q, err := explain.Parse(tt.src, tt.dst)
		if err != nil {
			t.Errorf("%s %s: %v", tt.src, tt.dst, err)
			continue
		}
		if got := q.String(); got != tt.want {
			t.Errorf("%s %s: %s, want %s", tt.src, tt.dst, got, tt.want)
		}
	}
	for _, tt := range []struct{ src, dst, word string }{
		{"", "web", "SRC"},
		{"client", "", "DST"},
		{"client:80", "web", "SRC"},
		{"a/b/c", "web", "SRC"},
		{"client", "web:0", `port "0"`},
		{"client", "web:65536", "65536"},
		{"client", "web:http", "http"},
		{"client", "web:80/icmp", "icmp has no ports"},
		{"client", "127.0.0.1:80", "127.0.0.1"},
		{"fe80::1", "web", "fe80::1"},
		{"client", "[fe80::a9fe:a9fe]:80", "fe80::a9fe:a9fe"},
		{"client", "::1", "::1"},
		{"client", "0.0.0.0:80", "0.0.0.0"},
		{"client", "[10.1.0.2:80", "DST"},
		{"outside", "outside:1", "nothing of this node"},
	} {
		if q, err := explain.Parse(tt.src, tt.dst); err == nil || !strings.Contains(err.Error(), tt.word) {
			t.Errorf("%s %s: %v, %v; want an error with %q", tt.src, tt.dst, q, err, tt.word)
		}
	}
}

// A name that is nobody's or several pods', and sides without a family in common.
func TestSides(t *testing.T) {
	f := facts(t, config.BackendNFTables, policies)
	twin := records[0]
	twin.Namespace, twin.ID, twin.Addresses = "other", 9, []netip.Addr{addr("10.1.0.9")}
	f.State = desired.Build(f.State.Node, policies, append(slices.Clone(records), twin))
	f.Routes[addr("10.1.0.9")] = explain.Route{Interface: twin.L3Interface}
	for _, tt := range []struct{ src, dst, word string }{
		{"nobody", "web", "nobody"},
		{"client", "web:1", "other/web, shop/web"},
		{"db", "fd00:1::2", "family"},
		{"client", "10.96.0.10", "80/tcp, 53/udp, 81/tcp"},
	} {
		q, err := explain.Parse(tt.src, tt.dst)
		if err != nil {
			t.Fatal(err)
		}
		if a, err := q.Explain(f); err == nil || !strings.Contains(err.Error(), tt.word) {
			t.Errorf("%s to %s: %s, %v; want an error with %q", tt.src, tt.dst, outcome(a), err, tt.word)
		}
	}
	if got := outcome(ask(t, f, "client", "other/web:1")); got != "+other/web 10.1.0.9:1 FORWARD" {
		t.Errorf("with the namespace: %s", got)
	}
}

// What must be asked about is the sides, and the backends once they are known.
func TestAddresses(t *testing.T) {
	f := facts(t, config.BackendNFTables, policies)
	q, err := explain.Parse("db", "10.96.0.10:80")
	if err != nil {
		t.Fatal(err)
	}
	known := f.IPVS
	for _, tt := range []struct {
		ipvs explain.IPVS
		want []netip.Addr
	}{
		{explain.IPVS{}, []netip.Addr{addr("10.1.0.3"), addr("10.96.0.10")}},
		{known, []netip.Addr{addr("10.1.0.2"), addr("10.1.0.3"), addr("10.2.0.9"), addr("10.96.0.10"), addr("192.168.50.1")}},
	} {
		f.IPVS = tt.ipvs
		if got, err := q.Addresses(f); err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("%v, %v, want %v", got, err, tt.want)
		}
	}
}
