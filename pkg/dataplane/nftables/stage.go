package nftables

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/dataplane/counters"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/mark"
)

// familyStage is a stage for the packets of one family: a chain that profiles jump to, and one for
// each rule that denies.
type familyStage struct {
	desired.Stage
	direction desired.Direction
	family    family
	unlogged  bool
	layout    mark.Layout
}

// familyStages lists those that profiles of s jump to, in a stable order.
func familyStages(s desired.State) (out []familyStage) {
	seen := map[string]bool{}
	for _, h := range familyProfiles(s) {
		for _, stage := range h.jumps() {
			name := stageChain(h.Direction, h.family, stage.ID)
			if !seen[name] {
				out = append(out, familyStage{stage, h.Direction, h.family, s.Unlogged, s.Layout})
			}
			seen[name] = true
		}
	}
	return out
}

// stageChain names the chain of a stage: se4-<id>, se6-<id>, si4-<id> or si6-<id>. That of its rule n,
// from 1 on, has -n besides.
func stageChain(d desired.Direction, f family, id desired.StageID) string {
	return "s" + chainOf(d, f, desired.ProfileID(id))
}

func (h familyStage) chain() string { return stageChain(h.direction, h.family, h.ID) }

// marksOf are what the bits of the mask say of a packet while it is judged: nothing, or that a stage
// allows it. No chain reads the ID of a packet after it has led to a profile.
func marksOf(l mark.Layout) (none, accepted mark.Mark) { return l.ID(mark.None), l.ID(mark.Outside) }

// render gives the chains: first those of the rules that deny, then the one that leads there. The first
// rule that matches decides.
//
//	th dport 80 meta l4proto tcp ip saddr @p4-d86f44cd2fe36465 counter meta mark set meta mark & 0x0000ffff | 0x00010000 return comment "Admin/a ingress[0]"
//	ip saddr @p4-07b89b9e2d02df2a counter return comment "Admin/a ingress[1]"
//	goto si4-0c8f2b6a9d1e7f35-3 comment "Admin/a ingress[2]"
//
// and of a rule that denies
//
//	limit rate 10/second burst 50 packets log prefix "podmark:drop:ingress:0c8f2b6a9d1e7f35:3" group 1886 snaplen 128
//	counter drop comment "Admin/a ingress[2]"
func (h familyStage) render() (out []chain) {
	main := chain{table: inet, name: h.chain()}
	_, accepted := marksOf(h.layout)
	for i, r := range h.Rules {
		var then []part
		switch {
		case r.Origin == "": // of another policy: what it decides is not tried
			then = on(returnVerdict())
		case r.Action == desired.Allow && !h.Audit:
			then = on(counter(), setMark(accepted), returnVerdict())
		case r.Action == desired.Deny:
			denies := chain{table: inet, name: fmt.Sprintf("%s-%d", h.chain(), i+1)}
			denies.rules = ending(h.key(i+1), h.unlogged, h.last(), r.Origin)
			then = on(gotoChain(denies.name))
			if len(matching(r, h.direction, h.family, then)) > 0 { // else it is about the other family
				out = append(out, denies)
			}
		default:
			then = on(counter(), returnVerdict())
		}
		main.rules = append(main.rules, matching(r, h.direction, h.family, then)...)
	}
	if h.Default == desired.Deny { // NetworkPolicies that are audited
		main.rules = append(main.rules, ending(h.key(0), h.unlogged, h.last(), strings.Join(h.Policies, " "))...)
	}
	return append(out, main)
}

// key is that of rule n, from 1 on; of 0 where no rule allows.
func (h familyStage) key(n int) counters.Key {
	k := counters.Key{Reason: counters.Policy, Direction: h.direction, Stage: h.ID, Rule: n}
	if h.Audit {
		k.Reason = counters.Audit
	}
	return k
}

// last is what becomes of a packet that is denied.
func (h familyStage) last() []part {
	if h.Audit {
		return on(counter()) // and falls off the end of the chain, to where the profile goes on
	}
	return on(counter(), drop())
}

// stageChains are the chains of the stages of s, by name; those that others lead to come first in order.
func stageChains(s desired.State) (byName map[string]chain, order []string) {
	byName = map[string]chain{}
	for _, h := range familyStages(s) {
		for _, c := range h.render() {
			byName[c.name], order = c, append(order, c.name)
		}
	}
	return byName, order
}

// addStages lists what makes the chains of stages of to that are not there, and what gives those that
// from has otherwise their new rules. A chain that is there and not in from is one that other profiles
// have in common with to.
func addStages(c *conn, from, to desired.State) (come, rewritten []command, err error) {
	before, _ := stageChains(from)
	after, order := stageChains(to)
	if len(order) == 0 {
		return nil, nil, nil
	}
	uses, err := c.chainUses(slices.Collect(maps.Values(after)))
	if err != nil {
		return nil, nil, err
	}
	for _, name := range order {
		want := after[name]
		have, known := before[name]
		if !known {
			have = want
		}
		use, there := uses[name]
		switch {
		case !there && known, there && use <= len(have.rules): // nothing leads to it
			return nil, nil, errChain(want)
		case !there:
			come = append(append(come, addChain(want)), fill(want)...)
		case have.text() != want.text():
			rewritten = append(rewritten, refill(want)...)
		}
	}
	return come, rewritten, nil
}

// leavingStages lists what removes the chains that only from has, a list for each stage. Where other
// profiles still lead to one, the kernel refuses: see [errInUse].
func leavingStages(from, to desired.State) (out [][]command) {
	after, _ := stageChains(to)
	for _, h := range familyStages(from) {
		chains := h.render()
		slices.Reverse(chains) // the one that leads to the others goes first
		var flush, remove []command
		for _, c := range chains {
			if _, kept := after[c.name]; !kept {
				flush, remove = append(flush, flushChain(c)), append(remove, deleteChain(c))
			}
		}
		if len(flush) > 0 {
			out = append(out, append(flush, remove...))
		}
	}
	return out
}

// errInUse holds for what the kernel answers where a rule leads to a chain that is to go.
func errInUse(err error) bool { return errors.Is(err, unix.EBUSY) }
