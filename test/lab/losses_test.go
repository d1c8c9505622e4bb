package lab

import "testing"

// One loss is allowed of whatever number, and one more of each 10,000.
func TestTooManyLosses(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		asked, lost int64
		want        bool
	}{
		{100, 0, false},
		{100, 1, false},
		{100, 2, true},
		{9_999, 2, true},
		{10_000, 1, false},
		{20_000, 2, false},
		{20_000, 3, true},
	} {
		if got := tooMany(tt.asked, tt.lost); got != tt.want {
			t.Errorf("%d of %d: too many is %t", tt.lost, tt.asked, got)
		}
	}
}
