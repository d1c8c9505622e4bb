package adversary_test

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/podmark/podmark/test/frame"
)

// transports are those with flows.
var transports = []struct {
	name     string
	protocol byte
}{{"UDP", frame.UDP}, {"TCP", frame.TCP}, {"SCTP", frame.SCTP}}

// flow is a connection that is live for whoever tracks connections.
type flow struct {
	s              *scene
	protocol       byte
	client, server netip.AddrPort
}

func (fl flow) String() string {
	for _, tr := range transports {
		if tr.protocol == fl.protocol {
			return fmt.Sprintf("%s from %v to %v", tr.name, fl.client, fl.server)
		}
	}
	return fmt.Sprintf("protocol %d from %v to %v", fl.protocol, fl.client, fl.server)
}

// Numbers that TCP and SCTP begin with. Who attacks a flow knows them: that is the worst
// case.
const (
	clientSeq, serverSeq = 1000, 2000
	clientTag, serverTag = 0x11111111, 0x22222222
)

// open begins a flow, of which every packet must pass.
func (s *scene) open(protocol byte, client, server *actor, port uint16) flow {
	fl := flow{s, protocol, s.to(client, s.port()), s.to(server, port)}
	fl.begin(func(request bool, packet []byte) {
		from, to := client, server
		if !request {
			from, to = server, client
		}
		s.pass("the beginning of a flow", from, packet, to)
	})
	return fl
}

// begin is the handshake, and a first packet in either direction.
func (fl flow) begin(send func(request bool, packet []byte)) {
	c, s := fl.client, fl.server
	switch fl.protocol {
	case frame.TCP:
		send(true, frame.TCPPacket(c, s, frame.SYN, clientSeq-1, 0, nil))
		send(false, frame.TCPPacket(s, c, frame.SYN|frame.ACK, serverSeq-1, clientSeq, nil))
		send(true, frame.TCPPacket(c, s, frame.ACK, clientSeq, serverSeq, nil))
	case frame.SCTP:
		// An INIT has its sender's tag, a window, numbers of streams and a first sequence number.
		begin := func(tag, tsn uint32) []byte {
			b := binary.BigEndian.AppendUint32(nil, tag)
			b = append(b, 0, 1, 0, 0, 0, 1, 0, 1)
			return binary.BigEndian.AppendUint32(b, tsn)
		}
		send(true, frame.SCTPPacket(c, s, 0, frame.SCTPInit, begin(clientTag, clientSeq)))
		// A state cookie, which every INIT ACK has.
		cookie := []byte("cookie of " + c.String() + "    ")
		cookie = cookie[:len(cookie)/4*4]
		option := binary.BigEndian.AppendUint16([]byte{0, 7}, uint16(4+len(cookie)))
		send(false, frame.SCTPPacket(s, c, clientTag, frame.SCTPInitAck, append(append(begin(serverTag, serverSeq), option...), cookie...)))
		send(true, frame.SCTPPacket(c, s, serverTag, frame.SCTPCookieEcho, cookie))
		send(false, frame.SCTPPacket(s, c, clientTag, frame.SCTPCookieAck, nil))
	}
	send(true, fl.fromClient())
	send(false, fl.fromServer())
}

// fromClient is a packet of the flow's original direction.
func (fl flow) fromClient() []byte {
	return fl.data(fl.client, fl.server, clientSeq, serverSeq, serverTag)
}

// fromServer is one of its reply direction.
func (fl flow) fromServer() []byte {
	return fl.data(fl.server, fl.client, serverSeq, clientSeq, clientTag)
}

// data has the same sequence numbers each time: to the receiver it is sent again.
func (fl flow) data(src, dst netip.AddrPort, seq, ack, tag uint32) []byte {
	switch mark := fl.s.mark(); fl.protocol {
	case frame.TCP:
		return frame.TCPPacket(src, dst, frame.PSH|frame.ACK, seq, ack, mark)
	case frame.SCTP:
		// Sequence number, stream, its sequence number, payload protocol.
		chunk := append(binary.BigEndian.AppendUint32(nil, seq), 0, 0, 0, 0, 0, 0, 0, 0)
		return frame.SCTPPacket(src, dst, tag, frame.SCTPData, append(chunk, mark...))
	default:
		return frame.UDPPacket(src, dst, mark)
	}
}

// unreachable is an ICMP error about a packet, from an address to the packet's source.
// Which error it is, is said for each family.
func unreachable(from netip.Addr, about []byte, v4, v6 [2]byte) []byte {
	if from.Is4() {
		to, _ := netip.AddrFromSlice(about[12:16])
		return frame.ICMPPacket(from, to, v4[0], v4[1], 0, append([]byte{0, 0, 5, 0}, about...))
	}
	to, _ := netip.AddrFromSlice(about[8:24])
	return frame.ICMPPacket(from, to, v6[0], v6[1], 0, append([]byte{0, 0, 5, 0}, about...))
}
