package main_test

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/test/wait"
)

// space is a network namespace beside the node's: a pod, or a host outside. It
// lives as long as its thread, which does what it is told.
type space struct {
	path  string // as CNI_NETNS
	calls chan func()
}

func newSpace(t *testing.T) *space {
	t.Helper()
	s := &space{calls: make(chan func())}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: thread and namespace end together
		err := unix.Unshare(unix.CLONE_NEWNET)
		s.path = threadNetns()
		ready <- err
		for f := range s.calls {
			f()
		}
	}()
	if err := <-ready; err != nil {
		t.Fatalf("making a network namespace: %v", err)
	}
	t.Cleanup(func() { close(s.calls) })
	s.do(t, func() error { return errors.Join(sysctl("net/ipv6/conf/default/accept_dad", "0"), up("lo")) })
	return s
}

// threadNetns names the network namespace of the calling thread.
func threadNetns() string { return fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid()) }

// do runs f in the namespace.
func (s *space) do(t *testing.T, f func() error) {
	t.Helper()
	done := make(chan error)
	s.calls <- func() { done <- f() }
	if err := <-done; err != nil {
		t.Fatalf("in namespace %s: %v", s.path, err)
	}
}

func sysctl(path, value string) error {
	return os.WriteFile(filepath.Join("/proc/sys", path), []byte(value), 0o644)
}

func up(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

// veth makes a veth pair from the calling thread's namespace into inside, both
// ends up.
func veth(t *testing.T, name string, inside *space, peer string) {
	t.Helper()
	ns, err := os.Open(inside.path)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	err = netlink.LinkAdd(&netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: name},
		PeerName:      peer,
		PeerNamespace: netlink.NsFd(int(ns.Fd())),
	})
	if err := errors.Join(err, up(name)); err != nil {
		t.Fatalf("making veth %s: %v", name, err)
	}
	inside.do(t, func() error { return up(peer) })
}

// address puts an address on a link of the calling thread's namespace.
func address(link, prefix string) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	p, err := netip.ParsePrefix(prefix)
	if err != nil {
		return err
	}
	return netlink.AddrAdd(l, &netlink.Addr{IPNet: ipNet(p), Flags: unix.IFA_F_NODAD})
}

// route sends what is for prefix to link, by way of a gateway if there is one.
func route(link, prefix, via string) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	p, err := netip.ParsePrefix(prefix)
	if err != nil {
		return err
	}
	r := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(p), Flags: int(netlink.FLAG_ONLINK)}
	if via != "" {
		r.Gw = net.ParseIP(via)
	} else {
		r.Flags, r.Scope = 0, netlink.SCOPE_LINK
	}
	return netlink.RouteReplace(r)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// server remembers every datagram that reached it.
type server struct {
	mu   sync.Mutex
	got  map[string]bool
	conn *net.UDPConn
}

func (s *space) serve(t *testing.T, port uint16) (v *server) {
	t.Helper()
	s.do(t, func() error {
		v = listen(t, port)
		return nil
	})
	return v
}

// listen starts a server in the calling thread's namespace.
func listen(t *testing.T, port uint16) *server {
	t.Helper()
	v := &server{got: map[string]bool{}}
	var err error
	if v.conn, err = net.ListenUDP("udp", &net.UDPAddr{Port: int(port)}); err != nil {
		t.Errorf("listening on port %d: %v", port, err)
		return v
	}
	t.Cleanup(func() { v.conn.Close() })
	go func() {
		b := make([]byte, 100)
		for {
			n, err := v.conn.Read(b)
			if err != nil {
				return
			}
			v.mu.Lock()
			v.got[string(b[:n])] = true
			v.mu.Unlock()
		}
	}()
	return v
}

func (v *server) has(nonce string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.got[nonce]
}

// count is how many different datagrams it got.
func (v *server) count() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.got)
}

// flow is a datagram from one namespace to a server in another, and whether it
// should get there.
type flow struct {
	name string
	from *space
	to   netip.AddrPort
	at   *server
	pass bool
}

const (
	arrival = wait.Still            // how long to wait for what should get through
	silence = 80 * time.Millisecond // how long to wait for what should not
)

// problem sends the flows, all at once, and says which did not come out right.
func problem(t *testing.T, flows ...flow) error {
	t.Helper()
	nonces := make([]string, len(flows))
	send := func(wanted bool) {
		for i, f := range flows {
			if wanted && (!f.pass || f.at.has(nonces[i])) {
				continue
			}
			f.from.do(t, func() error {
				// Each from a port of its own, so that no flow is an old one's.
				c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(f.to))
				if err != nil {
					return nil // no route: it does not get through
				}
				defer c.Close()
				c.Write([]byte(nonces[i])) //nolint:errcheck // a refusal shows as silence
				return nil
			})
		}
	}
	for i := range nonces {
		nonces[i] = rand.Text()
	}
	send(false)
	start := time.Now()
	for {
		missing := false
		for i, f := range flows {
			missing = missing || f.pass && !f.at.has(nonces[i])
		}
		if since := time.Since(start); !missing && since > silence || since > arrival {
			break
		}
		select {
		case <-t.Context().Done():
			return t.Context().Err()
		case <-time.After(20 * time.Millisecond):
		}
		send(true)
	}
	var errs []error
	for i, f := range flows {
		if passed := f.at.has(nonces[i]); passed != f.pass {
			errs = append(errs, fmt.Errorf("%s to %s: got through is %t, want %t", f.name, f.to, passed, f.pass))
		}
	}
	return errors.Join(errs...)
}
