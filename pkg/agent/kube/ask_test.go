package kube

import (
	"testing"
	"time"
)

// The pauses between questions grow to a minute, and are never longer, nor none.
func TestPauseAfter(t *testing.T) {
	for _, tt := range []struct {
		failures int
		random   float64
		want     time.Duration
	}{
		{1, 0, time.Second / 2},
		{1, 1, time.Second},
		{2, 1, 2 * time.Second},
		{3, 0, 2 * time.Second},
		{6, 1, 32 * time.Second},
		{7, 1, time.Minute},
		{7, 0, time.Minute / 2},
		{8, 1, time.Minute},
		{1 << 40, 1, time.Minute},
	} {
		if got := pauseAfter(tt.failures, tt.random); got != tt.want {
			t.Errorf("after %d failures, with %v: %s, want %s", tt.failures, tt.random, got, tt.want)
		}
	}
}
