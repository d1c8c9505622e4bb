package verdict_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/dataplane"
	"github.com/podmark/podmark/pkg/dataplane/counters"
	"github.com/podmark/podmark/pkg/dataplane/drift"
	"github.com/podmark/podmark/pkg/dataplane/hostport"
	"github.com/podmark/podmark/pkg/dataplane/iptables"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/mark"
)

const (
	podCount        = 7 // the last stays unknown to podmark
	packetsPerState = 400
	flowsPerState   = 100
)

func seed(t *testing.T) uint64 {
	s := rand.Uint64()
	if text := os.Getenv("PODMARK_SEED"); text != "" {
		var err error
		if s, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("PODMARK_SEED=%d", s)
	return s
}

func rounds(byDefault int) int {
	if n, err := strconv.Atoi(os.Getenv("PODMARK_ROUNDS")); err == nil {
		return n
	}
	return byDefault
}

// Every verdict of the kernel equals the model's, for random policies, after a
// whole-node change and after endpoints came and went one by one.
func TestVerdicts(t *testing.T) {
	for name, backend := range backends() {
		t.Run(name, func(t *testing.T) {
			drive(t, rand.New(rand.NewPCG(seed(t), 0)), newBench(t, podCount), name, backend).report(t)
		})
	}
	t.Run(alone, func(t *testing.T) { driveAlone(t, rand.New(rand.NewPCG(seed(t), 0)), legacy).report(t) })
}

// alone is iptables on a kernel without nf_tables, which has no policy for pods on a bridge.
const alone = "iptables-legacy-alone"

var legacy = iptables.Backend{Variant: iptables.Legacy, Wait: 30 * time.Second}

func driveAlone(t *testing.T, r *rand.Rand, backend enforcer) tally {
	return drive(t, r, newBenchOf(t, podCount, 0), alone, backend)
}

// enforcer is a backend that can be read, and taken out again.
type enforcer interface {
	dataplane.Backend
	dataplane.Reader
	Remove(ctx context.Context) error
}

func backends() map[string]enforcer {
	all := map[string]enforcer{}
	for _, k := range dataplane.Kinds {
		all[string(k.Name)] = k.New(dataplane.Options{Wait: 30 * time.Second, Guarded: true}).(enforcer)
	}
	return all
}

func nodeOf(t *testing.T, b *bench) desired.Node {
	layout, err := mark.NewLayout(0xff0f0000)
	if err != nil {
		t.Fatal(err)
	}
	ports := []desired.PortRange{{First: 30000, Last: 32767}}
	return desired.Node{
		Layout: layout, Epoch: 1, NodePorts: ports, SCTPPorts: ports, HostAddresses: b.host,
		Tunnels: desired.Tunnels{UDPPorts: []uint16{4789, 8472}, Protocols: []uint8{4, uint8(etherIP)}},
	}
}

// drive has all rounds, and tells what they have shown.
func drive(t *testing.T, r *rand.Rand, b *bench, name string, backend enforcer) tally {
	ctx := context.Background()
	node := nodeOf(t, b)
	sum := tally{kinds: map[string][2]int{}}
	b.services()
	// Who takes the mark away does so ahead of table security, where iptables puts another there,
	// or behind it, where what stands beside it does.
	priority := 60
	if name == alone {
		priority = 0
	}
	for round := range rounds(7) {
		policies := randomPolicies(r)
		if round%3 == 1 {
			policies = tried(policies)
		}
		if name == string(config.NFTables) && round%2 == 0 {
			policies.Policies = append(randomCluster(r), policies.Policies...)
		}
		records := records(b)
		live := records[:1+r.IntN(len(records))]
		r.Shuffle(len(records), func(i, j int) { records[i], records[j] = records[j], records[i] })
		group(b, live)
		node.Unfiltered = b.filters(desired.Unfiltered{})
		if err := backend.Sync(ctx, desired.Build(node, desired.Policies{}, live)); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		flows := openFlows(t, r, b)
		node.Unfiltered = b.filters(desired.Unfiltered{IPv4: r.IntN(4) == 0, IPv6: r.IntN(4) == 0})
		node.Epoch, node.Unlogged = node.Layout.NextEpoch(node.Epoch), round%2 == 1
		whole := desired.Build(node, policies, live)
		if _, err := backend.FillSet(ctx, desired.Set{State: whole}); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if err := backend.Sync(ctx, whole); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		b.agent(node.Layout.Mask(), []int{nobody, priority}[round%2])
		check := func(when string) {
			state := desired.Build(node, policies, live)
			group(b, live)
			attempts := append(randomAttempts(r, b, state), answers(r, b, state, flows[:flowsPerState])...)
			before := audited(ctx, t, backend)
			came := try(t, b, state, fmt.Sprintf("round %d, %s", round, when), attempts, &sum)
			counted, wanted := audited(ctx, t, backend)-before, uint64(0)
			var packets []desired.Packet
			var passed []bool
			for i, a := range attempts {
				if a.kind == "plain" {
					packets, passed = append(packets, a.packet), append(passed, came[i])
				}
				// The packet of a service is judged as what comes out.
				if came[i] && slices.ContainsFunc(a.outs, func(p desired.Packet) bool { return state.Evaluate(p).Audited }) {
					wanted++
				}
			}
			sum.told += explained(t, b, state, name, packets, passed)
			// One that both ends audit counts twice, and one that the other end drops counts too.
			if counted < wanted {
				t.Errorf("round %d, %s: %d packets were counted that an audit would deny, want %d at least", round, when, counted, wanted)
			}
			sum.audited += wanted
			try(t, b, state, fmt.Sprintf("round %d, %s", round, when), insiders(r, b, flows[:flowsPerState]), &sum)
			try(t, b, state, fmt.Sprintf("round %d, %s", round, when), reports(r, b, state, flows[:flowsPerState]), &sum)
			flows = flows[flowsPerState:]
		}
		check("whole node")
		// Those that are missing come one by one, then some go again.
		for len(live) < len(records) {
			next := records[len(live)]
			if err := backend.Update(ctx, desired.Share{State: desired.Build(node, policies, nil)}, desired.Share{State: desired.Build(node, policies, []attachment.Record{next})}); err != nil {
				t.Fatalf("round %d: adding: %v", round, err)
			}
			live = records[:len(live)+1]
		}
		check("after adding")
		for len(live) > 1+r.IntN(3) {
			i := r.IntN(len(live))
			gone := live[i]
			live = slices.Delete(slices.Clone(live), i, i+1)
			if err := backend.Update(ctx, desired.Share{State: desired.Build(node, policies, []attachment.Record{gone})}, desired.Share{State: desired.Build(node, policies, nil)}); err != nil {
				t.Fatalf("round %d: removing: %v", round, err)
			}
		}
		check("after removing")
		if t.Failed() {
			return sum
		}
		if err := backend.Check(ctx, desired.Build(node, policies, live), drift.Content); err != nil {
			t.Errorf("round %d: Check: %v", round, err)
		}
	}
	if err := backend.Remove(ctx); err != nil {
		t.Fatal(err)
	}
	return sum
}

var apps = []string{"web", "db", "cache"}

// group puts the pods' ports into the device group if podmark has them, as its
// plugin does, and takes the others out of it.
func group(b *bench, live []attachment.Record) {
	for _, w := range b.wires[:podCount] { // those on a bridge are in none
		g := 0
		if slices.ContainsFunc(live, func(r attachment.Record) bool { return r.HostVeth == w.name }) {
			g = hostport.Group
		}
		b.run("ip", "link", "set", w.name, "group", fmt.Sprint(g))
	}
}

// records are the attachments of all pods but the last of each kind. Two may send from
// more than their addresses.
func records(b *bench) []attachment.Record {
	var out []attachment.Record
	for i, w := range b.wires[:b.pods] {
		if i == podCount-1 || i == podCount+bridgedCount-1 {
			continue
		}
		master, err := net.InterfaceByName(w.l3)
		if err != nil {
			b.t.Fatal(err)
		}
		r := attachment.Record{
			Key: attachment.Key{Network: "net", ContainerID: w.name, IfName: "eth0"},
			ID:  mark.First + mark.ID(3*i),
			Endpoint: attachment.Endpoint{
				Namespace: []string{"one", "two"}[i%2], Pod: w.name,
				Labels:      map[string]string{"app": apps[i%len(apps)], "n": fmt.Sprint(i)},
				L3Interface: w.l3, HostVeth: w.name, L3InterfaceIndex: master.Index, HostVethIndex: w.index,
				MAC: w.far.String(), Addresses: w.addrs,
				// What the names stand for differs from pod to pod.
				NamedPorts: []attachment.NamedPort{
					{Name: "http", Protocol: uint8(desired.TCP), Number: somePorts[i%len(somePorts)]},
					{Name: "http", Protocol: uint8(desired.UDP), Number: somePorts[(i+3)%len(somePorts)]},
					{Name: "bulk", Protocol: uint8(desired.SCTP), Number: somePorts[(i+5)%len(somePorts)]},
				}[:i%4],
			},
			Policed: true, Committed: true,
		}
		if i == 1 || i == podCount+1 {
			r.AllowedSources = []netip.Prefix{
				netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 30, byte(i), 0}), 24),
				netip.MustParsePrefix(fmt.Sprintf("fd00:30:%x::/48", i)),
			}
			if i == podCount+1 || b.pods == podCount { // one of them: what two have, iptables asks both about
				r.AllowedSources = append(r.AllowedSources, netip.PrefixFrom(b.host[0], 32), netip.PrefixFrom(b.host[1], 128))
			}
		}
		out = append(out, r)
	}
	return out
}

// audited is how many packets the kernel let pass that an audited policy would deny.
func audited(ctx context.Context, t *testing.T, backend enforcer) uint64 {
	t.Helper()
	rules, err := backend.Counters(ctx)
	if err != nil {
		t.Fatal(err)
	}
	n := uint64(0)
	for _, r := range rules {
		if r.Reason == counters.Audit {
			n += r.Packets
		}
	}
	return n
}

func randomPolicies(r *rand.Rand) desired.Policies {
	var p desired.Policies
	for i := range 1 + r.IntN(5) {
		policy := desired.Policy{
			Namespace: []string{"one", "two"}[r.IntN(2)], Name: fmt.Sprintf("p%d", i), Pods: randomSelector(r), Audit: r.IntN(3) == 0,
		}
		if r.IntN(3) > 0 {
			policy.Ingress = randomIsolation(r)
		}
		if policy.Ingress == nil || r.IntN(2) == 0 {
			policy.Egress = randomIsolation(r)
		}
		p.Policies = append(p.Policies, policy)
	}
	slices.SortFunc(p.Policies, func(a, b desired.Policy) int {
		return slices.Compare([]string{a.Namespace, a.Name}, []string{b.Namespace, b.Name})
	})
	return p
}

// randomCluster are policies of the tiers around NetworkPolicy.
func randomCluster(r *rand.Rand) (out []desired.Policy) {
	isolation := func() *desired.Isolation {
		i := randomIsolation(r)
		if len(i.Rules) == 0 {
			return nil
		}
		for n := range i.Rules {
			i.Rules[n].Action = desired.Action(r.IntN(3))
		}
		return i
	}
	for i := range 1 + r.IntN(6) {
		out = append(out, desired.Policy{
			Tier: []desired.Tier{desired.AdminTier, desired.BaselineTier}[r.IntN(2)], Priority: r.Int32N(3), Name: fmt.Sprintf("c%d", i),
			NamespaceSelector: randomNamespaces(r), Pods: randomSelector(r), Audit: r.IntN(4) == 0, Ingress: isolation(), Egress: isolation(),
		})
	}
	return out
}

// tried are the policies with none enforced, and one that allows nothing: few states that are random
// have a packet which an audit alone would deny.
func tried(p desired.Policies) desired.Policies {
	nothing := desired.Policy{Namespace: "one", Name: "a", Ingress: &desired.Isolation{}, Egress: &desired.Isolation{}}
	p.Policies = append([]desired.Policy{nothing}, p.Policies...)
	for i := range p.Policies {
		p.Policies[i].Audit = true
	}
	return p
}

func randomSelector(r *rand.Rand) desired.Selector {
	app := apps[r.IntN(len(apps))]
	return [...]desired.Selector{
		nil,
		{{Key: "app", Op: desired.In, Values: []string{app}}},
		{{Key: "app", Op: desired.NotIn, Values: []string{app}}},
		{{Key: "n", Op: desired.In, Values: []string{fmt.Sprint(r.IntN(podCount)), fmt.Sprint(r.IntN(podCount))}}},
		{{Key: "nothing", Op: desired.DoesNotExist}},
	}[r.IntN(5)]
}

func randomIsolation(r *rand.Rand) *desired.Isolation {
	isolation := &desired.Isolation{}
	for range r.IntN(4) {
		rule := desired.Rule{}
		for range r.IntN(3) {
			switch r.IntN(3) {
			case 0:
				rule.Peers = append(rule.Peers, desired.Peer{Namespace: []string{"one", "two"}[r.IntN(2)], Pods: randomSelector(r)})
			case 1:
				rule.Peers = append(rule.Peers, desired.Peer{NamespaceSelector: randomNamespaces(r), Pods: randomSelector(r)})
			default:
				rule.Blocks = randomBlocks(r)
			}
		}
		for range r.IntN(3) {
			rule.Ports = append(rule.Ports, randomPort(r))
		}
		if r.IntN(3) == 0 {
			rule.NamedPorts = []desired.NamedPort{
				{Protocol: desired.TCP, Name: "http"},
				{Protocol: desired.UDP, Name: "http"},
				{Protocol: desired.SCTP, Name: "bulk"},
				{Protocol: desired.UDP, Name: "bulk"},
			}[r.IntN(4):]
		}
		isolation.Rules = append(isolation.Rules, rule)
	}
	return isolation
}

func randomNamespaces(r *rand.Rand) desired.Selector {
	if r.IntN(2) == 0 {
		return nil
	}
	return desired.Selector{{Key: desired.MetadataName, Op: desired.In, Values: []string{"two"}}}
}

// randomBlocks are disjoint, as compiled policies have them.
func randomBlocks(r *rand.Rand) []netip.Prefix {
	lists := [][]string{
		{"0.0.0.0/0"},
		{"::/0"},
		{"10.1.0.0/29", "192.168.50.0/24"},
		{"10.1.0.2/31", "10.1.0.4/32", "fd00:10:1::/125"},
		{"192.168.50.2/32", "fd00:50::2/128"},
		{"10.2.0.0/15", "fd00:10:2::/64", "192.168.50.1/32"},
	}
	var blocks []netip.Prefix
	for _, s := range lists[r.IntN(len(lists))] {
		blocks = append(blocks, netip.MustParsePrefix(s))
	}
	return blocks
}

var somePorts = []uint16{1, 79, 80, 81, 443, 5353, 8080, 9999}

func randomPort(r *rand.Rand) desired.Port {
	p := desired.Port{Protocol: []desired.Protocol{desired.TCP, desired.UDP, desired.SCTP}[r.IntN(3)], PortRange: desired.AllPorts}
	if r.IntN(4) > 0 {
		first := somePorts[r.IntN(len(somePorts))]
		p.PortRange = desired.PortRange{First: first, Last: first}
		if r.IntN(3) == 0 {
			p.Last = first + uint16(r.IntN(2000))
		}
	}
	return p
}
