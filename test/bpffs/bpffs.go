// Package bpffs gives the tests of a package a bpffs of their own, where a node has its one.
//
//	func TestMain(m *testing.M) { bpffs.Main(); os.Exit(m.Run()) }
package bpffs

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/dataplane/checksum"
)

const variable = "PODMARK_BPFFS"

// Main goes on in a mount namespace of the process's own, where a new bpffs is at
// [checksum.Mount]: what tests leave there, and the network namespaces that it keeps, ends with the
// process. Where that cannot be had, everything stays as it is. It is what TestMain does first.
func Main() {
	if os.Getenv(variable) != "" || os.Geteuid() != 0 {
		return
	}
	// Never unlocked: a mount namespace is a thread's until it executes.
	runtime.LockOSThread()
	if err := own(); err != nil {
		fmt.Fprintf(os.Stderr, "tests have no bpffs of their own: %v\n", err)
	}
}

func own() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("making a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("leaving the machine's mounts: %w", err)
	}
	if err := unix.Mount("bpffs", checksum.Mount, "bpf", 0, "mode=700"); err != nil {
		return fmt.Errorf("mounting a bpffs: %w", err)
	}
	return unix.Exec("/proc/self/exe", os.Args, append(os.Environ(), variable+"=1"))
}
