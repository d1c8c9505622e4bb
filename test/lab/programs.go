package lab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Main is TestMain of a package that tests these of podmark's programs as they are now: what
// lies in bin/ may be of another day.
func Main(m *testing.M, programs ...string) (code int) {
	dir, err := os.MkdirTemp("", "podmark-test-")
	if err == nil {
		defer os.RemoveAll(dir)
		err = Build(dir, "", programs...)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	Programs = dir
	return m.Run()
}

// Build builds programs of podmark's into a folder, with build tags.
func Build(dir, tags string, programs ...string) error {
	for _, program := range programs {
		cmd := exec.Command("go", "build", "-tags", tags, "-o", filepath.Join(dir, program), "../../plugins/"+program)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("building %s with tags %q: %w\n%s", program, tags, err, out)
		}
	}
	return nil
}
