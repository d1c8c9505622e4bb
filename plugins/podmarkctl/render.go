//go:build linux

package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/dataplane"
)

// rendered is what 'render -o json' shows.
type rendered struct {
	Backend config.Backend `json:"backend"`
	dataplane.Rendered
}

func newRender(o *options) *cobra.Command {
	var from manifests
	var backend string
	cmd := &cobra.Command{
		Use:   "render",
		Short: "Print what would be written to the kernel, changing nothing",
		Long: `Render prints what would be written for the endpoints of this node and its
policy, or with -f for a policy that is not applied yet: for nftables in the form
of nft, for iptables, per family, the sets in the form of 'ipset restore' and the
rules in the form of 'iptables-restore', behind the table of nft that guards the ports of
bridges beside it. Auto is the backend that enforces on this
node, or the one that would. Pods of other nodes, which podmarkd puts into the sets of
peers, are not among them.`,
		Example: `  podmarkctl render
  podmarkctl render --backend iptables
  podmarkctl render -f policies/ | less`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			kind, err := o.renderer(config.Backend(backend))
			if err != nil {
				return err
			}
			policies, err := from.read(cmd)
			if err != nil {
				return err
			}
			settings := defaults()
			state, err := o.node().Preview(settings, policies)
			if err != nil {
				return err
			}
			r := rendered{kind.Name.Backend(), kind.Render(state)}
			return o.print(cmd.OutOrStdout(), r, r.print)
		},
	}
	from.addFlags(cmd, "filename", "f", "a policy to render instead of the node's: a manifest, a directory, or - for stdin")
	cmd.Flags().StringVar(&backend, "backend", string(config.BackendAuto), alternatives(config.Backends))
	choices(cmd, "backend", names(config.Backends)...)
	return cmd
}

// renderer is what renders a backend. Auto is the one that enforces, or that would.
func (o *options) renderer(wanted config.Backend) (dataplane.Kind, error) {
	name, err := config.Kind(""), error(nil)
	if wanted == config.BackendAuto {
		name, err = o.node().Kind()
		wanted = name.Backend()
	}
	kind, ok := dataplane.OfBackend(wanted)
	if err == nil && !ok {
		err = fmt.Errorf("--backend %q: want %s", wanted, alternatives(config.Backends))
	}
	return kind, err
}

func (r rendered) print(w io.Writer) error {
	if _, err := io.WriteString(w, r.Ruleset); err != nil {
		return err
	}
	for _, f := range r.Families {
		if _, err := fmt.Fprintf(w, "# %s: ipset restore\n%s# %s: iptables-restore --noflush\n%s", f.Family, f.Sets, f.Family, f.Rules); err != nil {
			return err
		}
	}
	return nil
}
