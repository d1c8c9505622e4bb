package lab

import (
	"bufio"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Protocol is an IANA protocol number of one that has ports.
type Protocol uint8

// The protocols.
const (
	TCP  Protocol = unix.IPPROTO_TCP
	UDP  Protocol = unix.IPPROTO_UDP
	SCTP Protocol = unix.IPPROTO_SCTP
)

// Protocols lists all, for loops.
var Protocols = [...]Protocol{TCP, UDP, SCTP}

// String is the name that iptables and Go's net package know.
func (p Protocol) String() string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	case SCTP:
		return "sctp"
	}
	return fmt.Sprint(uint8(p))
}

// Outcome is what became of a request.
type Outcome int

// The outcomes.
const (
	// OK is a request that was answered.
	OK Outcome = iota
	// Blocked is a request that was not answered and reached no server.
	Blocked
	// OneWay is a request that reached a server whose answer did not come back.
	// Policies that let the request through and block the answer look like this.
	OneWay
	// Refused is a request that was turned down: by a reset, an ICMP error or
	// the absence of a route.
	Refused
)

func (o Outcome) String() string {
	return [...]string{"ok", "blocked", "one-way", "refused"}[o]
}

// Limits on how long an answer may take. The lab's processor is emulated, and
// slow when many tests run at once.
const (
	// AnswerLimit is for an answer that is expected: nothing is lost by waiting.
	AnswerLimit = 30 * time.Second
	// SilenceLimit is for silence that is expected: each time costs this long.
	SilenceLimit = 1500 * time.Millisecond
)

// Request is one question to a server.
type Request struct {
	Protocol Protocol
	To       netip.AddrPort
	// Source is the address to ask from, the kernel's choice where it is none, and the port, which
	// is one that no other request has where it is 0.
	Source netip.AddrPort
	// Limit is how long to wait for the answer; AnswerLimit when 0.
	Limit time.Duration
}

// Result is what became of a Request.
type Result struct {
	Outcome
	// By is the name of the namespace that answered.
	By string
	// Seen is the client's address as the server saw it.
	Seen netip.AddrPort
	// Err is why there was no answer.
	Err  error
	Took time.Duration
}

func (r Result) String() string {
	switch r.Outcome {
	case OK:
		return fmt.Sprintf("ok by %s, who saw %v, in %v", r.By, r.Seen, r.Took.Round(time.Millisecond))
	default:
		return fmt.Sprintf("%v (%v) in %v", r.Outcome, r.Err, r.Took.Round(time.Millisecond))
	}
}

// Probe asks once, from inside the namespace, and waits up to AnswerLimit.
func (n *NS) Probe(p Protocol, to netip.AddrPort) Result {
	return n.Send(Request{Protocol: p, To: to})
}

// Send asks once, from inside the namespace.
func (n *NS) Send(r Request) Result {
	start := time.Now()
	if r.Limit == 0 {
		r.Limit = AnswerLimit
	}
	s, err := n.dial(r)
	if err != nil {
		return Result{Outcome: outcome(err), Err: err, Took: time.Since(start)}
	}
	defer s.Close()
	result := s.Ping(r.Limit - time.Since(start))
	result.Took = time.Since(start)
	return result
}

// outcome tells silence from refusal.
func outcome(err error) Outcome {
	if timeout := net.Error(nil); errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout() {
		return Blocked
	}
	return Refused
}

// Stream is a connection that stays open, for tests of what happens to live ones.
type Stream struct {
	conn    net.Conn
	answers *bufio.Reader
	journal *journal
}

// Stream opens a connection and uses it once, so that it is established for
// whoever tracks connections. It fails the test where there is no answer.
func (n *NS) Stream(r Request) *Stream {
	n.t.Helper()
	s, err := n.TryStream(r)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(s.Close)
	return s
}

// Dial opens a connection and does not use it: a UDP one always exists then. The
// caller closes it.
func (n *NS) Dial(r Request) (*Stream, error) {
	if r.Limit == 0 {
		r.Limit = AnswerLimit
	}
	s, err := n.dial(r)
	if err != nil {
		return nil, fmt.Errorf("connecting %q to %v/%v: %w", n.Name, r.To, r.Protocol, err)
	}
	return s, nil
}

// TryStream is [NS.Stream] for a connection that may get no answer. The caller
// closes it.
func (n *NS) TryStream(r Request) (*Stream, error) {
	if r.Limit == 0 {
		r.Limit = AnswerLimit
	}
	s, err := n.Dial(r)
	if err != nil {
		return nil, err
	}
	if result := s.Ping(r.Limit); result.Outcome != OK {
		s.Close()
		return nil, fmt.Errorf("first use of the connection of %q to %v/%v: %v", n.Name, r.To, r.Protocol, result)
	}
	return s, nil
}

// Close ends the connection.
func (s *Stream) Close() { s.conn.Close() }

// Ping asks once on the connection. Blocked says that the connection is dead in
// the direction of the question; it may come back to life.
func (s *Stream) Ping(limit time.Duration) Result {
	start := time.Now()
	nonce := rand.Text()[:16]
	result, err := s.ask(nonce, start.Add(limit))
	result.Took = time.Since(start)
	if err != nil {
		result.Outcome, result.Err = outcome(err), err
		if result.Outcome == Blocked && s.journal.has(nonce) {
			result.Outcome = OneWay
		}
	}
	return result
}

func (s *Stream) ask(nonce string, deadline time.Time) (Result, error) {
	if err := s.conn.SetDeadline(deadline); err != nil {
		return Result{}, err
	}
	if _, err := s.conn.Write([]byte(nonce + "\n")); err != nil {
		return Result{}, err
	}
	for {
		line, err := s.answers.ReadString('\n')
		if err != nil {
			return Result{}, err
		}
		// Answers to earlier questions may come late.
		fields := strings.Fields(line)
		if len(fields) != 3 || fields[0] != nonce {
			continue
		}
		seen, err := netip.ParseAddrPort(fields[2])
		if err != nil {
			return Result{}, err
		}
		return Result{By: fields[1], Seen: netip.AddrPortFrom(seen.Addr().Unmap(), seen.Port())}, nil
	}
}

// ports counts the requests that got a port.
var ports atomic.Uint32

// nextPort is a port to ask from, below those that the kernel gives out. The kernel gives the same
// to two connections with different destinations. Where IPVS leads one to where the other goes,
// both are the same to connection tracking: one gets another port there and, as it is that port's
// answers which are translated, no answer.
func nextPort() uint16 {
	const first, all = 20000, 10000
	return first + uint16(ports.Add(1)%all)
}

// patiently has a TCP socket try again for an hour while a policy keeps its packets away. Without that,
// it ends after about tcp_retries2 times tcp_rto_max_ms, which a busy machine takes for a few steps of
// a test, and the side that waits for questions ends after nine probes of 15 s: neither has one.
func patiently(_, _ string, c syscall.RawConn) error {
	var failed error
	err := c.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(time.Hour.Milliseconds()))
	})
	return errors.Join(err, failed)
}

// dial connects from inside the namespace.
func (n *NS) dial(r Request) (*Stream, error) {
	var conn net.Conn
	err := n.Do(func() (err error) {
		if r.To, err = numericZone(r.To); err != nil {
			return err
		}
		if r.Source.Port() == 0 {
			r.Source = netip.AddrPortFrom(r.Source.Addr(), nextPort())
		}
		if r.Protocol == SCTP {
			conn, err = dialSCTP(r)
			return err
		}
		if !r.Source.Addr().IsValid() {
			unspecified := map[bool]netip.Addr{true: netip.IPv6Unspecified(), false: netip.IPv4Unspecified()}
			r.Source = netip.AddrPortFrom(unspecified[r.To.Addr().Is6()], r.Source.Port())
		}
		d := net.Dialer{Timeout: r.Limit}
		if r.Protocol == TCP {
			d.LocalAddr, d.KeepAlive, d.Control = net.TCPAddrFromAddrPort(r.Source), -1, patiently
		} else {
			d.LocalAddr = net.UDPAddrFromAddrPort(r.Source)
		}
		// With a literal address the socket is made by this goroutine, on the
		// thread that is in the namespace.
		conn, err = d.Dial(r.Protocol.String(), r.To.String())
		return err
	})
	if err != nil {
		return nil, err
	}
	return &Stream{conn: conn, answers: bufio.NewReader(conn), journal: n.site.journal}, nil
}
