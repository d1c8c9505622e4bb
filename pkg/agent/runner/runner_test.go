package runner_test

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/podmark/podmark/pkg/agent/runner"
)

const ms = time.Millisecond

// The clock of a synctest bubble stands still while anything runs, so these times are exact.
func TestRunner(t *testing.T) {
	for name, tt := range map[string]struct {
		quiet, patience time.Duration
		pause           runner.Pause
		takes           time.Duration   // each run
		notify          []time.Duration // since the start
		urgent          time.Duration   // from when on it is, when it is asked
		runs            []time.Duration // that begin within 100 ms
		notified        []bool
	}{
		"at the latest after Most": {
			pause: runner.Pause{Most: 40 * ms},
			runs:  []time.Duration{0, 40 * ms, 80 * ms}, notified: []bool{false, false, false},
		},
		"Most counts from the end of a run": {
			pause: runner.Pause{Most: 40 * ms}, takes: 10 * ms,
			runs: []time.Duration{0, 50 * ms, 100 * ms}, notified: []bool{false, false, false},
		},
		"after a notification": {
			pause: runner.Pause{Most: 80 * ms}, notify: []time.Duration{7 * ms},
			runs: []time.Duration{0, 7 * ms, 87 * ms}, notified: []bool{false, true, false},
		},
		"not before Least": {
			pause: runner.Pause{Least: 30 * ms, Most: 80 * ms}, notify: []time.Duration{1 * ms, 2 * ms, 3 * ms},
			runs: []time.Duration{0, 30 * ms}, notified: []bool{false, true},
		},
		"Most is no less than Least": {
			pause: runner.Pause{Least: 60 * ms, Most: 10 * ms},
			runs:  []time.Duration{0, 60 * ms}, notified: []bool{false, false},
		},
		"a notification during a run": {
			pause: runner.Pause{Least: 20 * ms, Most: time.Minute}, takes: 10 * ms, notify: []time.Duration{5 * ms},
			runs: []time.Duration{0, 30 * ms}, notified: []bool{false, true},
		},
		"when it is quiet": {
			quiet: 10 * ms, patience: 50 * ms, pause: runner.Pause{Most: time.Minute}, notify: []time.Duration{5 * ms, 10 * ms, 15 * ms},
			runs: []time.Duration{0, 25 * ms}, notified: []bool{false, true},
		},
		"when it is never quiet": {
			quiet: 10 * ms, patience: 25 * ms, pause: runner.Pause{Most: time.Minute},
			notify: []time.Duration{5 * ms, 10 * ms, 15 * ms, 20 * ms, 25 * ms, 29 * ms},
			runs:   []time.Duration{0, 30 * ms}, notified: []bool{false, true},
		},
		"quiet, and not before Least": {
			quiet: 10 * ms, patience: 25 * ms, pause: runner.Pause{Least: 70 * ms, Most: time.Minute}, notify: []time.Duration{5 * ms},
			runs: []time.Duration{0, 70 * ms}, notified: []bool{false, true},
		},
		"at once where it is urgent": {
			pause: runner.Pause{Least: 90 * ms, Most: time.Minute, UrgentEvery: 5 * ms}, notify: []time.Duration{12 * ms},
			runs: []time.Duration{0, 12 * ms}, notified: []bool{false, true},
		},
		"it is not asked often whether it is": {
			pause: runner.Pause{Least: 90 * ms, Most: time.Minute, UrgentEvery: 20 * ms}, notify: []time.Duration{1 * ms},
			runs: []time.Duration{0, 20 * ms}, notified: []bool{false, true},
		},
		"it becomes urgent": {
			pause: runner.Pause{Least: 90 * ms, Most: time.Minute, UrgentEvery: 10 * ms}, notify: []time.Duration{1 * ms, 11 * ms, 33 * ms},
			urgent: 30 * ms,
			runs:   []time.Duration{0, 33 * ms}, notified: []bool{false, true},
		},
		"it is not urgent": {
			pause: runner.Pause{Least: 90 * ms, Most: time.Minute, UrgentEvery: 10 * ms}, notify: []time.Duration{1 * ms, 50 * ms},
			urgent: time.Hour,
			runs:   []time.Duration{0, 90 * ms}, notified: []bool{false, true},
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				ctx, stop := context.WithTimeout(t.Context(), 100*ms+1)
				defer stop()
				r := runner.New()
				r.Quiet, r.Patience = tt.quiet, tt.patience
				for _, at := range tt.notify {
					time.AfterFunc(at, r.Notify)
				}
				if tt.pause.UrgentEvery > 0 {
					tt.pause.Urgent = func() bool { return time.Since(start) >= tt.urgent }
				}
				var runs []time.Duration
				var notified []bool
				r.Run(ctx, func(n bool) runner.Pause {
					runs, notified = append(runs, time.Since(start)), append(notified, n)
					<-time.After(tt.takes)
					return tt.pause
				})
				if !slices.Equal(runs, tt.runs) || !slices.Equal(notified, tt.notified) {
					t.Errorf("runs at %v, notified %v, want %v, %v", runs, notified, tt.runs, tt.notified)
				}
			})
		})
	}
}

func TestRunEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		r := runner.New()
		r.Notify() // before it runs, and more than once
		r.Notify()
		n := 0
		r.Run(ctx, func(bool) runner.Pause {
			if n++; n == 3 {
				stop()
			}
			return runner.Pause{Least: time.Hour}
		})
		if n != 3 {
			t.Errorf("%d runs", n)
		}
	})
}

func TestBackoff(t *testing.T) {
	for name, tt := range map[string]struct {
		burst  int
		at     []int // when it is put back, in seconds
		pauses []int
	}{
		"the first are free":                {5, []int{0, 1, 2, 3, 4}, []int{0, 0, 0, 0, 0}},
		"then pauses double up to the most": {2, []int{0, 1, 2, 5, 10, 20, 40, 75}, []int{0, 0, 2, 4, 8, 16, 30, 30}},
		"a few in each window are free":     {2, []int{0, 1, 61, 62, 122, 123}, []int{0, 0, 0, 0, 0, 0}},
		"after a quiet window as at first":  {2, []int{0, 1, 2, 64, 65, 66}, []int{0, 0, 2, 0, 0, 2}},
		"within a window after a pause":     {2, []int{0, 1, 2, 63}, []int{0, 0, 2, 4}},
		"none is free":                      {0, []int{0, 2, 6, 6 + 8 + 60}, []int{2, 4, 8, 2}},
	} {
		b := runner.Backoff{Burst: tt.burst, Window: time.Minute, Least: 2 * time.Second, Most: 30 * time.Second}
		start := time.Unix(1000, 0)
		for i, at := range tt.at {
			now := start.Add(time.Duration(at) * time.Second)
			if i > 0 && b.Waiting(now) {
				t.Errorf("%s: %d s are within a pause", name, at)
			}
			if got, want := b.Next(now), time.Duration(tt.pauses[i])*time.Second; got != want {
				t.Errorf("%s: a pause of %s after %d s, want %s", name, got, at, want)
			}
			if pause := tt.pauses[i]; pause > 0 && (!b.Waiting(now.Add(time.Duration(pause)*time.Second-1)) || b.Waiting(now.Add(time.Duration(pause)*time.Second))) {
				t.Errorf("%s: a pause of %d s after %d s is not as long", name, pause, at)
			}
		}
	}
}
