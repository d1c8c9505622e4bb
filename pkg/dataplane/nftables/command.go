package nftables

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"github.com/podmark/podmark/pkg/nfnetlink"
	"golang.org/x/sys/unix"
)

// command is one step of a transaction: as nft writes it, which is wanted only when the
// kernel refuses it, and as the kernel reads it.
type command struct {
	text   func() string
	encode func(*encoder) ([]netlink.Message, error)
}

// encoder has the library write messages, and takes them from it before they
// are sent: see conn.
type encoder struct {
	lib   *nftables.Conn // made when it is needed
	taken []netlink.Message
}

// take is the library's transport: it keeps a batch, without its first and last
// message, and answers nothing.
func (e *encoder) take(batch []netlink.Message) ([]netlink.Message, error) {
	if len(batch) > 2 {
		e.taken = append(e.taken, batch[1:len(batch)-1]...)
	}
	return nil, io.EOF
}

// messages returns what the library writes for add.
func (e *encoder) messages(add func(*nftables.Conn) error) ([]netlink.Message, error) {
	e.taken = nil
	if e.lib == nil {
		lib, err := nftables.New(nftables.WithTestDial(e.take))
		if err != nil {
			return nil, err
		}
		e.lib = lib
	}
	if err := add(e.lib); err != nil {
		return nil, err
	}
	err := e.lib.Flush()
	return e.taken, err
}

// library makes a command of one that the library knows.
func library(text string, add func(*nftables.Conn) error) command {
	return command{said(text), func(e *encoder) ([]netlink.Message, error) { return e.messages(add) }}
}

// said is a text that costs nothing.
func said(text string) func() string { return func() string { return text } }

func addTable(t nftables.Table) command {
	return library("add table "+path(t), func(lib *nftables.Conn) error {
		lib.AddTable(&t)
		return nil
	})
}

func deleteTable(t nftables.Table) command {
	return library("delete table "+path(t), func(lib *nftables.Conn) error {
		lib.DelTable(&t)
		return nil
	})
}

func (c chain) wire() *nftables.Chain {
	out := &nftables.Chain{Table: &c.table, Name: c.name}
	if c.hook != nil {
		accept := nftables.ChainPolicyAccept
		out.Type, out.Hooknum, out.Priority, out.Policy = nftables.ChainTypeFilter, c.hook.num, &c.hook.priority, &accept
	}
	return out
}

func addChain(c chain) command {
	text := "add chain " + path(c.table, c.name)
	if c.hook == nil {
		return command{said(text), c.named(unix.NFT_MSG_NEWCHAIN, netlink.Create)}
	}
	return library(text, func(lib *nftables.Conn) error {
		lib.AddChain(c.wire())
		return nil
	})
}

func flushChain(c chain) command {
	return library("flush chain "+path(c.table, c.name), func(lib *nftables.Conn) error {
		lib.FlushChain(c.wire())
		return nil
	})
}

func deleteChain(c chain) command {
	return command{said("delete chain " + path(c.table, c.name)), c.named(unix.NFT_MSG_DELCHAIN, 0)}
}

// named encodes what needs no more than the chain's name.
func (c chain) named(kind int, flags netlink.HeaderFlags) func(*encoder) ([]netlink.Message, error) {
	return func(*encoder) ([]netlink.Message, error) {
		ae := netlink.NewAttributeEncoder()
		ae.String(unix.NFTA_CHAIN_TABLE, c.table.Name)
		ae.String(unix.NFTA_CHAIN_NAME, c.name)
		attrs, err := ae.Encode()
		return []netlink.Message{request(kind, flags, c.table.Family, attrs)}, err
	}
}

func (s set) wire() *nftables.Set {
	return &nftables.Set{
		Table: &s.table, Name: s.name, KeyType: s.key, DataType: s.data, IsMap: s.isMap(), Size: s.size,
		Interval: s.interval, Concatenation: s.interval, Dynamic: s.meter, HasTimeout: s.meter,
	}
}

func addSet(s set) command {
	kind := "set "
	if s.isMap() {
		kind = "map "
	}
	return command{said("add " + kind + path(s.table, s.name)), func(e *encoder) ([]netlink.Message, error) {
		messages, err := e.messages(func(lib *nftables.Conn) error { return lib.AddSet(s.wire(), nil) })
		if err != nil {
			return nil, err
		}
		attr, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: unix.NFTA_SET_USERDATA, Data: s.byteOrders()}})
		messages[0].Data = append(messages[0].Data, attr...)
		return messages, err
	}}
}

// byteOrders tells nft how to print keys and values. The kernel does not look
// at it; the library writes that of keys only.
func (s set) byteOrders() []byte {
	const host, network = 1, 2 // enum byteorder of nft
	key := uint32(network)
	if s.key == nftables.TypeMark || s.key == nftables.TypeIFIndex {
		key = host
	}
	data := userdata.AppendUint32(nil, userdata.NFTNL_UDATA_SET_KEYBYTEORDER, key)
	if s.data == nftables.TypeMark {
		data = userdata.AppendUint32(data, userdata.NFTNL_UDATA_SET_DATABYTEORDER, host)
	}
	return data
}

func deleteSet(s set) command {
	return library("delete set "+path(s.table, s.name), func(lib *nftables.Conn) error {
		lib.DelSet(s.wire())
		return nil
	})
}

// elementsAtOnce bounds a message: the list of its elements has 64 KiB.
const elementsAtOnce = 500

// sizeOfElement is how many bytes of attributes an address has in a set. Others have more.
const sizeOfElement = 4*unix.SizeofNlAttr + 16

// changeElements adds or deletes elements, as many at once as a message holds. The
// messages are our own: the library takes ten times as long, which an ADD feels.
func changeElements(verb string, kind int, flags netlink.HeaderFlags, s set, list []element) []command {
	var out []command
	for some := range slices.Chunk(list, elementsAtOnce) {
		text := func() string {
			more := ""
			if len(some) > 1 {
				more = fmt.Sprintf(", and %d more", len(some)-1)
			}
			return fmt.Sprintf("%s element %s { %s%s }", verb, path(s.table, s.name), s.show(some[0]), more)
		}
		out = append(out, command{text, func(*encoder) ([]netlink.Message, error) {
			attrs := append(make(attrList, 0, 128+sizeOfElement*len(some)), nfnetlink.Header(byte(s.table.Family), 0)...)
			attrs = attrs.text(unix.NFTA_SET_ELEM_LIST_TABLE, s.table.Name).text(unix.NFTA_SET_ELEM_LIST_SET, s.name)
			attrs, elements := attrs.open(unix.NFTA_SET_ELEM_LIST_ELEMENTS)
			for _, e := range some {
				attrs = e.append(attrs, s)
			}
			if size := len(attrs) - elements; size > math.MaxUint16 {
				return nil, fmt.Errorf("%d elements have %d bytes; a message has room for %d", len(some), size, math.MaxUint16)
			}
			attrs.close(elements)
			return []netlink.Message{{Header: header(kind, flags), Data: attrs}}, nil
		}})
	}
	return out
}

// append appends the attributes of an element of s.
func (e element) append(to attrList, s set) attrList {
	to, whole := to.open(unix.NFTA_LIST_ELEM)
	to = to.data(unix.NFTA_SET_ELEM_KEY, e.key)
	if e.end != "" {
		to = to.data(nftables.NFTA_SET_ELEM_KEY_END, e.end)
	}
	switch {
	case !s.isMap():
	case s.data != nftables.TypeVerdict:
		to = to.data(unix.NFTA_SET_ELEM_DATA, e.value)
	default:
		var data, verdict int
		to, data = to.open(unix.NFTA_SET_ELEM_DATA)
		to, verdict = to.open(unix.NFTA_DATA_VERDICT)
		code := int32(unix.NFT_RETURN)
		if e.chain != "" {
			code = unix.NFT_GOTO
			to = to.text(unix.NFTA_VERDICT_CHAIN, e.chain)
		}
		to = to.number(unix.NFTA_VERDICT_CODE, uint32(code))
		to.close(verdict)
		to.close(data)
	}
	to.close(whole)
	return to
}

// attrList is the attributes of a message, one after the other. The library's encoder allocates
// several times for each, and a set can have hundreds of thousands of elements.
type attrList []byte

// bytes appends one of these bytes.
func (a attrList) bytes(kind uint16, value string) attrList {
	length := unix.SizeofNlAttr + len(value)
	a = binary.NativeEndian.AppendUint16(a, uint16(length))
	a = binary.NativeEndian.AppendUint16(a, kind)
	a = append(a, value...)
	return append(a, "\x00\x00\x00"[:-length&(unix.NLA_ALIGNTO-1)]...)
}

// text appends one that is a string of C.
func (a attrList) text(kind uint16, s string) attrList { return a.bytes(kind, s+"\x00") }

// number appends one that is a number in network order.
func (a attrList) number(kind uint16, n uint32) attrList {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], n)
	return a.bytes(kind, string(b[:]))
}

// data appends one that has a value of a set.
func (a attrList) data(kind uint16, value string) attrList {
	a, at := a.open(kind)
	a = a.bytes(unix.NFTA_DATA_VALUE, value)
	a.close(at)
	return a
}

// open begins one that has others in it, up to close, which takes where it began.
func (a attrList) open(kind uint16) (to attrList, at int) {
	return a.bytes(kind|unix.NLA_F_NESTED, ""), len(a)
}

func (a attrList) close(at int) { binary.NativeEndian.PutUint16(a[at:], uint16(len(a)-at)) }

func addElements(s set, list []element) []command {
	return changeElements("add", unix.NFT_MSG_NEWSETELEM, netlink.Create, s, list)
}

func deleteElements(s set, list []element) []command {
	return changeElements("delete", unix.NFT_MSG_DELSETELEM, 0, s, list)
}

// addRule appends rule number i of a chain, with the constants it looks into. The message is
// our own, because the library has no shift.
func addRule(c chain, i int) command {
	r := c.rules[i]
	encode := func(e *encoder) ([]netlink.Message, error) {
		var messages []netlink.Message
		var constants []*nftables.Set
		for _, p := range r.parts {
			if p.set == nil {
				continue
			}
			constant := &nftables.Set{
				Table: &c.table, Anonymous: true, Constant: true, Interval: p.set.interval,
				KeyType: p.set.key,
			}
			more, err := e.messages(func(lib *nftables.Conn) error { return addConstant(lib, constant, p.set.elements) })
			if err != nil {
				return nil, err
			}
			messages, constants = append(messages, more...), append(constants, constant)
		}
		anonymous, err := r.encode(c.table.Family, nil)
		if err != nil {
			return nil, err
		}
		encoded := anonymous
		if constants != nil {
			if encoded, err = r.encode(c.table.Family, constants); err != nil {
				return nil, err
			}
		}
		ae := netlink.NewAttributeEncoder()
		ae.String(unix.NFTA_RULE_TABLE, c.table.Name)
		ae.String(unix.NFTA_RULE_CHAIN, c.name)
		ae.Nested(unix.NFTA_RULE_EXPRESSIONS, func(ae *netlink.AttributeEncoder) error {
			for _, b := range encoded {
				ae.Bytes(unix.NLA_F_NESTED|unix.NFTA_LIST_ELEM, b)
			}
			return nil
		})
		var data []byte
		if r.comment != "" {
			data = userdata.AppendString(nil, userdata.TypeComment, r.comment)
		}
		ae.Bytes(unix.NFTA_RULE_USERDATA, stamped(data, c.stamp(i, anonymous)))
		attrs, err := ae.Encode()
		if err != nil {
			return nil, err
		}
		return append(messages, request(unix.NFT_MSG_NEWRULE, netlink.Create|netlink.Append, c.table.Family, attrs)), nil
	}
	return command{func() string { return fmt.Sprintf("add rule %s %s", path(c.table, c.name), r) }, encode}
}

// addConstant adds an anonymous set with elements, as many at once as a message
// holds: the library would write all into one, and refuses to add to such a set.
func addConstant(lib *nftables.Conn, s *nftables.Set, list []nftables.SetElement) error {
	// Without a size the kernel takes a kind of set that grows, and is slower.
	s.Size = uint32(len(list))
	if err := lib.AddSet(s, nil); err != nil {
		return err
	}
	open := *s
	open.Anonymous = false
	for some := range slices.Chunk(list, elementsAtOnce) {
		if err := lib.SetAddElements(&open, some); err != nil {
			return err
		}
	}
	return nil
}

// encodeExpr encodes an expression; a Lookup without a name is into the constant.
func encodeExpr(f nftables.TableFamily, x any, constant *nftables.Set) ([]byte, error) {
	switch x := x.(type) {
	case interface{ marshal() ([]byte, error) }: // our own
		return x.marshal()
	case *expr.Lookup:
		lookup := *x
		if lookup.SetName == "" {
			lookup.SetName, lookup.SetID = constant.Name, constant.ID
		}
		return expr.Marshal(byte(f), &lookup)
	case expr.Any:
		return expr.Marshal(byte(f), x)
	}
	return nil, fmt.Errorf("expression %T is not known", x)
}
