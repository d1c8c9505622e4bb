package iptables

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/dataplane/ipset"
)

// setConn is a connection to the kernel's sets: an [ipset.Conn].
type setConn interface {
	Create(s ipset.Set) error
	Destroy(name string) error
	Swap(a, b string) error
	Add(s ipset.Set, e ipset.Element) error
	Del(s ipset.Set, e ipset.Element) error
	AddAll(s ipset.Set, list []ipset.Element) error
	DelAll(s ipset.Set, list []ipset.Element) error
	Elements(s ipset.Set, visit func(ipset.Element)) error
	Test(s ipset.Set, e ipset.Element) (bool, error)
	Header(name string) (ipset.Header, error)
	Names() ([]string, error)
	Close() error
}

// kernel is what a backend uses of the kernel besides the commands. Tests have one that fails.
type kernel interface {
	dial() (setConn, error)
	// drain returns when every packet that is in a hook now has left it.
	drain() error
}

func (b Backend) kernel() kernel {
	if b.fake != nil {
		return b.fake
	}
	return linux{}
}

// linux is the kernel of the network namespace.
type linux struct{}

func (linux) dial() (setConn, error) { return ipset.Dial() }

// drain waits for a grace period: hooks run in a read-side critical section of RCU, and a packet
// socket that is closed waits for the end of those (packet_release, net/packet/af_packet.c);
// 8 to 16 ms.
func (linux) drain() error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("cannot wait for packets in flight with a packet socket: %w", err)
	}
	return unix.Close(fd)
}
