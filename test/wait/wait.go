// Package wait waits for what others bring about: a process, the kernel, a goroutine.
//
// Nobody can say how long something takes on a machine that does much else. What hangs differs
// from what is slow in one thing: nothing changes. So the time starts again whenever something
// does, and there is one limit for all, generous, because only a test that fails waits for it.
package wait

import (
	"errors"
	"fmt"
	"testing"
	"time"
)

const (
	// Still is how long nothing may change.
	Still = 3 * time.Minute
	// Most is how long it takes at most, whatever changes.
	Most = 20 * time.Minute
	// least is the time between two looks.
	least = 5 * time.Millisecond
)

// Poll calls check until it returns nil. It gives up when check has said the same for [Still], and
// so has each sign: further things to look at that change while there is progress, such as how
// much a process has written.
func Poll(check func() error, signs ...func() any) error {
	begin := time.Now()
	changed, before := begin, ""
	for {
		look := time.Now()
		err := check()
		if err == nil {
			return nil
		}
		now := err.Error()
		for _, sign := range signs {
			now += fmt.Sprintf("\n%v", sign())
		}
		if now != before {
			changed, before = time.Now(), now
		}
		switch {
		case time.Since(changed) > Still:
			return fmt.Errorf("nothing has changed for %v: %w", Still, err)
		case time.Since(begin) > Most:
			return fmt.Errorf("not within %v: %w", Most, err)
		}
		// A look that costs much leaves as much to those that it waits for.
		time.Sleep(max(least, time.Since(look)))
	}
}

// Until is [Poll] for a test, which ends where it gives up.
func Until(t testing.TB, what string, check func() error, signs ...func() any) {
	t.Helper()
	if err := Poll(check, signs...); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// For is [Until] for a condition that says nothing but whether it holds.
func For(t testing.TB, what string, holds func() bool, signs ...func() any) {
	t.Helper()
	Until(t, what, func() error {
		if holds() {
			return nil
		}
		return errNot
	}, signs...)
}

var errNot = errors.New("it is not so")

// Next is what comes next from a channel. The test ends where nothing does, or nothing can.
func Next[T any](t testing.TB, what string, from <-chan T) T {
	t.Helper()
	var next T
	select {
	case v, more := <-from:
		if !more {
			t.Fatalf("%s: it has ended", what)
		}
		next = v
	case <-time.After(Still):
		t.Fatalf("%s: nothing for %v", what, Still)
	}
	return next
}
