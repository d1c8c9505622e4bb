// Command podmarkd keeps a node that podmark runs on current: it notices what
// others change, and puts right what is not as it should be. Pods start without it.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/fault"
	"github.com/podmark/podmark/pkg/node"
	"github.com/podmark/podmark/pkg/state"
	"github.com/podmark/podmark/pkg/version"
)

// exitFailure is the status for wrong usage and for what could not be done.
const exitFailure = 2

// memoryShare is, in percent, how much of GOMEMLIMIT is for what the Go runtime counts. The
// manifests set GOMEMLIMIT to the container's limit, which the program itself and the kernel's sets
// count towards as well.
const memoryShare = 75

func main() {
	collect()
	if limit := debug.SetMemoryLimit(-1); limit < math.MaxInt64 {
		debug.SetMemoryLimit(limit / 100 * memoryShare)
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintf(stderr, "podmarkd: %v\n", err)
		return exitFailure
	}
	return 0
}

// options are the flags of every command.
type options struct {
	stateDir    string
	lockTimeout time.Duration
}

func newRoot() *cobra.Command {
	o := &options{}
	root := newDaemon(o)
	root.Version, root.SilenceUsage, root.SilenceErrors = version.Read().Version, true, true
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		err := errors.Join(unknownVariables(root, os.Environ()), fromEnvironment(cmd.Flags()))
		if err == nil {
			err = negative(cmd.Flags())
		}
		if err != nil {
			return err
		}
		o.stateDir, err = filepath.Abs(o.stateDir)
		return err
	}
	flags := root.PersistentFlags()
	flags.StringVar(&o.stateDir, "state-dir", config.DefaultStateDir, "the plugin's stateDir")
	flags.DurationVar(&o.lockTimeout, "lock-timeout", config.DefaultLockTimeout,
		"how long to wait for other podmark processes")
	root.AddCommand(newInstall(o), newUninstall(o), newVersion())
	directories(root, "state-dir")
	return root
}

func (o *options) node() node.Node {
	return node.Node{Store: state.At(o.stateDir), LockTimeout: o.lockTimeout, Step: fault.Steps()}
}
