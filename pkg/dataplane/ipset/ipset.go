// Package ipset speaks the kernel's ipset protocol over netlink.
//
// It owns the wire format of the few set types that podmark uses and knows
// nothing of what is kept in them. No ipset binary is needed. It exists because
// a set element that carries a fwmark (skbinfo) can be written by none of the
// Go libraries, and because one message costs 20 us where an exec costs 3 ms.
//
// Attribute numbers: include/uapi/linux/netfilter/ipset/ip_set.h.
package ipset

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/mark"
	"github.com/podmark/podmark/pkg/nfnetlink"
)

// Type is a set type as the kernel names it.
type Type string

// The set types in use.
const (
	HashIP     Type = "hash:ip"
	HashNet    Type = "hash:net" // prefixes of length 1 or more
	HashIPPort Type = "hash:ip,port"
	// prefixes of any length, 64 interfaces for each; may have a mark per element (skbinfo)
	HashNetIface Type = "hash:net,iface"
	BitmapPort   Type = "bitmap:port" // all 65536 ports; matches TCP and UDP only
)

// revisions is the first revision of each type that has what is used of it.
var revisions = map[Type]uint8{
	HashIPPort:   1, // added SCTP, Linux 2.6.39
	HashNetIface: 6, // added skbinfo, Linux 3.19
}

// Family is the address family of a set's elements.
type Family uint8

// The families of a set; a bitmap:port has none.
const (
	None Family = unix.AF_UNSPEC
	IPv4 Family = unix.AF_INET
	IPv6 Family = unix.AF_INET6
)

// Set is a set to be created.
type Set struct {
	Name   string // at most 31 bytes
	Type   Type
	Family Family
}

// Element is one entry; which fields count depends on the set's type.
type Element struct {
	Prefix      netip.Prefix // a host prefix except in hash:net and hash:net,iface
	Iface       string       // hash:net,iface
	Mark        mark.Mark    // hash:net,iface
	First, Last uint16       // bitmap:port, inclusive; hash:ip,port has one: First
	Protocol    uint8        // hash:ip,port; IANA number
}

// Key is the part of the element that identifies it in its set: everything but
// the mark.
func (e Element) Key() Element {
	e.Mark = mark.Mark{}
	return e
}

// Header is what the kernel says about a set as a whole.
type Header struct {
	// References counts the rules and sets that use the set.
	References uint32
	// Elements counts the entries.
	Elements uint32
}

// ErrNotExist is returned for a set, not an element, that does not exist.
var ErrNotExist = errors.New("set does not exist")

// ErrBusy is returned for a set that a rule still uses. Rules that were removed
// count for a moment longer: the kernel frees them in the background.
var ErrBusy = errors.New("set is in use")

// ErrUnavailable is returned when the kernel has no ipset or not that type.
var ErrUnavailable = errors.New("kernel lacks ip_set support")

// maxElements bounds a hash; the kernel's own default, 65,536, is fewer than a
// cluster's pods. Memory is taken as elements come.
const maxElements = 1 << 20

const (
	subsystem = unix.NFNL_SUBSYS_IPSET << 8

	cmdProtocol = 1
	cmdCreate   = 2
	cmdDestroy  = 3
	cmdSwap     = 6
	cmdList     = 7
	cmdAdd      = 9
	cmdDel      = 10
	cmdTest     = 11

	attrProtocol = 1
	attrSetName  = 2
	attrTypeName = 3
	attrSetName2 = attrTypeName
	attrRevision = 4
	attrFamily   = 5
	attrFlags    = 6
	attrData     = 7
	attrADT      = 8
	attrLineno   = 9

	dataIP         = 1
	dataCIDR       = 3
	dataPort       = 4
	dataPortTo     = 5
	dataProtocol   = 7
	dataFlags      = 8
	dataMaxElem    = 19
	dataElements   = 24
	dataReferences = 25
	dataIface      = 23
	dataSkbMark    = 27

	ipv4, ipv6 = 1, 2

	flagListSetName = 1 << 1
	flagListHeader  = 1 << 2
	flagWithSkbInfo = 1 << 6

	// protocolVersion 6 is understood by every kernel since 2.6.39.
	protocolVersion = 6

	errFindType = 4098
	errBusy     = 4100
	errExist    = 4103
)

// Conn is a netlink connection to the ipset of the current network namespace.
type Conn struct {
	nl *netlink.Conn
}

// Dial connects and checks that the kernel has ipset.
func Dial() (*Conn, error) {
	nl, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("connecting to netfilter: %w", err)
	}
	c := &Conn{nl: nl}
	if _, err := c.do(cmdProtocol, 0, func(*netlink.AttributeEncoder) {}); err != nil {
		nl.Close()
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return c, nil
}

// Close ends the connection.
func (c *Conn) Close() error { return c.nl.Close() }

// Create makes the set; one of the same name and type that exists is kept.
func (c *Conn) Create(s Set) error {
	_, err := c.do(cmdCreate, netlink.Create, func(ae *netlink.AttributeEncoder) {
		ae.String(attrSetName, s.Name)
		ae.String(attrTypeName, string(s.Type))
		ae.Uint8(attrRevision, revisions[s.Type])
		ae.Uint8(attrFamily, uint8(s.Family))
		ae.Nested(attrData, func(ae *netlink.AttributeEncoder) error {
			ae.ByteOrder = binary.BigEndian
			switch s.Type {
			case BitmapPort:
				ae.Uint16(netOrder|dataPort, 0)
				ae.Uint16(netOrder|dataPortTo, 65535)
			case HashNetIface:
				ae.Uint32(netOrder|dataFlags, flagWithSkbInfo)
				fallthrough
			default:
				ae.Uint32(netOrder|dataMaxElem, maxElements)
			}
			return nil
		})
	})
	if isErrno(err, errFindType) {
		err = fmt.Errorf("%w for type %s", ErrUnavailable, s.Type)
	}
	return wrap(err, "creating", s.Name)
}

// Destroy removes the set. One that does not exist is fine; one that a rule
// uses is ErrBusy.
func (c *Conn) Destroy(name string) error {
	_, err := c.do(cmdDestroy, 0, func(ae *netlink.AttributeEncoder) { ae.String(attrSetName, name) })
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case isErrno(err, errBusy):
		err = ErrBusy
	}
	return wrap(err, "destroying", name)
}

// Swap exchanges what two sets of one type hold, for packets in one step: rules go
// on to use the names they used.
func (c *Conn) Swap(a, b string) error {
	_, err := c.do(cmdSwap, 0, func(ae *netlink.AttributeEncoder) {
		ae.String(attrSetName, a)
		ae.String(attrSetName2, b)
	})
	return wrap(err, "swapping "+a+" and", b)
}

// Add puts e into the set; an element that is there gets e's mark.
func (c *Conn) Add(s Set, e Element) error {
	_, err := c.do(cmdAdd, 0, elementOf(s, e))
	return wrap(err, fmt.Sprintf("adding %s to", e), s.Name)
}

// Del takes e out of the set; an element that is not there is fine.
func (c *Conn) Del(s Set, e Element) error {
	_, err := c.do(cmdDel, 0, elementOf(s, e))
	return wrap(err, fmt.Sprintf("deleting %s from", e), s.Name)
}

// atOnce is how many elements a message has.
const atOnce = 500

// AddAll is Add for many.
func (c *Conn) AddAll(s Set, list []Element) error { return c.all(cmdAdd, "adding", s, list) }

// DelAll is Del for many.
func (c *Conn) DelAll(s Set, list []Element) error { return c.all(cmdDel, "deleting", s, list) }

func (c *Conn) all(cmd netlink.HeaderType, doing string, s Set, list []Element) error {
	for some := range slices.Chunk(list, atOnce) {
		_, err := c.do(cmd, 0, func(ae *netlink.AttributeEncoder) {
			ae.String(attrSetName, s.Name)
			ae.Uint32(netOrder|attrLineno, 1) // the kernel wants one
			ae.Nested(attrADT, func(ae *netlink.AttributeEncoder) error {
				for _, e := range some {
					ae.Nested(attrData, dataOf(s, e))
				}
				return nil
			})
		})
		if err != nil {
			return wrap(err, fmt.Sprintf("%s %d elements, %s the first, of", doing, len(some), some[0]), s.Name)
		}
	}
	return nil
}

// Elements hands each element of a set of addresses, or of addresses and ports, to visit.
// ErrNotExist when there is no such set.
func (c *Conn) Elements(s Set, visit func(Element)) error {
	msgs, err := c.do(cmdList, netlink.Dump, func(ae *netlink.AttributeEncoder) { ae.String(attrSetName, s.Name) })
	if err != nil {
		return wrap(err, "reading", s.Name)
	}
	for _, m := range msgs {
		ad, err := nfnetlink.Attributes(m)
		if err != nil {
			return wrap(err, "reading", s.Name)
		}
		for ad.Next() {
			if ad.Type() != attrADT {
				continue
			}
			ad.Nested(func(list *netlink.AttributeDecoder) error {
				for list.Next() {
					var e Element
					list.Nested(e.decode)
					visit(e)
				}
				return nil
			})
		}
		if err := ad.Err(); err != nil {
			return wrap(err, "reading", s.Name)
		}
	}
	return nil
}

// decode reads the data of an element that has an address, and may have a port.
func (e *Element) decode(ad *netlink.AttributeDecoder) error {
	ad.ByteOrder = binary.BigEndian
	for ad.Next() {
		switch ad.Type() {
		case dataIP:
			ad.Nested(func(ad *netlink.AttributeDecoder) error {
				for ad.Next() {
					if a, ok := netip.AddrFromSlice(ad.Bytes()); ok {
						e.Prefix = netip.PrefixFrom(a, a.BitLen())
					}
				}
				return nil
			})
		case dataPort:
			e.First = ad.Uint16()
		case dataProtocol:
			e.Protocol = ad.Uint8()
		}
	}
	return nil
}

// Test reports whether the set holds e, whatever its mark.
func (c *Conn) Test(s Set, e Element) (bool, error) {
	_, err := c.do(cmdTest, netlink.Excl, elementOf(s, e))
	if isErrno(err, errExist) {
		return false, nil
	}
	if err != nil {
		return false, wrap(err, fmt.Sprintf("testing %s in", e), s.Name)
	}
	return true, nil
}

// Header reads the set's header. It returns ErrNotExist when there is no such set.
func (c *Conn) Header(name string) (Header, error) {
	msgs, err := c.do(cmdList, netlink.Dump, func(ae *netlink.AttributeEncoder) {
		ae.String(attrSetName, name)
		ae.Uint32(netOrder|attrFlags, flagListHeader)
	})
	if err != nil {
		return Header{}, wrap(err, "reading", name)
	}
	var h Header
	for _, m := range msgs {
		ad, err := nfnetlink.Attributes(m)
		if err != nil {
			return Header{}, wrap(err, "reading", name)
		}
		for ad.Next() {
			if ad.Type() == attrData {
				ad.Nested(func(ad *netlink.AttributeDecoder) error {
					for ad.Next() {
						switch ad.Type() {
						case dataElements:
							h.Elements = ad.Uint32()
						case dataReferences:
							h.References = ad.Uint32()
						}
					}
					return nil
				})
			}
		}
		if err := ad.Err(); err != nil {
			return Header{}, wrap(err, "reading", name)
		}
	}
	return h, nil
}

// Names lists the names of every set of the namespace, foreign ones included.
func (c *Conn) Names() ([]string, error) {
	msgs, err := c.do(cmdList, netlink.Dump, func(ae *netlink.AttributeEncoder) {
		ae.Uint32(netOrder|attrFlags, flagListSetName)
	})
	if err != nil {
		return nil, fmt.Errorf("listing sets: %w", err)
	}
	var names []string
	for _, m := range msgs {
		ad, err := nfnetlink.Attributes(m)
		if err != nil {
			return nil, fmt.Errorf("listing sets: %w", err)
		}
		for ad.Next() {
			if ad.Type() == attrSetName {
				names = append(names, ad.String())
			}
		}
		if err := ad.Err(); err != nil {
			return nil, fmt.Errorf("listing sets: %w", err)
		}
	}
	return names, nil
}

// String renders the element as ipset(8) does.
func (e Element) String() string {
	switch {
	case e.Protocol != 0:
		return fmt.Sprintf("%s,%s:%d", e.Prefix.Addr(), protocolName(e.Protocol), e.First)
	case !e.Prefix.IsValid():
		return fmt.Sprintf("%d-%d", e.First, e.Last)
	}
	text := e.Prefix.String()
	if e.Prefix.IsSingleIP() {
		text = e.Prefix.Addr().String()
	}
	if e.Iface != "" {
		text += "," + e.Iface
	}
	if e.Mark.Mask != 0 {
		text += " skbmark " + e.Mark.String()
	}
	return text
}

// protocolName is what ipset(8) calls a protocol; it takes the number of others.
func protocolName(p uint8) string {
	switch p {
	case unix.IPPROTO_TCP:
		return "tcp"
	case unix.IPPROTO_UDP:
		return "udp"
	case unix.IPPROTO_SCTP:
		return "sctp"
	}
	return fmt.Sprint(p)
}

const (
	netOrder = netlink.NetByteOrder
)

// elementOf encodes the element of an add, del or test.
func elementOf(s Set, e Element) func(*netlink.AttributeEncoder) {
	return func(ae *netlink.AttributeEncoder) {
		ae.String(attrSetName, s.Name)
		ae.Nested(attrData, dataOf(s, e))
	}
}

// dataOf encodes what identifies an element of s, and its mark.
func dataOf(s Set, e Element) func(*netlink.AttributeEncoder) error {
	return func(ae *netlink.AttributeEncoder) error {
		ae.ByteOrder = binary.BigEndian
		switch s.Type {
		case BitmapPort:
			ae.Uint16(netOrder|dataPort, e.First)
			ae.Uint16(netOrder|dataPortTo, e.Last)
			return nil
		}
		ae.Nested(dataIP, func(ae *netlink.AttributeEncoder) error {
			kind := uint16(ipv4)
			if s.Family == IPv6 {
				kind = ipv6
			}
			ae.Bytes(netOrder|kind, e.Prefix.Addr().AsSlice())
			return nil
		})
		switch s.Type {
		case HashNet:
			ae.Uint8(dataCIDR, uint8(e.Prefix.Bits()))
		case HashIPPort:
			ae.Uint8(dataProtocol, e.Protocol)
			ae.Uint16(netOrder|dataPort, e.First)
		case HashNetIface:
			ae.Uint8(dataCIDR, uint8(e.Prefix.Bits()))
			ae.String(dataIface, e.Iface)
			if e.Mark.Mask != 0 {
				ae.Uint64(netOrder|dataSkbMark, uint64(e.Mark.Value)<<32|uint64(e.Mark.Mask))
			}
		}
		return nil
	}
}

// do sends one command and waits for its answer or acknowledgement.
func (c *Conn) do(
	cmd netlink.HeaderType,
	flags netlink.HeaderFlags,
	fill func(*netlink.AttributeEncoder),
) ([]netlink.Message, error) {
	ae := netlink.NewAttributeEncoder()
	ae.ByteOrder = binary.BigEndian
	ae.Uint8(attrProtocol, protocolVersion)
	fill(ae)
	attrs, err := ae.Encode()
	if err != nil {
		return nil, err
	}
	if cmd != cmdList && cmd != cmdProtocol {
		flags |= netlink.Acknowledge
	}
	return c.nl.Execute(nfnetlink.Message(subsystem|cmd, flags, unix.AF_INET, attrs))
}

func isErrno(err error, errno unix.Errno) bool {
	var op *netlink.OpError
	return errors.As(err, &op) && errors.Is(op.Err, errno)
}

func wrap(err error, doing, name string) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("%s set %q: %w", doing, name, ErrNotExist)
	default:
		return fmt.Errorf("%s set %q: %w", doing, name, err)
	}
}

// String names the family as ipset(8) does.
func (f Family) String() string {
	switch f {
	case IPv4:
		return "inet"
	case IPv6:
		return "inet6"
	}
	return "unspec"
}
