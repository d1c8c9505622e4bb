package conntrack_test

import (
	"net/netip"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/podmark/podmark/pkg/apply/conntrack"
	"github.com/podmark/podmark/pkg/mark"
	"github.com/podmark/podmark/test/netns"
)

// entry adds a flow with conntrack(8), which is not our code.
func entry(t *testing.T, fields string) {
	t.Helper()
	args := append([]string{"-I", "-t", "600"}, strings.Fields(fields)...)
	if out, err := exec.Command("conntrack", args...).CombinedOutput(); err != nil {
		t.Fatalf("conntrack %v: %v\n%s", args, err, out)
	}
}

// sources lists the source ports of the flows that are there; the tests give
// each flow its own.
func sources(t *testing.T, args ...string) string {
	t.Helper()
	var ports []string
	for _, family := range []string{"ipv4", "ipv6"} {
		out, err := exec.Command("conntrack", append([]string{"-L", "-f", family}, args...)...).Output()
		if err != nil {
			t.Fatalf("conntrack -L: %v", err)
		}
		for line := range strings.Lines(string(out)) {
			_, rest, _ := strings.Cut(line, "sport=")
			port, _, _ := strings.Cut(rest, " ")
			if n, err := strconv.Atoi(port); err == nil && n < 100 {
				ports = append(ports, port)
			}
		}
	}
	found := ""
	for i := range 100 {
		for _, p := range ports {
			if p == strconv.Itoa(i) {
				found += p + " "
			}
		}
	}
	return strings.TrimSpace(found)
}

func TestForget(t *testing.T) {
	netns.Enter(t)
	entry(t, "-p udp -s 10.1.0.2 -d 10.9.0.1 --sport 1 --dport 53")                                                                 // from the address
	entry(t, "-p udp -s 10.9.0.1 -d 10.1.0.2 --sport 2 --dport 53")                                                                 // to the address
	entry(t, "-p udp -s 10.9.0.1 -d 10.96.0.1 --sport 3 --dport 53 -r 10.1.0.2 -q 10.9.0.1 --reply-port-src 53 --reply-port-dst 3") // to it, behind a service
	entry(t, "-p udp -s 10.1.0.3 -d 10.9.0.1 --sport 4 --dport 53")                                                                 // somebody else's
	entry(t, "-p tcp -s 10.1.0.2 -d 10.9.0.1 --sport 5 --dport 80 --state ESTABLISHED -u SEEN_REPLY")                               // TCP
	entry(t, "-p udp -s fd00::2 -d fd00::9 --sport 6 --dport 53")
	entry(t, "-p udp -s fd00::3 -d fd00::9 --sport 7 --dport 53")
	if got := sources(t); got != "1 2 3 4 5 6 7" {
		t.Fatalf("flows before: %s", got)
	}
	for addr, want := range map[string]string{"10.1.0.9": "1 2 3 4 5 6 7"} {
		if err := conntrack.Forget(netip.MustParseAddr(addr)); err != nil {
			t.Fatal(err)
		}
		if got := sources(t); got != want {
			t.Errorf("flows after forgetting %s: %s, want %s", addr, got, want)
		}
	}
	if err := conntrack.Forget(netip.MustParseAddr("10.1.0.2")); err != nil {
		t.Fatal(err)
	}
	if got := sources(t); got != "4 6 7" {
		t.Errorf("flows after forgetting 10.1.0.2: %s, want 4 6 7", got)
	}
	if err := conntrack.Forget(netip.MustParseAddr("fd00::2")); err != nil {
		t.Fatal(err)
	}
	if got := sources(t); got != "4 7" {
		t.Errorf("flows after forgetting fd00::2: %s, want 4 7", got)
	}
}

func TestUnjudge(t *testing.T) {
	netns.Enter(t)
	entry(t, "-p udp -s 10.1.0.2 -d 10.9.0.1 --sport 1 --dport 53 -m 0x10abc")
	entry(t, "-p udp -s 10.9.0.1 -d 10.96.0.1 --sport 2 --dport 53 -r 10.1.0.2 -q 10.9.0.1 --reply-port-src 53 --reply-port-dst 2 -m 0x30abc")
	entry(t, "-p udp -s 10.1.0.3 -d 10.9.0.1 --sport 3 --dport 53 -m 0x10abc")
	entry(t, "-p udp -s fd00::2 -d fd00::9 --sport 4 --dport 53 -m 0x10000")
	for _, a := range []string{"10.1.0.2", "fd00::2"} {
		if err := conntrack.Unjudge(netip.MustParseAddr(a), 0xff0000); err != nil {
			t.Fatal(err)
		}
	}
	for m, want := range map[string]string{"0xabc/0xffffffff": "1 2", "0x10abc/0xffffffff": "3", "0/0xffffffff": "4"} {
		if got := sources(t, "-m", m); got != want {
			t.Errorf("flows with mark %s: %q, want %q", m, got, want)
		}
	}
}

func TestClear(t *testing.T) {
	netns.Enter(t)
	entry(t, "-p udp -s 10.1.0.2 -d 10.9.0.1 --sport 1 --dport 53 -m 0x10abc")
	entry(t, "-p udp -s 10.1.0.2 -d 10.9.0.1 --sport 2 --dport 53 -m 0x20abc")
	entry(t, "-p udp -s fd00::2 -d fd00::9 --sport 3 --dport 53 -m 0x10000")
	if err := conntrack.Clear(mark.Mark{Value: 0x10000, Mask: 0xff0000}); err != nil {
		t.Fatal(err)
	}
	for m, want := range map[string]string{"0xabc/0xffffffff": "1", "0x20abc/0xffffffff": "2", "0/0xffffffff": "3"} {
		if got := sources(t, "-m", m); got != want {
			t.Errorf("flows with mark %s: %q, want %q", m, got, want)
		}
	}
}

// BenchmarkForget is what an ADD pays for an address that has no flows.
func BenchmarkForget(b *testing.B) {
	netns.Enter(b)
	addr := netip.MustParseAddr("10.1.0.2")
	for b.Loop() {
		if err := conntrack.Forget(addr); err != nil {
			b.Fatal(err)
		}
	}
}
