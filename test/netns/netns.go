// Package netns gives a test a network namespace of its own, with the real
// kernel behind it.
package netns

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/dataplane/checksum"
	"github.com/podmark/podmark/test/needs"
)

// Enter moves the test into a new, empty network namespace. The test's thread is
// thrown away with the namespace when the test ends, so nothing has to be undone.
// A subtest has a thread of its own and must enter for itself.
func Enter(t testing.TB) {
	t.Helper()
	needs.All(t, needs.Root, needs.Netns)
	runtime.LockOSThread() // never unlocked: the runtime ends the thread
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	// What podmark leaves in the bpffs would keep the namespace.
	t.Cleanup(func() {
		if err := checksum.Remove(); err != nil {
			t.Error(err)
		}
	})
}
