package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// flow is what packets have in common that differ in their source port.
type flow struct {
	src, dst netip.Addr
	port     uint16 // of the destination
}

const (
	etherLen = 14
	ipLen    = 20
	udpLen   = 8
	// numberAt is where the payload is, a packet's number, in an IP packet.
	numberAt = ipLen + udpLen
)

// packet builds a UDP packet with room for a number. It has no checksum above
// IP, so that ports and number can be changed in place.
func (f flow) packet() []byte {
	b := make([]byte, ipLen+udpLen+4)
	b[0], b[8], b[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	copy(b[12:], f.src.AsSlice())
	copy(b[16:], f.dst.AsSlice())
	var sum uint32
	for i := 0; i < ipLen; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum+sum>>16))
	binary.BigEndian.PutUint16(b[ipLen+2:], f.port)
	binary.BigEndian.PutUint16(b[ipLen+4:], udpLen+4)
	return b
}

// framed puts an Ethernet header in front.
func framed(packet []byte, from, to net.HardwareAddr) []byte {
	b := append(append(append([]byte{}, to...), from...), unix.ETH_P_IP>>8, unix.ETH_P_IP&0xff)
	return append(b, packet...)
}

// mmsghdr is struct mmsghdr of sendmmsg(2), which the library lacks.
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

// batch is how many packets go with one system call.
const batch = 64

// sender sends packets of one flow description, each with the next port of who begins the
// flow: every packet is on a flow of its own.
type sender struct {
	fd       int
	frames   [][]byte
	headers  []mmsghdr
	ip       int // where the IP header begins
	nextPort uint16
	// ports are how many there are before the first comes again, and portAt is where they
	// stand in the UDP header.
	ports, portAt int
}

// firstPort is the lowest port that they use.
const firstPort = 1024

func newSender(fd int, frame []byte, ip int) *sender {
	s := &sender{fd: fd, ip: ip, nextPort: firstPort, ports: 1<<16 - firstPort, headers: make([]mmsghdr, batch)}
	for i := range s.headers {
		b := append([]byte{}, frame...)
		s.frames = append(s.frames, b)
		s.headers[i].hdr.Iov = &unix.Iovec{Base: &b[0], Len: uint64(len(b))}
		s.headers[i].hdr.Iovlen = 1
	}
	return s
}

// fromPod sends what the pod behind l would send.
func fromPod(l *link, f flow) (*sender, error) {
	fd, err := frameSocket(l)
	if err != nil {
		return nil, err
	}
	return newSender(fd, framed(f.packet(), l.far, l.near), etherLen), nil
}

// answering sends what the pod behind l answers to f: from the port that was asked, to the
// one that asked.
func answering(l *link, f flow) (*sender, error) {
	s, err := fromPod(l, flow{src: f.dst, dst: f.src})
	if err != nil {
		return nil, err
	}
	for _, frame := range s.frames {
		binary.BigEndian.PutUint16(frame[s.ip+ipLen:], f.port)
	}
	s.portAt = 2
	return s, nil
}

// frameSocket sends and receives frames at the pod's end of its veth.
func frameSocket(l *link) (fd int, err error) {
	const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // network byte order
	err = l.pod.do(func() error {
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		end, err := net.InterfaceByName(podEnd)
		if err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: end.Index})
	})
	if err != nil {
		return -1, fmt.Errorf("opening a packet socket: %w", err)
	}
	return fd, nil
}

// fromNode sends with a mark what a node sends on after IPVS has decided: it
// begins at OUTPUT, has the real source, and the input interface is gone.
func fromNode(node space, f flow, mark uint32) (*sender, error) {
	var fd int
	err := node.do(func() (err error) {
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW); err != nil {
			return err
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(mark)); err != nil {
			return err
		}
		return unix.Connect(fd, &unix.SockaddrInet4{Addr: f.dst.As4()})
	})
	if err != nil {
		return nil, fmt.Errorf("opening a raw socket: %w", err)
	}
	return newSender(fd, f.packet(), 0), nil
}

func (s *sender) close() { unix.Close(s.fd) }

// send sends n batches and returns how long each took. A veth hands a packet on
// before the call returns, through the whole node up to the other pod, so the time
// is the packets'.
func (s *sender) send(n int) ([]time.Duration, error) {
	times := make([]time.Duration, n)
	for i := range times {
		for _, frame := range s.frames {
			binary.BigEndian.PutUint16(frame[s.ip+ipLen+s.portAt:], s.nextPort)
			if s.nextPort++; int(s.nextPort)-firstPort == s.ports || s.nextPort == 0 {
				s.nextPort = firstPort
			}
		}
		begin := time.Now()
		for done := 0; done < batch; {
			// A raw call: the scheduler must not come in between.
			sent, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&s.headers[done])), uintptr(batch-done), 0, 0, 0)
			runtime.KeepAlive(s)
			switch errno {
			case 0:
				done += int(sent)
			case unix.EPERM: // a rule in OUTPUT has dropped one
				done++
			default:
				return nil, fmt.Errorf("sending: %w", errno)
			}
		}
		times[i] = time.Since(begin)
	}
	return times, nil
}

// pin keeps this thread on the nth processor it may run on until undone, so that
// what a packet causes is done where it is sent.
func pin(nth int) (undo func(), err error) {
	var before, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return nil, err
	}
	nth %= before.Count()
	for i := range len(before) * 64 {
		if !before.IsSet(i) {
			continue
		}
		if nth == 0 {
			one.Set(i)
			break
		}
		nth--
	}
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return nil, err
	}
	return func() { _ = unix.SchedSetaffinity(0, &before) }, nil
}
