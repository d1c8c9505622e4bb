package explain_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/dataplane/iptables"
	"github.com/podmark/podmark/pkg/dataplane/nftables"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/explain"
	"github.com/podmark/podmark/pkg/mark"
)

var backends = []config.Backend{config.BackendNFTables, config.BackendIPTables}

func addr(s string) netip.Addr   { return netip.MustParseAddr(s) }
func at(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// pod is an attachment of namespace shop labelled app=name, with a veth of its name.
func pod(id mark.ID, name string, addresses ...string) attachment.Record {
	r := attachment.Record{
		ID: id, Policed: true, Committed: true,
		Key:      attachment.Key{Network: "net", ContainerID: name, IfName: "eth0"},
		Endpoint: attachment.Endpoint{Namespace: "shop", Pod: name, Labels: map[string]string{"app": name}, L3Interface: "veth-" + name, HostVeth: "veth-" + name},
	}
	for _, a := range addresses {
		r.Addresses = append(r.Addresses, addr(a))
	}
	return r
}

// routing is r with further sources.
func routing(r attachment.Record, sources ...string) attachment.Record {
	for _, p := range sources {
		r.AllowedSources = append(r.AllowedSources, netip.MustParsePrefix(p))
	}
	return r
}

func app(name string) desired.Selector {
	return desired.Selector{{Key: "app", Op: desired.In, Values: []string{name}}}
}

// from allows a pod and a block to reach TCP ports from 8000 on.
func from(name, block string) *desired.Isolation {
	return &desired.Isolation{Rules: []desired.Rule{{
		Peers:  []desired.Peer{{Namespace: "shop", Pods: app(name)}},
		Blocks: []netip.Prefix{netip.MustParsePrefix(block)},
		Ports:  []desired.Port{{Protocol: desired.TCP, PortRange: desired.PortRange{First: 8000, Last: 8999}}},
	}}}
}

var (
	hosts = []netip.Addr{addr("192.168.50.1"), addr("10.1.0.1"), addr("fd00:50::1"), addr("169.254.20.10")}
	// web takes TCP 8000 to 8999 from client and 192.168.50.0/24, db nothing.
	policies = desired.Policies{Policies: []desired.Policy{
		{Namespace: "shop", Name: "db", Pods: app("db"), Ingress: &desired.Isolation{}},
		{Namespace: "shop", Name: "mute", Pods: app("mute"), Egress: from("web", "192.168.50.1/32")},
		{Namespace: "shop", Name: "web", Pods: app("web"), Ingress: from("client", "192.168.50.0/24")},
	}}
	records = []attachment.Record{
		pod(2, "web", "10.1.0.2", "fd00:1::2"), pod(3, "db", "10.1.0.3"), pod(4, "client", "10.1.0.4", "fd00:1::4", "10.9.0.4"),
		routing(pod(5, "mute", "10.1.0.5"), "172.30.0.0/16", "10.1.0.0/29"),
	}
	faraway = desired.Pod{Namespace: "shop", Name: "client", Labels: map[string]string{"app": "client"}, Addresses: []netip.Addr{addr("10.2.0.4")}}
)

// facts are those of a node with services that have these pods behind them.
func facts(t testing.TB, backend config.Backend, policies desired.Policies) explain.Facts {
	t.Helper()
	layout, err := mark.NewLayout(config.DefaultMask)
	if err != nil {
		t.Fatal(err)
	}
	ports := []desired.PortRange{{First: 30000, Last: 32767}}
	node := desired.Node{Layout: layout, Epoch: 1, NodePorts: ports, SCTPPorts: ports, HostAddresses: hosts}
	to := func(list ...string) []explain.Destination {
		var out []explain.Destination
		for _, a := range list {
			out = append(out, explain.Destination{At: at(a), Weight: 1, Method: explain.Masquerade})
		}
		return out
	}
	mixed := to("10.1.0.2:8080", "10.1.0.3:8080", "10.2.0.9:8080", "192.168.50.1:8080")
	f := explain.Facts{
		State: desired.Build(node, policies, records), Backend: backend, Watched: true,
		Host: []netip.Addr{hosts[0], hosts[2]},
		IPVS: explain.IPVS{Loaded: true, Used: true, Services: []explain.Service{
			{Protocol: desired.TCP, At: at("10.96.0.10:80"), Destinations: mixed},
			{Protocol: desired.UDP, At: at("10.96.0.10:53"), Destinations: to("10.1.0.2:8053")},
			{Protocol: desired.TCP, At: at("10.96.0.10:81")},
			{Protocol: desired.TCP, At: at("192.168.50.1:30080"), Destinations: to("10.1.0.2:8080")},
			{Protocol: desired.TCP, At: at("192.168.50.1:40080"), Destinations: to("10.1.0.2:8080")},
			{Protocol: desired.TCP, At: at("[fd00:96::10]:80"), Destinations: to("[fd00:1::2]:8080")},
		}},
		Routes: map[netip.Addr]explain.Route{
			addr("10.96.0.10"): {Interface: "lo", Local: true}, addr("fd00:96::10"): {Interface: "lo", Local: true},
			addr("10.2.0.9"): {Interface: "eth0"}, addr("10.2.0.4"): {Interface: "eth0"}, addr("192.168.50.7"): {Interface: "eth0"},
			addr("169.254.169.254"): {Interface: "eth0"},
			addr("198.51.100.9"):    {Error: "network is unreachable"}, addr("224.0.0.9"): {Interface: "eth0", Many: true},
			addr("10.1.0.99"): {Interface: "veth-web"}, addr("172.30.0.5"): {Interface: "veth-mute"}, addr("172.30.0.6"): {Interface: "eth0"},
		},
	}
	for _, h := range hosts {
		f.Routes[h] = explain.Route{Interface: "lo", Local: true}
	}
	for _, r := range records {
		for _, a := range r.Addresses {
			f.Routes[a] = explain.Route{Interface: r.L3Interface}
		}
	}
	return f
}

// ask fails the test where there is no answer.
func ask(t testing.TB, f explain.Facts, src, dst string) explain.Answer {
	t.Helper()
	q, err := explain.Parse(src, dst)
	if err != nil {
		t.Fatal(err)
	}
	a, err := q.Explain(f)
	if err != nil {
		t.Fatalf("%s to %s: %v", src, dst, err)
	}
	return a
}

// outcome is each walk's verdict with who answers, and where it was judged.
func outcome(a explain.Answer) string {
	var out []string
	for _, w := range a.Walks {
		var hooks []string
		for _, s := range w.Steps {
			if s.Decision != nil {
				hooks = append(hooks, s.Hook)
			}
		}
		sign := map[bool]string{true: "+", false: "-"}[w.Allowed]
		out = append(out, strings.TrimSpace(fmt.Sprintf("%s%s %s", sign, w.To, strings.Join(hooks, " "))))
	}
	return strings.Join(out, ", ")
}

// Every flow of docs/packet-path.md's table, where the backends differ and where not.
func TestWalks(t *testing.T) {
	tests := []struct {
		name, src, dst string
		want           string
		iptables       string // where it differs
	}{
		{"allowed by pod", "client", "web:8080", "+shop/web 10.1.0.2:8080 FORWARD, +shop/web [fd00:1::2]:8080 FORWARD", ""},
		{"another port", "client", "web:80", "-shop/web 10.1.0.2:80 FORWARD, -shop/web [fd00:1::2]:80 FORWARD", ""},
		{"another protocol", "client", "10.1.0.2:8080/udp", "-shop/web 10.1.0.2:8080 FORWARD", ""},
		{"echo", "client", "10.1.0.2/icmp", "-shop/web 10.1.0.2 FORWARD", ""},
		{"not isolated", "web", "client:1", "+shop/client 10.1.0.4:1 FORWARD, +shop/client [fd00:1::4]:1 FORWARD", ""},
		{"no port", "client", "10.1.0.2", "-shop/web 10.1.0.2 FORWARD", ""},
		{"no port, all allowed", "web", "10.1.0.4", "+shop/client 10.1.0.4 FORWARD", ""},
		{"itself", "web", "10.1.0.2:1", "+shop/web 10.1.0.2:1", ""},
		{"IPv6 address", "client", "[fd00:1::2]:8080", "+shop/web [fd00:1::2]:8080 FORWARD", ""},
		{"egress denied", "mute", "db:8080", "-shop/db 10.1.0.3:8080 FORWARD", ""},
		{"host to pod", "host", "db:1", "+shop/db 10.1.0.3:1", ""},
		{"outside to pod, by address", "192.168.50.7", "10.1.0.2:8080", "+shop/web 10.1.0.2:8080 FORWARD", ""},
		{"outside to pod", "outside", "10.1.0.2:8080", "-shop/web 10.1.0.2:8080 FORWARD", ""},
		{"no route back", "198.51.100.9", "10.1.0.4:1", "+shop/client 10.1.0.4:1 FORWARD", ""},
		{"pod to outside", "client", "outside:443", "+outside 192.0.2.1:443 FORWARD, +outside [2001:db8::1]:443 FORWARD", ""},
		{"pod to outside, denied", "mute", "10.2.0.9:8080", "-10.2.0.9:8080 FORWARD", ""},
		{"no route", "client", "198.51.100.9:1", "-198.51.100.9:1", ""},
		{"to nobody behind a veth", "client", "10.1.0.99:1", "-10.1.0.99:1 FORWARD", ""},
		{"false source", "10.1.0.99", "10.1.0.4:1", "-shop/client 10.1.0.4:1", ""},
		{"false source to the node", "10.1.0.99", "host:1", "-host 192.168.50.1:1", ""},
		{"further source, egress denied", "172.30.0.5", "10.1.0.4:1", "-shop/client 10.1.0.4:1 FORWARD", ""},
		{"further source, egress allowed", "172.30.0.5", "web:8080", "-shop/web 10.1.0.2:8080 FORWARD", ""}, // it is no peer of web's
		{"to a further source", "client", "172.30.0.5:1", "+shop/mute 172.30.0.5:1 FORWARD", ""},
		{"a further source of nobody there", "172.30.0.6", "10.1.0.4:1", "+shop/client 10.1.0.4:1 FORWARD", ""},
		{"outside to host", "outside", "192.168.50.1:22", "+host 192.168.50.1:22", ""},
		{"pod to host, allowed", "mute", "192.168.50.1:8080", "+host 192.168.50.1:8080 INPUT", ""},
		{"pod to host, another address", "mute", "10.1.0.1:8080", "-host 10.1.0.1:8080 INPUT", ""},
		{"pod to host, denied port", "mute", "host:22", "-host 192.168.50.1:22 INPUT", ""},
		{"pod to host, port in the ranges", "mute", "host:30001", "-host 192.168.50.1:30001 INPUT", "+host 192.168.50.1:30001"},
		{"pod to host, echo", "mute", "192.168.50.1/icmp", "-host 192.168.50.1 INPUT", ""},
		{"pod to a cloud's metadata", "client", "169.254.169.254:80", "+169.254.169.254:80 FORWARD", ""},
		{"pod to a cloud's metadata, denied", "mute", "169.254.169.254:80", "-169.254.169.254:80 FORWARD", ""},
		{"pod to a node-local DNS cache", "client", "169.254.20.10:53/udp", "+host 169.254.20.10:53 INPUT", ""},
		{"pod to a node-local DNS cache, denied", "mute", "169.254.20.10:53/udp", "-host 169.254.20.10:53 INPUT", ""},
		{"from a link-local address outside", "169.254.169.254", "10.1.0.4:1", "+shop/client 10.1.0.4:1 FORWARD", ""},
		{"from the node's link-local address", "169.254.20.10", "db:1", "+shop/db 10.1.0.3:1", ""},
		{"from the host to a cloud's metadata", "host", "169.254.169.254:80", "+169.254.169.254:80", ""},
		{"pod to multicast", "mute", "224.0.0.9:8080", "-224.0.0.9:8080 INPUT", ""},
		{
			"VIP, mixed", "client", "10.96.0.10:80",
			"+shop/web 10.1.0.2:8080 OUTPUT, -shop/db 10.1.0.3:8080 OUTPUT, +10.2.0.9:8080 OUTPUT, +host 192.168.50.1:8080 INPUT",
			"+shop/web 10.1.0.2:8080 OUTPUT, -shop/db 10.1.0.3:8080 OUTPUT, +10.2.0.9:8080 OUTPUT, +host 192.168.50.1:8080",
		},
		{
			"VIP, mixed, egress denied", "mute", "10.96.0.10:80",
			"-shop/web 10.1.0.2:8080 OUTPUT, -shop/db 10.1.0.3:8080 OUTPUT, -10.2.0.9:8080 OUTPUT, +host 192.168.50.1:8080 INPUT",
			"-shop/web 10.1.0.2:8080 OUTPUT, -shop/db 10.1.0.3:8080 OUTPUT, -10.2.0.9:8080 OUTPUT, +host 192.168.50.1:8080",
		},
		{"VIP, hairpin", "web", "10.96.0.10:53/udp", "-shop/web 10.1.0.2:8053 OUTPUT", ""},
		{"VIP, IPv6", "client", "[fd00:96::10]:80", "+shop/web [fd00:1::2]:8080 OUTPUT", ""},
		{"VIP from the host", "host", "10.96.0.10:80", "+shop/web 10.1.0.2:8080, +shop/db 10.1.0.3:8080, +10.2.0.9:8080, +host 192.168.50.1:8080", ""},
		{"VIP from outside", "192.168.50.7", "10.96.0.10:80", "+shop/web 10.1.0.2:8080 OUTPUT, -shop/db 10.1.0.3:8080 OUTPUT, +10.2.0.9:8080, +host 192.168.50.1:8080", ""},
		{"VIP without backends", "client", "10.96.0.10:81", "-10.96.0.10:81", ""},
		{"VIP, a port without service", "client", "10.96.0.10:82", "-10.96.0.10:82", ""},
		{"VIP, another protocol", "client", "10.96.0.10:80/sctp", "-10.96.0.10:80", ""},
		{"NodePort", "client", "192.168.50.1:30080", "+shop/web 10.1.0.2:8080 OUTPUT", ""},
		{"NodePort from outside", "192.168.50.7", "host:30080", "+shop/web 10.1.0.2:8080 OUTPUT", ""},
		{"odd NodePort", "client", "192.168.50.1:40080", "+shop/web 10.1.0.2:8080 OUTPUT", "+shop/web 10.1.0.2:8080 INPUT OUTPUT"},
		{"odd NodePort, egress denied", "mute", "192.168.50.1:40080", "-shop/web 10.1.0.2:8080 OUTPUT", "-host 192.168.50.1:40080 INPUT"},
	}
	for _, tt := range tests {
		for _, b := range backends {
			want := tt.want
			if b == config.BackendIPTables && tt.iptables != "" {
				want = tt.iptables
			}
			a := ask(t, facts(t, b, policies), tt.src, tt.dst)
			if got := outcome(a); got != want {
				t.Errorf("%s, %s:\ngot  %s\nwant %s", tt.name, b, got, want)
			}
			if a.Allowed == strings.Contains(" "+want, " -") {
				t.Errorf("%s, %s: allowed is %t in all", tt.name, b, a.Allowed)
			}
			for _, w := range a.Walks {
				if w.By == "" {
					t.Errorf("%s, %s: nobody decided %+v", tt.name, b, w)
				}
			}
		}
	}
}

// A judgement names the pod, the policies that isolate it and the rule.
func TestJudgements(t *testing.T) {
	f := facts(t, config.BackendNFTables, policies)
	f.State.Endpoints[3].Policed = false
	for _, tt := range []struct {
		src, dst string
		want     []string
	}{
		{"client", "10.1.0.2:8080", []string{"egress of shop/client: no policy isolates it", "ingress of shop/web: isolated by shop/web, and shop/web ingress[0] allows this"}},
		{"client", "db:1", []string{"egress of shop/client: no policy isolates it", "ingress of shop/db: isolated by shop/db, and no rule allows this"}},
		{"mute", "db:1", []string{`egress of shop/mute: no policy holds for it, by "policy": "none" or failOpen of its network`}},
	} {
		var got []string
		for _, s := range ask(t, f, tt.src, tt.dst).Walks[0].Steps {
			for _, j := range s.Decision {
				got = append(got, j.String())
			}
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s to %s: %q, want %q", tt.src, tt.dst, got, tt.want)
		}
	}
}

// A frame between two ports of a bridge is not judged where br_netfilter is off, and a
// bridge port is held to its endpoint.
func TestBridge(t *testing.T) {
	for _, b := range backends {
		f := facts(t, b, policies)
		for i := range f.State.Endpoints {
			e := &f.State.Endpoints[i]
			e.L3Interface, e.HostVeth = "cni0", "veth"+e.Pod
			for _, a := range e.Addresses {
				f.Routes[a] = explain.Route{Interface: "cni0"}
			}
		}
		if got, want := outcome(ask(t, f, "client", "db:1")), "-shop/db 10.1.0.3:1 FORWARD"; got != want {
			t.Errorf("%s: %s, want %s", b, got, want)
		}
		if !slices.ContainsFunc(ask(t, f, "client", "db:1").Walks[0].Steps, func(s explain.Step) bool { return s.Chain == "bridge-ports" }) {
			t.Errorf("%s: nobody guards the bridge port", b)
		}
		f.PastHooks4 = true
		if got, want := outcome(ask(t, f, "client", "db:1")), "+shop/db 10.1.0.3:1"; got != want {
			t.Errorf("%s without br_netfilter: %s, want %s", b, got, want)
		}
		f.State.Unfiltered.IPv4 = true
		if got, want := outcome(ask(t, f, "client", "db:1")), "-shop/db 10.1.0.3:1"; got != want {
			t.Errorf("%s without br_netfilter, and podmarkd has looked: %s, want %s", b, got, want)
		}
		if got, want := outcome(ask(t, f, "client", "10.96.0.10:80")), "-shop/db 10.1.0.3:8080 OUTPUT"; !strings.Contains(got, want) {
			t.Errorf("%s without br_netfilter, by IPVS: %s, want %s", b, got, want)
		}
	}
}

// A backend of weight 0 gets no new connection, so it does not count.
func TestWeight(t *testing.T) {
	f := facts(t, config.BackendNFTables, policies)
	backends := f.IPVS.Services[0].Destinations
	backends[1].Weight = 0
	if a := ask(t, f, "client", "10.96.0.10:80"); !a.Allowed || len(a.Walks) != 4 {
		t.Errorf("with the denied one idle: %s, allowed %t", outcome(a), a.Allowed)
	}
	for i := range backends {
		backends[i].Weight = 0
	}
	if a := ask(t, f, "client", "10.96.0.10:80"); a.Allowed {
		t.Errorf("with all idle: %s, allowed", outcome(a))
	}
}

// The chains that walks name are those that the backends render.
func TestChains(t *testing.T) {
	for _, b := range backends {
		f := facts(t, b, policies)
		f.State.Endpoints[3].L3Interface, f.State.Endpoints[3].MAC = "cni0", "0a:58:0a:01:00:05"
		f.Routes[addr("10.1.0.5")] = explain.Route{Interface: "cni0"}
		rendered := nftables.Render(f.State)
		if b == config.BackendIPTables {
			rendered = iptables.Render(f.State)[0].Rules + nftables.RenderGuard(f.State)
		}
		named := map[string]bool{}
		for _, q := range [][2]string{{"mute", "10.1.0.1:1"}, {"client", "10.96.0.10:80"}, {"client", "web:8080"}, {"host", "web:1"}} {
			for _, w := range ask(t, f, q[0], q[1]).Walks {
				for _, s := range w.Steps {
					named[s.Chain] = true
				}
			}
		}
		delete(named, "IPVS")
		if len(named) < 4 {
			t.Errorf("%s: walks name %v only", b, named)
		}
		for name := range named {
			if !strings.Contains(rendered, "chain "+name+" {") && !strings.Contains(rendered, ":"+name+" ") {
				t.Errorf("%s has no chain %q", b, name)
			}
		}
	}
}

// The text has every walk, step and judgement that the value has, and what is not known.
func TestText(t *testing.T) {
	for _, b := range backends {
		for _, q := range [][2]string{{"client", "10.96.0.10:80"}, {"mute", "host:40080"}, {"outside", "web:8080"}, {"web", "10.1.0.2:1"}} {
			a := ask(t, facts(t, b, policies), q[0], q[1])
			text := a.Text()
			want := slices.Clone(a.Unknown)
			for _, w := range a.Walks {
				want = append(want, map[bool]string{true: "allowed: ", false: "denied: "}[w.Allowed]+w.From.String()+" -> "+w.To.String())
				for _, s := range w.Steps {
					want = append(want, s.Hook+", "+s.Chain+": "+s.Action)
					for _, j := range s.Decision {
						want = append(want, j.String())
					}
				}
				if outcome(a) == "+"+w.To.String() {
					want = append(want, w.By)
				}
			}
			for _, s := range want {
				if !strings.Contains(text, s) {
					t.Errorf("%s to %s does not say %q:\n%s", q[0], q[1], s, text)
				}
			}
		}
	}
}
