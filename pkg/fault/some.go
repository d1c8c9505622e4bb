//go:build podmark_fault

package fault

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// steps counts those of the process.
var steps atomic.Int32

// Steps is told of each step by name. It kills the process, as 'kill -9' would, after the step
// whose number is in PODMARK_KILL_AFTER, or stops it, until SIGCONT, after that in
// PODMARK_STOP_AFTER. With PODMARK_STEPS set, each step's name is appended to that file.
func Steps() func(name string) {
	killAfter, _ := strconv.Atoi(os.Getenv("PODMARK_KILL_AFTER"))
	stopAfter, _ := strconv.Atoi(os.Getenv("PODMARK_STOP_AFTER"))
	log := os.Getenv("PODMARK_STEPS")
	return func(name string) {
		n := int(steps.Add(1))
		if f, err := os.OpenFile(log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600); err == nil {
			fmt.Fprintf(f, "%d %s\n", n, name)
			f.Close()
		}
		if n == stopAfter {
			// To this very thread: it goes no further, whatever the others do.
			runtime.LockOSThread()
			unix.Tgkill(unix.Getpid(), unix.Gettid(), unix.SIGSTOP)
			runtime.UnlockOSThread()
		}
		if n == killAfter {
			unix.Kill(unix.Getpid(), unix.SIGKILL)
			select {}
		}
	}
}

// Exchange is how to exchange two files; where PODMARK_NO_EXCHANGE is set, that of a file system
// that cannot.
func Exchange(exchange func(a, b string) error) func(a, b string) error {
	if os.Getenv("PODMARK_NO_EXCHANGE") != "" {
		return func(string, string) error { return unix.EINVAL }
	}
	return exchange
}
