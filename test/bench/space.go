package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/dataplane/hostport"
)

// space is a network namespace: a node or a pod. It lives as long as the program.
type space struct{ ns netns.NsHandle }

// newSpace makes a namespace that forwards and keeps quiet: neighbour discovery
// and the like would be noise.
func newSpace() (space, error) {
	here, err := netns.Get()
	if err != nil {
		return space{}, err
	}
	defer here.Close()
	s := space{}
	if s.ns, err = netns.New(); err != nil {
		return space{}, fmt.Errorf("making a network namespace: %w", err)
	}
	for key, value := range map[string]string{
		"ipv6/conf/all/disable_ipv6": "1", "ipv6/conf/default/disable_ipv6": "1",
		"ipv4/conf/all/rp_filter": "0", "ipv4/conf/default/rp_filter": "0",
		"ipv4/tcp_slow_start_after_idle": "0", // streams pause between rounds
	} {
		err = errors.Join(err, os.WriteFile(filepath.Join("/proc/sys/net", key), []byte(value), 0o644))
	}
	lo, errLo := netlink.LinkByName("lo")
	if errLo == nil {
		errLo = netlink.LinkSetUp(lo)
	}
	return s, errors.Join(err, errLo, netns.Set(here))
}

// serviceAddr is that of a service on each node.
var serviceAddr = netip.MustParseAddr("10.96.0.10")

// newNode is a namespace that forwards, and takes what is for a service where IPVS would.
func newNode() (space, error) {
	s, err := newSpace()
	if err != nil {
		return s, err
	}
	err = s.do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return errors.Join(
			os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644),
			netlink.AddrAdd(lo, &netlink.Addr{IPNet: host(serviceAddr)}),
		)
	})
	if err != nil {
		return s, fmt.Errorf("making a node: %w", err)
	}
	_, err = s.command(fmt.Sprintf("table ip ipvs {\n counter taken {}\n chain input {\n type filter hook input priority 98\n ip daddr %v counter name taken drop\n }\n}\n", serviceAddr), "nft", "-f", "-")
	return s, err
}

// delivered is how many packets for a service the node has taken.
func (s space) delivered() (n int, err error) {
	text, err := s.command("", "nft", "list", "counter", "ip", "ipvs", "taken")
	if err != nil {
		return 0, err
	}
	_, figures, _ := strings.Cut(text, "packets ")
	if _, err := fmt.Sscan(figures, &n); err != nil {
		return 0, fmt.Errorf("reading how many packets a service got from %q: %w", text, err)
	}
	return n, nil
}

// path names the namespace for other processes.
func (s space) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(s.ns)) }

// do runs f in the namespace, on this thread: sockets and processes that f opens
// and starts are the namespace's for good.
func (s space) do(f func() error) error {
	here, err := netns.Get()
	if err != nil {
		return err
	}
	defer here.Close()
	if err := netns.Set(s.ns); err != nil {
		return err
	}
	return errors.Join(f(), netns.Set(here))
}

// atOnce runs f n times in the namespace, each on a thread of its own, all let
// go together, and returns how long it took until the last had ended.
func (s space) atOnce(n int, f func(i int) error) (time.Duration, error) {
	var ready, ended sync.WaitGroup
	start, errs := make(chan struct{}), make([]error, n)
	ready.Add(n)
	for i := range n {
		ended.Go(func() {
			// Never unlocked: the thread is in the wrong namespace and ends here.
			runtime.LockOSThread()
			errs[i] = netns.Set(s.ns)
			ready.Done()
			<-start
			if errs[i] == nil {
				errs[i] = f(i)
			}
		})
	}
	ready.Wait()
	begin := time.Now()
	close(start)
	ended.Wait()
	return time.Since(begin), errors.Join(errs...)
}

// command runs a command in the namespace, with input, and returns what it prints.
func (s space) command(input, name string, args ...string) (string, error) {
	var out, complaint bytes.Buffer
	err := s.do(func() error {
		cmd := exec.Command(name, args...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &out, &complaint
		return cmd.Run()
	})
	if err != nil {
		return "", fmt.Errorf("running %s %s: %w: %.2000s", name, strings.Join(args, " "), err, complaint.String())
	}
	return out.String(), nil
}

// link is the veth of a pod.
type link struct {
	near, far net.HardwareAddr
	index     int // of the node's end
	node, pod space
}

// linkOptions say how a pod is connected.
type linkOptions struct {
	name string
	addr netip.Addr
	// alive gives the pod an address and routes. Else nothing but sockets that see
	// every frame reads what arrives there, and the kernel drops it at once, as
	// not meant for this host.
	alive bool
}

// podEnd is the name of a pod's end of its veth.
const podEnd = "eth0"

// gateway is what pods send to, as they do on nodes that route: nobody has it.
var gateway = netip.MustParseAddr("169.254.1.1")

// connect makes a pod with a routed veth in podmark's device group.
func (s space) connect(o linkOptions) (*link, error) {
	pod, err := newSpace()
	if err != nil {
		return nil, err
	}
	l := &link{node: s, pod: pod}
	err = s.do(func() error {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: o.name}, PeerName: podEnd, PeerNamespace: netlink.NsFd(int(pod.ns))}
		if err := netlink.LinkAdd(veth); err != nil {
			return err
		}
		made, err := netlink.LinkByName(o.name)
		if err != nil {
			return err
		}
		l.near, l.index = made.Attrs().HardwareAddr, made.Attrs().Index
		return netlink.LinkSetGroup(made, hostport.Group)
	})
	if err != nil {
		return nil, fmt.Errorf("making veth %s: %w", o.name, err)
	}
	if err := pod.do(func() error { return l.setUpPod(o) }); err != nil {
		return nil, fmt.Errorf("connecting the pod behind %s: %w", o.name, err)
	}
	to := slices.Clone(l.far)
	if !o.alive {
		to[5] ^= 1
	}
	err = s.do(func() error { return neighbour(l.index, o.addr, to) })
	if err != nil {
		return nil, fmt.Errorf("routing to %s: %w", o.name, err)
	}
	return l, nil
}

func (l *link) setUpPod(o linkOptions) error {
	far, err := netlink.LinkByName(podEnd)
	if err != nil {
		return err
	}
	l.far = far.Attrs().HardwareAddr
	if err := netlink.LinkSetUp(far); err != nil || !o.alive {
		return err
	}
	if err := netlink.AddrAdd(far, &netlink.Addr{IPNet: host(o.addr)}); err != nil {
		return err
	}
	if err := neighbour(far.Attrs().Index, gateway, l.near); err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{LinkIndex: far.Attrs().Index, Gw: gateway.AsSlice()})
}

// neighbour sets a link up, with a route to addr and its hardware address.
func neighbour(index int, addr netip.Addr, mac net.HardwareAddr) error {
	l, err := netlink.LinkByIndex(index)
	if err != nil {
		return err
	}
	return errors.Join(
		netlink.LinkSetUp(l),
		netlink.RouteAdd(&netlink.Route{LinkIndex: index, Dst: host(addr), Scope: unix.RT_SCOPE_LINK}),
		netlink.NeighSet(&netlink.Neigh{LinkIndex: index, IP: addr.AsSlice(), HardwareAddr: mac, State: netlink.NUD_PERMANENT}),
	)
}

// host is the prefix that holds addr only.
func host(addr netip.Addr) *net.IPNet {
	return &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(addr.BitLen(), addr.BitLen())}
}

// delivered is how many packets the node has handed to the pod.
func (l *link) delivered() (n int, err error) {
	err = l.node.do(func() error {
		now, err := netlink.LinkByIndex(l.index)
		if err == nil {
			n = int(now.Attrs().Statistics.TxPackets)
		}
		return err
	})
	return n, err
}

// forgetFlows empties the node's connection table, so that every round finds it alike.
func (s space) forgetFlows() error {
	return s.do(func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) })
}
