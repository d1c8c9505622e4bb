package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Go's net package has no SCTP, but takes any stream socket for TCP once it
// exists: reading, writing, deadlines and accepting are the same system calls.

// listenSCTP listens for one-to-one associations.
func listenSCTP(at netip.AddrPort) (net.Listener, error) {
	fd, err := socketSCTP(at)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "sctp")
	defer f.Close() // the listener has a duplicate
	if err := unix.Listen(fd, 16); err != nil {
		return nil, fmt.Errorf("listening: %w", err)
	}
	return net.FileListener(f)
}

// dialSCTP opens an association.
func dialSCTP(r Request) (net.Conn, error) {
	deadline := time.Now().Add(r.Limit)
	if !r.Source.Addr().IsValid() {
		// An unbound socket offers the peer every address of its namespace, and
		// no address translation knows about the others. So bind to the one the
		// route has.
		c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(r.To))
		if err != nil {
			return nil, err
		}
		r.Source = netip.AddrPortFrom(c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap(), r.Source.Port())
		c.Close()
	}
	fd, err := socketSCTP(r.Source)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "sctp")
	defer f.Close() // the connection has a duplicate
	if err := unix.Connect(fd, sockaddr(r.To)); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return nil, fmt.Errorf("connecting: %w", err)
	}
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return nil, fmt.Errorf("connecting: %w", os.ErrDeadlineExceeded)
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, int(left.Milliseconds())+1)
		if n > 0 {
			break
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return nil, fmt.Errorf("waiting for the association: %w", err)
		}
	}
	switch code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); {
	case err != nil:
		return nil, err
	case code != 0:
		return nil, fmt.Errorf("connecting: %w", unix.Errno(code))
	}
	return net.FileConn(f)
}

// socketSCTP makes a socket bound to at.
func socketSCTP(at netip.AddrPort) (int, error) {
	domain := unix.AF_INET
	if at.Addr().Is6() {
		domain = unix.AF_INET6
	}
	fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	if err != nil {
		return -1, fmt.Errorf("making an SCTP socket: %w", err)
	}
	if err := unix.Bind(fd, sockaddr(at)); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("binding to %v: %w", at, err)
	}
	return fd, nil
}

func sockaddr(at netip.AddrPort) unix.Sockaddr {
	if at.Addr().Is6() {
		zone, _ := strconv.ParseUint(at.Addr().Zone(), 10, 32) // 0 without one; see numericZone
		return &unix.SockaddrInet6{Addr: at.Addr().As16(), Port: int(at.Port()), ZoneId: uint32(zone)}
	}
	return &unix.SockaddrInet4{Addr: at.Addr().As4(), Port: int(at.Port())}
}
