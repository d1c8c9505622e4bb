// Command podmarkctl shows and changes what podmark enforces on this node.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/version"
)

// exitFailure is the status for wrong usage and for a command that could not do
// its work, exitFound for one that worked and found something wrong.
const (
	exitFound   = 1
	exitFailure = 2
)

func main() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }

func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.Execute()
	if errors.Is(err, errFound) {
		return exitFound
	}
	if err != nil {
		fmt.Fprintf(stderr, "podmarkctl: %v\n", err)
		return exitFailure
	}
	return 0
}

// errFound ends a command that worked, and found something wrong and said so.
var errFound = errors.New("something is wrong on this node")

// options are the flags of every command.
type options struct {
	stateDir    string
	lockTimeout time.Duration
	output      string
}

func newRoot() *cobra.Command {
	o := &options{}
	root := &cobra.Command{
		Use:   "podmarkctl",
		Short: "Show and change what podmark enforces on this node",
		Long: `podmarkctl shows and changes what podmark enforces on this node. Away from a node it
checks manifests.

Exit status: 0 ok, 1 doctor found something wrong or explain says denied, 2 wrong
usage or failure.`,
		Version:       version.Read().Version,
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if o.output != "table" && o.output != "json" {
				return fmt.Errorf("--output %q: want table or json", o.output)
			}
			if o.lockTimeout < 0 {
				return fmt.Errorf("--lock-timeout %s: want 0 or more", o.lockTimeout)
			}
			var err error
			if o.stateDir, err = filepath.Abs(o.stateDir); err != nil {
				return err
			}
			return nil
		},
	}
	flags := root.PersistentFlags()
	flags.StringVar(&o.stateDir, "state-dir", config.DefaultStateDir, "the plugin's stateDir")
	flags.DurationVar(&o.lockTimeout, "lock-timeout", config.DefaultLockTimeout,
		"how long to wait for other podmark processes")
	flags.StringVarP(&o.output, "output", "o", "table", "table or json")
	root.AddCommand(newCheck(o), newVersion(o))
	for _, verb := range ofNodes {
		root.AddCommand(onNode(o, verb))
	}
	choices(root, "output", "table", "json")
	directories(root, "state-dir")
	return root
}

// ofNodes are the verbs that show or change a node. They are for Linux; the rest runs anywhere.
var ofNodes = []string{"apply", "doctor", "drops", "explain", "gc", "list", "render", "status", "uninstall"}

// print writes v as JSON, or calls table.
func (o *options) print(w io.Writer, v any, table func(io.Writer) error) error {
	if o.output == "json" {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(v)
	}
	return table(w)
}
