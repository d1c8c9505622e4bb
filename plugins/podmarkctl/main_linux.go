package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/node"
	"github.com/podmark/podmark/pkg/state"
	"github.com/podmark/podmark/pkg/version"
)

// onNode is the command of a verb of [ofNodes].
func onNode(o *options, verb string) *cobra.Command {
	return map[string]func(*options) *cobra.Command{
		"apply": newApply, "doctor": newDoctor, "drops": newDrops, "explain": newExplain, "gc": newGC,
		"list": newList, "render": newRender, "status": newStatus, "uninstall": newUninstall,
	}[verb](o)
}

func (o *options) node() node.Node {
	warn := func(text string) { fmt.Fprintf(os.Stderr, "podmarkctl: %s\n", text) }
	return node.Node{Store: state.At(o.stateDir), LockTimeout: o.lockTimeout, Programs: true, Warn: warn}
}

// defaults are the settings of a node on which the plugin has not run yet.
// No mask is named: the network's may be another one, and begins with its first endpoint.
func defaults() node.Settings {
	return node.Settings{NodePorts: []config.PortRange{config.DefaultNodePorts}, Backend: config.BackendAuto}
}

// stateFormat is that of the state directories of nodes.
func stateFormat() *version.StateFormat {
	f := node.StateFormat()
	return &f
}
