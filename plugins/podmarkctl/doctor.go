//go:build linux

package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/podmark/podmark/pkg/doctor"
	"github.com/podmark/podmark/pkg/foreign"
	"github.com/podmark/podmark/pkg/runtimes"
)

func newDoctor(o *options) *cobra.Command {
	var confDir, binDir, endpoint, confName string
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Find what is wrong on this node, why it matters and what fixes it",
		Long: `Doctor looks at what podmark needs of this node and what others do to it: the
conflist, kernel parameters, the rules and marks of others, podmark's own rules and
state, and podmarkd. For each thing that is wrong it says what, why it matters, and
the command that fixes it. It changes nothing.

The runtime's directories it finds as podmarkd does: it asks the runtime, else it takes what
a known distribution has on this node. Where the runtime looks elsewhere than the flags
say, or several places are possible, that is something wrong.

What it cannot look at, it says too. Of what writes marks it reads rules, and knows the
programs that are known for it by their chains, tables, links and plugins. It does not
look at
` + "  - " + strings.Join(foreign.NotLookedAt(), "\n  - ") + `

It must be root.

Exit status: 0 nothing is wrong, 1 something is, or could not be looked at, 2 wrong
usage or failure.`,
		Example: `  podmarkctl doctor
  podmarkctl doctor -o json | jq -r '.[].fix'
  podmarkctl doctor --runtime-endpoint /run/k3s/containerd/containerd.sock`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if id := os.Geteuid(); id != 0 {
				return fmt.Errorf("this is not root, but user %d: doctor reads the kernel's rules and the state directory, which root alone may; run 'sudo podmarkctl doctor'", id)
			}
			given, err := runtimes.GivenBy(confDir, binDir)
			if err != nil {
				return err
			}
			facts := doctor.Gather(cmd.Context(),
				doctor.Options{Node: o.node(), Given: given, Endpoint: endpoint, ConfName: confName})
			found := doctor.Examine(facts)
			err = o.print(cmd.OutOrStdout(), found, func(w io.Writer) error { return doctorTable(w, facts, found) })
			if err == nil && len(found) > 0 {
				err = errFound
			}
			return err
		},
	}
	cmd.Flags().StringVar(&confDir, "cni-conf-dir", runtimes.Auto, "the runtime's directory of network configurations; auto is what the runtime says, else what a known distribution has")
	cmd.Flags().StringVar(&confName, "cni-conf-name", "", "the file of the conflist that has podmark (default the first by name; behind Multus, that of its default network)")
	cmd.Flags().StringVar(&binDir, "cni-bin-dir", runtimes.Auto, "the runtime's directory of plugins; auto as above")
	directories(cmd, "cni-conf-dir", "cni-bin-dir")
	cmd.Flags().StringVar(&endpoint, "runtime-endpoint", runtimes.Auto, "socket of the runtime that is asked for its directories; auto is those of containerd, CRI-O, k3s and MicroK8s, empty is none")
	return cmd
}

func doctorTable(w io.Writer, facts doctor.Facts, found []doctor.Finding) error {
	oneLine := func(s string) string { return strings.Join(strings.Fields(s), " ") }
	for _, f := range found {
		// A command is printed as it is: it may hold a file.
		fmt.Fprintf(w, "%s: %s\n  what  %s\n  why   %s\n  fix  %s\n\n", f.Severity, f.Check, oneLine(f.What), oneLine(f.Why),
			f.Fix)
	}
	if facts.PlaceErr == nil {
		fmt.Fprintf(w, "the runtime has %s\n", facts.Place)
	}
	_, err := fmt.Fprintf(w, "checks: %d, findings: %d\nnot looked at, which may write marks: %s\n",
		len(doctor.Checks()), len(found), strings.Join(foreign.NotLookedAt(), "; "))
	return err
}
