// Package nfnetlink frames the messages of netfilter's subsystems over netlink. Each begins with a
// struct nfgenmsg (include/uapi/linux/netfilter/nfnetlink.h): family, version and resource. The
// attributes after it are in network order.
package nfnetlink

import (
	"encoding/binary"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// headerLength is the length of struct nfgenmsg, in bytes.
const headerLength = 4

// Header is a struct nfgenmsg. family is an NFPROTO_*; resource is 0 in most subsystems.
func Header(family uint8, resource uint16) []byte {
	return binary.BigEndian.AppendUint16([]byte{family, unix.NFNETLINK_V0}, resource)
}

// Message is a request of a type, which is a NFNL_SUBSYS_* times 256 and a command of that, with
// resource 0. The flag of a request is set in any case.
func Message(kind netlink.HeaderType, flags netlink.HeaderFlags, family uint8, attrs []byte) netlink.Message {
	return netlink.Message{
		Header: netlink.Header{Type: kind, Flags: netlink.Request | flags},
		Data:   append(Header(family, 0), attrs...),
	}
}

// Attributes reads those of a message; an error is about its length.
func Attributes(m netlink.Message) (*netlink.AttributeDecoder, error) {
	if len(m.Data) < headerLength {
		return nil, fmt.Errorf("answer of %d bytes is too short", len(m.Data))
	}
	ad, err := netlink.NewAttributeDecoder(m.Data[headerLength:])
	if err != nil {
		return nil, err
	}
	ad.ByteOrder = binary.BigEndian
	return ad, nil
}
