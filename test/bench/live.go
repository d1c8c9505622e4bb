package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/dataplane/conntrack"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/mark"
)

// batchesPerPass are sent from each of the two pods, each packet on a flow of its own.
const batchesPerPass = 782

// liveFlows are there when the policy changes.
const liveFlows = 2 * batchesPerPass * batch

// benchLive measures what a change costs that has every live flow judged again.
func benchLive(o options) error {
	endpoints, profiles := o.sizesOr(250)[len(o.sizesOr(250))-1], 200
	fmt.Printf(`
## Live flows after a change

%s UDP flows between two pods, half of them from each, all answered before: %s endpoints, %d profiles, every
flow allowed by both pods' policies. Then a rule is taken out of some other policy, which begins the next
epoch. A pass is one packet of each flow, from the pod's veth to the other pod. Before is the pass before the
change; first is the one after it, in which each packet is judged once more; next is the one after that. More
is what first takes beyond before: of one packet, and of all flows together. These are processor times, and
packets/s is what one processor does. The baseline has no change. Wrap is how long it takes to take the epoch's
number off all flows, which comes before a change once in as many as the mask has epochs, while packets go on.
Medians over rounds, and between which values the middle half of the rounds is. All packets arrived in all
passes.
`, count(liveFlows), count(endpoints), profiles)
	if err := room(liveFlows + liveFlows/2); err != nil {
		return err
	}
	p, err := populate(endpoints, profiles, desired.UDP)
	if err != nil {
		return err
	}
	var list []candidate
	for _, c := range candidates() {
		if c.name == baseline || slices.Contains(podmarkNames, c.name) {
			list = append(list, c)
		}
	}
	all, err := lanes(list, p, false)
	if err != nil {
		return err
	}
	defer free(all)
	seen, lives := map[string][]liveRound{}, []*live{}
	for _, l := range all {
		v, err := l.live(p)
		if err != nil {
			return fmt.Errorf("%s: %w", l.name, err)
		}
		defer v.close()
		lives = append(lives, v)
	}
	for round := range o.roundsOr(7) + 1 { // the first warms up
		progress("live flows, round %d", round)
		err := inTurn(round, lives, func(_ int, v *live) error {
			r, err := v.round()
			if err != nil {
				return fmt.Errorf("%s: %w", v.name, err)
			}
			if round > 0 {
				seen[v.name] = append(seen[v.name], r)
			}
			return v.node.forgetFlows()
		})
		if err != nil {
			return err
		}
	}
	t := table{"rules", "before, ns", "first, ns", "next, ns", "more, ns a packet", "more, ms in all", "packets/s before", "packets/s first", "change, ms", "wrap, ms"}
	t.head()
	for _, l := range all {
		t.row(append([]string{l.name}, liveCells(seen[l.name])...)...)
	}
	return nil
}

// room makes sure that the kernel's table of connections has room. Its size is that of
// the machine, and can be changed in its first namespace only.
func room(flows int) error {
	b, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_max")
	if err != nil {
		return err
	}
	if most, err := strconv.Atoi(strings.TrimSpace(string(b))); err != nil || most < flows {
		return fmt.Errorf("net.netfilter.nf_conntrack_max is %d, and %d are needed: set it outside of namespaces (%v)", most, flows, err) //nolint:errorlint // it may be nil
	}
	return nil
}

// liveRound is what one round has measured.
type liveRound struct{ before, first, next, change, wrap time.Duration }

func liveCells(rounds []liveRound) []string {
	of := func(f func(liveRound) float64) []float64 {
		out := make([]float64, 0, len(rounds))
		for _, r := range rounds {
			out = append(out, f(r))
		}
		return out
	}
	each := func(d time.Duration) float64 { return float64(d) / liveFlows }
	before := of(func(r liveRound) float64 { return each(r.before) })
	first := of(func(r liveRound) float64 { return each(r.first) })
	ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
	cells := []string{
		fmt.Sprintf("%.0f", median(before)), fmt.Sprintf("%.0f", median(first)),
		fmt.Sprintf("%.0f", median(of(func(r liveRound) float64 { return each(r.next) }))),
		spread(of(func(r liveRound) float64 { return each(r.first - r.before) }), "%.0f"),
		spread(of(func(r liveRound) float64 { return ms(r.first - r.before) }), "%.0f"),
		count(int(1e9 / median(before))), count(int(1e9 / median(first))),
	}
	if slices.ContainsFunc(rounds, func(r liveRound) bool { return r.change > 0 }) {
		return append(cells, fmt.Sprintf("%.1f", median(of(func(r liveRound) float64 { return ms(r.change) }))),
			fmt.Sprintf("%.0f", median(of(func(r liveRound) float64 { return ms(r.wrap) }))))
	}
	return append(cells, "", "")
}

// live is a lane with flows that live on.
type live struct {
	*lane
	p population
	// asks begin the flows, one from each pod, and answers are the other way.
	asks, answers []*sender
	now           desired.State
	changes       int
}

func (l *lane) live(p population) (*live, error) {
	v := &live{lane: l, p: p, now: p.state()}
	// Flows must not end while others are made.
	err := l.node.do(func() error {
		for _, name := range []string{"nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"} {
			if err := os.WriteFile("/proc/sys/net/netfilter/"+name, []byte("3600"), 0o644); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	there := p.allowed()
	back := flow{src: there.dst, dst: there.src, port: there.port}
	for _, way := range []struct {
		from, to *link
		flow
	}{{l.sender, l.receiver, there}, {l.receiver, l.sender, back}} {
		ask, err := fromPod(way.from, way.flow)
		if err != nil {
			return nil, err
		}
		answer, err := answering(way.to, way.flow)
		if err != nil {
			return nil, err
		}
		ask.ports, answer.ports = batchesPerPass*batch, batchesPerPass*batch
		v.asks, v.answers = append(v.asks, ask), append(v.answers, answer)
	}
	return v, nil
}

func (v *live) close() {
	closeAll(v.asks)
	closeAll(v.answers)
}

// pass sends a packet of each flow, all of which must arrive, and returns what processor
// time that took: a veth hands a packet on through the whole node before the call returns.
func (v *live) pass(senders []*sender) (time.Duration, error) {
	arrived := func() (int, error) {
		a, errA := v.receiver.delivered()
		b, errB := v.sender.delivered()
		if errA != nil {
			return 0, errA
		}
		return a + b, errB
	}
	before, err := arrived()
	if err != nil {
		return 0, err
	}
	undo, err := pin(0)
	if err != nil {
		return 0, err
	}
	defer undo()
	begin, errBegin := processorTime()
	for _, s := range senders {
		if _, err := s.send(batchesPerPass); err != nil {
			return 0, err
		}
	}
	end, errEnd := processorTime()
	after, err := arrived()
	if err == nil && after-before != liveFlows {
		err = fmt.Errorf("%d of %d packets arrived", after-before, liveFlows)
	}
	return end - begin, errors.Join(errBegin, errEnd, err)
}

// processorTime is what this thread has had.
func processorTime() (time.Duration, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		return 0, fmt.Errorf("reading the thread's processor time: %w", err)
	}
	return time.Duration(ts.Nano()), nil
}

// round begins all flows again, and measures passes before and after a change.
func (v *live) round() (r liveRound, err error) {
	for _, senders := range [][]*sender{v.asks, v.answers, v.asks} {
		if _, err := v.pass(senders); err != nil {
			return r, fmt.Errorf("beginning flows: %w", err)
		}
	}
	if r.before, err = v.pass(v.asks); err != nil {
		return r, err
	}
	if r.change, err = v.change(); err != nil {
		return r, err
	}
	if r.first, err = v.pass(v.asks); err != nil {
		return r, fmt.Errorf("after the change: %w", err)
	}
	if r.next, err = v.pass(v.asks); err != nil {
		return r, err
	}
	if !v.judges {
		return r, nil
	}
	begin := time.Now()
	err = v.node.do(func() error { return conntrack.ClearOtherEpochs(v.now.Layout.ID(mark.None)) })
	r.wrap = time.Since(begin)
	return r, err
}

// change takes a rule out of a policy, or puts it back, and begins the next epoch.
func (v *live) change() (time.Duration, error) {
	if !v.judges {
		return 0, nil
	}
	v.changes++
	node := v.now.Node
	node.Epoch++
	policies := desired.Policies{Policies: slices.Clone(v.p.policies.Policies)}
	if v.changes%2 > 0 {
		less := *policies.Policies[0].Ingress
		less.Rules = less.Rules[:rulesPerPolicy-1]
		policies.Policies[0].Ingress = &less
	}
	next := desired.Build(node, policies, v.p.records)
	from, to := desired.Diff(desired.Share{State: v.now}, desired.Share{State: next})
	v.now = next
	begin := time.Now()
	err := v.node.do(func() error {
		return podmarks()[v.name].Update(context.Background(), from, to)
	})
	return time.Since(begin), err
}
