//go:build !linux

package main

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/podmark/podmark/pkg/version"
)

// onNode says of a verb of [ofNodes] that it is for a node.
func onNode(_ *options, verb string) *cobra.Command {
	return &cobra.Command{
		Use:                verb,
		Short:              "Runs on a Linux node",
		DisableFlagParsing: true,
		RunE: func(*cobra.Command, []string) error {
			return fmt.Errorf("%s runs on a Linux node, and this is %s: run 'podmarkctl %s' there, or where podmarkd is a pod, 'kubectl -n kube-system exec POD -- /opt/podmark/podmarkctl %s'",
				verb, runtime.GOOS, verb, verb)
		},
	}
}

// stateFormat is nil: there is no state directory here.
func stateFormat() *version.StateFormat { return nil }
