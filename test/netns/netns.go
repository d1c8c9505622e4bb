// Package netns gives a test a network namespace of its own, with the real
// kernel behind it.
package netns

import (
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// Enter moves the test into a new, empty network namespace. The test's thread is
// thrown away with the namespace when the test ends, so nothing has to be undone.
//
// Without root the test is skipped, saying so; with CI=true that is a failure.
func Enter(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		Skip(t, "needs root for a network namespace")
	}
	runtime.LockOSThread() // never unlocked: the runtime ends the thread
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		Skip(t, "needs a network namespace: "+err.Error())
	}
}

// Skip leaves the test out on a developer's machine and fails it in CI.
func Skip(t testing.TB, reason string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatalf("%s (fatal because CI is set)", reason)
	}
	t.Skip(reason)
}
