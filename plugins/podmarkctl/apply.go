//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/node"
	"github.com/podmark/podmark/pkg/policy"
)

// applied is what 'apply -o json' shows.
type applied struct {
	node.Applied
	Coverage desired.Coverage `json:"coverage"`
}

func newApply(o *options) *cobra.Command {
	from := manifests{options: policy.Options{Whole: true}}
	var del bool
	cmd := &cobra.Command{
		Use:   "apply -f FILE|DIR|- | -k DIR | --delete",
		Short: "Make NetworkPolicy manifests the policy of this node",
		Long: `Apply reads networking.k8s.io/v1 NetworkPolicy manifests, defaults and validates
them as the API server does, and makes them the whole policy of this node: what
was applied before and is not among them is gone. Namespace manifests give
namespaces their labels.

The policy is in force on every endpoint whose conflist says "policy": "files"
when the command returns, and on a new one before its ADD returns. Live
connections that it forbids stop at their next packet; no other is touched. One
invalid document, or a source without any, or no NetworkPolicy at all, and nothing
changes: a list of policies with "items: []", or --delete, says that there is none.

A reboot empties the state directory. Until policies are applied again, these endpoints
are open, and status, doctor and podmarkd say so; podmarkd --policy-dir does it by itself.

Notes on stderr name what counts otherwise than its author may think, and --strict
refuses it: objects of other kinds, which are passed over; CIDRs of an old spelling, as
10.0.0.7/8, which count as API servers take them; policies that name no namespace, which
are of "default" without -n. Network policies of other APIs are always refused.`,
		Example: `  podmarkctl apply -f policies/
  podmarkctl apply -R -f policies/ -n shop
  podmarkctl apply -k overlays/production
  podmarkctl apply --strict -f web.yaml -f db.yaml
  kubectl get networkpolicies,namespaces -A -o yaml | podmarkctl apply -f -
  podmarkctl apply --delete`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if del == from.named() {
				return errors.New("apply wants one of -f FILE|DIR|-, -k DIR and --delete")
			}
			policies, err := from.read(cmd)
			if err != nil {
				return err
			}
			if del {
				policies = &desired.Policies{}
			}
			return o.apply(cmd, *policies)
		},
	}
	from.addFlags(cmd, "filename", "f", "a manifest, a directory of them (*.yaml, *.yml, *.json), or - for stdin; may be repeated")
	cmd.Flags().BoolVar(&del, "delete", false, "remove the node's policy: every endpoint is open")
	return cmd
}

// apply makes policies those of the node, and prints for whom they are in force.
func (o *options) apply(cmd *cobra.Command, policies desired.Policies) error {
	done, err := o.node().SetPolicies(cmd.Context(), defaults(), policies)
	if err != nil {
		return err
	}
	if trouble := done.Trouble(); trouble != "" {
		fmt.Fprintln(cmd.ErrOrStderr(), "podmarkctl: "+trouble+"; 'podmarkctl doctor' says what to do")
	}
	covers, err := o.coverage()
	if err != nil {
		return fmt.Errorf("the policies are in force, and for whom is not known: %w", err)
	}
	a := applied{done, covers}
	return o.print(cmd.OutOrStdout(), a, a.text)
}

// text is what 'apply' shows without -o json.
func (a applied) text(w io.Writer) error {
	live := "no live connection is touched"
	if a.Restricted {
		live = "live connections are judged again"
	}
	if a.Flows > 0 {
		live += fmt.Sprintf(", %d of them taken out of flowtables", a.Flows)
	}
	_, err := fmt.Fprintf(w, "%d policies in force, epoch %d: %s\n%s\n", a.Policies, a.Epoch, live, a.Coverage)
	for _, idle := range a.Coverage.Idle {
		fmt.Fprintln(w, idle)
	}
	return err
}
