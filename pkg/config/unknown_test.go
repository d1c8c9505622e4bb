package config_test

import (
	"slices"
	"testing"

	"github.com/podmark/podmark/pkg/config"
)

func TestUnknown(t *testing.T) {
	for _, tt := range []struct {
		entry string
		want  []string
	}{
		{`{}`, nil},
		{`{"type": "podmark", "cniVersion": "1.1.0", "name": "net", "policy": "files", "stateDir": "/x"}`, nil},
		// What libcni, containerd, CRI-O and Multus add.
		{`{"args": {}, "capabilities": {}, "runtimeConfig": {}, "prevResult": {}, "cni.dev/attachments": [], "cni.dev/valid-attachments": [], "deviceID": "0"}`, nil},
		{`{"example.com/note": 1, "_comment": "x", "io.example": 2}`, nil},
		{`{"polcy": "kubernetes", "iptableMarkMask": 1}`, []string{"iptableMarkMask", "polcy"}},
		{`{"Policy": "kubernetes"}`, nil}, // Parse reads it
		{`{"policy ": "kubernetes", "": 1}`, []string{"", "policy "}},
		{`[]`, nil},
		{`{`, nil},
	} {
		if got := config.Unknown([]byte(tt.entry)); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.entry, got, tt.want)
		}
	}
	if keys := config.Keys(); !slices.Contains(keys, "policy") || slices.Contains(keys, "prevResult") || len(keys) != 12 {
		t.Errorf("%d keys: %q", len(keys), keys)
	}
}
