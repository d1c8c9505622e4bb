// Package nodeports finds out which ports are NodePorts. The range is a flag of the API
// server that no API object shows, so there are several places to look, and not every
// node can see all of them: podmarkd's own settings, Calico's FelixConfiguration, the
// arguments of a kube-apiserver, and the Services.
//
// It decides nothing about packets: what it finds are the options that package agent
// decides with. It writes nothing, to the node or to the API. Every source but
// podmarkd's own settings may be missing, which is no error.
package nodeports

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/podmark/podmark/pkg/agent"
	"github.com/podmark/podmark/pkg/desired"
)

// Source is a kind of place where NodePort ranges are said.
type Source string

// The sources, in the order in which they count.
const (
	Flag     Source = "--node-port-ranges"
	File     Source = "configuration file"
	Felix    Source = "FelixConfiguration"
	Manifest Source = "static pod manifest"
	Pod      Source = "kube-apiserver pod"
)

// Stated are NodePort ranges that a source says.
type Stated struct {
	Source Source `json:"source"`
	// Detail is where exactly: paths, or names of objects.
	Detail string `json:"detail"`
	// Ranges are sorted, and none touches another. They are empty, and not nil, where
	// the source says that there are none.
	Ranges []desired.PortRange `json:"ranges"`
}

// String names the source: "configuration file /etc/podmark/podmarkd.yaml".
func (s Stated) String() string {
	return strings.TrimSpace(string(s.Source) + " " + s.Detail)
}

// Services is what the Services of the cluster say.
type Services struct {
	// Listed is whether they may be listed, and have been.
	Listed bool `json:"listed"`
	// Ports are their node ports, sorted, and joined where they touch.
	Ports []desired.Port `json:"ports"`
}

// Facts is all that can be seen.
type Facts struct {
	// Ranges are in the order in which they count: the first is in force.
	Ranges []Stated `json:"ranges"`
	// Mode is empty where the operator does not say.
	Mode     agent.PortMode `json:"mode,omitempty"`
	Services Services       `json:"services"`
	// FelixMask is the mask that FelixConfiguration says for the rules which Felix writes; nil
	// where it has none.
	FelixMask *uint32 `json:"felixMask,omitempty"`
}

// Options are what package agent decides with.
func (f Facts) Options() agent.PortOptions {
	o := agent.PortOptions{Mode: cmp.Or(f.Mode, agent.PortsExact), Services: f.Services.Ports}
	if len(f.Ranges) > 0 {
		o.Ranges, o.Source = f.Ranges[0].Ranges, f.Ranges[0].String()
	}
	return o
}

// state is what each source said last.
type state struct {
	config Config
	// manifests are by path, pods by name.
	manifests map[string]APIServer
	// felix is what the two objects say, of which either may be nil.
	felix                     FelixConfiguration
	felixDefault, felixOfNode *unstructured.Unstructured
	pods                      map[string]APIServer
	services                  Services
}

// facts puts together what the sources say. given and mode are what flags say.
func (s state) facts(given []desired.PortRange, mode agent.PortMode, configFile string) Facts {
	f := Facts{Mode: cmp.Or(mode, s.config.Mode), FelixMask: s.felix.Mask, Services: s.services}
	add := func(source Source, detail string, ranges []desired.PortRange) {
		if ranges != nil {
			f.Ranges = append(f.Ranges, Stated{source, detail, desired.MergeRanges(ranges)})
		}
	}
	add(Flag, "", given)
	add(File, configFile, s.config.Ranges)
	add(Felix, s.felix.Name, s.felix.Ranges)
	detail, ranges := servers(s.manifests)
	add(Manifest, detail, ranges)
	detail, ranges = servers(s.pods)
	add(Pod, detail, ranges)
	return f
}

// servers joins what several API servers say: while their flag is being changed they
// differ, and then each of them gives out ports.
func servers(byName map[string]APIServer) (detail string, ranges []desired.PortRange) {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		server := byName[name]
		ranges = append(ranges, server.Range)
		if server.ByDefault {
			name += " (by default)"
		}
		names = append(names, name)
	}
	return strings.Join(names, ", "), ranges
}
