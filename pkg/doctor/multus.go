package doctor

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/podmark/podmark/pkg/conflist"
)

// multus is what matters here of the configuration of Multus, a plugin that calls those of
// other networks. Its daemon writes the file, and writes it again, so podmark's entry belongs
// to the list of the network that it calls first, the one of the cluster.
type multus struct {
	Type           string           `json:"type"`
	ClusterNetwork string           `json:"clusterNetwork"`
	Delegates      []multusDelegate `json:"delegates"`
}

// multusDelegate is a copy of a list, or of a configuration of one plugin.
type multusDelegate struct {
	Name    string `json:"name"`
	Plugins []struct {
		Type string `json:"type"`
	} `json:"plugins"`
}

// multusOf finds Multus in a configuration of one plugin or in a list.
func multusOf(conf []byte) (multus, bool) {
	var c struct {
		multus
		Plugins []multus `json:"plugins"`
	}
	if json.Unmarshal(conf, &c) != nil {
		return multus{}, false
	}
	for _, m := range append(c.Plugins, c.multus) {
		if slices.Contains([]string{"multus", "multus-shim"}, m.Type) {
			return m, true
		}
	}
	return multus{}, false
}

// delegate finds the list of the cluster's network among the files, where runtimes call
// Multus by conf. Lacks is set where Multus has a copy of it without podmark.
func delegate(conf []byte, files []conflist.File) (file conflist.File, lacks, ok bool) {
	m, ok := multusOf(conf)
	if !ok {
		return conflist.File{}, false, false
	}
	name := m.ClusterNetwork
	if len(m.Delegates) > 0 {
		name = m.Delegates[0].Name
		lacks = true
		for _, p := range m.Delegates[0].Plugins {
			lacks = lacks && p.Type != plugin
		}
	}
	for _, f := range files {
		list, err := conflist.Parse(f.Content)
		if err == nil && filepath.Ext(f.Name) == ".conflist" && (list.Name == name || f.Name == filepath.Base(name)) {
			return f, lacks, true
		}
	}
	return conflist.File{}, false, false
}

// checkMultus finds that Multus has a list as it was before podmark's entry was put into it.
func checkMultus(f Facts) []Finding {
	if n, ok := f.active(); !ok || !f.MultusLacks || n.DropIn != "" {
		return nil
	}
	return []Finding{{
		Severity: Error,
		What:     fmt.Sprintf("%q has podmark, and the copy of it in %q, by which runtimes call Multus, does not", f.Networks[0].File, filepath.Join(f.ConfDir, f.Multus)),
		Why:      "pods start without podmark: unmarked, and with no policy. Multus' daemon copies the list when it starts",
		Mend:     "# restart Multus' pod on this node, and see that its daemon is told of this list",
	}}
}
