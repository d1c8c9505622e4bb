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
keep running, unmarked and unpoliced. Take podmark out of the conflist first, or
the next pod brings it back. Leave the plugin binary where it is while pods live
that were added with it: the runtime still calls it to delete them.`,
		Example: `  podmarkctl uninstall`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.node().Uninstall(cmd.Context()); err != nil {
				return err
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "podmark is removed from this node")
			return err
		},
	}
}
