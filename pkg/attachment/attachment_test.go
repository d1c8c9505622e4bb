package attachment_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/mark"
)

func TestValidate(t *testing.T) {
	good := func() attachment.Record {
		return attachment.Record{
			Key: attachment.Key{Network: "net", ContainerID: "a", IfName: "eth0"}, ID: mark.First,
			Endpoint: attachment.Endpoint{
				L3Interface: "cni0", HostVeth: "veth0",
				Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")},
			},
		}
	}
	if err := good().Validate(); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(r *attachment.Record){
		"reserved ID":          func(r *attachment.Record) { r.ID = mark.Outside },
		"no ID":                func(r *attachment.Record) { r.ID = 0 },
		"no address":           func(r *attachment.Record) { r.Addresses = nil },
		"empty address":        func(r *attachment.Record) { r.Addresses[0] = netip.Addr{} },
		"unspecified address":  func(r *attachment.Record) { r.Addresses[0] = netip.IPv4Unspecified() },
		"address with zone":    func(r *attachment.Record) { r.Addresses[0] = netip.MustParseAddr("fe80::1%eth0") },
		"mapped address":       func(r *attachment.Record) { r.Addresses[0] = netip.MustParseAddr("::ffff:10.0.0.1") },
		"no interface":         func(r *attachment.Record) { r.L3Interface = "" },
		"no port":              func(r *attachment.Record) { r.HostVeth = "" },
		"interface is a path":  func(r *attachment.Record) { r.L3Interface = "../x" },
		"interface has a line": func(r *attachment.Record) { r.L3Interface = "a\nflush" },
		"port has a space":     func(r *attachment.Record) { r.HostVeth = "a b" },
		"port too long":        func(r *attachment.Record) { r.HostVeth = strings.Repeat("x", 16) },
	} {
		r := good()
		change(&r)
		if err := r.Validate(); err == nil {
			t.Errorf("%s: %+v is valid", name, r)
		}
	}
}

// No two keys share a file, however they are cut.
func TestHash(t *testing.T) {
	seen := map[string]attachment.Key{}
	for _, k := range []attachment.Key{
		{Network: "a", ContainerID: "b", IfName: "c"},
		{Network: "ab", ContainerID: "", IfName: "c"},
		{Network: "", ContainerID: "ab", IfName: "c"},
		{Network: "a", ContainerID: "bc", IfName: ""},
		{Network: "a1:", ContainerID: "b", IfName: "c"},
		{Network: "a", ContainerID: "1:b", IfName: "c"},
		{Network: "../../etc", ContainerID: "/", IfName: "\x00"},
	} {
		h := k.Hash()
		if len(h) != 32 || strings.Trim(h, "0123456789abcdef") != "" {
			t.Errorf("hash of %q is %q", k, h)
		}
		if other, ok := seen[h]; ok {
			t.Errorf("%q and %q have one hash", k, other)
		}
		seen[h] = k
	}
}
