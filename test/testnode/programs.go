// Package testnode is what the tests of podmark's programs have in common: the programs, built
// from the tree as it is, the backends, and a node with pods to run the programs on.
package testnode

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/podmark/podmark/test/bpffs"
	"github.com/podmark/podmark/test/needs"
)

// built are the directories of programs, by build tag, below root.
var built struct {
	sync.Mutex
	root string
	dirs map[string]string
}

// Main is TestMain of a package that runs podmark's programs. It returns the exit status.
func Main(m *testing.M) int {
	if !needs.Unit() {
		bpffs.Main()
	}
	// As in /run, where the state directory is, syncing a file costs nothing there.
	if info, err := os.Stat("/dev/shm"); err == nil && info.IsDir() {
		os.Setenv("TMPDIR", "/dev/shm")
	}
	os.Setenv("PODMARKD_RUNTIME_ENDPOINT", "") // no runtime of this machine is asked
	defer func() {
		if built.root != "" {
			os.RemoveAll(built.root)
		}
	}()
	return m.Run()
}

// Programs is the directory with podmark, podmarkctl and podmarkd, which are built when the
// first test asks: what is in bin/ may be older than the tree. Who runs programs is no unit test.
func Programs(t testing.TB) string {
	t.Helper()
	return once(t, "", "podmark", "podmarkctl", "podmarkd")
}

// Program is one of them, by its path.
func Program(t testing.TB, name string) string {
	t.Helper()
	return filepath.Join(Programs(t), name)
}

// Faulty is the directory with a podmark and a podmarkd that can be told to end after a step.
func Faulty(t testing.TB) string { t.Helper(); return once(t, "podmark_fault", "podmark", "podmarkd") }

// once is the directory of the programs with a build tag.
func once(t testing.TB, tag string, programs ...string) string {
	t.Helper()
	needs.All(t, needs.Programs)
	built.Lock()
	defer built.Unlock()
	if dir, ok := built.dirs[tag]; ok {
		return dir
	}
	if built.root == "" {
		root, err := os.MkdirTemp("", "podmark-test-")
		if err != nil {
			t.Fatal(err)
		}
		built.root, built.dirs = root, map[string]string{}
	}
	dir := filepath.Join(built.root, "programs-"+tag)
	if err := Build(dir, tag, programs...); err != nil {
		t.Fatal(err)
	}
	built.dirs[tag] = dir
	return dir
}

// Build builds programs of podmark's with build tags into a directory, which it makes if need be.
func Build(dir, tags string, programs ...string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	args := []string{"build", "-tags", tags, "-o", dir + "/"}
	for _, p := range programs {
		args = append(args, "github.com/podmark/podmark/plugins/"+p)
	}
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building %q with tags %q: %w\n%s", programs, tags, err, out)
	}
	return nil
}
