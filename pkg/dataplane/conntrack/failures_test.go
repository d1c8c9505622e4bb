package conntrack

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// Whoever takes EBUSY for a flow that will die must not overlook what else went wrong.
func TestFailures(t *testing.T) {
	busy, other := error(unix.EBUSY), error(unix.EPERM)
	for _, tt := range []struct {
		errs  []error
		want  error
		count int
	}{
		{nil, nil, 0},
		{[]error{nil, nil}, nil, 0},
		{[]error{nil, busy, nil, busy}, busy, 2},
		{[]error{busy, other, busy}, other, 3},
		{[]error{other, busy}, other, 2},
	} {
		var f failures
		for _, err := range tt.errs {
			f.add(err)
		}
		if !errors.Is(f.err, tt.want) || f.count != tt.count {
			t.Errorf("%v: %d, %v", tt.errs, f.count, f.err)
		}
	}
}
