package droplog

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/dataplane/counters"
	"github.com/podmark/podmark/pkg/nfnetlink"
)

// ErrTaken is returned while another process listens: the kernel lets one do so.
var ErrTaken = errors.New("another program listens")

// Message is what the kernel tells of one packet.
type Message struct {
	Key counters.Key
	// EtherType is what Packet is of: unix.ETH_P_IP, for one.
	EtherType uint16
	// Packet begins with the network header, and has at most Size bytes.
	Packet []byte
}

// Listener hears of the packets of the network namespace it was made in.
type Listener struct{ conn *netlink.Conn }

// From linux/netfilter/nfnetlink_log.h.
const (
	msgPacket = unix.NFNL_SUBSYS_ULOG << 8
	msgConfig = unix.NFNL_SUBSYS_ULOG<<8 | 1

	cfgCommand, cfgMode, cfgTimeout, cfgQThreshold = 1, 2, 4, 5
	commandBind, copyPacket                        = 1, 2

	attrHeader, attrPayload, attrPrefix = 1, 9, 10
)

const (
	// holdFor bounds how long the kernel keeps messages to send several at once.
	holdFor, holdMost = 50 * time.Millisecond, 32
	// buffer has room for some thousand messages.
	buffer = 4 << 20
)

// Listen begins to listen.
func Listen() (*Listener, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("connecting to netfilter: %w", err)
	}
	l := &Listener{conn}
	_ = conn.SetReadBuffer(buffer) // a smaller one loses messages sooner, and says so
	mode := []byte{0, 0, 0, Size, copyPacket, 0}
	err = l.configure(cfgCommand, []byte{commandBind})
	if err == nil {
		err = errors.Join(l.configure(cfgMode, mode), l.configure(cfgQThreshold, big32(holdMost)),
			l.configure(cfgTimeout, big32(uint32(holdFor/(10*time.Millisecond)))))
	} else if who := holder(); who != "" {
		err = fmt.Errorf("%w: %s", ErrTaken, who)
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("listening to NFLOG group %d: %w", Group, err)
	}
	return l, nil
}

// Close ends Receive too.
func (l *Listener) Close() error { return l.conn.Close() }

func big32(v uint32) []byte { return []byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)} }

func (l *Listener) configure(attr uint16, value []byte) error {
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: attr, Data: value}})
	if err != nil {
		return err
	}
	asked, err := l.conn.Send(netlink.Message{
		Header: netlink.Header{Type: msgConfig, Flags: netlink.Request | netlink.Acknowledge},
		Data:   append(nfnetlink.Header(unix.AF_UNSPEC, Group), attrs...),
	})
	// Messages about packets come before the answer once the group is bound.
	for err == nil {
		var received []netlink.Message
		received, err = l.conn.Receive()
		if errors.Is(err, unix.ENOBUFS) {
			err = nil // there were too many of those
		}
		for _, m := range received {
			if m.Header.Type == netlink.Error && m.Header.Sequence == asked.Header.Sequence {
				return nil
			}
		}
	}
	return err
}

// Receive waits for messages of podmark's rules. lost is set when the kernel had more
// than there was room for.
func (l *Listener) Receive() (list []Message, lost bool, err error) {
	received, err := l.conn.Receive()
	if errors.Is(err, unix.ENOBUFS) {
		return nil, true, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("receiving from NFLOG group %d: %w", Group, err)
	}
	for _, m := range received {
		if m.Header.Type != msgPacket || len(m.Data) < 4 {
			continue
		}
		if decoded, ok, err := decode(m.Data[4:]); err != nil {
			return list, false, fmt.Errorf("reading a message of NFLOG group %d: %w", Group, err)
		} else if ok {
			list = append(list, decoded)
		}
	}
	return list, false, nil
}

// decode reads a message; false for one of another program's rule.
func decode(attrs []byte) (m Message, ours bool, err error) {
	ad, err := netlink.NewAttributeDecoder(attrs)
	if err != nil {
		return m, false, err
	}
	for ad.Next() {
		switch ad.Type() {
		case attrHeader:
			if b := ad.Bytes(); len(b) >= 2 {
				m.EtherType = uint16(b[0])<<8 | uint16(b[1])
			}
		case attrPayload:
			m.Packet = ad.Bytes()
		case attrPrefix:
			m.Key, ours = Parse(ad.String())
		}
	}
	return m, ours, ad.Err()
}

// holder says who listens; empty for nobody.
func holder() string {
	portID := field("/proc/thread-self/net/netfilter/nfnetlink_log", 0, strconv.Itoa(Group), 1)
	if portID == "" {
		return ""
	}
	unknown := "a process of another PID namespace"
	inode := field("/proc/thread-self/net/netlink", 2, portID, 9, strconv.Itoa(unix.NETLINK_NETFILTER))
	if inode == "" {
		return unknown
	}
	files, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, file := range files {
		if to, err := os.Readlink(file); err != nil || to != "socket:["+inode+"]" {
			continue
		}
		process := filepath.Dir(filepath.Dir(file))
		words, err := os.ReadFile(process + "/cmdline")
		if err != nil {
			continue
		}
		command := strings.ReplaceAll(strings.TrimRight(string(words), "\x00"), "\x00", " ")
		return fmt.Sprintf("process %s, '%s'", filepath.Base(process), command)
	}
	return unknown
}

// field returns a column of the line in a table of /proc whose column key is value. The
// second column of the line is protocol, if that is given.
func field(table string, key int, value string, column int, protocol ...string) string {
	b, err := os.ReadFile(table)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		words := strings.Fields(line)
		if len(words) > max(key, column) && words[key] == value && (protocol == nil || words[1] == protocol[0]) {
			return words[column]
		}
	}
	return ""
}
