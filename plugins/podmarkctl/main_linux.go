package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/podmark/podmark/pkg/apply"
	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/ident"
	"github.com/podmark/podmark/pkg/version"
)

// onNode is the command of a verb of [ofNodes].
func onNode(o *options, verb string) *cobra.Command {
	return map[string]func(*options) *cobra.Command{
		"apply": newApply, "doctor": newDoctor, "drops": newDrops, "explain": newExplain, "gc": newGC,
		"list": newList, "render": newRender, "status": newStatus, "uninstall": newUninstall,
	}[verb](o)
}

func (o *options) node() apply.Node {
	warn := func(text string) { fmt.Fprintf(os.Stderr, "podmarkctl: %s\n", text) }
	return apply.Node{Store: ident.At(o.stateDir), LockTimeout: o.lockTimeout, Programs: true, Warn: warn}
}

// defaults are the settings of a node on which the plugin has not run yet.
// No mask is named: the network's may be another one, and begins with its first endpoint.
func defaults() apply.Settings {
	return apply.Settings{NodePorts: []desired.PortRange{{First: 30000, Last: 32767}}, Backend: config.BackendAuto}
}

// stateFormat is that of the state folders of nodes.
func stateFormat() *version.StateFormat {
	f := apply.StateFormat()
	return &f
}
