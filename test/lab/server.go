package lab

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
)

// journal remembers which requests reached a server of a node and its
// surroundings, so that a lost request can be told from a lost answer.
type journal struct {
	mu   sync.Mutex
	seen map[string]bool
}

func newJournal() *journal { return &journal{seen: map[string]bool{}} }

func (j *journal) add(nonce string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.seen[nonce] = true
}

func (j *journal) has(nonce string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.seen[nonce]
}

// Server answers each line it is sent with the same line, the name of its
// namespace and the client's address.
type Server struct {
	name     string
	journal  *journal
	requests atomic.Int64

	mu     sync.Mutex
	open   map[io.Closer]bool // sockets that end with the server
	closed bool
}

// Requests counts the requests that have arrived.
func (s *Server) Requests() int64 { return s.requests.Load() }

// Listen starts a server in the namespace, on the given addresses or on all of
// [NS.Addresses]. It ends with the test.
func (n *NS) Listen(p Protocol, port uint16, addrs ...netip.Addr) *Server {
	n.t.Helper()
	if addrs == nil {
		addrs = n.Addresses
	}
	s := &Server{name: n.Name, journal: n.site.journal, open: map[io.Closer]bool{}}
	n.t.Cleanup(s.Close)
	// Each address has a socket of its own, so that answers come from the address
	// that was asked. A socket keeps the namespace it was made in.
	for _, addr := range addrs {
		at := netip.AddrPortFrom(addr, port)
		err := n.Do(func() error { return s.listen(p, at) })
		if err != nil {
			n.t.Fatalf("listening in %q on %v/%v: %v", n.Name, at, p, err)
		}
	}
	return s
}

// HearMulticast starts a UDP server that a group's packets reach by link.
func (n *NS) HearMulticast(link string, group netip.AddrPort) *Server {
	n.t.Helper()
	s := &Server{name: n.Name, journal: n.site.journal, open: map[io.Closer]bool{}}
	n.t.Cleanup(s.Close)
	err := n.Do(func() error {
		iface, err := net.InterfaceByName(link)
		if err != nil {
			return err
		}
		network := map[Family]string{V4: "udp4", V6: "udp6"}[familyOf(group.Addr())]
		conn, err := net.ListenMulticastUDP(network, iface, net.UDPAddrFromAddrPort(group))
		if err != nil {
			return err
		}
		s.track(conn)
		go s.servePackets(conn)
		return nil
	})
	if err != nil {
		n.t.Fatalf("joining %v on %s in %q: %v", group, link, n.Name, err)
	}
	return s
}

// Close ends the server and its connections.
func (s *Server) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for c := range s.open {
		c.Close()
	}
}

// track keeps a socket until it is forgotten or the server ends.
func (s *Server) track(c io.Closer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		c.Close()
	}
	s.open[c] = true
}

// forget closes a socket.
func (s *Server) forget(c io.Closer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.Close()
	delete(s.open, c)
}

func (s *Server) listen(p Protocol, at netip.AddrPort) (err error) {
	if at, err = numericZone(at); err != nil {
		return err
	}
	if p == UDP {
		conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		if err != nil {
			return err
		}
		s.track(conn)
		go s.servePackets(conn)
		return nil
	}
	var l net.Listener
	if p == SCTP {
		l, err = listenSCTP(at)
	} else {
		config := net.ListenConfig{KeepAlive: -1, Control: patiently} // who accepts has the listener's patience
		config.SetMultipathTCP(false)                                 // Go's default is a socket of another protocol
		l, err = config.Listen(context.Background(), "tcp", at.String())
	}
	if err != nil {
		return err
	}
	s.track(l)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			s.track(conn)
			go s.serveConn(conn)
		}
	}()
	return nil
}

func (s *Server) serveConn(conn net.Conn) {
	defer s.forget(conn)
	for lines := bufio.NewScanner(conn); lines.Scan(); {
		if _, err := conn.Write(s.answer(lines.Text(), conn.RemoteAddr())); err != nil {
			return
		}
	}
}

func (s *Server) servePackets(conn *net.UDPConn) {
	for buf := make([]byte, 1500); ; {
		n, client, err := conn.ReadFrom(buf)
		if err != nil {
			return
		}
		// A client that is gone makes the next write fail; others remain.
		_, _ = conn.WriteTo(s.answer(strings.TrimSpace(string(buf[:n])), client), client)
	}
}

func (s *Server) answer(nonce string, client net.Addr) []byte {
	s.requests.Add(1)
	s.journal.add(nonce)
	return fmt.Appendf(nil, "%s %s %v\n", nonce, s.name, client)
}
