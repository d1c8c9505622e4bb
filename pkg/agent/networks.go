package agent

import (
	"errors"
	"fmt"

	"github.com/containernetworking/cni/libcni"

	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/mark"
)

// pluginType is podmark's in a network configuration.
const pluginType = "podmark"

// network is a network that chains podmark.
type network struct {
	config.Config
	// onBridge is set where pods of the network are on a bridge.
	onBridge bool
}

// networks reads those networks of a directory of configurations that chain podmark
// with this state directory, by their names; dir may be empty, for none. A list that no runtime would take is left
// out, and one whose entry is wrong too, with an error for it.
func networks(dir, stateDir string) (map[string]network, error) {
	if dir == "" {
		return nil, nil
	}
	out := map[string]network{}
	files, err := libcni.ConfFiles(dir, []string{".conflist"})
	if err != nil {
		return nil, fmt.Errorf("reading network configurations: %w", err)
	}
	var errs []error
	for _, file := range files {
		list, err := libcni.NetworkConfFromFile(file)
		if err != nil {
			continue // no runtime takes it either
		}
		for _, p := range list.Plugins {
			if p.Network.Type != pluginType {
				continue
			}
			c, err := config.ParseEntry(p.Bytes, list.Name, list.CNIVersion)
			if err != nil {
				errs = append(errs, fmt.Errorf("%q: %w", file, err))
			} else if _, twice := out[list.Name]; !twice && c.StateDir == stateDir {
				out[list.Name] = network{c, OnBridge(list.Plugins[0].Network.Type)}
			}
		}
	}
	return out, errors.Join(errs...)
}

// layoutOf is the layout that all networks want that name one; none where each has the
// node choose, or there is no network.
func layoutOf(networks map[string]network) (mark.Layout, error) {
	var layout mark.Layout
	var first string
	for name, c := range networks {
		if c.Layout.Mask() == 0 {
			continue
		}
		if first == "" {
			first, layout = name, c.Layout
		}
		if c.Layout != layout {
			return mark.Layout{}, fmt.Errorf("iptablesMarkMask is %#x in network %q and %#x in network %q; a node has one: make them the same", layout.Mask(), first, c.Layout.Mask(), name)
		}
	}
	return layout, nil
}
