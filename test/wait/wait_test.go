package wait_test

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/podmark/podmark/test/wait"
)

// It lasts as long as something changes, and no longer.
func TestPoll(t *testing.T) {
	t.Parallel()
	never := func(time.Duration) error { return errors.New("no") }
	for _, tt := range []struct {
		name  string
		check func(since time.Duration) error
		sign  func(since time.Duration) any
		// takes is how long each look takes.
		takes time.Duration
		ok    bool
		// between which it returns.
		from, to time.Duration
	}{
		{name: "it holds at once", check: func(time.Duration) error { return nil }, ok: true},
		{name: "it hangs", check: never, from: wait.Still, to: wait.Still + time.Second},
		{name: "it hangs, and looks are slow", check: never, takes: 10 * time.Second, from: wait.Still, to: wait.Still + time.Minute},
		{name: "it is slow, and says how far it is", check: func(since time.Duration) error {
			if since > 3*wait.Still {
				return nil
			}
			return fmt.Errorf("%d of 4", since/wait.Still)
		}, ok: true, from: 3 * wait.Still, to: 3*wait.Still + time.Second},
		{name: "it is slow, and something else shows that it goes on", check: func(since time.Duration) error {
			if since > 2*wait.Still {
				return nil
			}
			return errors.New("no")
		}, sign: func(since time.Duration) any { return int(since.Minutes()) }, ok: true, from: 2 * wait.Still, to: 2*wait.Still + time.Second},
		{name: "it begins, and hangs", check: func(since time.Duration) error { return fmt.Errorf("begun: %t", since > time.Minute) }, from: time.Minute + wait.Still, to: time.Minute + wait.Still + time.Second},
		{name: "it changes without an end", check: func(since time.Duration) error { return fmt.Errorf("after %v", since) }, from: wait.Most, to: wait.Most + time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begin := time.Now()
				var signs []func() any
				if tt.sign != nil {
					signs = append(signs, func() any { return tt.sign(time.Since(begin)) })
				}
				err := wait.Poll(func() error {
					time.Sleep(tt.takes)
					return tt.check(time.Since(begin))
				}, signs...)
				if took := time.Since(begin); (err == nil) != tt.ok || took < tt.from || took > tt.to {
					t.Errorf("%v after %v", err, took)
				}
			})
		})
	}
}

// What is looked at gets at least as much time as the looks.
func TestPollLeavesTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		looks, begin := 0, time.Now()
		err := wait.Poll(func() error {
			time.Sleep(time.Second)
			if looks++; looks < 10 {
				return errors.New("no")
			}
			return nil
		})
		if took := time.Since(begin); err != nil || took < 19*time.Second {
			t.Errorf("%v: 10 looks of a second within %v", err, took)
		}
	})
}
