package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/desired"
)

const (
	// tick is how often a packet of each kind is sent: as exact are the times.
	tick = 200 * time.Microsecond
	// quiet is how long packets are sent before and after a change.
	quiet = 300 * time.Millisecond
	// portsInUse bounds the flows that the kernel remembers: no reply ever comes, so
	// a packet whose port has been used before is judged as a new one too.
	portsInUse = 1 << 15
	// receiveBuffer holds what is received while the reader does not run.
	receiveBuffer = 64 << 20
)

// kind is a flow description whose packets are watched.
type kind struct {
	from, to attachment.Record
	port     uint16
}

// kinds are of all sorts for each change; which, the states tell.
func (t town) kinds() []kind {
	sender, receiver := t.records[t.sender], t.records[t.receiver]
	return []kind{
		{sender, receiver, rulePort + matching}, // always
		{sender, receiver, 9},                   // never
		{t.free, t.open, latePort},              // always
		{t.joiner, receiver, rulePort + matching},
		{sender, t.joiner, rulePort + matching},
		{t.free, t.open, 9},
		{t.free, receiver, latePort},
	}
}

// allowed asks the model.
func (k kind) allowed(s desired.State) bool {
	return s.Evaluate(desired.Packet{
		In: k.from.L3Interface, Out: k.to.L3Interface,
		Src: k.from.Addresses[0], Dst: k.to.Addresses[0],
		Protocol: desired.UDP, DstPort: k.port,
	}).Allowed
}

// watch is a node with pods that send packets of all kinds and see what arrives.
type watch struct {
	node    space
	kinds   []kind
	frames  [][]byte // by kind
	senders []int    // sockets, by kind
	sockets map[netip.Addr]int
	links   []*link
}

func (t town) watch() (*watch, error) {
	node, err := newNode()
	if err != nil {
		return nil, err
	}
	w := &watch{node: node, kinds: t.kinds(), sockets: map[netip.Addr]int{}}
	links := map[netip.Addr]*link{}
	for _, r := range []attachment.Record{t.records[t.sender], t.records[t.receiver], t.joiner, t.free, t.open} {
		a := r.Addresses[0]
		l, err := node.connect(linkOptions{name: r.L3Interface, addr: a})
		if err != nil {
			return nil, err
		}
		fd, err := frameSocket(l)
		if err != nil {
			return nil, err
		}
		timeout := unix.Timeval{Usec: 50_000}
		err = errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout),
		)
		if err != nil {
			return nil, fmt.Errorf("preparing a packet socket: %w", err)
		}
		links[a], w.sockets[a], w.links = l, fd, append(w.links, l)
	}
	for _, k := range w.kinds {
		f := flow{src: k.from.Addresses[0], dst: k.to.Addresses[0], port: k.port}
		l := links[f.src]
		w.frames = append(w.frames, framed(f.packet(), l.far, l.near))
		w.senders = append(w.senders, w.sockets[f.src])
	}
	return w, nil
}

func (w *watch) close() {
	for _, fd := range w.sockets {
		unix.Close(fd)
	}
	for _, l := range w.links {
		l.pod.ns.Close()
	}
	w.node.ns.Close()
}

// counts are packets that were sent, and of them those that were judged wrongly.
type counts struct{ packets, dropped, passed, late int }

func (c *counts) add(o counts) {
	c.packets += o.packets
	c.dropped += o.dropped
	c.passed += o.passed
	c.late += o.late
}

func (c counts) wrong() int { return c.dropped + c.passed + c.late }

// observed is what one round has shown.
type observed struct {
	counts
	call time.Duration
	// switched is whether any packet's fate changed, and then when.
	switched          bool
	newFrom, oldUntil time.Duration
}

// round sends packets while call makes the change.
func (w *watch) round(c change, call func() error) (observed, error) {
	if err := w.node.forgetFlows(); err != nil {
		return observed{}, err
	}
	var stopSending, stopReading atomic.Bool
	var reading sync.WaitGroup
	base := time.Now()
	arrived := make(map[netip.Addr]*[]uint32)
	readErrs := make(chan error, len(w.sockets))
	for a, fd := range w.sockets {
		numbers := new([]uint32)
		arrived[a] = numbers
		reading.Go(func() { readErrs <- readNumbers(fd, numbers, &stopReading) })
	}
	var sent []time.Duration
	sending := make(chan error, 1)
	go func() {
		var err error
		sent, err = w.send(base, &stopSending)
		sending <- err
	}()
	time.Sleep(quiet)
	var begin, end time.Duration
	errCall := w.node.do(func() error {
		begin = time.Since(base)
		defer func() { end = time.Since(base) }()
		return call()
	})
	time.Sleep(quiet)
	stopSending.Store(true)
	err := errors.Join(errCall, <-sending)
	stopReading.Store(true)
	reading.Wait()
	for range w.sockets {
		err = errors.Join(err, <-readErrs)
	}
	if err != nil {
		return observed{}, err
	}
	passed := make([]bool, len(sent))
	for _, numbers := range arrived {
		for _, n := range *numbers {
			if int(n) < len(passed) {
				passed[n] = true
			}
		}
	}
	return w.evaluate(c, sent, passed, begin, end), nil
}

// send sends one packet of each kind every tick, numbered, and notes when.
func (w *watch) send(base time.Time, stop *atomic.Bool) ([]time.Duration, error) {
	runtime.LockOSThread() // never unlocked, so that the slack is nobody else's
	// Sleeps may be late by 50 us otherwise.
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1000, 0, 0, 0); err != nil {
		return nil, err
	}
	sent := make([]time.Duration, 0, 1<<17)
	for next := base; !stop.Load(); next = next.Add(tick) {
		if wait := time.Until(next); wait > 0 {
			ts := unix.NsecToTimespec(int64(wait))
			_ = unix.Nanosleep(&ts, nil) // a signal may wake us early, which does no harm
		} else if wait < -tick {
			next = time.Now() // no burst to catch up
		}
		for k, frame := range w.frames {
			n := len(sent)
			binary.BigEndian.PutUint16(frame[etherLen+ipLen:], uint16(firstPort+n/len(w.frames)%portsInUse))
			binary.BigEndian.PutUint32(frame[etherLen+numberAt:], uint32(n))
			sent = append(sent, time.Since(base))
			if _, err := unix.Write(w.senders[k], frame); err != nil {
				return nil, fmt.Errorf("sending: %w", err)
			}
		}
	}
	return sent, nil
}

// readNumbers notes the numbers of the packets that arrive, until told to stop
// and nothing is left. It fails when the kernel had no room for a packet.
func readNumbers(fd int, numbers *[]uint32, stop *atomic.Bool) error {
	buffer := make([]byte, 256)
	for {
		n, err := unix.Read(fd, buffer)
		switch {
		case errors.Is(err, unix.EAGAIN) && stop.Load():
			stats, err := unix.GetsockoptTpacketStats(fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
			if err == nil && stats.Drops > 0 {
				err = fmt.Errorf("%d packets arrived that there was no room for", stats.Drops)
			}
			return err
		case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("receiving: %w", err)
		case n == etherLen+numberAt+4 && buffer[etherLen] == 0x45:
			*numbers = append(*numbers, binary.BigEndian.Uint32(buffer[etherLen+numberAt:]))
		}
	}
}

// evaluate compares the fate of each packet with what the states say.
func (w *watch) evaluate(c change, sent []time.Duration, passed []bool, begin, end time.Duration) observed {
	o := observed{call: end - begin, newFrom: end - begin, oldUntil: -begin}
	o.packets = len(sent)
	type fate struct{ before, after bool }
	fates := make([]fate, len(w.kinds))
	for i, k := range w.kinds {
		fates[i] = fate{k.allowed(c.before), k.allowed(c.after)}
	}
	for n, at := range sent {
		f := fates[n%len(w.kinds)]
		switch changes, byNew := f.before != f.after, passed[n] == f.after; {
		case changes && byNew && at >= begin:
			o.switched = true
			o.newFrom = min(o.newFrom, at-begin)
		case changes && !byNew && at <= end:
			o.oldUntil = max(o.oldUntil, at-begin)
		case changes && !byNew:
			o.late++
		case passed[n] == f.before: // as it should be
		case f.before:
			o.dropped++
		default:
			o.passed++
		}
	}
	return o
}
