//go:build linux

package endpoint

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"strconv"
	"strings"

	"github.com/vishvananda/netns"
)

// Counters tell what a network namespace has sent. They were opened inside and are
// read from anywhere.
type Counters struct{ snmp, snmp6 *os.File }

// openCounters opens those of the calling thread's network namespace.
func openCounters() (c Counters, err error) {
	if c.snmp, err = os.Open("/proc/thread-self/net/snmp"); err != nil {
		return Counters{}, fmt.Errorf("opening IPv4 counters: %w", err)
	}
	c.snmp6, err = os.Open("/proc/thread-self/net/snmp6")
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // no IPv6 in this kernel
		return Counters{}, errors.Join(fmt.Errorf("opening IPv6 counters: %w", err), c.snmp.Close())
	}
	return c, nil
}

// Close lets the namespace go.
func (c Counters) Close() {
	if c.snmp != nil {
		c.snmp.Close()
	}
	if c.snmp6 != nil {
		c.snmp6.Close()
	}
}

// HasSent reports whether the network namespace has sent any IPv4 packet by now, or
// any IPv6 packet other than ICMPv6 (neighbour discovery and MLD begin by
// themselves). A fresh one has not: nothing can have a flow in conntrack then, and
// the table need not be searched.
func (c Counters) HasSent() (bool, error) {
	snmp, err := readAgain(c.snmp)
	if err != nil {
		return false, fmt.Errorf("reading IPv4 counters: %w", err)
	}
	if counter4(snmp, "OutRequests") > 0 || c.snmp6 == nil {
		return counter4(snmp, "OutRequests") > 0, nil
	}
	snmp6, err := readAgain(c.snmp6)
	if err != nil {
		return false, fmt.Errorf("reading IPv6 counters: %w", err)
	}
	return counter6(snmp6, "Ip6OutRequests") > counter6(snmp6, "Icmp6OutMsgs"), nil
}

// largest is above what either file of counters holds, some 4 KiB: one read takes it all.
const largest = 1 << 15

// readAgain reads a file of /proc as it is now.
func readAgain(f *os.File) (string, error) {
	b := make([]byte, largest)
	n, err := f.ReadAt(b, 0)
	if err == nil {
		return "", fmt.Errorf("%q is longer than %d bytes", f.Name(), largest)
	}
	if !errors.Is(err, io.EOF) {
		return "", err
	}
	return string(b[:n]), nil
}

// visit runs f in the network namespace at path, on the calling thread.
func visit(path string, f func() error) (err error) {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return fmt.Errorf("%w: opening %q: %w", ErrNetns, path, err)
	}
	defer ns.Close()
	runtime.LockOSThread()
	origin, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("%w: %w", ErrNetns, err)
	}
	defer origin.Close()
	if err := netns.Set(ns); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("%w: entering %q: %w", ErrNetns, path, err)
	}
	err = f()
	// A thread that cannot return is not used for anything else.
	if back := netns.Set(origin); back != nil {
		return fmt.Errorf("%w: returning from %q: %w", ErrNetns, path, back)
	}
	runtime.UnlockOSThread()
	return err
}

// counter4 reads a counter of the "Ip:" group of /proc/net/snmp, which is a line
// of names followed by a line of values.
func counter4(snmp, name string) int {
	var names []string
	for line := range strings.Lines(snmp) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != "Ip:" {
			continue
		}
		if names == nil {
			names = fields
			continue
		}
		for i, f := range fields {
			if i < len(names) && names[i] == name {
				n, _ := strconv.Atoi(f)
				return n
			}
		}
	}
	return 0
}

// counter6 reads a counter of /proc/net/snmp6, a name and a value a line.
func counter6(snmp6, name string) int {
	for line := range strings.Lines(snmp6) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == name {
			n, _ := strconv.Atoi(f[1])
			return n
		}
	}
	return 0
}
