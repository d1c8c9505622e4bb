package testnode

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Space is a network namespace beside the node's: a pod's, or that of a host outside.
type Space struct {
	Path string // as CNI_NETNS
}

// NewSpace makes one that lives as long as the test.
func NewSpace(t testing.TB) Space { t.Helper(); s, _ := SpaceUntil(t); return s }

// SpaceUntil makes one that lives until end, and no longer than the test.
func SpaceUntil(t testing.TB) (s Space, end func()) {
	t.Helper()
	ready, over := make(chan error), make(chan struct{})
	end = sync.OnceFunc(func() { close(over) })
	t.Cleanup(end)
	go onThread(func() {
		err := unix.Unshare(unix.CLONE_NEWNET)
		s.Path = here()
		ready <- err
		<-over
	})
	if err := <-ready; err != nil {
		t.Fatalf("making a network namespace: %v", err)
	}
	s.Do(t, func() error { return errors.Join(Sysctl("net/ipv6/conf/default/accept_dad", "0"), Up("lo")) })
	return s, end
}

// Do runs f in the namespace. A socket that f makes stays there; a goroutine that f starts is not
// there.
func (s Space) Do(t testing.TB, f func() error) {
	t.Helper()
	done := make(chan error)
	go onThread(func() {
		err := enter(s.Path)
		if err == nil {
			err = f()
		}
		done <- err
	})
	if err := <-done; err != nil {
		t.Fatalf("in namespace %s: %v", s.Path, err)
	}
}

// onThread runs f on a thread that ends with f: it is in namespaces that nothing else should be in,
// and keeps them. A goroutine that calls it does nothing else.
func onThread(f func()) {
	runtime.LockOSThread() // never unlocked: the runtime ends the thread
	if unix.Gettid() != unix.Getpid() {
		f()
		return
	}
	defer runtime.UnlockOSThread() // but the main thread, which never ends
	done := make(chan struct{})
	go func() {
		defer close(done)
		onThread(f)
	}()
	<-done
}

// here names the network namespace of the calling thread.
func here() string { return fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid()) }

// enter moves the calling thread into a network namespace.
func enter(path string) error {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	return netns.Set(ns)
}

// Sysctl sets a kernel parameter of the calling thread's namespace, by its path below /proc/sys.
func Sysctl(path, value string) error {
	return os.WriteFile(filepath.Join("/proc/sys", path), []byte(value), 0o644)
}

// Up switches on a link of the calling thread's namespace.
func Up(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

// Veth makes a veth from the calling thread's namespace into another, where its end is peer.
func Veth(name string, inside Space, peer string) error {
	ns, err := os.Open(inside.Path)
	if err != nil {
		return err
	}
	defer ns.Close()
	err = netlink.LinkAdd(&netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: name},
		PeerName:      peer,
		PeerNamespace: netlink.NsFd(int(ns.Fd())),
	})
	if err != nil {
		return fmt.Errorf("making veth %s: %w", name, err)
	}
	return nil
}

// Address puts an address on a link of the calling thread's namespace.
func Address(link, prefix string) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	p, err := netip.ParsePrefix(prefix)
	if err != nil {
		return err
	}
	return netlink.AddrAdd(l, &netlink.Addr{IPNet: IPNet(p), Flags: unix.IFA_F_NODAD})
}

// Route sends what is for prefix to link, by way of a gateway if there is one.
func Route(link, prefix, via string) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	p, err := netip.ParsePrefix(prefix)
	if err != nil {
		return err
	}
	r := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: IPNet(p), Flags: int(netlink.FLAG_ONLINK)}
	if via != "" {
		r.Gw = net.ParseIP(via)
	} else {
		r.Flags, r.Scope = 0, netlink.SCOPE_LINK
	}
	return netlink.RouteReplace(r)
}

// IPNet is a prefix as netlink has it.
func IPNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
