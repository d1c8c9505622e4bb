package cluster_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/podmark/podmark/test/lab"
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

// run builds the programs that are tested: what lies in bin/ may be of another day.
func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "podmark-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	for _, program := range []string{"podmark", "podmarkd"} {
		cmd := exec.Command("go", "build", "-o", filepath.Join(dir, program), "../../plugins/"+program)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "building %s: %v\n%s", program, err, out)
			return 1
		}
	}
	lab.Programs = dir
	return m.Run()
}
