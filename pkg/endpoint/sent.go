package endpoint

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"github.com/vishvananda/netns"
)

// HasSent reports whether the network namespace at path has sent any IPv4
// packet, or any IPv6 packet other than ICMPv6 (neighbour discovery and MLD begin by
// themselves). A fresh one has not: nothing can have a flow in conntrack then,
// and the table need not be searched. It looks from inside, on the calling thread.
func HasSent(path string) (sent bool, err error) {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return false, fmt.Errorf("%w: opening %q: %w", ErrNetns, path, err)
	}
	defer ns.Close()
	runtime.LockOSThread()
	origin, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return false, fmt.Errorf("%w: %w", ErrNetns, err)
	}
	defer origin.Close()
	defer func() {
		// A thread that cannot return is not used for anything else.
		if back := netns.Set(origin); back != nil {
			err = fmt.Errorf("%w: returning from %q: %w", ErrNetns, path, back)
			return
		}
		runtime.UnlockOSThread()
	}()
	if err := netns.Set(ns); err != nil {
		return false, fmt.Errorf("%w: entering %q: %w", ErrNetns, path, err)
	}
	snmp, err := os.ReadFile("/proc/thread-self/net/snmp")
	if err != nil {
		return false, fmt.Errorf("reading IPv4 counters of %q: %w", path, err)
	}
	snmp6, err := os.ReadFile("/proc/thread-self/net/snmp6")
	if err != nil && !os.IsNotExist(err) { // no IPv6 in this kernel
		return false, fmt.Errorf("reading IPv6 counters of %q: %w", path, err)
	}
	return counter4(string(snmp), "OutRequests") > 0 ||
		counter6(string(snmp6), "Ip6OutRequests") > counter6(string(snmp6), "Icmp6OutMsgs"), nil
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
