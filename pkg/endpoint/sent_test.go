package endpoint_test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/endpoint"
	"github.com/podmark/podmark/test/netns"
	"github.com/podmark/podmark/test/wait"
)

// settled is a container whose interface is up and has said all that the kernel
// says by itself: duplicate address detection, router solicitation, MLD.
func settled(t *testing.T) *container {
	t.Helper()
	c := newContainer(t)
	c.veth(t, "v")
	if err := linkUp("v"); err != nil {
		t.Fatal(err)
	}
	c.do(t, func() error {
		return errors.Join(linkUp("lo"), linkUp("eth0"), add("eth0", "10.0.0.2/24", 0), add("eth0", "fd00::2/64", unix.IFA_F_NODAD))
	})
	// The link-local address is usable when its detection is over.
	wait.For(t, "there is a link-local address", func() bool {
		var ready bool
		c.do(t, func() error {
			link, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			list, err := netlink.AddrList(link, netlink.FAMILY_V6)
			for _, a := range list {
				ready = ready || a.IP.IsLinkLocalUnicast() && a.Flags&unix.IFA_F_TENTATIVE == 0
			}
			return err
		})
		return ready
	})
	return c
}

func linkUp(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

func add(name, prefix string, flags int) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	p := netip.MustParsePrefix(prefix)
	return netlink.AddrAdd(link, &netlink.Addr{
		IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}, Flags: flags,
	})
}

func sent(t *testing.T, c endpoint.Counters) bool {
	t.Helper()
	got, err := c.HasSent()
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// What a namespace sends is seen by counters that were opened before.
func TestHasSent(t *testing.T) {
	for name, to := range map[string]string{"IPv4": "10.0.0.1:9", "IPv6": "[fd00::1]:9"} {
		t.Run(name, func(t *testing.T) {
			netns.Enter(t)
			c := settled(t)
			here, err := os.Readlink("/proc/thread-self/ns/net")
			if err != nil {
				t.Fatal(err)
			}
			r := &types100.Result{IPs: []*types100.IPConfig{{Address: net.IPNet{IP: net.IPv4(10, 0, 0, 2), Mask: net.CIDRMask(24, 32)}}}}
			_, counters, err := endpoint.FromResult(r, c.path, "eth0")
			if err != nil {
				t.Fatal(err)
			}
			defer counters.Close()
			if sent(t, counters) {
				t.Error("a fresh namespace is said to have sent")
			}
			c.do(t, func() error {
				conn, err := net.Dial("udp", to)
				if err != nil {
					return err
				}
				defer conn.Close()
				_, err = conn.Write([]byte("x"))
				return err
			})
			if !sent(t, counters) {
				t.Error("one datagram is not noticed")
			}
			if now, _ := os.Readlink("/proc/thread-self/ns/net"); now != here {
				t.Errorf("the caller is in %s, was in %s", now, here)
			}
		})
	}
}
