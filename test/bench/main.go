// Command bench measures what podmark costs, beside what else does a part of the
// same on a node. Each subcommand is a section of the report:
//
//	bench add     an ADD and a DEL, as whole processes
//	bench packet  packets of new and of steady flows
//	bench stream  a TCP stream that is established
//	bench change  a change of policy, while packets are sent
//	bench live    flows that are judged again after a change
//	bench daemon  podmarkd, left alone, with events, and when it repairs
//
// Candidates are measured in turn, in one loop, so that noise hits all alike, and
// what is printed are medians. scripts/bench.sh runs each section in namespaces
// of its own: it changes the network namespace that it is started in.
package main

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"time"
)

// options are what a section is run with. A size or number of rounds of zero is
// the section's own.
type options struct {
	bin, dir string
	sizes    []int
	rounds   int
}

// roundsOr is how often to measure.
func (o options) roundsOr(byDefault int) int {
	if o.rounds > 0 {
		return o.rounds
	}
	return byDefault
}

// sizesOr are how many endpoints there are.
func (o options) sizesOr(byDefault ...int) []int {
	if len(o.sizes) > 0 {
		return o.sizes
	}
	return byDefault
}

var sections = map[string]func(options) error{
	"add":    benchAdd,
	"packet": benchPacket,
	"stream": benchStream,
	"change": benchChange,
	"live":   benchLive,
	"daemon": benchDaemon,
}

func main() {
	// Only this thread moves between namespaces.
	runtime.LockOSThread()
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 || sections[args[0]] == nil {
		return fmt.Errorf("usage: bench add|packet|stream|change|live|daemon [-bin DIR] [-dir DIR] [-sizes N,N] [-rounds N]")
	}
	var o options
	flags := flag.NewFlagSet(args[0], flag.ExitOnError)
	flags.StringVar(&o.bin, "bin", "bin", "where podmark, podmarkctl, podmarkd, noop and cni are")
	flags.StringVar(&o.dir, "dir", "", "an empty directory on a tmpfs, for state")
	sizes := flags.String("sizes", "", "how many endpoints there are, rising")
	flags.IntVar(&o.rounds, "rounds", 0, "how often each candidate is measured")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	for s := range strings.SplitSeq(*sizes, ",") {
		if s == "" {
			continue
		}
		n, err := strconv.Atoi(s)
		if err != nil {
			return fmt.Errorf("reading -sizes: %w", err)
		}
		o.sizes = append(o.sizes, n)
	}
	// A collection in the middle of a round would be counted as the candidate's.
	debug.SetGCPercent(400)
	return sections[args[0]](o)
}

var started = time.Now()

// progress tells whoever waits what is being done; the report is on stdout.
func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "bench: %4.0f s: %s\n", time.Since(started).Seconds(), fmt.Sprintf(format, args...))
}
