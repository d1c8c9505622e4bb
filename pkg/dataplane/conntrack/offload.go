package conntrack

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/mdlayher/netlink"
	"go4.org/netipx"
	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/mark"
)

// Bits of a flow's status: include/uapi/linux/netfilter/nf_conntrack_common.h.
const (
	seenReply       = 1 << 1
	assured         = 1 << 2
	confirmed       = 1 << 3
	sourceNAT       = 1 << 4
	destinationNAT  = 1 << 5
	offload         = 1 << 14
	hardwareOffload = 1 << 15
)

// Reclaimed says what became of the flows that a flowtable carried past the hooks.
type Reclaimed struct {
	// Taken is how many go through the hooks again from their next packet on.
	Taken int
	// Left is how many do not, because the kernel did not let go of them.
	Left int
}

// Reclaim has flows go through the hooks again that a flowtable carries past them and
// that do not carry m, of those that one of the addresses in set started or answers. They lose the bits
// of m.Mask, so that their next packet in the original direction is judged. The owner of the
// flowtable may give them to it again once they have passed.
//
// A flowtable keeps a flow until its conntrack entry dies, and looks at that for each
// packet; hardware keeps it for up to a second longer (nf_flow_offload_gc_step and
// flow_offload_lookup, net/netfilter/nf_flow_table_core.c). So the entry is deleted and at
// once made again, with its direction, its addresses, what NAT does to them and its
// mark. A flow that was deleted only would be begun again by the side that sends next: a reply
// would open it the other way round, and a masqueraded connection get another port.
//
// A kernel that does not let entries of a flowtable be deleted answers EBUSY, and its flows
// are left: Linux before 5.4.245, 5.10.182, 5.15.115, 6.1.32, 6.3.6 and 6.4 ("netfilter:
// ctnetlink: Support offloaded conntrack entry deletion").
func Reclaim(m mark.Mark, set *netipx.IPSet) (Reclaimed, error) {
	var done Reclaimed
	err := eachOffloaded(m, set, func(c *netlink.Conn, f flow) error {
		taken, err := f.takeBack(c, m.Mask)
		switch {
		case err != nil:
			return err
		case taken:
			done.Taken++
		default:
			done.Left++
		}
		return nil
	})
	return done, err
}

// Offloaded counts the flows that a flowtable carries past the hooks and that do not carry
// m, of those that one of the addresses in set started or answers.
func Offloaded(m mark.Mark, set *netipx.IPSet) (count int, err error) {
	err = eachOffloaded(m, set, func(*netlink.Conn, flow) error {
		count++
		return nil
	})
	return count, err
}

// eachOffloaded calls do for each flow that [Offloaded] counts. What do returns does not
// keep it from the others.
func eachOffloaded(m mark.Mark, set *netipx.IPSet, do func(*netlink.Conn, flow) error) error {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fmt.Errorf("connecting to conntrack: %w", err)
	}
	defer c.Close()
	// The filter only saves work: a kernel before 5.15 ignores it. What hardware carries
	// has this bit, too.
	flows, err := dump(c, unix.AF_UNSPEC, func(ae *netlink.AttributeEncoder) {
		ae.Uint32(netOrder|attrStatus, offload)
		ae.Uint32(netOrder|attrStatusMask, offload)
	}, func(f flow) bool {
		return f.offloaded() && f.mark&m.Mask != m.Value && (set.Contains(f.orig.src) || set.Contains(f.reply.src))
	})
	if err != nil {
		return fmt.Errorf("listing flows of flowtables: %w", err)
	}
	var errs []error
	for _, f := range flows {
		if err := do(c, f); err != nil {
			errs = append(errs, fmt.Errorf("taking a flow of %v to %v out of its flowtable: %w", f.orig.src, f.orig.dst, err))
		}
	}
	return errors.Join(errs...)
}

// offloaded reports whether a flowtable carries the flow.
func (f flow) offloaded() bool { return f.status&(offload|hardwareOffload) != 0 }

// tries is how often a flow is made again whose next packet was quicker.
const tries = 5

// takeBack takes the flow out of its flowtable, and bits off its mark. It is not taken where
// the kernel does not let go of it. One that has ended is.
func (f flow) takeBack(c *netlink.Conn, bits uint32) (taken bool, err error) {
	switch err := f.send(c, cmdDelete, f.identifyExactly); {
	case errors.Is(err, unix.EBUSY):
		return false, nil
	case errors.Is(err, unix.ENOENT): // it ended, or another has taken its place
		return true, nil
	case err != nil:
		return false, err
	}
	m, err := f.anew(bits)
	if err != nil {
		return true, err
	}
	for range tries {
		if _, err = c.Execute(m); !errors.Is(err, unix.EEXIST) {
			return true, err
		}
		// A packet came in between and began a flow, it may be the wrong way round.
		if err := gone(f.send(c, cmdDelete, f.identify)); err != nil {
			return true, err
		}
	}
	return true, err
}

// anew is the message that makes an entry like f's, in no flowtable, without the bits in
// its mark.
func (f flow) anew(bits uint32) (netlink.Message, error) {
	flags := netlink.Create | netlink.Excl | netlink.Acknowledge
	return message(cmdNew, flags, f.family, func(ae *netlink.AttributeEncoder) {
		f.identify(ae)
		f.encodeReply(ae)
		ae.Uint32(netOrder|attrTimeout, f.timeout())
		// NAT is not taken over from the status: see encodeReply.
		ae.Uint32(netOrder|attrStatus, confirmed|f.status&(seenReply|assured))
		ae.Uint32(netOrder|attrMark, f.mark&^bits)
		if f.labels != nil {
			ae.Bytes(attrLabels, f.labels)
		}
		if f.orig.protocol == unix.IPPROTO_TCP {
			ae.Nested(attrProtoInfo, encodeEstablished)
		}
	})
}

// encodeReply encodes the reply's tuple and NAT. The kernel notes that NAT is done where it
// is told to do it, and only then: so the tuple is that of before NAT. What IPVS has done to
// it is there without NAT, and stays.
func (f flow) encodeReply(ae *netlink.AttributeEncoder) {
	reply, now := f.reply, f.reply
	if f.status&sourceNAT != 0 {
		reply.dst, reply.dstPort = f.orig.src, f.orig.srcPort
	}
	if f.status&destinationNAT != 0 {
		reply.src, reply.srcPort = f.orig.dst, f.orig.dstPort
	}
	if f.status&(sourceNAT|destinationNAT) == 0 {
		ae.Bytes(netlink.Nested|attrTupleReply, f.reply.raw)
		return
	}
	ae.Nested(attrTupleReply, reply.encode)
	if f.status&destinationNAT != 0 {
		ae.Nested(attrNATDst, encodeNAT(now.src, now.srcPort))
	}
	if f.status&sourceNAT != 0 {
		ae.Nested(attrNATSrc, encodeNAT(now.dst, now.dstPort))
	}
}

// encode encodes the tuple from its parts.
func (t tuple) encode(ae *netlink.AttributeEncoder) error {
	ae.Nested(tupleIP, func(ae *netlink.AttributeEncoder) error {
		src, dst := uint16(ipv4Src), uint16(ipv4Dst)
		if t.src.Is6() {
			src, dst = ipv6Src, ipv6Dst
		}
		ae.Bytes(src, t.src.AsSlice())
		ae.Bytes(dst, t.dst.AsSlice())
		return nil
	})
	ae.Nested(tupleProto, func(ae *netlink.AttributeEncoder) error {
		ae.Uint8(protoNum, t.protocol)
		ae.Bytes(srcPort, t.srcPort)
		ae.Bytes(dstPort, t.dstPort)
		return nil
	})
	if t.zone != nil {
		ae.Bytes(tupleZone, t.zone)
	}
	return nil
}

// encodeNAT is to have an address and a port in the place of the flow's own.
func encodeNAT(addr netip.Addr, port []byte) func(*netlink.AttributeEncoder) error {
	const (
		minIPv4, maxIPv4 = 1, 2
		ports            = 3
		minIPv6, maxIPv6 = 4, 5
		minPort, maxPort = 1, 2
	)
	return func(ae *netlink.AttributeEncoder) error {
		low, high := uint16(minIPv4), uint16(maxIPv4)
		if addr.Is6() {
			low, high = minIPv6, maxIPv6
		}
		ae.Bytes(low, addr.AsSlice())
		ae.Bytes(high, addr.AsSlice())
		ae.Nested(ports, func(ae *netlink.AttributeEncoder) error {
			ae.Bytes(minPort, port)
			ae.Bytes(maxPort, port)
			return nil
		})
		return nil
	}
}

// encodeEstablished is the state of a TCP connection that conntrack has not seen all of: a
// flowtable takes established ones, and lets go of one that ends. As for one that the
// kernel picks up in its midst, what is in the window is not known (tcp_new,
// net/netfilter/nf_conntrack_proto_tcp.c).
func encodeEstablished(ae *netlink.AttributeEncoder) error {
	const (
		tcp                      = 1
		state, ofOrig, ofReply   = 1, 4, 5
		established              = 3          // TCP_CONNTRACK_ESTABLISHED
		sackPermitted, beLiberal = 0x02, 0x08 // IP_CT_TCP_FLAG_*
	)
	ae.Nested(tcp, func(ae *netlink.AttributeEncoder) error {
		ae.Uint8(state, established)
		const flags = sackPermitted | beLiberal
		ae.Bytes(ofOrig, []byte{flags, flags}) // struct nf_ct_tcp_flags: flags, mask
		ae.Bytes(ofReply, []byte{flags, flags})
		return nil
	})
	return nil
}

// timeout is how many seconds the entry lives without a packet. Of one in a flowtable the
// kernel does not tell.
func (f flow) timeout() uint32 {
	name, otherwise := "nf_conntrack_udp_timeout_stream", uint32(120)
	if f.orig.protocol == unix.IPPROTO_TCP {
		name, otherwise = "nf_conntrack_tcp_timeout_established", 432000
	}
	b, err := os.ReadFile("/proc/sys/net/netfilter/" + name)
	if err != nil {
		return otherwise
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 32)
	if err != nil {
		return otherwise
	}
	return uint32(n)
}
