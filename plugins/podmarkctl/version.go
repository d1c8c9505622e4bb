package main

import (
	"io"

	"github.com/spf13/cobra"

	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/version"
)

func newVersion(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Say which podmark this is: version, revision, Go, state format, CNI versions",
		Long: `Version says which podmark this is: its version, the commit it was built from, the
release of Go, the format of the state directory, and the versions of CNI that the plugin of
the same build speaks. 'podmarkctl status' has the version of the podmarkd that runs.`,
		Example: `  podmarkctl version
  podmarkctl version -o json | jq -r .revision`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r := version.Report{
				Program: cmd.Root().Name(), Build: version.Read(), State: stateFormat(), CNI: config.Versions.SupportedVersions(),
			}
			return o.print(cmd.OutOrStdout(), r, func(w io.Writer) error {
				_, err := io.WriteString(w, r.Text())
				return err
			})
		},
	}
}
