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

// walks are the two ways of a flow's first packet that are measured; steady is the second
// packet on the first of them.
var walks = []string{"forwarded", "sent on by IPVS"}

const steady = 2

// benchPacket measures what the first packet of a flow costs on its way from one
// pod to another.
func benchPacket(o options) error {
	fmt.Printf(`
## The first packet of a flow

UDP packets from one pod to another, each with a new source port, allowed by both pods' policies. A
policy has %d rules in each direction, of which number %d allows the packet. "Forwarded" begins at the
pod's veth. "Sent on by IPVS" is what a packet to a service goes through behind IPVS: OUTPUT and
POSTROUTING, with the pod's mark on it; what it goes through in INPUT is not in it. "Second" is the packet
that follows on a forwarded one's flow, which nobody has answered. Both pods stand in
the middle of Felix's order and their profiles in the middle of podmark's. Cost is what a packet takes
longer than without rules on a node that tracks connections: the median over rounds of %d batches of %d
packets, and between which values the middle half of the rounds is. All packets arrived in all rounds.
`, rulesPerPolicy, matching+1, batchesPerRound, batch)
	t := table{"endpoints", "profiles", "rules", "forwarded, ns", "cost, ns", "sent on by IPVS, ns", "cost, ns", "second, ns", "cost, ns"}
	t.head()
	var g goals
	costs, ratios, later := map[int]float64{}, map[int]float64{}, map[int]float64{} // of nftables, by endpoints, with the most profiles
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
			costs[endpoints] = median(measured.cost(withNFTables, 0))
			ratios[endpoints] = costs[endpoints] / measured.tracking(0)
			later[endpoints] = median(measured.cost(withNFTables, steady)) / measured.tracking(0)
		}
	}
	sizes := sortedKeys(costs)
	few, many := sizes[0], sizes[len(sizes)-1]
	for _, size := range sizes {
		g.add(fmt.Sprintf("podmark nftables costs at most what tracking the connection does at %s endpoints, forwarded", count(size)),
			ratios[size] <= 1, "%.2f of it", ratios[size])
		g.add(fmt.Sprintf("and at most 0.15 of that for a flow's second packet at %s endpoints", count(size)), later[size] <= 0.15, "%.2f of it", later[size])
	}
	if few != many {
		g.add(fmt.Sprintf("and is flat: at most a tenth more than at %s", count(few)),
			costs[many] <= 1.1*costs[few], "%.0f ns and %.0f ns", costs[few], costs[many])
	}
	g.print()
	return nil
}

// packetTimes are nanoseconds a packet, by candidate, walk and round.
type packetTimes map[string][3][]float64

// cost is how much longer a packet takes than at the baseline, round by round.
func (m packetTimes) cost(name string, walk int) []float64 {
	return paired(m[name][walk], m[baseline][walk], func(a, b float64) float64 { return a - b })
}

// tracking is what connection tracking itself costs a packet: the measure of all costs,
// since machines differ.
func (m packetTimes) tracking(walk int) float64 { return -median(m.cost(untracked, walk)) }

func (m packetTimes) print(t table, endpoints, profiles int) {
	for _, c := range candidates() {
		cells := []string{count(endpoints), count(profiles), c.name}
		for walk := range m[c.name] {
			cost := ""
			if c.name != baseline {
				cost = spread(m.cost(c.name, walk), "%.0f")
			}
			cells = append(cells, fmt.Sprintf("%.0f", median(m[c.name][walk])), cost)
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
	senders := map[string][]*sender{}
	for _, l := range all {
		if err := l.refuses(p); err != nil {
			return nil, err
		}
		if senders[l.name], err = l.senders(p, p.allowed()); err != nil {
			return nil, err
		}
		defer closeAll(senders[l.name])
	}
	progress("packets at %d endpoints, %d profiles, %d rounds", endpoints, profiles, rounds)
	times := packetTimes{}
	for round := range rounds + 1 { // the first warms up
		err := inTurn(round, all, func(_ int, l *lane) error {
			of := times[l.name]
			for walk := range walks {
				first, second, err := l.round(senders[l.name][walk])
				if err != nil {
					return fmt.Errorf("%s, %s: %w", l.name, walks[walk], err)
				}
				if round == 0 {
					continue
				}
				of[walk] = append(of[walk], first)
				if walk == 0 {
					of[steady] = append(of[steady], second)
				}
			}
			times[l.name] = of
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return times, nil
}

// round sends packets twice, all of which must arrive, and returns the nanoseconds of one:
// of the first of a flow, and of the second.
func (l *lane) round(s *sender) (first, second float64, err error) {
	if err := l.node.forgetFlows(); err != nil {
		return 0, 0, err
	}
	undo, err := pin(0)
	if err != nil {
		return 0, 0, err
	}
	defer undo()
	port := s.nextPort
	if first, err = l.timed(s); err != nil {
		return 0, 0, err
	}
	s.nextPort = port
	second, err = l.timed(s)
	return first, second, err
}

// timed sends a round's packets.
func (l *lane) timed(s *sender) (float64, error) {
	times, arrived, err := l.watched(s, batchesPerRound)
	if err == nil && arrived != batchesPerRound*batch {
		err = fmt.Errorf("%d of %d packets arrived", arrived, batchesPerRound*batch)
	}
	if err != nil {
		return 0, err
	}
	return float64(median(times)) / batch, nil
}

// watched sends batches and counts what arrives.
func (l *lane) watched(s *sender, batches int) (times []time.Duration, arrived int, err error) {
	before, errBefore := l.receiver.delivered()
	times, errSend := s.send(batches)
	after, errAfter := l.receiver.delivered()
	return times, after - before, errors.Join(errBefore, errSend, errAfter)
}

// senders send along a flow on each of the walks.
func (l *lane) senders(p population, f flow) ([]*sender, error) {
	pod, errPod := fromPod(l.sender, f)
	node, errNode := fromNode(l.node, f, l.mark(p))
	return []*sender{pod, node}, errors.Join(errPod, errNode)
}

// closeAll closes sockets: an open one keeps its namespace.
func closeAll(senders []*sender) {
	for _, s := range senders {
		s.close()
	}
}

// refuses makes sure that who judges drops what no policy allows, on both walks.
func (l *lane) refuses(p population) error {
	senders, err := l.senders(p, p.forbidden())
	if err != nil {
		return err
	}
	defer closeAll(senders)
	want := batch
	if l.judges {
		want = 0
	}
	for walk, s := range senders {
		_, arrived, err := l.watched(s, 1)
		if err == nil && arrived != want {
			err = fmt.Errorf("%s, %s: %d packets arrived that no policy allows, and %d should have", l.name, walks[walk], arrived, want)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
