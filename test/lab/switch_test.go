package lab_test

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/podmark/podmark/test/lab"
)

// switchPolicy lets a reach b and nothing else, b be reached by a and from one
// network outside, and the pods that come with a switch reach nothing.
func switchPolicy() string {
	return isolate("a", "Ingress") + "---" + isolate("a", "Egress") + allowAToB + "---" + isolate("added", "Egress") + `---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: allow-a-and-outside-to-b}
spec:
  podSelector: {matchLabels: {app: b}}
  policyTypes: [Ingress]
  ingress:
  - from:
    - podSelector: {matchLabels: {app: a}}
    - ipBlock: {cidr: 192.168.50.0/24}
    - ipBlock: {cidr: "fd00:50::/64"}
`
}

// switchWalks is what becomes of everything under switchPolicy.
func (c *cluster) switchWalks(t *testing.T) []lab.Row {
	t.Helper()
	return want(t, c.egressToB(t), lab.Blocked, "remote pod to pod", "pod to own ClusterIP")
}

// A node goes from one backend to the other and back while connections live and
// while others are tried that no policy allows. The live ones go on, and at no
// instant does one of the others get through.
func TestSwitchBackend(t *testing.T) {
	t.Parallel()
	lab.Variants(t, func(t *testing.T, variant lab.Variant) {
		for name, network := range map[string]func(*lab.Node) lab.Network{"routed": routed, "bridged": bridged} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				switchBackend(t, newCluster(t, lab.Options{Backend: lab.NFTables, Variant: variant}, network), network)
			})
		}
	})
}

func switchBackend(t *testing.T, c *cluster, network func(*lab.Node) lab.Network) {
	var flows []liveFlow
	for _, p := range lab.Protocols {
		for _, f := range lab.Families {
			open := func(name string, from *lab.NS, r lab.Request) {
				r.Protocol = p
				flows = append(flows, live(name+" "+p.String()+" "+f.String(), from.Stream(r)))
			}
			open("pod to pod", c.a.NS, lab.Request{To: c.b.At(f, podPort)})
			open("pod to ClusterIP", c.a.NS, lab.Request{To: c.vip(p, f)})
			open("outside to NodePort", c.outside.NS, lab.Request{To: c.Node.At(f, nodePort)})
		}
	}
	forbidden, servers := c.forbidden()
	lab.Table(t, forbidden)
	answered := requests(servers)
	apply(t, c.Node, switchPolicy())

	ctx, stop := context.WithCancel(t.Context())
	var lives sync.WaitGroup
	defer lives.Wait()
	defer stop()
	for _, f := range flows {
		lives.Go(func() { keepAlive(ctx, t, f) })
	}
	former := c.Backend()
	for i, backend := range []lab.Backend{map[lab.Variant]lab.Backend{lab.NFT: lab.IPTablesNFT, lab.Legacy: lab.IPTablesLegacy}[c.Variant], lab.NFTables} {
		c.Use(backend)
		added := c.NewPod(lab.PodSpec{Name: fmt.Sprintf("added%d", i), Labels: map[string]string{"app": "added"}, Network: network(c.Node)})
		err := underAttack(t, forbidden, added.Add)
		if err != nil {
			t.Fatal(err)
		}
		added.Listen(lab.UDP, podPort)
		if got, want := traces(c.Node), tracesOf(backend); !slices.Equal(got, want) {
			t.Errorf("%s instead of %s: podmark has something in %q, want %q", backend, former, got, want)
		}
		rows := overUDP(c.switchWalks(t))
		for _, f := range lab.Families {
			rows = append(rows,
				lab.Row{Name: "added pod to pod", From: added.NS, Protocol: lab.UDP, To: c.b.At(f, podPort), Want: lab.Blocked},
				lab.Row{Name: "pod to added pod", From: c.b.NS, Protocol: lab.UDP, To: added.At(f, podPort), By: added.Name},
			)
		}
		lab.Table(t, rows)
		for _, p := range []*lab.Pod{c.a, added} {
			if err := p.Check(); err != nil {
				t.Errorf("%s instead of %s: CHECK of %s: %v", backend, former, p.Name, err)
			}
		}
		former = backend
	}
	stop()
	lives.Wait()
	if got := requests(servers) - answered; got != 0 {
		t.Errorf("%d forbidden requests reached a server", got)
	}

	// What was allowed under another backend stops like anything else.
	blocked := map[string]lab.Outcome{}
	for _, f := range flows {
		blocked[f.name] = lab.Blocked
	}
	apply(t, c.Node, isolate("b", "Ingress"))
	pingAll(t, "after the switches, with b's ingress denied", flows, blocked)
}

// forbidden are flows that switchPolicy denies, to servers that nobody else asks.
func (c *cluster) forbidden() ([]lab.Row, []*lab.Server) {
	const port, ownPort, deniedNodePort = 6666, 6667, 30666
	var rows []lab.Row
	var servers []*lab.Server
	for _, p := range []lab.Protocol{lab.TCP, lab.UDP} {
		for _, ns := range []*lab.NS{c.a.NS, c.b.NS, c.outside.NS, c.remote.NS, c.Node.NS} {
			servers = append(servers, ns.Listen(p, port))
		}
		nodePort := lab.Service{Kind: lab.NodePort, Protocol: p, Port: deniedNodePort}
		for _, f := range lab.Families {
			nodePort.Backends = append(nodePort.Backends, c.b.At(f, port))
			elsewhere := lab.Service{Kind: lab.ClusterIP, Protocol: p, Address: c.vips[f], Port: port, Backends: []netip.AddrPort{c.remote.At(f, port)}}
			own := elsewhere
			own.Port, own.Backends = ownPort, []netip.AddrPort{c.b.At(f, port)}
			c.AddServices(elsewhere, own)
			row := func(name string, from *lab.NS, to netip.AddrPort) {
				rows = append(rows, lab.Row{Name: fmt.Sprintf("%s %v %v", name, p, f), From: from, Protocol: p, To: to})
			}
			row("pod to pod", c.b.NS, c.a.At(f, port))
			row("pod to outside", c.a.NS, c.outside.At(f, port))
			row("pod to host process", c.a.NS, c.Node.At(f, port))
			row("pod to ClusterIP", c.a.NS, netip.AddrPortFrom(c.vips[f], port))
			row("pod to own ClusterIP", c.b.NS, netip.AddrPortFrom(c.vips[f], ownPort))
			row("outside to NodePort", c.remote.NS, c.Node.At(f, deniedNodePort))
		}
		c.AddServices(nodePort)
	}
	return rows, servers
}

// requests sums what servers were asked.
func requests(servers []*lab.Server) int64 {
	var sum int64
	for _, s := range servers {
		sum += s.Requests()
	}
	return sum
}

// keepAlive uses a connection until ctx ends. It must answer each time.
func keepAlive(ctx context.Context, t *testing.T, f liveFlow) {
	pace := time.NewTicker(200 * time.Millisecond)
	defer pace.Stop()
	for n := 0; ctx.Err() == nil; n++ {
		if r := f.stream.Ping(lab.AnswerLimit); r.Outcome != lab.OK {
			t.Errorf("live connection %s, used %d times, is %v", f.name, n, r)
			return
		}
		<-pace.C
	}
}

// underAttack calls do while all of forbidden are tried, one attempt after the other,
// from before it begins until after it has come to an end.
func underAttack(t *testing.T, forbidden []lab.Row, do func() error) error {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	var clients, started sync.WaitGroup
	attempts := make([]int, len(forbidden))
	started.Add(len(forbidden))
	for i, row := range forbidden {
		clients.Go(func() { attempts[i] = keepTrying(ctx, t, row, started.Done) })
	}
	started.Wait()
	err := do()
	stop()
	clients.Wait()
	t.Logf("forbidden attempts: %v", attempts)
	return err
}

// keepTrying makes one attempt after the other, and a last one when ctx has ended.
// None may be answered. It returns how many there were. Of a flow that never passes
// each packet is a new one, so UDP needs one socket.
func keepTrying(ctx context.Context, t *testing.T, r lab.Row, started func()) (n int) {
	request := lab.Request{Protocol: r.Protocol, To: r.To, Limit: time.Second}
	attempt := func() lab.Result { return r.From.Send(request) }
	if r.Protocol == lab.UDP {
		s, err := r.From.Dial(request)
		if err != nil {
			t.Errorf("forbidden %s: %v", r.Name, err)
			started()
			return 0
		}
		defer s.Close()
		attempt = func() lab.Result { return s.Ping(100 * time.Millisecond) }
	}
	through, first := 0, ""
	for last := false; !last; n++ {
		last = ctx.Err() != nil
		if got := attempt(); got.Outcome != lab.Blocked {
			if through++; through == 1 {
				first = fmt.Sprintf("attempt %d: %v", n, got)
			}
		}
		if n == 0 {
			started()
		}
	}
	if through > 0 {
		t.Errorf("%d of %d attempts at forbidden %s got through, the first was %s", through, n, r.Name, first)
	}
	return n
}
