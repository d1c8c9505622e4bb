package main

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/node"
	"github.com/podmark/podmark/pkg/version"
)

func newVersion() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Say which podmark this is: version, revision, Go, state format, CNI versions",
		Long: `Version says which podmark this is: its version, the commit it was built from, the
release of Go, the format of the state directory, and the versions of CNI that the plugin of
the same build speaks.`,
		Example: `  podmarkd version
  podmarkd version -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			state := node.StateFormat()
			r := version.Report{
				Program: cmd.Root().Name(), Build: version.Read(), State: &state, CNI: config.Versions.SupportedVersions(),
			}
			switch output {
			case "table":
				_, err := io.WriteString(cmd.OutOrStdout(), r.Text())
				return err
			case "json":
				enc := json.NewEncoder(cmd.OutOrStdout())
				enc.SetIndent("", "  ")
				return enc.Encode(r)
			}
			return fmt.Errorf("--output %q: want table or json", output)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	choices(cmd, "output", "table", "json")
	return cmd
}
