package adversary_test

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/test/frame"
	"github.com/podmark/podmark/test/lab"
	"github.com/podmark/podmark/test/needs"
	"github.com/podmark/podmark/test/netns"
)

// checksums are attacks with what a sender leaves to the kernel: it writes two bytes where the
// sender says, behind every hook. The node's links write no checksums, so the kernel does.
//
// It takes a kernel that can look there, which the lab's is not: the attachments are those
// that any kernel has.
var checksums = []attack{
	{name: "checksums left to the kernel", at: []attachment{routed, bridged}, run: func(s *scene) {
		needs.All(s.T, needs.Checksums)
		s.withoutChecksums()
		const ethernet = 14
		network := ethernet + pick(s.f, 20, 40)
		for _, allowed := range []struct {
			from, to *actor
			port     uint16
		}{{s.client, s.x, 53}, {s.free, s.server, 80}} {
			from, to, port := allowed.from, allowed.to, allowed.port
			udp := func() []byte { return s.frame(from, s.udp(s.to(from, s.port()), s.to(to, port))) }
			tcp := s.frame(from, frame.TCPPacket(s.to(from, s.port()), s.to(to, port), frame.SYN, 1, 0, s.mark()))
			s.passOffload("UDP, "+to.name, from, udp(), frame.Offload{Start: network, Offset: 6}, to)
			s.passOffload("TCP, "+to.name, from, tcp, frame.Offload{Start: network, Offset: 16}, to)
			for at := range 4 {
				s.denyOffload(fmt.Sprintf("byte %d of the ports, %s", at, to.name), from, udp(), frame.Offload{Start: network, Offset: at})
			}
			// A packet socket of Linux 6.12 and later refuses what is further ahead.
			for at := 1; at <= 14; at++ {
				s.denyOffload(fmt.Sprintf("byte %d before the ports, %s", at, to.name), from, udp(), frame.Offload{Start: network - at})
			}
		}
	}},
	{name: "fragments with checksums left to the kernel", at: []attachment{routed, bridged}, run: func(s *scene) {
		needs.All(s.T, needs.Checksums)
		s.withoutChecksums()
		const ethernet = 14
		network := ethernet + pick(s.f, 20, 40)
		const cut = 24 // bytes of the datagram in the first part
		part := func(id uint16, offset int, more bool, data []byte) []byte {
			ip := frame.IP{Src: s.addr(s.client), Dst: s.addr(s.x), Protocol: frame.UDP, ID: id, Offset: offset, More: more}
			if s.f == lab.V4 {
				return s.frame(s.client, ip.Packet(data))
			}
			const fragmentHeader, moreFlag = 44, 1
			field := uint16(offset)
			if more {
				field |= moreFlag
			}
			header := binary.BigEndian.AppendUint16([]byte{ip.Protocol, 0}, field)
			ip.Protocol = fragmentHeader
			return s.frame(s.client, ip.Packet(append(binary.BigEndian.AppendUint32(header, uint32(id)), data...)))
		}
		start := network + pick(s.f, 0, 8)
		for at := range 8 {
			id := s.port()
			segment := frame.UDPSegment(s.to(s.client, id), s.to(s.x, 53), append(s.mark(), s.mark()...))
			o := frame.Offload{Start: start, Offset: at}
			s.denyOffload(fmt.Sprintf("first part, byte %d", at), s.client, part(id, 0, true, segment[:cut]), o)
			s.denyOffload(fmt.Sprintf("second part, byte %d", at), s.client, part(id, cut, false, segment[cut:]), o)
		}
		id := s.port()
		segment := frame.UDPSegment(s.to(s.client, id), s.to(s.x, 53), append(s.mark(), s.mark()...))
		s.passFrame("first part with its checksum", s.client, part(id, 0, true, segment[:cut]), s.x)
		s.passFrame("second part with its checksum", s.client, part(id, cut, false, segment[cut:]), s.x)
	}},
}

// withoutChecksums has the node's links to the actors write none, for the rest of its life.
func (s *scene) withoutChecksums() {
	s.Helper()
	for _, a := range s.actors {
		if a.sock < 0 {
			continue
		}
		link := a.dev
		if a.pod != nil {
			link = a.pod.HostVeth
		}
		if err := s.Do(func() error { return netns.WithoutChecksums(link) }); err != nil {
			s.Fatal(err)
		}
	}
}

// passOffload and denyOffload are passFrame and denyFrame of a frame of which something is left to
// the kernel.
func (s *scene) passOffload(what string, from *actor, b []byte, o frame.Offload, to *actor) {
	s.shoot(shot{what: what, from: from, pass: true, who: []*actor{to}}, b)
	s.offload(o, b)
}

func (s *scene) denyOffload(what string, from *actor, b []byte, o frame.Offload) {
	s.denyFrame(what, from, b)
	s.offload(o, b)
}

// offload has the last shot sent by a socket that takes that.
func (s *scene) offload(o frame.Offload, b []byte) {
	sh := &s.shots[len(s.shots)-1]
	from := sh.from
	sh.send = func() error {
		return from.ns.Do(func() error {
			var link int
			if to, err := unix.Getsockname(from.sock); err != nil {
				return err
			} else if at, ok := to.(*unix.SockaddrLinklayer); ok {
				link = at.Ifindex
			}
			fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
				return err
			}
			return unix.Sendto(fd, o.Frame(b), 0, &unix.SockaddrLinklayer{Ifindex: link, Halen: 6})
		})
	}
}
