//go:build linux

package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/node"
)

func newGC(o *options) *cobra.Command {
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "gc",
		Short: "Collect attachments whose interface is gone and what crashes left",
		Example: `  podmarkctl gc --dry-run
  podmarkctl gc`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			done, err := o.node().CollectGarbage(cmd.Context(), node.HostVethGone, dryRun)
			if err != nil {
				return err
			}
			if done.Left != nil {
				fmt.Fprintf(cmd.ErrOrStderr(), "podmarkctl: something of these stays until the next gc: %v\n", done.Left)
			}
			if done.Attachments == nil {
				done.Attachments = []attachment.Record{}
			}
			if done.Files == nil {
				done.Files = []string{}
			}
			return o.print(cmd.OutOrStdout(), done, func(w io.Writer) error {
				verb := "collected"
				if dryRun {
					verb = "would collect"
				}
				for _, r := range done.Attachments {
					fmt.Fprintf(w, "%s attachment %s (ID %d)\n", verb, r.Key, r.ID)
				}
				for _, f := range done.Files {
					fmt.Fprintf(w, "%s file %s\n", verb, f)
				}
				_, err := fmt.Fprintf(w, "%s %d attachments and %d files\n", verb, len(done.Attachments), len(done.Files))
				return err
			})
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "say what would be collected and change nothing")
	return cmd
}
