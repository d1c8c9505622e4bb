package main

import (
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/desired"
)

const (
	// streamRound is how long a stream is measured at a time, after it has come up to
	// speed again.
	streamRound = 50 * time.Millisecond
	streamStart = 5 * time.Millisecond
)

// segmentations are what the stream consists of: what pods send by default, and
// what comes from a network card that cannot join packets.
var segmentations = []string{large: "large segments", small: "1,500 byte packets"}

const (
	large = iota
	small
)

// benchStream measures an established TCP stream between two pods.
func benchStream(o options) error {
	endpoints, profiles := o.sizesOr(4000)[len(o.sizesOr(4000))-1], 200
	fmt.Printf(`
## A TCP stream

From one pod to another through the node, established: %s endpoints, %d profiles. Pods send large segments,
up to 64 KiB, which go through the node's rules as one packet. In 1,500 byte packets the pod's kernel cuts
them before the node sees them, so every packet goes through the rules: the most that rules can cost. Share
is the throughput in proportion to the node without rules that tracks connections: the median over rounds
of %v, and between which values the middle half of the rounds is.
`, count(endpoints), profiles, streamRound)
	p, err := populate(endpoints, profiles, desired.TCP)
	if err != nil {
		return err
	}
	all, err := lanes(candidates(), p, true)
	if err != nil {
		return err
	}
	defer free(all)
	rates, err := measureStreams(all, p, o.roundsOr(100))
	if err != nil {
		return err
	}
	t := table{"rules"}
	for _, s := range segmentations {
		t = append(t, s+", Gbit/s", "share, %")
	}
	t.head()
	for _, l := range all {
		cells := []string{l.name}
		for s := range segmentations {
			share := ""
			if l.name != baseline {
				share = spread(rates.share(l.name, s), "%.1f")
			}
			cells = append(cells, fmt.Sprintf("%.1f", median(rates[l.name][s])), share)
		}
		t.row(cells...)
	}
	var g goals
	share := median(rates.share(withNFTables, large))
	g.add("podmark nftables takes at most 3 % off a stream, in "+segmentations[large], share >= 97, "%.1f %%", 100-share)
	g.print()
	return nil
}

// streamRates are Gbit/s, by candidate, segmentation and round.
type streamRates map[string][2][]float64

// share is the throughput in per cent of the baseline's, round by round.
func (r streamRates) share(name string, s int) []float64 {
	return paired(r[name][s], r[baseline][s], func(a, b float64) float64 { return 100 * a / b })
}

func measureStreams(all []*lane, p population, rounds int) (streamRates, error) {
	rates := streamRates{}
	streams := map[string]*stream{}
	for _, l := range all {
		var err error
		if streams[l.name], err = l.connectStream(p.allowed()); err != nil {
			return nil, fmt.Errorf("%s: %w", l.name, err)
		}
		defer unix.Close(streams[l.name].fd)
	}
	for s := range segmentations {
		progress("streams in %s, %d rounds", segmentations[s], rounds)
		for round := range rounds + 1 { // the first warms up
			err := inTurn(round, all, func(_ int, l *lane) error {
				rate, err := streams[l.name].measure()
				if err != nil {
					return fmt.Errorf("%s: %w", l.name, err)
				}
				if of := rates[l.name]; round > 0 {
					of[s] = append(of[s], rate)
					rates[l.name] = of
				}
				return nil
			})
			if err != nil {
				return nil, err
			}
		}
		for _, l := range all {
			// From now on the pod's device takes no large segments: its kernel cuts them
			// before it hands them over.
			if _, err := l.sender.pod.command("", "ip", "link", "set", podEnd, "gso_max_segs", "1"); err != nil {
				return nil, err
			}
		}
	}
	return rates, nil
}

// stream is a connection that its server reads from as long as it lives.
type stream struct {
	fd       int
	received atomic.Int64
	chunk    []byte
}

// connectStream opens a connection along the flow. The sockets are plain ones
// that block: what they do is not mixed with what Go's scheduler does.
func (l *lane) connectStream(f flow) (*stream, error) {
	s := &stream{chunk: make([]byte, 128<<10)}
	var listener int
	err := l.receiver.pod.do(func() (err error) {
		if listener, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return errors.Join(
			unix.SetsockoptInt(listener, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
			unix.Bind(listener, &unix.SockaddrInet4{Port: int(f.port), Addr: f.dst.As4()}),
			unix.Listen(listener, 1),
		)
	})
	if err != nil {
		return nil, fmt.Errorf("listening: %w", err)
	}
	defer unix.Close(listener)
	err = l.sender.pod.do(func() (err error) {
		if s.fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		timeout := unix.Timeval{Sec: 10}
		return errors.Join(
			unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeout),
			unix.Connect(s.fd, &unix.SockaddrInet4{Port: int(f.port), Addr: f.dst.As4()}),
		)
	})
	if err != nil {
		return nil, fmt.Errorf("connecting: %w", err)
	}
	accepted, _, err := unix.Accept(listener)
	if err != nil {
		return nil, fmt.Errorf("accepting: %w", err)
	}
	go s.read(accepted)
	return s, nil
}

// read counts what arrives until the connection ends.
func (s *stream) read(fd int) {
	runtime.LockOSThread() // never unlocked, so it stays where it is pinned to
	defer unix.Close(fd)
	if _, err := pin(1); err != nil {
		return
	}
	buffer := make([]byte, 1<<20)
	for {
		n, err := unix.Read(fd, buffer)
		if n <= 0 || err != nil {
			return
		}
		s.received.Add(int64(n))
	}
}

// measure sends for a while and returns the throughput in Gbit/s. Sender and
// receiver have a processor each, where there are two.
func (s *stream) measure() (float64, error) {
	undo, err := pin(0)
	if err != nil {
		return 0, err
	}
	defer undo()
	if _, err := s.send(streamStart); err != nil {
		return 0, err
	}
	return s.send(streamRound)
}

// send sends for a while.
func (s *stream) send(while time.Duration) (rate float64, err error) {
	before, begin := s.received.Load(), time.Now()
	for time.Since(begin) < while {
		if _, err := unix.Write(s.fd, s.chunk); err != nil {
			return 0, fmt.Errorf("sending: %w", err)
		}
	}
	return float64(s.received.Load()-before) * 8 / float64(time.Since(begin)), nil
}
