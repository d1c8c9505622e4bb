//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/manifest"
)

func newApply(o *options) *cobra.Command {
	var files []string
	var del bool
	cmd := &cobra.Command{
		Use:   "apply -f FILE|DIR|-",
		Short: "Make NetworkPolicy manifests the policy of this node",
		Long: `Apply reads networking.k8s.io/v1 NetworkPolicy manifests, defaults and validates
them as the API server does, and makes them the whole policy of this node: what
was applied before and is not among them is gone. Namespace manifests give
namespaces their labels.

The policy is in force on every endpoint whose conflist says "policy": "files"
when the command returns, and on a new one before its ADD returns. Live
connections that it forbids stop at their next packet; no other is touched. One
invalid document, or a source without any, and nothing changes: a list without
items, or --delete, says that there is no policy.`,
		Example: `  podmarkctl apply -f policies/
  podmarkctl apply -f web.yaml -f db.yaml
  kubectl get networkpolicies,namespaces -A -o yaml | podmarkctl apply -f -
  podmarkctl apply --delete`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if del == (len(files) > 0) {
				return errors.New("apply wants either -f FILE|DIR or --delete")
			}
			var policies desired.Policies
			if !del {
				var err error
				if policies, err = manifest.Read(files, cmd.InOrStdin()); err != nil {
					return err
				}
			}
			settings := defaults()
			done, err := o.node().SetPolicies(cmd.Context(), settings, policies)
			if err != nil {
				return err
			}
			if trouble := done.Trouble(); trouble != "" {
				fmt.Fprintln(cmd.ErrOrStderr(), "podmarkctl: "+trouble+"; 'podmarkctl doctor' says what to do")
			}
			return o.print(cmd.OutOrStdout(), done, func(w io.Writer) error {
				live := "no live connection is touched"
				if done.Narrowed {
					live = "live connections are judged again"
				}
				if done.TakenBack > 0 {
					live += fmt.Sprintf(", %d of them taken out of flowtables", done.TakenBack)
				}
				_, err := fmt.Fprintf(w, "%d policies in force on %d endpoints, epoch %d: %s\n", done.Policies, done.Endpoints, done.Epoch, live)
				return err
			})
		},
	}
	cmd.Flags().StringArrayVarP(&files, "filename", "f", nil, "a manifest, a folder of them (*.yaml, *.yml, *.json), or - for stdin; may be repeated")
	cmd.Flags().BoolVar(&del, "delete", false, "remove the node's policy: every endpoint is open")
	return cmd
}
