package droplog

import "github.com/podmark/podmark/pkg/dataplane/counters"

// Suppressed is how many packets more were counted than logged.
type Suppressed struct {
	Key  counters.Key
	More uint64
	// Packets is how many were counted in all, with those.
	Packets uint64
}

// Tally compares what is logged with what the rules count, and so finds what the
// kernel's limit keeps from the log. The zero value is ready; it is not safe for
// concurrent use.
type Tally struct {
	begun bool
	byKey map[counters.Key]*tally
}

type tally struct {
	// counted is what the rules had counted at the last look, known what of that was
	// logged or reported as suppressed. Messages come up to a moment later than a look
	// sees their packets, so what is missing is compared with the look before.
	counted, known uint64
}

func (t *Tally) of(k counters.Key) *tally {
	if t.byKey == nil {
		t.byKey = map[counters.Key]*tally{}
	}
	if t.byKey[k] == nil {
		t.byKey[k] = &tally{}
	}
	return t.byKey[k]
}

// Logged takes a message into account, and returns how many packets its rule has
// counted, as far as is known.
func (t *Tally) Logged(k counters.Key) (packets uint64) {
	of := t.of(k)
	of.known++
	return max(of.known, of.counted)
}

// Counted takes a look at the counters into account, and returns what was counted
// before the look before and not logged until now. What the first look sees was there
// before.
func (t *Tally) Counted(rules []counters.Rule) []Suppressed {
	now := map[counters.Key]uint64{}
	for _, r := range rules {
		if r.Reason != counters.Allowed {
			now[r.Key] += r.Packets
		}
	}
	var out []Suppressed
	for k, n := range now {
		of := t.of(k)
		switch {
		case !t.begun || n < of.counted: // or the rule was written again
			of.known = n
		case of.counted > of.known:
			out = append(out, Suppressed{k, of.counted - of.known, of.counted})
			of.known = of.counted
		}
		of.counted = n
	}
	for k := range t.byKey {
		if _, there := now[k]; !there {
			delete(t.byKey, k)
		}
	}
	t.begun = true
	return out
}

// Settled holds when another look would find nothing that is suppressed, if no packet
// came meanwhile.
func (t *Tally) Settled() bool {
	for _, of := range t.byKey {
		if of.counted > of.known {
			return false
		}
	}
	return true
}
