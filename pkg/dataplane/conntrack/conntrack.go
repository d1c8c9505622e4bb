// Package conntrack makes live flows be judged again, over netlink.
//
// A flow that was judged and allowed carries the policy epoch in its conntrack
// mark. [ResetVerdict] takes it off the flows of one address, [Reevaluate] off those of many, [ClearEpoch]
// takes a number off the flows that carry it, so that it can be given out again, [ClearOtherEpochs]
// every other number, and [DeleteFlows] drops the flows of an address that is nobody's any more.
// [Reclaim] brings flows back to the hooks that a flowtable carries past them.
//
// Attribute numbers: include/uapi/linux/netfilter/nfnetlink_conntrack.h.
package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/mdlayher/netlink"
	"go4.org/netipx"
	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/mark"
	"github.com/podmark/podmark/pkg/nfnetlink"
)

const (
	subsystem = unix.NFNL_SUBSYS_CTNETLINK << 8

	cmdNew    = 0
	cmdGet    = 1
	cmdDelete = 2

	attrTupleOrig  = 1
	attrTupleReply = 2
	attrStatus     = 3
	attrProtoInfo  = 4
	attrNATSrc     = 6
	attrTimeout    = 7
	attrMark       = 8
	attrID         = 12
	attrNATDst     = 13
	attrZone       = 18
	attrMarkMask   = 21
	attrLabels     = 22
	attrFilter     = 25
	attrStatusMask = 26

	tupleIP    = 1
	tupleProto = 2
	tupleZone  = 3
	ipv4Src    = 1
	ipv4Dst    = 2
	ipv6Src    = 3
	ipv6Dst    = 4
	protoNum   = 1
	srcPort    = 2
	dstPort    = 3

	filterOrig  = 1
	filterReply = 2
	// filterSrc asks to compare the source address (CTA_FILTER_FLAG(CTA_IP_SRC)).
	filterSrc = 1 << 0
)

// DeleteFlows deletes every flow that one of addrs started or answers: for addresses
// whose endpoint is gone. A flow of a live endpoint must not be deleted: the next
// packet might be a reply, which would begin a flow in the other direction. The error is
// unix.EBUSY where nothing stays but flows that a flowtable carries, see [Reclaim].
func DeleteFlows(addrs []netip.Addr) error {
	return eachOf(addrs, func(c *netlink.Conn, f flow) error { return f.delete(c) })
}

// ResetVerdict takes the bits of mask off the mark of every flow that one of addrs
// started or answers, so that its next packet in the original direction is judged. A flow
// that a flowtable carries is brought back to the hooks where the kernel can; where it
// cannot, [Offloaded] counts it.
func ResetVerdict(addrs []netip.Addr, mask uint32) error {
	return eachOf(addrs, func(c *netlink.Conn, f flow) error {
		if f.offloaded() {
			if taken, err := f.takeBack(c, mask); taken || err != nil {
				return err
			}
		}
		if f.mark&mask == 0 {
			return nil
		}
		return f.setMark(c, mark.Mark{Mask: mask})
	})
}

// eachOf calls do for every flow that one of addrs started or answers, also after an error.
func eachOf(addrs []netip.Addr, do func(*netlink.Conn, flow) error) error {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fmt.Errorf("connecting to conntrack: %w", err)
	}
	defer c.Close()
	var failed failures
	for _, q := range queriesFor(addrs, flowCount()) {
		// A filter only saves work: a kernel before 5.8 ignores it.
		flows, err := dump(c, q.family, q.filter, func(f flow) bool {
			return slices.Contains(addrs, f.orig.src) || slices.Contains(addrs, f.reply.src)
		})
		if err != nil {
			return fmt.Errorf("listing flows of %v: %w", addrs, err)
		}
		for _, f := range flows {
			failed.add(do(c, f))
		}
	}
	if failed.err != nil {
		return fmt.Errorf("changing flows of %v, %d of them: %w", addrs, failed.count, failed.err)
	}
	return nil
}

// failures are those of one thing done with many flows. One error stands for all, and it is
// unix.EBUSY only where all are.
type failures struct {
	count int
	err   error
}

func (f *failures) add(err error) {
	if err == nil {
		return
	}
	if f.count++; f.err == nil || errors.Is(f.err, unix.EBUSY) {
		f.err = err
	}
}

// fewFlows is up to how many flows reading them all costs less than the filtered
// walks through the kernel's table. A walk takes as long for few flows as for
// many: 9 ms for 262,144 buckets, and reading a flow 9 us (BenchmarkForget).
const fewFlows = 2000

// flowCount is how many flows the namespace has; too many when that is not known.
func flowCount() int {
	b, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_count")
	if err != nil {
		return math.MaxInt
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return math.MaxInt
	}
	return n
}

// query is one walk through the kernel's table.
type query struct {
	family uint8
	filter func(*netlink.AttributeEncoder)
}

// queriesFor asks the kernel for the flows that addrs started and for those they
// answer. Behind IPVS or DNAT the original destination is the service: who
// answers is the source of the reply.
//
// IPv6 flows are all asked for: the kernel compares IPv6 addresses the wrong way
// round and returns every flow but the ones wanted (ctnetlink_filter_match_tuple,
// net/netfilter/nf_conntrack_netlink.c, Linux 5.8 to 6.18 at least).
func queriesFor(addrs []netip.Addr, flows int) []query {
	everything := func(*netlink.AttributeEncoder) {}
	if flows <= fewFlows {
		return []query{{unix.AF_UNSPEC, everything}}
	}
	var queries []query
	if slices.ContainsFunc(addrs, netip.Addr.Is6) {
		queries = append(queries, query{unix.AF_INET6, everything})
	}
	for _, a := range addrs {
		if a.Is4() {
			queries = append(
				queries,
				query{unix.AF_INET, sourceFilter(attrTupleOrig, filterOrig, filterReply, a)},
				query{unix.AF_INET, sourceFilter(attrTupleReply, filterReply, filterOrig, a)},
			)
		}
	}
	return queries
}

// sourceFilter matches flows that have the IPv4 address addr as the source of
// one of their two tuples.
func sourceFilter(tuple, asked, other uint16, addr netip.Addr) func(*netlink.AttributeEncoder) {
	return func(ae *netlink.AttributeEncoder) {
		ae.Nested(tuple, func(ae *netlink.AttributeEncoder) error {
			ae.Nested(tupleIP, func(ae *netlink.AttributeEncoder) error {
				ae.Bytes(ipv4Src, addr.AsSlice())
				return nil
			})
			return nil
		})
		ae.Nested(attrFilter, func(ae *netlink.AttributeEncoder) error {
			ae.ByteOrder = binary.NativeEndian // unlike everything else here
			ae.Uint32(asked, filterSrc)
			ae.Uint32(other, 0)
			return nil
		})
	}
}

// ClearEpoch sets the bits of m.Mask to zero in the mark of every flow that has
// m.Value there. Other bits stay.
func ClearEpoch(m mark.Mark) error {
	return strip(m.Mask, marked(m), func(f flow) bool { return f.mark&m.Mask == m.Value })
}

// Reevaluate does so for those flows alone that one of the addresses in set started or answers.
func Reevaluate(m mark.Mark, set *netipx.IPSet) error {
	return strip(m.Mask, marked(m), func(f flow) bool {
		return f.mark&m.Mask == m.Value && (set.Contains(f.orig.src) || set.Contains(f.reply.src))
	})
}

// marked asks the kernel for flows with a mark.
func marked(m mark.Mark) func(*netlink.AttributeEncoder) {
	return func(ae *netlink.AttributeEncoder) {
		ae.Uint32(netOrder|attrMark, m.Value)
		ae.Uint32(netOrder|attrMarkMask, m.Mask)
	}
}

// ClearOtherEpochs sets the bits of m.Mask to zero in the mark of every flow that has
// anything but m.Value there. Other bits stay.
func ClearOtherEpochs(m mark.Mark) error {
	return strip(m.Mask, func(*netlink.AttributeEncoder) {}, func(f flow) bool { return f.mark&m.Mask != m.Value })
}

// strip sets bits to zero in the mark of every flow that is to be stripped of them. The
// filter only saves work.
func strip(bits uint32, filter func(*netlink.AttributeEncoder), stripped func(flow) bool) error {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fmt.Errorf("connecting to conntrack: %w", err)
	}
	defer c.Close()
	flows, err := dump(c, unix.AF_UNSPEC, filter, func(f flow) bool { return f.mark&bits != 0 && stripped(f) })
	if err != nil {
		return fmt.Errorf("listing flows: %w", err)
	}
	var changes []netlink.Message
	for _, f := range flows {
		m, err := f.marking(mark.Mark{Mask: bits}, 0)
		if err != nil {
			return err
		}
		changes = append(changes, m)
	}
	for some := range slices.Chunk(changes, atOnce) {
		if err := sendAll(c, some); err != nil {
			return fmt.Errorf("clearing bits %#x of flows: %w", bits, err)
		}
	}
	return nil
}

// atOnce is how many changes go with one system call. The kernel's complaints about all of
// them fit into the socket.
const atOnce = 100

// sendAll has the kernel make changes. To wait for an answer to each takes ten times as
// long. It answers to those that fail, and to the last message, which does nothing and
// cannot fail.
func sendAll(c *netlink.Conn, changes []netlink.Message) error {
	last := netlink.Message{Header: netlink.Header{Type: netlink.Noop, Flags: netlink.Request | netlink.Acknowledge}}
	if _, err := c.SendMessages(append(slices.Clip(changes), last)); err != nil {
		return err
	}
	for {
		_, err := c.Receive()
		if err == nil {
			return nil
		}
		if err := gone(err); err != nil {
			return err
		}
	}
}

// flow is what is needed of a conntrack entry to name it again, and to make it again.
type flow struct {
	family      uint8
	orig, reply tuple
	status      uint32
	mark        uint32
	id          []byte
	zone        []byte
	labels      []byte
}

// identify encodes the tuple and the zone by which the kernel finds the flow.
func (f flow) identify(ae *netlink.AttributeEncoder) {
	ae.Bytes(netlink.Nested|attrTupleOrig, f.orig.raw)
	if f.zone != nil {
		ae.Bytes(netOrder|attrZone, f.zone)
	}
}

// delete removes the entry unless the kernel has replaced it meanwhile.
func (f flow) delete(c *netlink.Conn) error {
	return gone(f.send(c, cmdDelete, f.identifyExactly))
}

// identifyExactly adds which entry it was, should another have the tuple by now.
func (f flow) identifyExactly(ae *netlink.AttributeEncoder) {
	f.identify(ae)
	ae.Bytes(netOrder|attrID, f.id)
}

func (f flow) setMark(c *netlink.Conn, m mark.Mark) error {
	message, err := f.marking(m, netlink.Acknowledge)
	if err != nil {
		return err
	}
	_, err = c.Execute(message)
	return gone(err)
}

// marking is the message that sets the flow's mark.
func (f flow) marking(m mark.Mark, flags netlink.HeaderFlags) (netlink.Message, error) {
	return message(cmdNew, flags, f.family, func(ae *netlink.AttributeEncoder) {
		f.identify(ae)
		ae.Uint32(netOrder|attrMark, m.Value)
		ae.Uint32(netOrder|attrMarkMask, m.Mask)
	})
}

// gone accepts that a flow ended by itself.
func gone(err error) error {
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

func (f flow) send(c *netlink.Conn, cmd netlink.HeaderType, fill func(*netlink.AttributeEncoder)) error {
	m, err := message(cmd, netlink.Acknowledge, f.family, fill)
	if err != nil {
		return err
	}
	_, err = c.Execute(m)
	return err
}

const netOrder = netlink.NetByteOrder

func message(
	cmd netlink.HeaderType,
	flags netlink.HeaderFlags,
	family uint8,
	fill func(*netlink.AttributeEncoder),
) (netlink.Message, error) {
	ae := netlink.NewAttributeEncoder()
	ae.ByteOrder = binary.BigEndian
	fill(ae)
	attrs, err := ae.Encode()
	if err != nil {
		return netlink.Message{}, err
	}
	return nfnetlink.Message(subsystem|cmd, flags, family, attrs), nil
}

// dump lists the flows that are wanted, of those that the kernel's filter lets through: as they
// come, since a table may have more of them than there is memory for.
func dump(
	c *netlink.Conn,
	family uint8,
	filter func(*netlink.AttributeEncoder),
	wanted func(flow) bool,
) ([]flow, error) {
	m, err := message(cmdGet, netlink.Dump, family, filter)
	if err != nil {
		return nil, err
	}
	if _, err := c.Send(m); err != nil {
		return nil, err
	}
	var flows []flow
	for a, err := range c.ReceiveIter() {
		if err != nil {
			return nil, err
		}
		if len(a.Data) < 4 { // struct nfgenmsg
			continue
		}
		f, err := decodeFlow(a.Data)
		if err != nil {
			return nil, err
		}
		if wanted(f) {
			flows = append(flows, f)
		}
	}
	return flows, nil
}

// decodeFlow reads an entry of the table, after its struct nfgenmsg.
func decodeFlow(data []byte) (flow, error) {
	f := flow{family: data[0]}
	ad, err := netlink.NewAttributeDecoder(data[4:])
	if err != nil {
		return flow{}, err
	}
	ad.ByteOrder = binary.BigEndian
	for ad.Next() {
		switch ad.Type() {
		case attrTupleOrig:
			f.orig.decode(ad)
		case attrTupleReply:
			f.reply.decode(ad)
		case attrStatus:
			f.status = ad.Uint32()
		case attrMark:
			f.mark = ad.Uint32()
		case attrID:
			f.id = ad.Bytes()
		case attrZone:
			f.zone = ad.Bytes()
		case attrLabels:
			f.labels = ad.Bytes()
		}
	}
	return f, ad.Err()
}

// tuple is who sends to whom in one direction of a flow.
type tuple struct {
	raw      []byte // as the kernel sent it
	src, dst netip.Addr
	protocol uint8
	// Ports are nil where the protocol has none, zone where it has the flow's.
	srcPort, dstPort, zone []byte
}

func (t *tuple) decode(ad *netlink.AttributeDecoder) {
	t.raw = ad.Bytes()
	ad.Nested(func(ad *netlink.AttributeDecoder) error {
		for ad.Next() {
			switch ad.Type() {
			case tupleIP:
				ad.Nested(t.decodeAddresses)
			case tupleProto:
				ad.Nested(t.decodeProtocol)
			case tupleZone:
				t.zone = ad.Bytes()
			}
		}
		return nil
	})
}

func (t *tuple) decodeAddresses(ad *netlink.AttributeDecoder) error {
	for ad.Next() {
		switch ad.Type() {
		case ipv4Src, ipv6Src:
			t.src, _ = netip.AddrFromSlice(ad.Bytes())
		case ipv4Dst, ipv6Dst:
			t.dst, _ = netip.AddrFromSlice(ad.Bytes())
		}
	}
	return nil
}

func (t *tuple) decodeProtocol(ad *netlink.AttributeDecoder) error {
	for ad.Next() {
		switch ad.Type() {
		case protoNum:
			t.protocol = ad.Uint8()
		case srcPort:
			t.srcPort = ad.Bytes()
		case dstPort:
			t.dstPort = ad.Bytes()
		}
	}
	return nil
}
