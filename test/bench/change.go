package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/dataplane"
	"github.com/podmark/podmark/pkg/desired"
)

const (
	// latePort is let in by the policy that is added late, and by no other.
	latePort = 7777
	// lateEvery is which part of the endpoints it selects.
	lateEvery = 4
)

// town is a population with the pods whose packets are watched during changes.
type town struct {
	population
	joiner attachment.Record // is not there at first; its role is in the rules of all policies
	free   attachment.Record // has no policy
	open   attachment.Record // has no policy but the late one
	late   desired.Policies
}

func newTown(endpoints, profiles int) (town, error) {
	p, err := populate(endpoints, profiles, desired.UDP)
	if err != nil {
		return town{}, err
	}
	t := town{population: p}
	for i := range t.records {
		if i%lateEvery == 0 || i == t.receiver {
			t.records[i].Labels["batch"] = "late"
		}
	}
	more := func(n int, labels map[string]string) attachment.Record {
		r := record(endpoints+n, 0)
		labels["role"] = role(matching)
		r.Labels = labels
		return r
	}
	t.joiner = more(0, map[string]string{"group": group(0)})
	t.free = more(1, map[string]string{})
	t.open = more(2, map[string]string{"batch": "late"})
	t.records = append(t.records, t.free, t.open)
	isolation := desired.Isolation{Rules: []desired.Rule{{
		Peers: []desired.Peer{{Namespace: namespace, Pods: label("role", role(matching))}},
		Ports: []desired.Port{{Protocol: desired.UDP, PortRange: desired.PortRange{First: latePort, Last: latePort}}},
	}}}
	t.late.Policies = append(slices.Clone(t.policies.Policies),
		desired.Policy{Namespace: namespace, Name: "late", Pods: label("batch", "late"), Ingress: &isolation})
	return t, nil
}

// change is a call that is measured. The states are the whole node's: they say
// what the fate of each packet is.
type change struct {
	name          string
	before, after desired.State
	call          func(context.Context, dataplane.Backend) error
}

// pair is a change and what undoes it, measured in turn.
type pair struct {
	rounds      int
	there, back change
}

// changes are what is measured, the control first.
func (t town) changes() []pair {
	without := t.state()
	joined := desired.Build(t.node, t.policies, append(slices.Clone(t.records), t.joiner))
	one, nobody := desired.Build(t.node, t.policies, []attachment.Record{t.joiner}), desired.Build(t.node, t.policies, nil)
	update := func(from, to desired.State) func(context.Context, dataplane.Backend) error {
		return func(ctx context.Context, b dataplane.Backend) error { return b.Update(ctx, from, to) }
	}
	next := t.node
	next.Epoch++
	withLate := desired.Build(next, t.late, t.records)
	sync := func(s desired.State) func(context.Context, dataplane.Backend) error {
		return func(ctx context.Context, b dataplane.Backend) error { return b.Sync(ctx, s) }
	}
	selected := 0
	for _, r := range t.records {
		if r.Labels["batch"] == "late" {
			selected++
		}
	}
	wait := func(context.Context, dataplane.Backend) error { time.Sleep(time.Second); return nil }
	return []pair{
		{2, change{"none, for control", without, without, wait}, change{"none, for control", without, without, wait}},
		{
			15,
			change{"a pod joins a set that all profiles use", without, joined, update(desired.State{}, one)},
			change{"it leaves", joined, without, update(one, nobody)},
		},
		{
			3,
			change{fmt.Sprintf("a policy that selects %s endpoints comes", count(selected)), without, withLate, sync(withLate)},
			change{"it goes", withLate, without, sync(without)},
		},
	}
}

// benchChange measures changes of policy while packets are sent.
func benchChange(o options) error {
	sizes := o.sizesOr(4000)
	endpoints, profiles := sizes[len(sizes)-1], 200
	t, err := newTown(endpoints, profiles)
	if err != nil {
		return err
	}
	fmt.Printf(`
## A change of policy

%s endpoints, %d profiles, while UDP packets are sent, each with a new source port, every %v one of each of
%d kinds: some are allowed before and after, some never, some by only one of the two policies. A pod joins
or leaves by Update, as at an ADD; a policy comes or goes by Sync, which rewrites the node. "New from" and
"old until" are when, from the start of the call, the first packet was sent that the new policy judged, and
the last that the old one judged. Every packet is accounted for. Wrongly dropped were always allowed,
wrongly passed never; late were judged by the old policy although sent after the call had returned. The
control changes nothing. Medians of the times, sums of the packets.
`, count(endpoints), profiles, tick, len(t.kinds()))
	tab := table{"backend", "change", "call, ms", "new from, ms", "old until, ms", "packets", "wrongly dropped", "wrongly passed", "late"}
	tab.head()
	var all counts
	for _, name := range podmarkNames {
		if err := t.measure(name, o, tab, &all); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	var g goals
	g.add("no packet is judged wrongly while the policy changes", all.wrong() == 0, "%s of %s packets", count(all.wrong()), count(all.packets))
	g.print()
	return nil
}

// measure measures all changes on one backend.
func (t town) measure(name string, o options, tab table, all *counts) error {
	w, err := t.watch()
	if err != nil {
		return err
	}
	defer w.close()
	ctx, backend := context.Background(), podmarks()[name]
	for _, p := range t.changes() {
		begin := time.Now()
		if err := w.node.do(func() error { return backend.Sync(ctx, p.there.before) }); err != nil {
			return err
		}
		progress("%s has %d endpoints after %v: %s", name, len(p.there.before.Endpoints), time.Since(begin).Round(time.Millisecond), p.there.name)
		seen := [2][]observed{}
		for range min(o.roundsOr(p.rounds), p.rounds) {
			for i, c := range []change{p.there, p.back} {
				one, err := w.round(c, func() error { return c.call(ctx, backend) })
				if err != nil {
					return fmt.Errorf("%s: %w", c.name, err)
				}
				seen[i] = append(seen[i], one)
				all.add(one.counts)
			}
		}
		tab.row(cells(name, p.there, seen[0])...)
		if p.back.name != p.there.name {
			tab.row(cells(name, p.back, seen[1])...)
		}
	}
	return nil
}

// cells are the row of a change.
func cells(backend string, c change, rounds []observed) []string {
	var sum counts
	var call, newFrom, oldUntil []time.Duration
	for _, o := range rounds {
		sum.add(o.counts)
		call = append(call, o.call)
		if o.switched {
			newFrom, oldUntil = append(newFrom, o.newFrom), append(oldUntil, o.oldUntil)
		}
	}
	times := []string{millis(median(call)), "", ""}
	if len(newFrom) > 0 {
		times[1], times[2] = millis(median(newFrom)), millis(median(oldUntil))
	}
	return append(append([]string{backend, c.name}, times...),
		count(sum.packets), count(sum.dropped), count(sum.passed), count(sum.late))
}
