package lab

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"
)

// Row is a request with what should become of it.
type Row struct {
	Name     string
	From     *NS
	Protocol Protocol
	To       netip.AddrPort
	Source   netip.AddrPort // see [Request]
	Want     Outcome
	// On is what should become of it on the backends that differ from the others.
	On Outcomes
	// By is who must have answered, where that matters.
	By string
	// Seen is the client address the server must have seen, where that matters.
	Seen netip.Addr
}

// Outcomes are what a request comes to on some of the backends.
type Outcomes map[Backend]Outcome

// want is what should become of the request on the backend of its node.
func (r Row) want() Outcome {
	if o, differs := r.On[r.From.site.backend]; differs {
		return o
	}
	return r.Want
}

// Flow is the name without what [Cross] added to it.
func (r Row) Flow() string {
	return strings.TrimSuffix(r.Name, fmt.Sprintf(" %v %v", r.Protocol, familyOf(r.To.Addr())))
}

// Table sends the requests of all rows at once, under one state of the node, and
// fails the test with a list of all rows if one of them went wrong.
func Table(t testing.TB, rows []Row) {
	t.Helper()
	results := send(rows, func(r Row) time.Duration {
		// A refusal is an answer too.
		if r.want() == OK || r.want() == Refused {
			return firstLimit
		}
		return SilenceLimit
	})
	// Where answers take as long as anything waits for them, one that is not there is late, and not lost.
	slow := slowest(rows, results)
	late, patience := slow > firstLimit/3, max(AnswerLimit, 4*slow)
	// What should be answered is asked once more, and counts as a loss: see [Losses].
	lost := func(i int) bool { return rows[i].want() == OK && results[i].Outcome != OK }
	for i, r := range rows {
		if r.want() == OK {
			losses.asked.Add(1)
		}
		if lost(i) {
			question := fmt.Sprintf("LOST, or late: %s %s -> %v/%v: %v\n%s", r.Name, r.From.Name, r.To, r.Protocol, results[i], r.flow())
			t.Log(t.Name(), question)
			if !late {
				lose(t.Name() + " " + question)
			}
		}
	}
	ask(t, rows, results, lost, patience)
	// A request that should arrive, and whose answer should not, may still have been on its way.
	ask(t, rows, results, func(i int) bool { return rows[i].want() == OneWay && results[i].Outcome == Blocked }, patience)
	// Silence proves something only if answers come faster. On a busy machine
	// they may not: then listen longer.
	if limit := 3 * slowest(rows, results); limit > SilenceLimit {
		ask(t, rows, results, func(i int) bool { return rows[i].want() == Blocked && results[i].Outcome == Blocked }, min(limit, patience))
	}
	report(t, rows, results)
}

// ask sends the requests of the rows that which picks again, and puts their
// results in place of the former ones.
func ask(t testing.TB, rows []Row, results []Result, which func(int) bool, limit time.Duration) {
	t.Helper()
	var again []Row
	var at []int
	for i, row := range rows {
		if which(i) {
			again, at = append(again, row), append(at, i)
		}
	}
	for i, r := range send(again, func(Row) time.Duration { return limit }) {
		results[at[i]] = r
	}
}

// send asks for all rows at once.
func send(rows []Row, limit func(Row) time.Duration) []Result {
	results := make([]Result, len(rows))
	var all sync.WaitGroup
	for i, r := range rows {
		all.Go(func() {
			results[i] = r.From.Send(Request{Protocol: r.Protocol, To: r.To, Source: r.Source, Limit: limit(r)})
		})
	}
	all.Wait()
	return results
}

// slowest is the longest time that an answer took.
func slowest(rows []Row, results []Result) time.Duration {
	var longest time.Duration
	for i := range rows {
		if results[i].Outcome == OK {
			longest = max(longest, results[i].Took)
		}
	}
	return longest
}

// report prints a line a row: what failed, with what was expected, among what
// held.
func report(t testing.TB, rows []Row, results []Result) {
	t.Helper()
	var out strings.Builder
	failed := 0
	for i, r := range rows {
		sign := " "
		wrong := r.mismatch(results[i])
		if wrong != "" {
			failed++
			sign, wrong = "!", "; want "+wrong
		}
		fmt.Fprintf(&out, "%s %-32s %s -> %v/%v: %v%s\n", sign, r.Name, r.From.Name, r.To, r.Protocol, results[i], wrong)
	}
	if failed > 0 {
		t.Errorf("%d of %d requests went wrong:\n%s", failed, len(rows), out.String())
	} else {
		t.Logf("all %d requests went as expected:\n%s", len(rows), out.String())
	}
}

// mismatch says what was expected of a result that is not that.
func (r Row) mismatch(got Result) string {
	switch {
	case got.Outcome != r.want():
		return r.want().String()
	case got.Outcome != OK:
	case r.By != "" && got.By != r.By:
		return "answered by " + r.By
	case r.Seen.IsValid() && got.Seen.Addr() != r.Seen:
		return "seen as " + r.Seen.String()
	}
	return ""
}

// Cross makes a row for each protocol and family of a request that differs in
// nothing else; to returns the address to ask.
func Cross(row Row, to func(Protocol, Family) netip.AddrPort) []Row {
	var rows []Row
	for _, p := range Protocols {
		for _, f := range Families {
			r := row
			r.Name = fmt.Sprintf("%s %v %v", row.Name, p, f)
			r.Protocol, r.To = p, to(p, f)
			rows = append(rows, r)
		}
	}
	return rows
}
