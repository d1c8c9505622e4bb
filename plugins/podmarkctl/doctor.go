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
)

func newDoctor(o *options) *cobra.Command {
	var confDir, binDir, confName string
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Find what is wrong on this node, why it matters and what mends it",
		Long: `Doctor looks at what podmark needs of this node and what others do to it: the
conflist, kernel parameters, the rules and marks of others, podmark's own rules and
state, and podmarkd. For each thing that is wrong it says what, why it matters, and
the command that mends it. It changes nothing.

What it cannot look at, it says too. Of what writes marks it reads rules, and knows the
programs that are known for it by their chains, tables, links and plugins. It does not
look at
` + "  - " + strings.Join(foreign.NotLookedAt(), "\n  - ") + `

It must be root.

Exit status: 0 nothing is wrong, 1 something is, or could not be looked at, 2 wrong
usage or failure.`,
		Example: `  podmarkctl doctor
  podmarkctl doctor -o json | jq -r '.[].mend'
  podmarkctl doctor --cni-conf-dir /var/lib/rancher/k3s/agent/etc/cni/net.d`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if id := os.Geteuid(); id != 0 {
				return fmt.Errorf("this is not root, but user %d: doctor reads the kernel's rules and the state folder, which root alone may; run 'sudo podmarkctl doctor'", id)
			}
			facts := doctor.Gather(cmd.Context(), doctor.Options{Node: o.node(), ConfDir: confDir, BinDir: binDir, ConfName: confName})
			found := doctor.Examine(facts)
			err := o.print(cmd.OutOrStdout(), found, func(w io.Writer) error { return doctorTable(w, found) })
			if err == nil && len(found) > 0 {
				err = errFound
			}
			return err
		},
	}
	cmd.Flags().StringVar(&confDir, "cni-conf-dir", doctor.DefaultConfDir, "the runtime's folder of network configurations")
	cmd.Flags().StringVar(&confName, "cni-conf-name", "", "the file of the conflist that has podmark (default the first by name; behind Multus, that of its default network)")
	cmd.Flags().StringVar(&binDir, "cni-bin-dir", doctor.DefaultBinDir, "the runtime's folder of plugins")
	return cmd
}

func doctorTable(w io.Writer, found []doctor.Finding) error {
	oneLine := func(s string) string { return strings.Join(strings.Fields(s), " ") }
	for _, f := range found {
		// A command is printed as it is: it may hold a file.
		fmt.Fprintf(w, "%s: %s\n  what  %s\n  why   %s\n  mend  %s\n\n", f.Severity, f.Check, oneLine(f.What), oneLine(f.Why), f.Mend)
	}
	_, err := fmt.Fprintf(w, "checks: %d, findings: %d\nnot looked at, which may write marks: %s\n",
		len(doctor.Checks()), len(found), strings.Join(foreign.NotLookedAt(), "; "))
	return err
}
