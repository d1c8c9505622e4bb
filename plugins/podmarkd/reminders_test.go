package main

import (
	"testing"
	"time"
)

// An event is sent for what is new, for what says something else, and again for what
// stays.
func TestReminders(t *testing.T) {
	r := reminders{}
	start := time.Unix(0, 0)
	for i, tt := range []struct {
		after time.Duration
		w     warning
		want  bool
	}{
		{0, warning{"a", "40000"}, true},
		{time.Second, warning{"a", "40000"}, false},
		{2 * time.Second, warning{"b", "40000"}, true},
		{3 * time.Second, warning{"a", "40000, 40001"}, true},
		{4 * time.Second, warning{"a", "40000, 40001"}, false},
		{5 * time.Second, warning{"a", ""}, false},
		{6 * time.Second, warning{"a", "40000, 40001"}, true},
		{eventAgain, warning{"a", "40000, 40001"}, false},
		{eventAgain + 6*time.Second, warning{"a", "40000, 40001"}, true},
		{eventAgain + 7*time.Second, warning{"a", "40000, 40001"}, false},
	} {
		if got := r.due(tt.w, start.Add(tt.after)); got != tt.want {
			t.Errorf("step %d, %+v: due is %v", i, tt, got)
		}
	}
}
