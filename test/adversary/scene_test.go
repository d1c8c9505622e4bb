package adversary_test

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/test/frame"
	"github.com/podmark/podmark/test/lab"
	"github.com/podmark/podmark/test/wait"
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
	c.mutate(t)
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
// which no router changes, or behind the Ethernet header and its tags, which a bridge takes off.
func keyOf(b []byte) []byte {
	if all := marksIn(b); all != nil {
		return all[len(all)-1]
	}
	for b[12] == 0x81 && b[13] == 0x00 || b[12] == 0x88 && b[13] == 0xa8 {
		b = slices.Concat(b[:12], b[16:])
	}
	switch {
	case b[12] == 0x08 && b[13] == 0x00:
		return b[34:]
	case b[12] == 0x86 && b[13] == 0xdd:
		return b[54:]
	}
	return b[14:]
}

// A mark is payload that no other frame has: a word and a number of fixed length.
const (
	markWord   = "podmark-"
	markDigits = 8
)

// mark makes one.
func (c *cast) mark() []byte {
	c.markers++
	return fmt.Appendf(nil, "%s%0*d", markWord, markDigits, c.markers)
}

// marksIn are all marks in a frame.
func marksIn(b []byte) (all [][]byte) {
	for {
		i := bytes.Index(b, []byte(markWord))
		if i < 0 || len(b) < i+len(markWord)+markDigits {
			return all
		}
		b = b[i:]
		all = append(all, b[:len(markWord)+markDigits])
		b = b[len(markWord):]
	}
}

// port is a source port that no other flow has.
func (c *cast) port() uint16 {
	c.ports++
	return c.ports
}

// settle sends what was noted, in order, and compares who got it.
func (s *scene) settle() {
	s.Helper()
	if s.shots == nil {
		return
	}
	all := newCatch()
	if err := s.volley(all); err != nil {
		s.Fatal(err)
	}
	for _, sh := range s.shots {
		var by []string
		for _, a := range s.actors {
			if slices.Contains(sh.who, a) && all.has(a, sh.key) {
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

// catch is what everybody got: the frames that have marks by these, and the others.
type catch struct {
	marked map[string]map[*actor]int
	others map[*actor][][]byte
}

func newCatch() catch {
	return catch{map[string]map[*actor]int{}, map[*actor][][]byte{}}
}

func (c catch) add(a *actor, b []byte) {
	all := marksIn(b)
	if all == nil {
		c.others[a] = append(c.others[a], b)
	}
	for _, m := range all {
		if c.marked[string(m)] == nil {
			c.marked[string(m)] = map[*actor]int{}
		}
		c.marked[string(m)][a]++
	}
}

func (c catch) has(a *actor, key []byte) bool { return c.count(a, key) > 0 }

// count is how many frames with a key a receiver got.
func (c catch) count(a *actor, key []byte) int {
	if marksIn(key) != nil {
		return c.marked[string(key)][a]
	}
	n := 0
	for _, b := range c.others[a] {
		if bytes.Contains(b, key) {
			n++
		}
	}
	return n
}

// volley sends everything and reads until all of it has been handled. A processor handles
// what it is given in order, and hands it on to itself from link to link: so everything is
// sent from one, and what comes behind it and is always allowed, from one machine
// outside to the other, says that it was. A tunnel's inner packet is queued once more,
// which the second of these waits for.
func (s *scene) volley(got catch) error {
	s.collect(newCatch())
	done := make(chan error)
	go func() { done <- s.fire(got) }()
	return <-done
}

func (s *scene) fire(got catch) error {
	runtime.LockOSThread() // never unlocked: the runtime ends the thread, which is tied to a processor
	var cpus unix.CPUSet
	cpus.Set(runtimeCPU())
	if err := unix.SchedSetaffinity(0, &cpus); err != nil {
		return fmt.Errorf("tying a thread to a processor: %w", err)
	}
	for i, sh := range s.shots {
		// What is dropped in OUTPUT, its sender is told.
		if err := s.send(got, sh.send); err != nil && !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("sending %q from %v: %w", sh.what, sh.from, err)
		}
		if i%64 == 63 {
			s.collect(got)
		}
	}
	for range 2 {
		key := s.mark()
		at := func(a *actor) netip.AddrPort { return netip.AddrPortFrom(a.addrs[lab.V4], 9) }
		last := frame.Ethernet(s.x.mac, s.x.gateway, frame.UDPPacket(at(s.x), at(s.y), key))
		if err := s.send(got, func() error { return s.x.write(last) }); err != nil {
			return fmt.Errorf("sending the last packet: %w", err)
		}
		for deadline := time.Now().Add(wait.Still); ; {
			s.collect(got)
			if got.has(s.y, key) {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("the last packet, which nothing forbids, does not come out in %v", wait.Still)
			}
		}
	}
	// Only a packet for a neighbour that has to be asked for first comes behind that.
	for deadline := time.Now().Add(wait.Still); s.lost(got) != nil && time.Now().Before(deadline); {
		s.collect(got)
	}
	return nil
}

// send sends one packet: again where the queues before it are full, which on a busy machine they
// are until what is in them has been handled.
func (s *scene) send(got catch, send func() error) error {
	err := send()
	for deadline := time.Now().Add(wait.Still); errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.ENOBUFS); err = send() {
		if time.Now().After(deadline) {
			return fmt.Errorf("the queue stays full for %v: %w", wait.Still, err)
		}
		s.collect(got)
	}
	return err
}

// lost is a shot that should have come to one of its receivers, and has not; nil where all have.
func (s *scene) lost(got catch) *shot {
	for i, sh := range s.shots {
		if sh.pass && !slices.ContainsFunc(s.actors, func(a *actor) bool { return slices.Contains(sh.who, a) && got.has(a, sh.key) }) {
			return &s.shots[i]
		}
	}
	return nil
}

func (s *scene) collect(got catch) {
	for _, a := range s.actors {
		a.read(s.buf, func(b []byte) { got.add(a, b) })
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

// ip changes the node's links, by lines of ip's own: one process for all of them.
func (s *scene) ip(lines ...string) {
	s.Helper()
	if err := s.cast.ip(lines...); err != nil {
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

// nameOf is the name of a link of the node, known by its number.
func (s *scene) nameOf(index int) string {
	s.Helper()
	return s.attrsOf(index).Name
}

func (s *scene) attrsOf(index int) *netlink.LinkAttrs {
	s.Helper()
	return s.find(func() (netlink.Link, error) { return netlink.LinkByIndex(index) })
}

func (s *scene) attrs(name string) *netlink.LinkAttrs {
	s.Helper()
	return s.find(func() (netlink.Link, error) { return netlink.LinkByName(name) })
}

func (s *scene) find(link func() (netlink.Link, error)) (attrs *netlink.LinkAttrs) {
	s.Helper()
	err := s.Do(func() error {
		l, err := link()
		if err == nil {
			attrs = l.Attrs()
		}
		return err
	})
	if err != nil {
		s.Fatal(err)
	}
	return attrs
}
