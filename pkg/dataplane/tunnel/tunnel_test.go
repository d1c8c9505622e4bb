package tunnel_test

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/podmark/podmark/pkg/dataplane/tunnel"
	"github.com/podmark/podmark/test/netns"
)

// What the node's links and listeners unwrap counts besides what CNI plugins use, once.
func TestOf(t *testing.T) {
	least := tunnel.Of(nil, nil)
	for _, p := range []uint16{4789, 8472, 6081} {
		if !slices.Contains(least.UDPPorts, p) {
			t.Errorf("without a link %d is not among %v", p, least.UDPPorts)
		}
	}
	for _, p := range []uint8{4, 41, 47} {
		if !slices.Contains(least.Protocols, p) {
			t.Errorf("protocol %d is not among %v", p, least.Protocols)
		}
	}
	// ESP, AH and what a pod needs to be a pod.
	for _, p := range []uint8{1, 6, 17, 50, 51, 58, 132} {
		if slices.Contains(least.Protocols, p) {
			t.Errorf("protocol %d is among %v", p, least.Protocols)
		}
	}
	if !slices.IsSorted(least.UDPPorts) || !slices.IsSorted(least.Protocols) {
		t.Errorf("not sorted: %+v", least)
	}
	tests := []struct {
		name      string
		links     []tunnel.Link
		listeners []uint16
		more      []uint16
	}{
		{"no tunnel", []tunnel.Link{{Kind: "veth"}, {Kind: "bridge"}, {Kind: "wireguard"}, {Kind: "vxlan"}}, nil, nil},
		{"links", []tunnel.Link{{Kind: "vxlan", Port: 4999}, {Kind: "geneve", Port: 80}, {Kind: "bareudp", Port: 6635}, {Kind: "vxlan", Port: 4999}}, nil, []uint16{80, 4999}},
		{"kinds that say no port", []tunnel.Link{{Kind: "gtp"}, {Kind: "amt"}}, nil, []uint16{2152, 2268, 3386}},
		{"listeners", nil, []uint16{5555, 8472, 5555}, []uint16{5555}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			want := least
			want.UDPPorts = slices.Sorted(slices.Values(slices.Concat(least.UDPPorts, tt.more)))
			if diff := cmp.Diff(want, tunnel.Of(tt.links, tt.listeners)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// The port of a link is read off the kernel. Kinds that not every kernel has are in the lab.
func TestRead(t *testing.T) {
	netns.Enter(t)
	if err := netlink.LinkAdd(&netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "overlay"}, VxlanId: 7, Port: 4999}); err != nil {
		t.Fatal(err)
	}
	list, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	got, err := tunnel.Read(list)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(tunnel.Of([]tunnel.Link{{Kind: "vxlan", Port: 4999}}, nil), got); diff != "" {
		t.Error(diff)
	}
}
