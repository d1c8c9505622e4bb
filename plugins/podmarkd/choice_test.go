package main_test

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Which conflist gets the entry, and which node is left as it is. What is installed stays
// as it is, too: the second install changes nothing.
func TestInstallWhere(t *testing.T) {
	const list = "10-flannel.conflist"
	flannel := chain("cbr0", "flannel", "portmap")
	with := []string{"flannel", "portmap", "podmark"}
	multus := func(keys string) string {
		return `{"cniVersion": "0.3.1", "name": "multus-cni-network", "type": "multus", "capabilities": {"portMappings": true}` + keys + `}`
	}
	for _, tt := range []struct {
		name  string
		files map[string]string
		args  []string
		// want are the plugins of the one file that changes, list; words what is said where
		// nothing does.
		want, words []string
		notes       []string
	}{
		{"Multus with a copy", map[string]string{"00-multus.conf": multus(`, "delegates": [` + flannel + `]`), list: flannel}, nil, with, nil, []string{"00-multus.conf", "copy"}},
		{"Multus with a copy that has podmark", map[string]string{"00-multus.conf": multus(`, "delegates": [` + chain("cbr0", "flannel", "podmark") + `]`), list: flannel}, nil, with, nil, nil},
		{"Multus by a path", map[string]string{"00-multus.conf": multus(`, "clusterNetwork": "/host/etc/cni/net.d/` + list + `"`), "05-a.conflist": chain("a", "ptp"), list: flannel}, nil, with, nil, nil},
		{"Multus by a path elsewhere", map[string]string{"00-multus.conf": multus(`, "clusterNetwork": "/etc/cni/multus/net.d/` + list + `"`), list: flannel}, nil, nil, []string{"/etc/cni/multus/net.d", "--cni-conf-dir"}, nil},
		{"Multus' own choice", map[string]string{"00-multus.conflist": chain("m", `{"type": "multus-shim"}`), list: flannel, "20-b.conflist": chain("b", "ptp")}, nil, with, nil, nil},
		{"by name", map[string]string{"00-a.conflist": chain("a", "ptp"), list: flannel}, []string{"--cni-conf-name", list}, with, nil, []string{"00-a.conflist", "comes first"}},
		{"by name behind a plain one", map[string]string{"00-a.conf": `{"name": "a", "type": "ptp"}`, list: flannel}, []string{"--cni-conf-name", list}, with, nil, []string{"00-a.conf", "comes first"}},
		{"cniVersion 0.3.0", map[string]string{list: strings.Replace(flannel, "0.3.1", "0.3.0", 1)}, nil, with, nil, nil},
		{"istio-cni behind podmark", map[string]string{list: chain("cbr0", "flannel", ours, "istio-cni")}, nil, []string{"flannel", "podmark", "istio-cni"}, nil, nil},
		{"linkerd-cni last so far", map[string]string{list: chain("cbr0", "flannel", "linkerd-cni")}, nil, []string{"flannel", "linkerd-cni", "podmark"}, nil, nil},
		{"podmark first", map[string]string{list: chain("cbr0", ours, "flannel", "portmap")}, nil, with, nil, nil},
		{"unknown main plugin", map[string]string{list: chain("cbr0", "somebody-cni")}, nil, []string{"somebody-cni", "podmark"}, nil, []string{"somebody-cni", "veth"}},
		{"podmark alone", map[string]string{list: chain("cbr0", ours)}, nil, nil, []string{list, "no other plugin"}, nil},
		{"Multus' network elsewhere", map[string]string{"00-multus.conf": multus(`, "clusterNetwork": "crd"`), list: flannel}, nil, nil, []string{"crd", "--cni-conf-name"}, nil},
		{"Multus alone", map[string]string{"00-multus.conf": multus("")}, nil, nil, []string{"00-multus.conf", "agent"}, nil},
		{"Multus by name", map[string]string{"00-multus.conf": multus(""), list: flannel}, []string{"--cni-conf-name", "00-multus.conf"}, nil, []string{"00-multus.conf", "Multus"}, nil},
		{"none of that name", map[string]string{list: flannel}, []string{"--cni-conf-name", "10-b.conflist"}, nil, []string{"10-b.conflist", "by name"}, nil},
		{"macvlan", map[string]string{list: chain("cbr0", "macvlan")}, nil, nil, []string{"macvlan", "veth", "104"}, nil},
		{"bridge in a VLAN", map[string]string{list: chain("cbr0", `{"type": "bridge", "vlan": 7, "ipam": {"type": "host-local"}}`)}, nil, nil, []string{"vlan", "104"}, nil},
		{"no addresses", map[string]string{list: chain("cbr0", `{"type": "ptp"}`)}, nil, nil, []string{"ipam", "code 7"}, nil},
		{"Cilium", map[string]string{list: chain("cbr0", "cilium-cni")}, nil, nil, []string{"cilium-cni", "BPF"}, nil},
		{"main plugin in another directory", map[string]string{list: chain("cbr0", "weave-net")}, nil, nil, []string{"weave-net", "--cni-bin-dir"}, nil},
		{"plugin of main in another directory", map[string]string{list: chain("cbr0", `{"type": "ptp", "ipam": {"type": "whereabouts"}}`)}, nil, nil, []string{"whereabouts", "--cni-bin-dir"}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPlace(t)
			p.plugins("flannel", "somebody-cni", "istio-cni", "linkerd-cni", "macvlan", "cilium-cni")
			for name, content := range tt.files {
				p.write(name, content)
			}
			args := append([]string{"install"}, tt.args...)
			if tt.words != nil {
				p.fails(tt.words, args...)
				return
			}
			before := p.tree(false)
			out := p.run(args...)
			for _, word := range tt.notes {
				if !strings.Contains(out, word) {
					t.Errorf("it does not say %q: %s", word, out)
				}
			}
			if tt.notes == nil && strings.Contains(out, "note: ") {
				t.Errorf("it says %s", out)
			}
			p.hasTypes(list, tt.want...)
			after := p.tree(false)
			for _, name := range slices.Collect(maps.Keys(tt.files)) {
				if name != list && before["net.d/"+name] != after["net.d/"+name] {
					t.Errorf("it changed %s", name)
				}
			}
			exact := p.tree(true)
			p.run(args...)
			if diff := cmp.Diff(exact, p.tree(true)); diff != "" {
				t.Errorf("installed again, it changed:\n%s", diff)
			}
		})
	}
}

// ours is an entry of podmark's.
const ours = `{"type": "podmark"}`
