package main

import (
	"strings"

	"github.com/spf13/cobra"
)

// choices has a shell offer these values of a flag, and no files.
func choices(cmd *cobra.Command, flag string, values ...string) {
	must(cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)))
}

// names are the values as text.
func names[T ~string](values []T) []string {
	var out []string
	for _, v := range values {
		out = append(out, string(v))
	}
	return out
}

// alternatives are the values as an operator reads them: "auto, nftables or iptables".
func alternatives[T ~string](values []T) string {
	last := len(values) - 1
	return strings.Join(names(values[:last]), ", ") + " or " + string(values[last])
}

// directories has a shell offer directories for these flags.
func directories(cmd *cobra.Command, flags ...string) {
	for _, flag := range flags {
		must(cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(nil, cobra.ShellCompDirectiveFilterDirs)))
	}
}

// manifestFiles has a shell offer, for a flag, directories and what looks like a manifest.
func manifestFiles(cmd *cobra.Command, flag string) {
	must(cmd.RegisterFlagCompletionFunc(flag,
		cobra.FixedCompletions([]string{"yaml", "yml", "json"}, cobra.ShellCompDirectiveFilterFileExt)))
}

// must panics where a command has no such flag, or it was given completions before.
func must(err error) {
	if err != nil {
		panic(err)
	}
}
