//go:build linux

package main

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// completeSides offers what explain takes for SRC and DST: the node, what is outside, and the
// pods that the state directory has. A directory that cannot be read has none: the command says why.
func (o *options) completeSides(_ *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 1 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	sides := []string{"host", "outside"}
	if state, err := o.node().State(); err == nil {
		for _, e := range state.Endpoints {
			if e.Pod != "" {
				sides = append(sides, e.Namespace+"/"+e.Pod)
			}
		}
	}
	slices.Sort(sides)
	sides = slices.DeleteFunc(slices.Compact(sides), func(s string) bool { return !strings.HasPrefix(s, begun) })
	directive := cobra.ShellCompDirectiveNoFileComp
	if len(args) == 1 {
		directive |= cobra.ShellCompDirectiveNoSpace // a port may follow
	}
	return sides, directive
}
