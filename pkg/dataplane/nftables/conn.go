package nftables

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"syscall"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"github.com/podmark/podmark/pkg/nfnetlink"
	"golang.org/x/sys/unix"
)

const subsystem = unix.NFNL_SUBSYS_NFTABLES << 8

// conn is a netlink connection to the nf_tables of the current network namespace.
//
// It is what of the wire the library does not have: a transaction that names
// the generation it was decided on, that is answered once and not once a
// message (the answers to some thousands do not fit a socket's buffer), and
// whose error names the message that the kernel refused.
type conn struct {
	fd       int
	sequence uint32
	buffer   []byte // what was received last
	out      []byte // what was sent last
}

// receiveTimeout bounds the wait for the kernel's answer, in seconds. It answers
// at once; a large transaction takes milliseconds.
const receiveTimeout = 30

func dial() (*conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("connecting to nf_tables: %w", err)
	}
	err = errors.Join(
		// An error quotes the header of what it is about, not all of it.
		unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: receiveTimeout}),
		unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
	)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("connecting to nf_tables: %w", err)
	}
	return &conn{fd: fd}, nil
}

// close does not wait: the kernel closes a netfilter socket only when it is done
// with what was deleted before (nft_rcv_nl_event), a grace period of 10 ms
// or 20, and the caller holds a lock that others wait for.
func (c *conn) close() {
	go unix.Close(c.fd)
}

// refused is an error of the kernel's about one message of several.
type refused struct {
	index int
	errno unix.Errno
}

func (r refused) Error() string { return r.errno.Error() }
func (r refused) Unwrap() error { return r.errno }

// exchange sends messages in one piece and returns what is answered, up to the
// answer to messages[last], which asks for one. Errors are joined.
func (c *conn) exchange(messages []netlink.Message, last int) ([]netlink.Message, error) {
	var replies []netlink.Message
	err := c.exchangeEach(messages, last, func(m netlink.Message) (bool, error) {
		replies = append(replies, m)
		return true, nil
	})
	return replies, err
}

// exchangeEach hands each answer to visit, which exchanges nothing itself. When visit wants no
// more, the rest is not read, and the connection is good for nothing else.
func (c *conn) exchangeEach(
	messages []netlink.Message,
	last int,
	visit func(netlink.Message) (more bool, err error),
) error {
	size := 0
	for _, m := range messages {
		size += unix.NLMSG_HDRLEN + (len(m.Data)+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1)
	}
	out := slices.Grow(c.out[:0], size)
	first := c.sequence + 1
	for _, m := range messages {
		c.sequence++
		out = binary.NativeEndian.AppendUint32(out, uint32(unix.NLMSG_HDRLEN+len(m.Data)))
		out = binary.NativeEndian.AppendUint16(out, uint16(m.Header.Type))
		out = binary.NativeEndian.AppendUint16(out, uint16(m.Header.Flags))
		out = binary.NativeEndian.AppendUint32(out, c.sequence)
		out = append(out, 0, 0, 0, 0) // the port, which the kernel knows
		out = append(out, m.Data...)
		out = append(out, "\x00\x00\x00"[:-len(m.Data)&(unix.NLMSG_ALIGNTO-1)]...)
	}
	c.out = out
	if len(out) > 1<<16 {
		if err := unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 2*len(out)); err != nil {
			return fmt.Errorf("making room for %d bytes: %w", len(out), err)
		}
	}
	if err := unix.Sendto(c.fd, out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("sending %d bytes: %w", len(out), err)
	}
	return c.answers(&pending{
		first: first, last: first + uint32(last), visit: visit,
		transaction: messages[0].Header.Type == unix.NFNL_MSG_BATCH_BEGIN,
	})
}

// answers reads what the kernel answers to an exchange.
func (c *conn) answers(p *pending) error {
	for {
		received, err := c.receive()
		if err != nil {
			return fmt.Errorf("receiving: %w", err)
		}
		for _, m := range received {
			if done, err := p.take(m); done || err != nil {
				return err
			}
		}
	}
}

// receive waits for messages. They are good until the next are received.
func (c *conn) receive() ([]syscall.NetlinkMessage, error) {
	if c.buffer == nil {
		c.buffer = make([]byte, 1<<16)
	}
	for {
		n, _, err := unix.Recvfrom(c.fd, c.buffer, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		return syscall.ParseNetlinkMessage(c.buffer[:n])
	}
}

// pending is what was sent and is not answered yet.
type pending struct {
	// first and last are sequence numbers of messages.
	first, last uint32
	// transaction is set where an error about the first is about all of them.
	transaction bool
	visit       func(netlink.Message) (more bool, err error)
	refused     []error
}

// take reads an answer, and reports whether it is the last.
func (p *pending) take(m syscall.NetlinkMessage) (done bool, err error) {
	switch {
	case m.Header.Seq < p.first || m.Header.Seq > p.last:
		return false, nil // of an exchange that was given up
	case m.Header.Type == unix.NLMSG_DONE:
		return true, errors.Join(p.refused...)
	case m.Header.Type == unix.NLMSG_ERROR:
		return p.acknowledge(m)
	}
	more, err := p.visit(netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(m.Header.Type), Sequence: m.Header.Seq},
		Data:   slices.Clone(m.Data),
	})
	return !more, err
}

// acknowledge reads what the kernel says of one message: an error, or with number 0 none.
func (p *pending) acknowledge(m syscall.NetlinkMessage) (done bool, err error) {
	if len(m.Data) < 4 {
		return true, fmt.Errorf("receiving: an error of %d bytes", len(m.Data))
	}
	errno := unix.Errno(-int32(binary.NativeEndian.Uint32(m.Data)))
	if errno != 0 {
		p.refused = append(p.refused, refused{int(m.Header.Seq - p.first), errno})
	}
	if m.Header.Seq == p.last || p.transaction && m.Header.Seq == p.first && errno != 0 {
		return true, errors.Join(p.refused...)
	}
	return false, nil
}

// anyGeneration is for a change that depends on nothing that was read.
const anyGeneration = 0

// commit carries out the commands in one transaction, unless another program has
// changed nf_tables since generation: then it returns errChanged. A refused command
// is quoted.
func (c *conn) commit(generation uint32, commands []command) error {
	if len(commands) == 0 {
		return nil
	}
	e := &encoder{}
	begin := request(unix.NFNL_MSG_BATCH_BEGIN, 0, 0, nil)
	begin.Header.Type = unix.NFNL_MSG_BATCH_BEGIN
	binary.BigEndian.PutUint16(begin.Data[2:], unix.NFNL_SUBSYS_NFTABLES)
	if generation != anyGeneration {
		ae := netlink.NewAttributeEncoder()
		ae.ByteOrder = binary.BigEndian
		ae.Uint32(unix.NFNL_BATCH_GENID, generation)
		attrs, err := ae.Encode()
		if err != nil {
			return err
		}
		begin.Data = append(begin.Data, attrs...)
	}
	messages := []netlink.Message{begin}
	origin := []int{-1} // which command a message is of
	for i, cmd := range commands {
		more, err := cmd.encode(e)
		if err != nil {
			return fmt.Errorf("encoding %q: %w", cmd.text(), err)
		}
		for _, m := range more {
			m.Header.Flags &^= netlink.Acknowledge
			messages, origin = append(messages, m), append(origin, i)
		}
	}
	last := len(messages) - 1
	messages[last].Header.Flags |= netlink.Acknowledge
	end := begin
	end.Header.Type, end.Data = unix.NFNL_MSG_BATCH_END, begin.Data[:4]
	_, err := c.exchange(append(messages, end), last)
	var r refused
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ERESTART):
		return errChanged
	case errors.As(err, &r) && origin[r.index] >= 0:
		return fmt.Errorf("nf_tables refuses %q: %w", commands[origin[r.index]].text(), err)
	default:
		return fmt.Errorf("changing nf_tables: %w", err)
	}
}

// errChanged is returned when another program came in between.
var errChanged = errors.New("nf_tables was changed meanwhile")

// request is a message of the subsystem.
func request(kind int, flags netlink.HeaderFlags, family nftables.TableFamily, attrs []byte) netlink.Message {
	return nfnetlink.Message(netlink.HeaderType(subsystem|kind), flags, byte(family), attrs)
}

func header(kind int, flags netlink.HeaderFlags) netlink.Header {
	return netlink.Header{Type: netlink.HeaderType(subsystem | kind), Flags: netlink.Request | flags}
}
