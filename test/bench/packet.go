package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/podmark/podmark/pkg/desired"
)

// batchesPerRound are sent one after the other. A round's figure is their median,
// so that it does not matter when something comes in between.
const batchesPerRound = 64

// ways are what is measured: the first packet of a flow, on two ways of which the second has
// two parts, and one of a steady flow, in both directions.
var ways = [...]string{"forwarded", "up to IPVS", "sent on by IPVS", "steady", "steady reply"}

const (
	forwarded = iota
	toIPVS
	byIPVS
	steady
	steadyReply
)

// benchPacket measures what packets of new and of steady flows cost on their way from one
// pod to another.
func benchPacket(o options) error {
	fmt.Printf(`
## A packet of a new flow, and of a steady one

UDP packets between two pods, allowed by both pods' policies. A policy has %d rules in each direction, of
which number %d allows the packet. "Forwarded", "up to IPVS" and "sent on by IPVS" are the first packet of a
flow, each with a new source port. "Forwarded" and "up to IPVS" begin at the pod's veth. "Up to IPVS" is what a
packet to a service goes through before IPVS has it: PREROUTING, and INPUT up to IPVS's own priority, where a rule
takes it. "Sent on by IPVS" is what it goes through behind IPVS: OUTPUT and POSTROUTING, with the pod's mark on it.
A packet to a service costs both. "Steady" is the next packet of a forwarded flow after the other pod has
answered it, so that its state is established, and "steady reply" the second answer. Both pods stand in the middle
of Felix's order and their profiles in the middle of podmark's. Cost is what a packet takes longer than without rules on a node that
tracks connections: the median over rounds of %d batches of %d packets, and between which values the middle
half of the rounds is. All packets arrived in all rounds. podmark has the program that looks where checksums go,
where the kernel can. T, in which the targets are, is what tracking its connection costs the first packet of a flow,
forwarded: no rules less connections not tracked. "Two chains of nftables that accept" are at podmark's two hooks for forwarded packets, and
have no rules.
`, rulesPerPolicy, matching+1, batchesPerRound, batch)
	t := table{"endpoints", "profiles", "rules"}
	for _, way := range ways {
		t = append(t, way+", ns", "cost, ns")
	}
	t.head()
	var g goals
	most := map[int]packetTimes{} // by endpoints, with the most profiles
	for _, endpoints := range o.sizesOr(10, 1000, 4000) {
		for _, profiles := range []int{10, 200} {
			if profiles > endpoints {
				continue
			}
			measured, err := measurePackets(endpoints, profiles, o.roundsOr(25))
			if err != nil {
				return err
			}
			measured.print(t, endpoints, profiles)
			most[endpoints] = measured
		}
	}
	sizes := sortedKeys(most)
	few, many := most[sizes[0]], most[sizes[len(sizes)-1]]
	for _, size := range sizes {
		for _, want := range targets {
			ratio := most[size].share(withNFTables, want.ways...)
			g.add(fmt.Sprintf("%s, at %s endpoints: podmark nftables costs at most %v T", want.what, count(size), want.share),
				ratio <= want.share, "%.2f T; two chains without rules: %.2f T", ratio, most[size].share(accepting, want.ways...))
		}
	}
	for _, want := range targets {
		if len(sizes) < 2 || want.share < 1 {
			continue
		}
		from, to := few.cost(withNFTables, want.ways...), many.cost(withNFTables, want.ways...)
		g.add(fmt.Sprintf("%s: no more at %s endpoints than at %s, within the middle half of the rounds", want.what, count(sizes[len(sizes)-1]), count(sizes[0])),
			quantile(to, 0.25) <= quantile(from, 0.75), "%s ns and %s ns", spread(from, "%.0f"), spread(to, "%.0f"))
	}
	g.print()
	return nil
}

// targets are what podmark may cost a packet on its ways, as a share of what tracking its
// connection does. Those of first packets hold at any number of endpoints.
var targets = []struct {
	what  string
	ways  []int
	share float64
}{
	{"first packet, forwarded", []int{forwarded}, 1},
	{"first packet, to a service", []int{toIPVS, byIPVS}, 1},
	{"steady packet", []int{steady}, 0.15},
	{"steady reply", []int{steadyReply}, 0.15},
}

// packetTimes are nanoseconds a packet, by candidate, way and round.
type packetTimes map[string][len(ways)][]float64

// cost is how much longer a packet takes than at the baseline, round by round, on all of the
// ways together.
func (m packetTimes) cost(name string, ways ...int) []float64 {
	all := make([]float64, len(m[baseline][forwarded]))
	for _, way := range ways {
		one := paired(m[name][way], m[baseline][way], func(a, b float64) float64 { return a - b })
		all = paired(all, one, func(a, b float64) float64 { return a + b })
	}
	return all
}

// share is what a candidate costs a packet, in proportion to what connection tracking itself
// costs the first packet of a flow: the measure of all costs, since machines differ.
func (m packetTimes) share(name string, ways ...int) float64 {
	return median(m.cost(name, ways...)) / -median(m.cost(untracked, forwarded))
}

func (m packetTimes) print(t table, endpoints, profiles int) {
	for _, c := range candidates() {
		cells := []string{count(endpoints), count(profiles), c.name}
		for way := range ways {
			cost := ""
			if c.name != baseline {
				cost = spread(m.cost(c.name, way), "%.0f")
			}
			cells = append(cells, fmt.Sprintf("%.0f", median(m[c.name][way])), cost)
		}
		t.row(cells...)
	}
}

// measurePackets measures all candidates at one size.
func measurePackets(endpoints, profiles, rounds int) (packetTimes, error) {
	p, err := populate(endpoints, profiles, desired.UDP)
	if err != nil {
		return nil, err
	}
	all, err := lanes(candidates(), p, false)
	if err != nil {
		return nil, err
	}
	defer free(all)
	of := map[string]senders{}
	for _, l := range all {
		if err := l.refuses(p); err != nil {
			return nil, err
		}
		if of[l.name], err = l.senders(p, p.allowed()); err != nil {
			return nil, err
		}
		defer of[l.name].close()
	}
	progress("packets at %d endpoints, %d profiles, %d rounds", endpoints, profiles, rounds)
	times := packetTimes{}
	for round := range rounds + 1 { // the first warms up
		err := inTurn(round, all, func(_ int, l *lane) error {
			took, err := l.round(of[l.name])
			if err != nil {
				return fmt.Errorf("%s, %w", l.name, err)
			}
			if round == 0 {
				return nil
			}
			seen := times[l.name]
			for way, ns := range took {
				seen[way] = append(seen[way], ns)
			}
			times[l.name] = seen
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return times, nil
}

// round sends packets on each way, all of which must arrive, and returns the nanoseconds of
// one. A flow is steady from the first answer on, so what that takes gives way to what the
// second takes.
func (l *lane) round(s senders) (took [len(ways)]float64, err error) {
	undo, err := pin(0)
	if err != nil {
		return took, err
	}
	defer undo()
	for _, pass := range []struct {
		way int
		*sender
		to     destination
		begins bool
	}{
		{toIPVS, s.service, l.node, true},
		{byIPVS, s.node, l.receiver, true},
		{forwarded, s.pod, l.receiver, true},
		{steadyReply, s.answer, l.sender, false},
		{steady, s.pod, l.receiver, false},
		{steadyReply, s.answer, l.sender, false},
	} {
		if pass.begins {
			if err := l.node.forgetFlows(); err != nil {
				return took, err
			}
		}
		if took[pass.way], err = timed(pass.sender, pass.to); err != nil {
			return took, fmt.Errorf("%s: %w", ways[pass.way], err)
		}
	}
	return took, nil
}

// timed sends a round's packets.
func timed(s *sender, to destination) (float64, error) {
	times, arrived, err := watched(s, to, batchesPerRound)
	if err == nil && arrived != batchesPerRound*batch {
		err = fmt.Errorf("%d of %d packets arrived", arrived, batchesPerRound*batch)
	}
	if err != nil {
		return 0, err
	}
	return float64(median(times)) / batch, nil
}

// destination counts what reaches it.
type destination interface{ delivered() (int, error) }

// watched sends batches and counts what arrives.
func watched(s *sender, to destination, batches int) (times []time.Duration, arrived int, err error) {
	before, errBefore := to.delivered()
	times, errSend := s.send(batches)
	after, errAfter := to.delivered()
	return times, after - before, errors.Join(errBefore, errSend, errAfter)
}

// senders send packets of flows alike: the pod that begins them, to the other pod or to a
// service, the node in the place of IPVS, and the pod that answers.
type senders struct{ pod, service, node, answer *sender }

func (l *lane) senders(p population, f flow) (s senders, err error) {
	var errPod, errService, errNode, errAnswer error
	s.pod, errPod = fromPod(l.sender, f)
	s.service, errService = fromPod(l.sender, flow{src: f.src, dst: serviceAddr, port: f.port})
	s.node, errNode = fromNode(l.node, f, l.mark(p))
	s.answer, errAnswer = answering(l.receiver, f)
	if err := errors.Join(errPod, errService, errNode, errAnswer); err != nil {
		return s, err
	}
	for _, one := range s.all() {
		one.ports = batchesPerRound * batch // a round begins and ends at the same one
	}
	return s, nil
}

func (s senders) all() []*sender { return []*sender{s.pod, s.service, s.node, s.answer} }

func (s senders) close() { closeAll(s.all()) }

// closeAll closes sockets: an open one keeps its namespace.
func closeAll(list []*sender) {
	for _, s := range list {
		s.close()
	}
}

// refuses makes sure that who judges drops what no policy allows, on both ways of a new flow.
func (l *lane) refuses(p population) error {
	s, err := l.senders(p, p.forbidden())
	if err != nil {
		return err
	}
	defer s.close()
	want := batch
	if l.judges {
		want = 0
	}
	for way, one := range map[int]*sender{forwarded: s.pod, byIPVS: s.node} {
		_, arrived, err := watched(one, l.receiver, 1)
		if err == nil && arrived != want {
			err = fmt.Errorf("%s, %s: %d packets arrived that no policy allows, and %d should have", l.name, ways[way], arrived, want)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
