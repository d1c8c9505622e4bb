package adversary_test

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/test/frame"
	"github.com/podmark/podmark/test/lab"
)

// scene is one attack in one family.
type scene struct {
	*testing.T
	*cast
	f lab.Family

	shots []shot
	undo  []func()
}

// shot is something sent, and who may get it.
type shot struct {
	what string
	from *actor
	send func() error
	key  []byte // what it is known by where it comes out
	pass bool
	who  []*actor
}

// play runs an attack.
func (c *cast) play(t *testing.T, f lab.Family, a attack) {
	t.Helper()
	s := &scene{T: t, cast: c, f: f}
	defer func() {
		for _, undo := range slices.Backward(s.undo) {
			undo()
		}
	}()
	a.run(s)
	s.settle()
}

// finally undoes what an attack does to the node.
func (s *scene) finally(f func()) { s.undo = append(s.undo, f) }

// pass notes what must reach to.
func (s *scene) pass(what string, from *actor, packet []byte, to *actor) {
	s.shoot(shot{what: what, from: from, pass: true, who: []*actor{to}}, s.frame(from, packet))
}

// deny notes what must reach none of who; nobody at all when there are none.
func (s *scene) deny(what string, from *actor, packet []byte, who ...*actor) {
	s.denyFrame(what, from, s.frame(from, packet), who...)
}

// passFrame and denyFrame are pass and deny of a whole Ethernet frame.
func (s *scene) passFrame(what string, from *actor, b []byte, to *actor) {
	s.shoot(shot{what: what, from: from, pass: true, who: []*actor{to}}, b)
}

func (s *scene) denyFrame(what string, from *actor, b []byte, who ...*actor) {
	if who == nil {
		who = slices.DeleteFunc(slices.Clone(s.actors), func(a *actor) bool { return a == from })
	}
	s.shoot(shot{what: what, from: from, who: who}, b)
}

func (s *scene) shoot(sh shot, b []byte) {
	sh.key, sh.send = keyOf(b), func() error { return sh.from.write(b) }
	s.shots = append(s.shots, sh)
}

// keyOf is what a frame is known by: its last marker, or else what is behind the IP header,
// which no router changes, or behind the Ethernet header.
func keyOf(b []byte) []byte {
	if all := marker.FindAll(b, -1); all != nil {
		return all[len(all)-1]
	}
	switch {
	case b[12] == 0x08 && b[13] == 0x00:
		return b[34:]
	case b[12] == 0x86 && b[13] == 0xdd:
		return b[54:]
	}
	return b[14:]
}

var marker = regexp.MustCompile(`podmark-[0-9]{8}`)

// mark is payload that no other frame has.
func (c *cast) mark() []byte {
	c.markers++
	return fmt.Appendf(nil, "podmark-%08d", c.markers)
}

// port is a source port that no other flow has.
func (c *cast) port() uint16 {
	c.ports++
	return c.ports
}

// fenceLimit is for the arrival of what nothing forbids.
const fenceLimit = 30 * time.Second

// settle sends what was noted, in order, and compares who got it.
func (s *scene) settle() {
	s.Helper()
	if s.shots == nil {
		return
	}
	got := map[*actor][][]byte{}
	if err := s.volley(got); err != nil {
		s.Fatal(err)
	}
	for _, sh := range s.shots {
		var by []string
		for _, a := range s.actors {
			if !slices.Contains(sh.who, a) {
				continue
			}
			if slices.ContainsFunc(got[a], func(b []byte) bool { return bytes.Contains(b, sh.key) }) {
				by = append(by, a.name)
			}
		}
		switch {
		case sh.pass && by == nil:
			s.Errorf("lost: %s, from %v to %v", sh.what, sh.from, sh.who[0])
		case !sh.pass && by != nil:
			s.Errorf("got through: %s, from %v to %v", sh.what, sh.from, by)
		}
	}
	s.shots = nil
}

// volley sends everything and reads until all of it has been handled. A processor handles
// what it is given in order, and hands it on to itself from link to link: so everything is
// sent from one, and what comes behind it and is always allowed, from one machine
// outside to the other, says that it was. A tunnel's inner packet is queued once more,
// which the second of these waits for.
func (s *scene) volley(got map[*actor][][]byte) error {
	for _, a := range s.actors {
		a.read()
	}
	done := make(chan error)
	go func() { done <- s.fire(got) }()
	return <-done
}

func (s *scene) fire(got map[*actor][][]byte) error {
	runtime.LockOSThread() // never unlocked: the runtime ends the thread, which is tied to a processor
	var cpus unix.CPUSet
	cpus.Set(runtimeCPU())
	if err := unix.SchedSetaffinity(0, &cpus); err != nil {
		return fmt.Errorf("tying a thread to a processor: %w", err)
	}
	for i, sh := range s.shots {
		// What is dropped in OUTPUT, its sender is told.
		if err := sh.send(); err != nil && !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("sending %q from %v: %w", sh.what, sh.from, err)
		}
		if i%64 == 63 {
			s.collect(got)
		}
	}
	for range 2 {
		key := s.mark()
		at := func(a *actor) netip.AddrPort { return netip.AddrPortFrom(a.addrs[lab.V4], 9) }
		if err := s.x.write(frame.Ethernet(s.x.mac, s.x.gateway, frame.UDPPacket(at(s.x), at(s.y), key))); err != nil {
			return fmt.Errorf("sending the last packet: %w", err)
		}
		for deadline := time.Now().Add(fenceLimit); ; {
			s.collect(got)
			if slices.ContainsFunc(got[s.y], func(b []byte) bool { return bytes.Contains(b, key) }) {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("the last packet, which nothing forbids, does not come out in %v", fenceLimit)
			}
		}
	}
	return nil
}

func (s *scene) collect(got map[*actor][][]byte) {
	for _, a := range s.actors {
		got[a] = append(got[a], a.read()...)
	}
}

// runtimeCPU is a processor that the process may use.
func runtimeCPU() int {
	var cpus unix.CPUSet
	if err := unix.SchedGetaffinity(unix.Getpid(), &cpus); err != nil {
		return 0
	}
	for cpu := range 1024 {
		if cpus.IsSet(cpu) {
			return cpu
		}
	}
	return 0
}

// frame is a packet as the sender's own kernel would put it on the link: to whoever has the
// address there, or else to the node.
func (s *scene) frame(from *actor, packet []byte) []byte {
	dst, ok := netip.AddrFromSlice(packet[16:20])
	if packet[0]>>4 == 6 {
		dst, ok = netip.AddrFromSlice(packet[24:40])
	}
	if !ok {
		s.Fatalf("a packet without a destination: %x", packet)
	}
	to := from.gateway
	for _, a := range s.actors {
		if from.bridge != "" && a.bridge == from.bridge && (a.addrs[lab.V4] == dst || a.addrs[lab.V6] == dst) {
			to = a.mac
		}
	}
	switch {
	case dst.IsMulticast():
		to = frame.Multicast(dst)
	case dst == limitedBroadcast || dst == subnetBroadcast:
		to = frame.Broadcast
	}
	return frame.Ethernet(from.mac, to, packet)
}

var (
	limitedBroadcast = netip.MustParseAddr("255.255.255.255")
	subnetBroadcast  = netip.MustParseAddr("10.1.0.255") // of lab's pods
)

// addr is the actor's own, in the scene's family.
func (s *scene) addr(a *actor) netip.Addr { return a.addrs[s.f] }

// to is a port of the actor.
func (s *scene) to(a *actor, port uint16) netip.AddrPort { return netip.AddrPortFrom(s.addr(a), port) }

// udp is a datagram between two addresses.
func (s *scene) udp(src, dst netip.AddrPort) []byte { return frame.UDPPacket(src, dst, s.mark()) }

// new is the first packet of a flow nobody has seen, from an actor's own address.
func (s *scene) new(from, to *actor, port uint16) []byte {
	return s.udp(s.to(from, s.port()), s.to(to, port))
}

// posing is new, from an address that is not the actor's.
func (s *scene) posing(as netip.Addr, to *actor, port uint16) []byte {
	return s.udp(netip.AddrPortFrom(as, s.port()), s.to(to, port))
}

// pick is one of two, by the family.
func pick[T any](f lab.Family, v4, v6 T) T {
	if f == lab.V4 {
		return v4
	}
	return v6
}

func (s *scene) pick(v4, v6 string) netip.Addr { return netip.MustParseAddr(pick(s.f, v4, v6)) }

// sysctl sets a parameter of the node for the rest of the attack.
func (s *scene) sysctl(path, value, after string) {
	s.Sysctl(path, value)
	s.finally(func() { s.Sysctl(path, after) })
}

// try runs a command on the node.
func (s *scene) try(name string, args ...string) {
	s.Helper()
	if _, err := s.cast.Try(name, args...); err != nil {
		s.Fatal(err)
	}
}

// nft changes the node's nf_tables.
func (s *scene) nft(commands string) {
	s.Helper()
	if _, err := s.TryInput(commands, "nft", "-f", "-"); err != nil {
		s.Fatal(err)
	}
}

// newcomer is a pod that comes for this attack, and may be moved about.
func (s *scene) newcomer(app string) *actor {
	s.Helper()
	s.serial++
	a := s.addPod(s.T, fmt.Sprintf("%s-%d", app, s.serial), app)
	s.finally(func() {
		s.actors = slices.DeleteFunc(s.actors, func(b *actor) bool { return b == a })
		if err := a.pod.Del(); err != nil {
			s.Error(err)
		}
	})
	return a
}

// linkOf is the node's end of a pod's link, whatever its name is now.
func (s *scene) linkOf(a *actor) string {
	s.Helper()
	index := 0
	err := a.ns.Do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err == nil {
			index = link.Attrs().ParentIndex
		}
		return err
	})
	if err != nil {
		s.Fatal(err)
	}
	return s.nameOf(index)
}

// nameOf is the name of a link of the node, index its number.
func (s *scene) nameOf(index int) string {
	s.Helper()
	return s.attrs(func() (netlink.Link, error) { return netlink.LinkByIndex(index) }).Name
}

func (s *scene) index(link string) int {
	s.Helper()
	return s.attrs(func() (netlink.Link, error) { return netlink.LinkByName(link) }).Index
}

// masterOf is the bridge a link is a port of; the link itself when it is none's.
func (s *scene) masterOf(link string) string {
	s.Helper()
	attrs := s.attrs(func() (netlink.Link, error) { return netlink.LinkByName(link) })
	if attrs.MasterIndex == 0 {
		return link
	}
	master := s.attrs(func() (netlink.Link, error) { return netlink.LinkByIndex(attrs.MasterIndex) })
	if strings.HasPrefix(master.Name, "red") || strings.HasPrefix(master.Name, "blue") {
		return link
	}
	return master.Name
}

func (s *scene) attrs(find func() (netlink.Link, error)) *netlink.LinkAttrs {
	s.Helper()
	var link netlink.Link
	if err := s.Do(func() (err error) {
		link, err = find()
		return err
	}); err != nil {
		s.Fatal(err)
	}
	return link.Attrs()
}
