package main_test

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/podmark/podmark/test/bpffs"
)

// programs is a folder with the programs under test, built once: podmark and
// podmarkctl, and below fault/ a podmark that can be told to die after a step.
var programs string

func TestMain(m *testing.M) {
	bpffs.Main()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	// Most tests wait, for a packet that must not come or for the kernel, so more run
	// at once than there are processors.
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == fmt.Sprint(runtime.GOMAXPROCS(0)) {
		if err := flag.Set(f.Name, fmt.Sprint(2*runtime.GOMAXPROCS(0))); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	// As in /run, where the state folder is, syncing a file costs nothing there.
	if info, err := os.Stat("/dev/shm"); err == nil && info.IsDir() {
		os.Setenv("TMPDIR", "/dev/shm")
	}
	dir, err := os.MkdirTemp("", "podmark-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	for _, args := range [][]string{
		{"-o", filepath.Join(dir, "podmark"), "."},
		{"-o", filepath.Join(dir, "fault", "podmark"), "-tags", "podmark_fault", "."},
		{"-o", filepath.Join(dir, "podmarkctl"), "../podmarkctl"},
		{"-o", filepath.Join(dir, "podmarkd"), "../podmarkd"},
		{"-o", filepath.Join(dir, "fault", "podmarkd"), "-tags", "podmark_fault", "../podmarkd"},
	} {
		cmd := exec.Command("go", append([]string{"build"}, args...)...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "building %v: %v\n%s", args, err, out)
			return 1
		}
	}
	programs = dir
	return m.Run()
}
