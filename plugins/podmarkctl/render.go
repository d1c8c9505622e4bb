package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/podmark/podmark/pkg/apply/iptables"
	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/desired"
)

func newRender(o *options) *cobra.Command {
	var files []string
	var backend string
	cmd := &cobra.Command{
		Use:   "render",
		Short: "Print what would be written to the kernel, changing nothing",
		Long: `Render prints, per family, the sets in the form of 'ipset restore' and the rules
in the form of 'iptables-restore' for the endpoints of this node and its policy,
or with -f for a policy that is not applied yet.`,
		Example: `  podmarkctl render
  podmarkctl render -f policies/ | less`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if b := config.Backend(backend); b != config.BackendAuto && b != config.BackendIPTables {
				return fmt.Errorf("--backend %q: want %s or %s", backend, config.BackendAuto, config.BackendIPTables)
			}
			var policies *desired.Policies
			if len(files) > 0 {
				p, err := readPolicies(files, cmd.InOrStdin())
				if err != nil {
					return err
				}
				policies = &p
			}
			settings, err := defaults()
			if err != nil {
				return err
			}
			state, err := o.node().Preview(settings, policies)
			if err != nil {
				return err
			}
			rendered := iptables.Render(state)
			return o.print(cmd.OutOrStdout(), rendered, func(w io.Writer) error {
				for _, r := range rendered {
					if _, err := fmt.Fprintf(w, "# %s: ipset restore\n%s# %s: iptables-restore --noflush\n%s", r.Family, r.Sets, r.Family, r.Rules); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
	cmd.Flags().StringArrayVarP(&files, "filename", "f", nil, "a policy to render instead of the node's: a manifest, a folder, or - for stdin")
	cmd.Flags().StringVar(&backend, "backend", string(config.BackendAuto), "auto or iptables")
	return cmd
}
