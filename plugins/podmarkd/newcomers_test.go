package main_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/podmark/podmark/test/testnode"
)

// A flow that is older than the pod at its end was judged for nobody. podmarkd has it judged
// for the pod, and for who may send from more than before; the flows of others stay as they are.
func TestNewcomers(t *testing.T) {
	eachBackend(t, func(t *testing.T, h *host) {
		h.addPod()
		d := h.start()
		h.eventually("the first reconciliation", func() error { _, err := d.status(); return err })
		flow := func(source, destination, port string) {
			t.Helper()
			h.Exec("", "conntrack", "-I", "-t", "600", "-p", "udp", "-s", source, "-d", destination, "--sport", port, "--dport", "53", "-m", "0x10abc")
		}
		flow("10.1.0.3", "192.0.2.1", "1") // the pod that comes has these
		flow("192.0.2.1", "10.1.0.3", "2")
		flow("fd00:10::3", "2001:db8::1", "3")
		flow("172.16.7.7", "192.0.2.1", "4") // and may send from these
		flow("10.1.0.4", "192.0.2.1", "5")   // nobody has these
		flow("2001:db8::1", "fd00:10::4", "6")
		want := func(what string, judged string) {
			t.Helper()
			h.eventually(what, func() error {
				if got := h.marked("0x10abc"); got != judged {
					return fmt.Errorf("the flows %q count as judged, and should be %q", got, judged)
				}
				return nil
			})
		}
		want("what was made", "1 2 3 4 5 6")
		h.addPod()
		want("a pod comes", "4 5 6")
		h.Pods[1].Add(testnode.Conf{"allowedSourcePrefixes": []string{"172.16.0.0/12"}}).OK(t)
		want("a pod may send from more", "5 6")
		if got := h.marked("0xabc"); got != "1 2 3 4" {
			t.Errorf("the flows %q are to be judged, with what else was in their marks, want 1 to 4", got)
		}
	})
}

// marked lists the source ports of the flows that have this conntrack mark, in order.
func (h *host) marked(m string) string {
	h.T.Helper()
	found := map[string]bool{}
	for _, family := range []string{"ipv4", "ipv6"} {
		for line := range strings.Lines(h.Exec("", "conntrack", "-L", "-f", family, "-m", m)) {
			_, rest, _ := strings.Cut(line, "sport=")
			port, _, _ := strings.Cut(rest, " ")
			found[port] = true
		}
	}
	var ports []string
	for _, p := range strings.Fields("1 2 3 4 5 6") {
		if found[p] {
			ports = append(ports, p)
		}
	}
	return strings.Join(ports, " ")
}
