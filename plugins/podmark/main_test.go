package main_test

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"testing"

	"github.com/podmark/podmark/test/testnode"
)

func TestMain(m *testing.M) {
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
	return testnode.Main(m)
}
