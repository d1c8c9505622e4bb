package lab

import (
	"fmt"
	"os"
	"testing"

	"github.com/podmark/podmark/test/testnode"
)

// Main is TestMain of a package that tests these of podmark's programs as they are now: what
// lies in bin/ may be of another day.
func Main(m *testing.M, programs ...string) (code int) {
	dir, err := os.MkdirTemp("", "podmark-test-")
	if err == nil {
		defer os.RemoveAll(dir)
		err = testnode.Build(dir, "", programs...)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	Programs = dir
	return m.Run()
}
