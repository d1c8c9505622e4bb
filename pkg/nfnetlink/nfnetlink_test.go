package nfnetlink_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/nfnetlink"
)

func TestMessage(t *testing.T) {
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: 3, Data: []byte{1, 2, 3, 4}}})
	if err != nil {
		t.Fatal(err)
	}
	m := nfnetlink.Message(unix.NFNL_SUBSYS_CTNETLINK<<8|2, netlink.Acknowledge, unix.NFPROTO_IPV6, attrs)
	want := netlink.Message{
		Header: netlink.Header{Type: 0x102, Flags: netlink.Request | netlink.Acknowledge},
		Data:   append([]byte{unix.NFPROTO_IPV6, 0, 0, 0}, attrs...),
	}
	if diff := cmp.Diff(want, m); diff != "" {
		t.Error(diff)
	}
	ad, err := nfnetlink.Attributes(m)
	if err != nil {
		t.Fatal(err)
	}
	if !ad.Next() || ad.Type() != 3 || ad.Uint32() != 0x01020304 || ad.Next() || ad.Err() != nil {
		t.Errorf("attribute %d, %v", ad.Type(), ad.Err())
	}
	if got := nfnetlink.Header(unix.AF_UNSPEC, 1886); !cmp.Equal(got, []byte{0, 0, 7, 0x5e}) {
		t.Errorf("a header is % x", got)
	}
	for _, data := range [][]byte{nil, {1, 2, 3}, {0, 0, 0, 0, 4, 0}} {
		if _, err := nfnetlink.Attributes(netlink.Message{Data: data}); err == nil {
			t.Errorf("% x is read", data)
		}
	}
}
