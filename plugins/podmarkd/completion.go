package main

import (
	"github.com/spf13/cobra"

	"github.com/podmark/podmark/pkg/config"
)

// choices has a shell offer these values of a flag, and no files.
func choices(cmd *cobra.Command, flag string, values ...string) {
	must(cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)))
}

// directories has a shell offer directories for these flags.
func directories(cmd *cobra.Command, flags ...string) {
	for _, flag := range flags {
		must(cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(nil, cobra.ShellCompDirectiveFilterDirs)))
	}
}

// must panics where a command has no such flag, or it was given completions before.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

// completeInstall is for a command with install's flags.
func completeInstall(cmd *cobra.Command) {
	directories(cmd, "cni-conf-dir", "cni-bin-dir", "source")
	choices(cmd, "policy", string(config.PolicyKubernetes), string(config.PolicyFiles), string(config.PolicyNone))
}
