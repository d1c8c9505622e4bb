//go:build podmark_fault

package main

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// stepHook kills the process, as 'kill -9' would, after the step whose number is
// in PODMARK_KILL_AFTER. It is built into the plugin of the crash tests only. With
// PODMARK_STEPS set, each step's name is appended to that file.
func stepHook() func(string) {
	killAfter, _ := strconv.Atoi(os.Getenv("PODMARK_KILL_AFTER"))
	log := os.Getenv("PODMARK_STEPS")
	n := 0
	return func(name string) {
		n++
		if f, err := os.OpenFile(log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600); err == nil {
			fmt.Fprintf(f, "%d %s\n", n, name)
			f.Close()
		}
		if n == killAfter {
			unix.Kill(unix.Getpid(), unix.SIGKILL)
			select {}
		}
	}
}
