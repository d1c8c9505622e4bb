package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/podmark/podmark/pkg/policy"
)

// checked is what 'check -o json' shows.
type checked struct {
	Policies   int `json:"policies"`
	Namespaces int `json:"namespaces"`
}

func newCheck(o *options) *cobra.Command {
	from := manifests{options: policy.Options{Whole: true}}
	cmd := &cobra.Command{
		Use:   "check -f FILE|DIR|- | -k DIR",
		Short: "Say whether apply would take manifests, without a node",
		Long: `Check reads NetworkPolicy manifests, and defaults and validates them, as apply does. It
needs no node and no root, and runs on other systems than Linux too: where policies are
written, and where they are reviewed.

Exit status: 0 apply would take them, 2 it would not, or wrong usage.`,
		Example: `  podmarkctl check -f policies/
  kustomize build policies/ | podmarkctl check -f -`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !from.named() {
				return errors.New("check wants -f FILE|DIR|- or -k DIR")
			}
			policies, err := from.read(cmd)
			if err != nil {
				return err
			}
			c := checked{Policies: len(policies.Policies), Namespaces: len(policies.Namespaces)}
			return o.print(cmd.OutOrStdout(), c, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "%d policies and %d namespaces are well\n", c.Policies, c.Namespaces)
				return err
			})
		},
	}
	from.addFlags(cmd, "filename", "f", "a manifest, a directory of them (*.yaml, *.yml, *.json), or - for stdin; may be repeated")
	return cmd
}
