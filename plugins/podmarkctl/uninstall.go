//go:build linux

package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

func newUninstall(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "uninstall",
		Short: "Remove every trace of podmark: rules, sets, device groups, state",
		Long: `Uninstall removes every chain, set, hook, device group and file of podmark. Pods
keep running, unmarked and unpoliced. End podmarkd first: it would bring all of it
back. Take podmark out of the conflist, or the next pod does. Leave the plugin binary where it is while pods live
that were added with it: the runtime still calls it to delete them.`,
		Example: `  podmarkctl uninstall`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			n := o.node()
			release, err := n.Store.Claim()
			if err != nil {
				return fmt.Errorf("%w; end it first: it would adopt the pods again", err)
			}
			defer release()
			if err := n.Uninstall(cmd.Context()); err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), "podmark is removed from this node")
			return err
		},
	}
}
