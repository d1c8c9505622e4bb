package endpoint

import (
	"errors"
	"strings"
	"testing"

	"github.com/podmark/podmark/pkg/attachment"
)

// A port of a bridge with VLANs is the endpoint's only where all that it carries enters the
// host by the bridge itself. The kernel's part is in test/lab.
func TestPlainPort(t *testing.T) {
	tests := []struct {
		name string
		v    vlans
		word string // empty where it is plain
	}{
		{"as made by the kernel", vlans{1, 1, []uint16{1}, ""}, ""},
		{"another default", vlans{7, 7, []uint16{7}, ""}, ""},
		{"no default, no VLAN", vlans{}, ""},
		{"vlan", vlans{100, 1, []uint16{100}, ""}, "PVID 100"},
		{"vlan, without a default", vlans{100, 0, []uint16{100}, ""}, "PVID 100"},
		{"vlan, default preserved", vlans{100, 1, []uint16{1, 100}, ""}, "PVID 100"},
		{"vlanTrunk", vlans{0, 1, []uint16{5, 6}, ""}, "PVID 0"},
		{"vlanTrunk, default preserved", vlans{1, 1, []uint16{1, 5, 6}, ""}, "3 VLANs"},
		{"vlan is the default", vlans{1, 1, []uint16{1}, `"cni0.1"`}, `"cni0.1"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.v.plain(attachment.Endpoint{HostVeth: "v", L3Interface: "cni0"})
			if (err == nil) != (tt.word == "") {
				t.Fatalf("plain = %v", err)
			}
			if err != nil && (!errors.Is(err, ErrNoHostInterface) || !strings.Contains(err.Error(), tt.word) || !strings.Contains(err.Error(), "preserveDefaultVlan")) {
				t.Errorf("error %q", err)
			}
		})
	}
}
