package main_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/podmark/podmark/pkg/state"
)

// known lists the container IDs that podmark has a record of.
func (n *node) known() []string {
	n.T.Helper()
	records, err := state.At(n.Dir).List()
	if err != nil {
		n.T.Fatal(err)
	}
	var ids []string
	for _, r := range records {
		ids = append(ids, r.Network+"/"+r.ContainerID)
	}
	slices.Sort(ids)
	return ids
}

func TestGC(t *testing.T) {
	const key, legacy = "cni.dev/valid-attachments", "cni.dev/attachments"
	list := func(ids ...string) []conf {
		out := []conf{}
		for _, id := range ids {
			out = append(out, conf{"containerID": id, "ifname": "eth0"})
		}
		return out
	}
	everyone := []string{"net/gone", "net/here", "other/gone", "other/here"}
	tests := []struct {
		name string
		keys conf
		want []string
	}{
		{"key absent", conf{}, everyone},
		{"null", conf{key: nilValue}, []string{"net/here", "other/gone", "other/here"}},
		{"empty list", conf{key: list()}, []string{"net/here", "other/gone", "other/here"}},
		{"all valid", conf{key: list("here", "gone")}, everyone},
		{"one valid", conf{key: list("gone")}, []string{"net/gone", "other/gone", "other/here"}},
		{"only a stranger valid", conf{key: list("stranger")}, []string{"other/gone", "other/here"}},
		{"valid by another interface", conf{key: []conf{{"containerID": "here", "ifname": "eth1"}}}, []string{"other/gone", "other/here"}},
		{"legacy key", conf{legacy: list("here")}, []string{"net/here", "other/gone", "other/here"}},
		{"both keys", conf{key: list("here"), legacy: list("here")}, []string{"net/here", "other/gone", "other/here"}},
		{"hostile list", conf{key: list("here", "gone", "../../../etc", "a\nflush", "")}, everyone},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			eachKind(t, func(t *testing.T, n *node) {
				for _, network := range []string{"net", "other"} {
					for _, id := range []string{"here", "gone"} {
						p := n.addPod()
						p.ID = id
						p.Add(conf{"name": network}).OK(t)
						if id == "gone" {
							p.Unlink()
						}
					}
				}
				r := n.gc(tt.keys).OK(t)
				if r.Stdout != "" {
					t.Errorf("stdout is %q", r.Stdout)
				}
				if told := strings.Contains(r.Stderr, "podmarkctl gc"); told != (tt.name == "key absent") {
					t.Errorf("stderr is %q", r.Stderr)
				}
				if diff := cmp.Diff(tt.want, n.known()); diff != "" {
					t.Errorf("attachments after GC:\n%s", diff)
				}
				// One of IPv4 and one of IPv6 each.
				if elements := n.endpoints(); len(elements) != 2*len(tt.want) {
					t.Errorf("endpoint elements %q, want two of each of %d", elements, len(tt.want))
				}
			})
		})
	}
	t.Run("wrong list", func(t *testing.T) {
		n := newNode(t, nftables)
		p := n.addPod()
		p.Add().OK(t)
		n.gc(conf{key: "all"}).Fails(t, 7, key, "all", "containerID")
		n.gc(conf{key: []int{1}}).Fails(t, 7, key)
		if n.known() == nil {
			t.Error("the pod is gone")
		}
	})
	t.Run("virgin node", func(t *testing.T) {
		n := newNode(t, nftables)
		n.Path = ""
		n.gc(conf{key: list()}).OK(t)
		if files := n.files(); len(files) > 0 {
			t.Errorf("GC made %v", files)
		}
	})
}

// nilValue is a null in a configuration; a plain nil removes the key.
var nilValue = []conf(nil)
