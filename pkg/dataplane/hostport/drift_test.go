package hostport_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/dataplane/hostport"
)

// node has a routed host veth, one in a VRF, and one on a bridge, which is another VRF's.
func node() hostport.Links {
	l := hostport.Links{}
	for _, link := range []hostport.Link{
		{Index: 1, Name: "lo"},
		{Index: 10, Name: "v", Kind: "veth", Group: hostport.Group},
		{Index: 11, Name: "w", Kind: "veth", Group: hostport.Group, Master: 20},
		{Index: 12, Name: "b", Kind: "veth", Master: 30},
		{Index: 20, Name: "red", Kind: "vrf"},
		{Index: 21, Name: "blue", Kind: "vrf"},
		{Index: 30, Name: "cni0", Kind: "bridge", Master: 21},
		{Index: 31, Name: "br1", Kind: "bridge"},
	} {
		l[link.Index] = link
	}
	return l
}

var (
	routed  = attachment.Endpoint{HostVeth: "v", L3Interface: "v", HostVethIndex: 10, L3InterfaceIndex: 10}
	inVRF   = attachment.Endpoint{HostVeth: "w", L3Interface: "w", HostVethIndex: 11, L3InterfaceIndex: 11, VRF: "red", VRFIndex: 20}
	bridged = attachment.Endpoint{HostVeth: "b", L3Interface: "cni0", HostVethIndex: 12, L3InterfaceIndex: 30, VRF: "blue", VRFIndex: 21}
)

func TestDrifts(t *testing.T) {
	change := func(index int, f func(*hostport.Link)) func(hostport.Links) {
		return func(l hostport.Links) { link := l[index]; f(&link); l[index] = link }
	}
	master := func(index int) func(*hostport.Link) { return func(l *hostport.Link) { l.Master = index } }
	rename := func(name string) func(*hostport.Link) { return func(l *hostport.Link) { l.Name = name } }
	moved := func(link, was, is string) hostport.Drift {
		return hostport.Drift{Change: hostport.Moved, Link: link, Was: was, Is: is}
	}
	tests := []struct {
		name string
		e    attachment.Endpoint
		do   func(hostport.Links)
		want []hostport.Drift
	}{
		{"routed", routed, nil, nil},
		{"in a VRF", inVRF, nil, nil},
		{"on a bridge", bridged, nil, nil},
		{"gone", routed, func(l hostport.Links) { delete(l, 10) }, []hostport.Drift{{Change: hostport.Gone, Link: "v"}}},
		{"another of its name", routed, func(l hostport.Links) {
			l[40] = hostport.Link{Index: 40, Name: "v", Kind: "veth", Group: hostport.Group}
			delete(l, 10)
		}, []hostport.Drift{{Change: hostport.Gone, Link: "v"}}},
		{"never found", attachment.Endpoint{HostVeth: "v", L3Interface: "v"}, nil, []hostport.Drift{{Change: hostport.Gone, Link: "v"}}},
		{"renamed", routed, change(10, rename("x")), []hostport.Drift{{Change: hostport.Renamed, Link: "x", Was: "v", Is: "x"}}},
		{"ungrouped", routed, change(10, func(l *hostport.Link) { l.Group = 3 }), []hostport.Drift{{Change: hostport.Ungrouped, Link: "v", Group: 3}}},
		{"onto a bridge", routed, change(10, master(31)), []hostport.Drift{moved("v", "", "br1")}},
		{"into a VRF", routed, change(10, master(21)), []hostport.Drift{moved("v", "", "blue")}},
		{"into another VRF", inVRF, change(11, master(21)), []hostport.Drift{moved("w", "red", "blue")}},
		{"out of its VRF", inVRF, change(11, master(0)), []hostport.Drift{moved("w", "red", "")}},
		{"onto another bridge", bridged, change(12, master(31)), []hostport.Drift{moved("b", "cni0", "br1")}},
		{"off its bridge", bridged, change(12, master(0)), []hostport.Drift{moved("b", "cni0", "")}},
		{"the bridge out of its VRF", bridged, change(30, master(0)), []hostport.Drift{moved("cni0", "blue", "")}},
		{"the bridge renamed", bridged, change(30, rename("br0")), []hostport.Drift{{Change: hostport.Renamed, Link: "br0", Was: "cni0", Is: "br0"}}},
		{"the VRF renamed", inVRF, change(20, rename("green")), []hostport.Drift{{Change: hostport.Renamed, Link: "green", Was: "red", Is: "green"}}},
		{"all at once", routed, change(10, func(l *hostport.Link) { *l = hostport.Link{Index: 10, Name: "x", Master: 99} }), []hostport.Drift{
			{Change: hostport.Renamed, Link: "x", Was: "v", Is: "x"}, moved("x", "", "link 99"), {Change: hostport.Ungrouped, Link: "x"},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			links := node()
			if tt.do != nil {
				tt.do(links)
			}
			if diff := cmp.Diff(tt.want, hostport.Drifts(tt.e, links.Find)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// A record of names alone gets the numbers of its links, and none where they are not those.
func TestLocate(t *testing.T) {
	tests := []struct {
		name              string
		port, iface       string
		wantPort, wantTop int
	}{
		{"routed", "v", "v", 10, 10},
		{"on a bridge", "b", "cni0", 12, 30},
		{"gone", "x", "x", 0, 0},
		{"gone from its bridge", "v", "cni0", 0, 0},
		{"on another bridge", "b", "br1", 0, 0},
		{"no veth", "lo", "lo", 0, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := node().Locate(attachment.Endpoint{HostVeth: tt.port, L3Interface: tt.iface})
			if e.HostVethIndex != tt.wantPort || e.L3InterfaceIndex != tt.wantTop {
				t.Errorf("port %d, interface %d, want %d and %d", e.HostVethIndex, e.L3InterfaceIndex, tt.wantPort, tt.wantTop)
			}
		})
	}
}
