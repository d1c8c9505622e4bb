package flowtable_test

import (
	"encoding/binary"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/dataplane/flowtable"
	"github.com/podmark/podmark/test/netns"
)

// message is what the kernel sends of a flowtable, as nf_tables_fill_flowtable_info of
// net/netfilter/nf_tables_api.c has it.
func message(t testing.TB, family byte, table, name string, flags uint32, devices ...string) []byte {
	t.Helper()
	ae := netlink.NewAttributeEncoder()
	ae.ByteOrder = binary.BigEndian
	ae.String(1, table)
	ae.String(2, name)
	ae.Uint64(5, 7) // handle
	ae.Uint32(4, 1) // use
	ae.Uint32(7, flags)
	ae.Nested(3, func(ae *netlink.AttributeEncoder) error {
		ae.Uint32(1, unix.NF_NETDEV_INGRESS)
		ae.Uint32(2, 0)
		ae.Nested(3, func(ae *netlink.AttributeEncoder) error {
			for _, d := range devices {
				ae.String(1, d)
			}
			return nil
		})
		return nil
	})
	b, err := ae.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return slices.Concat([]byte{family, unix.NFNETLINK_V0, 0, 0}, b)
}

func TestParse(t *testing.T) {
	for name, tt := range map[string]struct {
		payload []byte
		want    flowtable.Flowtable
	}{
		"two interfaces": {
			message(t, unix.NFPROTO_INET, "firewalld", "fastpath", 0, "eth0", "veth1a2b3c4d"),
			flowtable.Flowtable{Family: "inet", Table: "firewalld", Name: "fastpath", Devices: []string{"eth0", "veth1a2b3c4d"}},
		},
		"none yet":    {message(t, unix.NFPROTO_IPV6, "calico", "ft", 0), flowtable.Flowtable{Family: "ip6", Table: "calico", Name: "ft"}},
		"in hardware": {message(t, unix.NFPROTO_IPV4, "lan", "f", 3, "eth1"), flowtable.Flowtable{Family: "ip", Table: "lan", Name: "f", Devices: []string{"eth1"}, Hardware: true}},
		"nothing":     {[]byte{0, 0, 0, 0}, flowtable.Flowtable{}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := flowtable.Parse(tt.payload)
			if diff := cmp.Diff(tt.want, got); err != nil || diff != "" {
				t.Errorf("%v (-want +got):\n%s", err, diff)
			}
		})
	}
	for _, short := range [][]byte{nil, {1, 0, 0}, {1, 0, 0, 0, 9, 0, 1, 0}, {1, 0, 0, 0, 6, 0, 7, 0, 1, 1, 0, 0}} {
		if got, err := flowtable.Parse(short); err == nil {
			t.Errorf("%v is no flowtable, and was read as %+v", short, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(message(f, unix.NFPROTO_INET, "firewalld", "fastpath", 1, "eth0", "veth1a2b3c4d"))
	f.Fuzz(func(t *testing.T, payload []byte) {
		_, _ = flowtable.Parse(payload) // it must return
	})
}

// A namespace of its own has none, and to find that out is cheap: each change pays it.
func TestList(t *testing.T) {
	netns.Enter(t)
	if list, err := flowtable.List(); err != nil || len(list) != 0 {
		t.Errorf("%v, %v", list, err)
	}
}

// BenchmarkList is what a change that takes something away pays on a node without
// flowtables.
func BenchmarkList(b *testing.B) {
	netns.Enter(b)
	for b.Loop() {
		if _, err := flowtable.List(); err != nil {
			b.Fatal(err)
		}
	}
}
