// Package flowtable finds the flowtables of a node, over netlink. All of them are other
// programs': podmark has none, and changes none.
//
// A flowtable forwards the packets of live TCP and UDP flows from where they come in to where they
// go out, past every hook after ingress. Who owns it gives it the flows that pass hook
// FORWARD, with "flow add".
//
//	tables, err := flowtable.List()
//
// Numbers of attributes: include/uapi/linux/netfilter/nf_tables.h.
package flowtable

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/mdlayher/netlink"
	"github.com/podmark/podmark/pkg/nfnetlink"
	"golang.org/x/sys/unix"
)

// Flowtable is one of them.
type Flowtable struct {
	// Family is nft's name of the table's: "ip", "ip6" or "inet".
	Family string
	Table  string
	Name   string
	// Devices are the names of the interfaces from which it takes packets.
	Devices []string
	// Hardware is set where it hands flows to the interface's hardware.
	Hardware bool
}

// String is the flowtable as nft names it: "inet firewalld fastpath".
func (f Flowtable) String() string { return f.Family + " " + f.Table + " " + f.Name }

const (
	attrTable = 1
	attrName  = 2
	attrHook  = 3
	attrFlags = 7

	hookDevices = 3

	hardware = 1 // NFT_FLOWTABLE_HW_OFFLOAD
)

// tries is how often a list is read again that changes while it is read.
const tries = 10

// List returns the flowtables of the process's network namespace; none where the kernel has
// no nf_tables. It takes one request, a fraction of a millisecond (BenchmarkList).
func List() ([]Flowtable, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("connecting to nf_tables: %w", err)
	}
	defer c.Close()
	kind := netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETFLOWTABLE)
	request := nfnetlink.Message(kind, netlink.Dump, unix.NFPROTO_UNSPEC, nil)
	for range tries {
		replies, err := c.Execute(request)
		switch {
		// Without nf_tables, or before Linux 4.16.
		case errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
			return nil, nil
		case err != nil:
			return nil, fmt.Errorf("listing flowtables: %w", err)
		}
		if slices.ContainsFunc(replies, func(m netlink.Message) bool { return m.Header.Flags&netlink.DumpInterrupted != 0 }) {
			continue
		}
		var tables []Flowtable
		for _, r := range replies {
			t, err := Parse(r.Data)
			if err != nil {
				return nil, fmt.Errorf("listing flowtables: %w", err)
			}
			tables = append(tables, t)
		}
		return tables, nil
	}
	return nil, fmt.Errorf("listing flowtables: they changed during each of %d tries", tries)
}

// Parse reads the payload of an NFT_MSG_NEWFLOWTABLE message: struct nfgenmsg and attributes.
// What it does not know it leaves out; an error is about a length.
func Parse(payload []byte) (Flowtable, error) {
	if len(payload) < 4 {
		return Flowtable{}, fmt.Errorf("reading a flowtable: %d bytes, want 4 at least", len(payload))
	}
	f := Flowtable{Family: families[payload[0]]}
	ad, err := netlink.NewAttributeDecoder(payload[4:])
	if err != nil {
		return Flowtable{}, fmt.Errorf("reading a flowtable: %w", err)
	}
	ad.ByteOrder = binary.BigEndian
	for ad.Next() {
		switch ad.Type() {
		case attrTable:
			f.Table = ad.String()
		case attrName:
			f.Name = ad.String()
		case attrFlags:
			f.Hardware = ad.Uint32()&hardware != 0
		case attrHook:
			ad.Nested(f.readHook)
		}
	}
	if err := ad.Err(); err != nil {
		return Flowtable{}, fmt.Errorf("reading flowtable %q of table %q: %w", f.Name, f.Table, err)
	}
	return f, nil
}

func (f *Flowtable) readHook(ad *netlink.AttributeDecoder) error {
	for ad.Next() {
		if ad.Type() != hookDevices {
			continue
		}
		ad.Nested(func(ad *netlink.AttributeDecoder) error {
			for ad.Next() {
				f.Devices = append(f.Devices, strings.TrimRight(ad.String(), "\x00"))
			}
			return nil
		})
	}
	return nil
}

var families = map[byte]string{unix.NFPROTO_IPV4: "ip", unix.NFPROTO_IPV6: "ip6", unix.NFPROTO_INET: "inet"}
