package lab

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/test/needs"
	"github.com/podmark/podmark/test/testnode"
)

// netnsDir is where ip(8) looks for namespaces, so that "ip netns exec" works
// while a test is being debugged.
const netnsDir = "/run/netns"

// Family is an IP version.
type Family int

// The IP versions.
const (
	V4 Family = 4
	V6 Family = 6
)

// Families lists both, for loops.
var Families = [...]Family{V4, V6}

func (f Family) String() string { return fmt.Sprintf("IPv%d", int(f)) }

// familyOf returns the version of addr.
func familyOf(addr netip.Addr) Family {
	if addr.Is4() {
		return V4
	}
	return V6
}

// NS is a network namespace that packets start from and end in: a node, a pod or
// a host around the node.
type NS struct {
	// Name is what its servers answer with.
	Name string
	// Path is the namespace's file, as CNI wants it.
	Path string
	// Addresses are those its servers listen on, at most one of each family for a pod.
	Addresses []netip.Addr

	t      testing.TB
	handle ns.NetNS
	path   string // the directories its commands are looked for in
	site   *site
}

// site is what a node shares with the pods and hosts around it.
type site struct {
	backend Backend
	journal *journal
	node    *NS
}

// newNS makes a namespace with its loopback up. It is removed when the test ends.
func newNS(t testing.TB, name string, s *site) *NS {
	t.Helper()
	n := &NS{
		Name: name,
		Path: filepath.Join(netnsDir, fmt.Sprintf("%s-%s", name, rand.Text()[:8])),
		t:    t,
		path: os.Getenv("PATH"),
		site: s,
	}
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(n.Path, nil, 0o444); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Remove)
	done := make(chan error)
	go func() {
		// Never unlocked, so the runtime ends the thread with the goroutine.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- unix.Mount("/proc/thread-self/ns/net", n.Path, "", unix.MS_BIND, "")
	}()
	if err := <-done; err != nil {
		t.Fatalf("making namespace %q: %v", name, err)
	}
	handle, err := ns.GetNS(n.Path)
	if err != nil {
		t.Fatal(err)
	}
	n.handle = handle
	n.setUp("lo")
	// Duplicate address detection keeps an address unusable for a second.
	n.Sysctl("net/ipv6/conf/all/accept_dad", "0")
	n.Sysctl("net/ipv6/conf/default/accept_dad", "0")
	// A connection that was cut should not wait long before it tries again, where the kernel can
	// be told so (6.15 and later).
	if _, err := os.Stat("/proc/sys/net/ipv4/tcp_rto_max_ms"); err == nil {
		n.Sysctl("net/ipv4/tcp_rto_max_ms", "1000")
	}
	if needs.SCTP() != nil {
		return n
	}
	for _, parameter := range [][2]string{
		// An association that is cut for a while should neither give up nor wait
		// long before it tries again: milliseconds and numbers of attempts.
		{"net/sctp/rto_initial", "1000"},
		{"net/sctp/rto_max", "1000"},
		{"net/sctp/path_max_retrans", "1000"},
		{"net/sctp/association_max_retrans", "1000"},
	} {
		n.Sysctl(parameter[0], parameter[1])
	}
	return n
}

// Remove lets go of the namespace before the test ends: the kernel removes what is in it,
// once no socket keeps it.
func (n *NS) Remove() {
	if n.handle != nil {
		n.handle.Close()
		n.handle = nil
	}
	_ = unix.Unmount(n.Path, unix.MNT_DETACH) // not mounted where making it failed
	if err := os.Remove(n.Path); err != nil && !errors.Is(err, os.ErrNotExist) {
		n.t.Errorf("removing namespace %q: %v", n.Name, err)
	}
}

// Do runs f in the namespace. A socket made by f stays in the namespace; a
// goroutine started by f does not.
func (n *NS) Do(f func() error) error {
	return n.handle.Do(func(ns.NetNS) error { return f() })
}

// Try runs a command in the namespace and returns what it prints.
func (n *NS) Try(name string, args ...string) (string, error) { return n.TryInput("", name, args...) }

// TryInput is [NS.Try] for a command that reads input.
func (n *NS) TryInput(input, name string, args ...string) (string, error) {
	var out []byte
	err := n.Do(func() (err error) {
		cmd := exec.Command(name, args...)
		cmd.Path = n.lookPath(name)
		cmd.Err = nil
		cmd.Stdin = strings.NewReader(input)
		cmd.Env = append(os.Environ(), "PATH="+n.path)
		out, err = cmd.CombinedOutput()
		return err
	})
	if err != nil {
		err = fmt.Errorf("running %q in %q: %w: %s", strings.Join(append([]string{name}, args...), " "), n.Name, err, out)
	}
	return string(out), err
}

// Run is [NS.Try] for a command that must succeed.
func (n *NS) Run(name string, args ...string) string {
	n.t.Helper()
	return n.RunInput("", name, args...)
}

// RunInput is [NS.TryInput] for a command that must succeed.
func (n *NS) RunInput(input, name string, args ...string) string {
	n.t.Helper()
	out, err := n.TryInput(input, name, args...)
	if err != nil {
		n.t.Fatal(err)
	}
	return out
}

// lookPath finds a command in the namespace's own directories.
func (n *NS) lookPath(name string) string {
	if strings.Contains(name, "/") {
		return name
	}
	for _, dir := range filepath.SplitList(n.path) {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && !info.IsDir() && info.Mode()&0o111 != 0 {
			return path
		}
	}
	return name
}

// Sysctl sets a kernel parameter of the namespace, named by its path below
// /proc/sys: "net/ipv4/ip_forward".
func (n *NS) Sysctl(path, value string) {
	n.t.Helper()
	// /proc/sys/net shows the namespace of the thread that opens it.
	if err := n.Do(func() error { return testnode.Sysctl(path, value) }); err != nil {
		n.t.Fatalf("setting in %q: %v", n.Name, err)
	}
}

// setUp switches a link on.
func (n *NS) setUp(link string) {
	n.t.Helper()
	if err := n.Do(func() error { return testnode.Up(link) }); err != nil {
		n.t.Fatalf("setting %s of %q up: %v", link, n.Name, err)
	}
}

// AddAddress puts an address on a link of the namespace; servers started later
// listen on it too.
func (n *NS) AddAddress(link string, prefix netip.Prefix) {
	n.t.Helper()
	if err := n.Do(func() error { return testnode.Address(link, prefix.String()) }); err != nil {
		n.t.Fatalf("adding %v to %s of %q: %v", prefix, link, n.Name, err)
	}
	n.Addresses = append(n.Addresses, prefix.Addr())
}

// AddRoute sends what is for dst to a router. A default route is one to
// 0.0.0.0/0 or ::/0.
func (n *NS) AddRoute(dst netip.Prefix, via netip.Addr) {
	n.t.Helper()
	err := n.Do(func() error {
		return netlink.RouteAdd(&netlink.Route{Dst: testnode.IPNet(dst), Gw: via.AsSlice()})
	})
	if err != nil {
		n.t.Fatalf("adding a route to %v via %v to %q: %v", dst, via, n.Name, err)
	}
}

// everywhere is the prefix of a default route.
func everywhere(f Family) netip.Prefix {
	if f == V6 {
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
}

// Addr returns the first address of family f.
func (n *NS) Addr(f Family) netip.Addr {
	n.t.Helper()
	for _, addr := range n.Addresses {
		if familyOf(addr) == f {
			return addr
		}
	}
	n.t.Fatalf("%q has no %v address", n.Name, f)
	return netip.Addr{}
}

// At returns port on the first address of family f.
func (n *NS) At(f Family, port uint16) netip.AddrPort {
	n.t.Helper()
	return netip.AddrPortFrom(n.Addr(f), port)
}

// numericZone replaces the link's name in a link-local address by its number. It
// must be called in the link's namespace: the net package remembers one number
// for a name such as eth0, whatever namespace it asked in.
func numericZone(at netip.AddrPort) (netip.AddrPort, error) {
	if at.Addr().Zone() == "" {
		return at, nil
	}
	link, err := net.InterfaceByName(at.Addr().Zone())
	if err != nil {
		return at, fmt.Errorf("link of %v: %w", at, err)
	}
	return netip.AddrPortFrom(at.Addr().WithZone(strconv.Itoa(link.Index)), at.Port()), nil
}
