package endpoint_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/endpoint"
	"github.com/podmark/podmark/test/netns"
)

// container is a network namespace that lives as long as the test.
type container struct {
	path  string
	fd    *os.File
	calls chan func() error
	done  chan error
}

func newContainer(t *testing.T) *container {
	t.Helper()
	c := &container{calls: make(chan func() error), done: make(chan error)}
	go func() {
		runtime.LockOSThread() // never unlocked: thread and namespace end together
		err := unix.Unshare(unix.CLONE_NEWNET)
		c.path = fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid())
		c.done <- err
		for f := range c.calls {
			c.done <- f()
		}
	}()
	err := <-c.done
	if err == nil {
		c.fd, err = os.Open(c.path)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { close(c.calls); c.fd.Close() })
	return c
}

// do runs f in the namespace.
func (c *container) do(t *testing.T, f func() error) {
	t.Helper()
	c.calls <- f
	if err := <-c.done; err != nil {
		t.Fatal(err)
	}
}

// veth makes a pair with one end named eth0 in the container and one named host
// in the calling thread's namespace.
func (c *container) veth(t *testing.T, host string) {
	t.Helper()
	err := netlink.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: host}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(c.fd.Fd())),
		PeerHardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1},
	})
	if err != nil {
		t.Fatal(err)
	}
}

func master(t *testing.T, port string, link netlink.Link) {
	t.Helper()
	err := netlink.LinkAdd(link)
	if err == nil {
		err = netlink.LinkSetMaster(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: port}}, link)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func result(t *testing.T, text string) *types100.Result {
	t.Helper()
	r := &types100.Result{}
	if err := json.Unmarshal([]byte(text), r); err != nil {
		t.Fatal(err)
	}
	return r
}

const (
	// asPTP is what ptp returns, asBridge what bridge does.
	asPTP    = `{"interfaces": [{"name": "v"}, {"name": "eth0", "sandbox": "/x"}], "ips": [{"address": "10.0.0.2/32", "gateway": "10.0.0.1", "interface": 1}]}`
	asBridge = `{"interfaces": [{"name": "cni0"}, {"name": "v"}, {"name": "eth0", "sandbox": "/x"}], "ips": [{"address": "10.0.0.2/24", "gateway": "10.0.0.1", "interface": 2}]}`
)

func TestFromResult(t *testing.T) {
	tests := []struct {
		name   string
		make   func(t *testing.T, c *container) // ptp's veth when nil
		result string
		want   attachment.Endpoint
	}{
		{name: "ptp", result: asPTP},
		{name: "bridge", result: asBridge, make: func(t *testing.T, c *container) {
			c.veth(t, "v")
			master(t, "v", &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "cni0"}})
		}, want: attachment.Endpoint{L3Interface: "cni0"}},
		{name: "host veth not listed", result: `{"ips": [{"address": "10.0.0.2/32", "gateway": "10.0.0.1"}]}`},
		{name: "host veth listed wrongly", result: strings.Replace(asPTP, `"v"`, `"lo"`, 1)},
		{name: "dual stack", result: `{"interfaces": [{"name": "eth0"}], "ips": [
			{"address": "10.0.0.2/24", "gateway": "10.0.0.1", "interface": 0}, {"address": "fd00::2/64", "gateway": "fd00::1", "interface": 0}]}`, want: attachment.Endpoint{
			Addresses: addrs("10.0.0.2", "fd00::2"), Gateways: addrs("10.0.0.1", "fd00::1"),
		}},
		{name: "several of a family", result: `{"ips": [{"address": "10.0.0.2/24"}, {"address": "10.1.0.2/24"}, {"address": "fd00::2/64"}, {"address": "fd01::2/64"}]}`, want: attachment.Endpoint{
			Addresses: addrs("10.0.0.2", "10.1.0.2", "fd00::2", "fd01::2"), Gateways: addrs(),
		}},
		{name: "IPv6 only", result: `{"ips": [{"address": "fd00::2/64", "gateway": "fd00::1"}]}`, want: attachment.Endpoint{
			Addresses: addrs("fd00::2"), Gateways: addrs("fd00::1"),
		}},
		{name: "mapped address", result: `{"ips": [{"address": "::ffff:10.0.0.2/128"}]}`, want: attachment.Endpoint{Addresses: addrs("10.0.0.2"), Gateways: addrs()}},
		{name: "addresses of other interfaces", result: `{"interfaces": [{"name": "v"}, {"name": "eth0"}, {"name": "eth1"}], "ips": [
			{"address": "10.9.0.1/24", "interface": 0}, {"address": "10.0.0.2/24", "interface": 1}, {"address": "10.9.0.2/24", "interface": 2},
			{"address": "10.9.0.3/24", "interface": 3}, {"address": "10.9.0.4/24", "interface": -1}, {"address": "10.0.0.3/24"}]}`, want: attachment.Endpoint{
			Addresses: addrs("10.0.0.2", "10.0.0.3"), Gateways: addrs(),
		}},
		{name: "unspecified addresses", result: `{"ips": [{"address": "0.0.0.0/0"}, {"address": "::/0"}, {"address": "10.0.0.2/24", "gateway": "0.0.0.0"}]}`, want: attachment.Endpoint{Gateways: addrs()}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			netns.Enter(t)
			c := newContainer(t)
			if tt.make != nil {
				tt.make(t, c)
			} else {
				c.veth(t, "v")
			}
			want := tt.want
			want.HostVeth, want.MAC = "v", "02:00:00:00:00:01"
			if want.L3Interface == "" {
				want.L3Interface = "v"
			}
			if want.Addresses == nil {
				want.Addresses = addrs("10.0.0.2")
			}
			if want.Gateways == nil {
				want.Gateways = addrs("10.0.0.1")
			}
			got, counters, err := endpoint.FromResult(result(t, tt.result), c.path, "eth0")
			if err != nil {
				t.Fatal(err)
			}
			counters.Close()
			want.HostVethIndex, want.L3InterfaceIndex = index(t, want.HostVeth), index(t, want.L3Interface)
			if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}), cmpopts.EquateEmpty()); diff != "" {
				t.Error(diff)
			}
			if got.Routed() != (tt.want.L3Interface == "") {
				t.Errorf("Routed = %t", got.Routed())
			}
		})
	}
}

// index is the number of a link.
func index(t *testing.T, name string) int {
	t.Helper()
	link, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return link.Attrs().Index
}

func addrs(list ...string) []netip.Addr {
	out := []netip.Addr{}
	for _, a := range list {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

// into makes a link of the node's side whose other part is eth0 in the container.
func into(c *container, link netlink.Link) error {
	link.Attrs().Name = "eth0"
	link.Attrs().Namespace = netlink.NsFd(int(c.fd.Fd()))
	return netlink.LinkAdd(link)
}

// ipvlan, which not every kernel has, is refused in the lab.
func TestRefused(t *testing.T) {
	parent := func(t *testing.T) int {
		t.Helper()
		v := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "parent"}, PeerName: "other"}
		if err := netlink.LinkAdd(v); err != nil {
			t.Fatal(err)
		}
		link, err := netlink.LinkByName("parent")
		if err != nil {
			t.Fatal(err)
		}
		return link.Attrs().Index
	}
	tests := []struct {
		name   string
		make   func(t *testing.T, c *container) error
		ifName string
		path   string
		result string
		is     error
		words  []string
	}{
		{name: "macvlan", make: func(t *testing.T, c *container) error {
			return into(c, &netlink.Macvlan{LinkAttrs: netlink.LinkAttrs{ParentIndex: parent(t)}, Mode: netlink.MACVLAN_MODE_BRIDGE})
		}, is: endpoint.ErrNoHostInterface, words: []string{"eth0", "macvlan", "ptp, bridge"}},
		{name: "bridge inside", make: func(_ *testing.T, c *container) error { return into(c, &netlink.Bridge{}) }, is: endpoint.ErrNoHostInterface, words: []string{"bridge"}},
		{name: "loopback", ifName: "lo", is: endpoint.ErrNoHostInterface, words: []string{"lo"}},
		{name: "peer in a third namespace", make: func(t *testing.T, c *container) error {
			// Links here have the same indexes as in the third namespace.
			if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "a"}, PeerName: "b"}); err != nil {
				return err
			}
			third := newContainer(t)
			third.do(t, func() error {
				return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "v"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(c.fd.Fd()))})
			})
			return nil
		}, is: endpoint.ErrNoHostInterface, words: []string{"eth0", "not in this network namespace"}},
		{name: "both ends in the container", make: func(t *testing.T, c *container) error {
			c.do(t, func() error {
				return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "eth9"})
			})
			return nil
		}, is: endpoint.ErrNoHostInterface, words: []string{"eth0", "peer"}},
		{name: "interface missing", words: []string{`"eth0"`}},
		{name: "namespace missing", path: "/run/netns/does-not-exist", is: endpoint.ErrNetns, words: []string{"/run/netns/does-not-exist"}},
		{name: "namespace is a file", path: "/etc/hostname", is: endpoint.ErrNetns, words: []string{"/etc/hostname"}},
		{name: "no address", result: `{}`, is: endpoint.ErrNoAddress, words: []string{`"eth0"`, "prevResult"}},
		{name: "another's address", result: `{"interfaces": [{"name": "eth1"}], "ips": [{"address": "10.0.0.2/24", "interface": 0}]}`, is: endpoint.ErrNoAddress, words: []string{`"eth0"`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			netns.Enter(t)
			c := newContainer(t)
			if tt.make != nil {
				if err := tt.make(t, c); err != nil {
					t.Fatal(err)
				}
			}
			path, ifName, text := c.path, "eth0", `{"ips": [{"address": "10.0.0.2/32"}]}`
			if tt.path != "" {
				path = tt.path
			}
			if tt.ifName != "" {
				ifName = tt.ifName
			}
			if tt.result != "" {
				text = tt.result
			}
			_, _, err := endpoint.FromResult(result(t, text), path, ifName)
			if err == nil || tt.is != nil && !errors.Is(err, tt.is) {
				t.Fatalf("error is %v, want %v", err, tt.is)
			}
			for _, w := range tt.words {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q does not say %q", err, w)
				}
			}
		})
	}
}

// FuzzPrevResult: no prevResult makes it panic, and it gives out plain addresses.
func FuzzPrevResult(f *testing.F) {
	for _, seed := range []string{
		asPTP, asBridge, `{"ips": [null, {}]}`, `{"interfaces": [null], "ips": [{"address": "1.2.3.4/0", "interface": 0}]}`,
		`{"ips": [{"address": "::ffff:1.2.3.4/128", "gateway": "x"}]}`, `{"ips": [{"address": "::1/128", "gateway": "::ffff:1.2.3.4", "interface": 9223372036854775807}]}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		r := &types100.Result{}
		if json.Unmarshal(text, r) != nil {
			return
		}
		_, _, err := endpoint.FromResult(r, "/does/not/exist", "eth0")
		if !errors.Is(err, endpoint.ErrNoAddress) && !errors.Is(err, endpoint.ErrNetns) {
			t.Errorf("error is %v", err)
		}
	})
}
