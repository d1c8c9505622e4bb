package main_test

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/podmark/podmark/test/testnode"
	"github.com/podmark/podmark/test/wait"
)

// server remembers every datagram that reached it.
type server struct {
	mu   sync.Mutex
	got  map[string]bool
	conn *net.UDPConn
}

// serve starts one in a namespace.
func serve(t *testing.T, s testnode.Space, port uint16) (v *server) {
	t.Helper()
	s.Do(t, func() error {
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
	from testnode.Space
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
			f.from.Do(t, func() error {
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
