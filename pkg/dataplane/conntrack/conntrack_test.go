package conntrack_test

import (
	"fmt"
	"net/netip"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"go4.org/netipx"

	"github.com/podmark/podmark/pkg/dataplane/conntrack"
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

// crowd adds n flows between others, in one go.
func crowd(t testing.TB, n int) {
	t.Helper()
	var lines strings.Builder
	for i := range n {
		fmt.Fprintf(&lines, "-I -t 600 -p udp -s 10.7.%d.%d -d 10.9.0.1 --sport 1000 --dport 53 -m 0x10abc\n", i/250, i%250)
	}
	cmd := exec.Command("conntrack", "--load-file", "-")
	cmd.Stdin = strings.NewReader(lines.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("conntrack --load-file: %v\n%s", err, out)
	}
}

// Among many flows the kernel is asked for those of an address only.
func TestForgetAmongMany(t *testing.T) {
	netns.Enter(t)
	crowd(t, 6000)
	testForget(t)
}

func TestForget(t *testing.T) {
	netns.Enter(t)
	testForget(t)
}

func testForget(t *testing.T) {
	t.Helper()
	entry(t, "-p udp -s 10.1.0.2 -d 10.9.0.1 --sport 1 --dport 53")                                                                 // from the address
	entry(t, "-p udp -s 10.9.0.1 -d 10.1.0.2 --sport 2 --dport 53")                                                                 // to the address
	entry(t, "-p udp -s 10.9.0.1 -d 10.96.0.1 --sport 3 --dport 53 -r 10.1.0.2 -q 10.9.0.1 --reply-port-src 53 --reply-port-dst 3") // to it, behind a service
	entry(t, "-p udp -s 10.1.0.3 -d 10.9.0.1 --sport 4 --dport 53")                                                                 // another endpoint's
	entry(t, "-p tcp -s 10.1.0.2 -d 10.9.0.1 --sport 5 --dport 80 --state ESTABLISHED -u SEEN_REPLY")                               // TCP
	entry(t, "-p udp -s fd00::2 -d fd00::9 --sport 6 --dport 53")
	entry(t, "-p udp -s fd00::3 -d fd00::9 --sport 7 --dport 53")
	if got := sources(t); got != "1 2 3 4 5 6 7" {
		t.Fatalf("flows before: %s", got)
	}
	for _, step := range []struct{ addr, left string }{
		{"10.1.0.9", "1 2 3 4 5 6 7"},
		{"10.1.0.2", "4 6 7"},
		{"fd00::2", "4 7"},
	} {
		if err := conntrack.DeleteFlows([]netip.Addr{netip.MustParseAddr(step.addr)}); err != nil {
			t.Fatal(err)
		}
		if got := sources(t); got != step.left {
			t.Errorf("flows after forgetting %s: %s, want %s", step.addr, got, step.left)
		}
	}
}

func TestUnjudge(t *testing.T) {
	netns.Enter(t)
	entry(t, "-p udp -s 10.1.0.2 -d 10.9.0.1 --sport 1 --dport 53 -m 0x10abc")
	entry(t, "-p udp -s 10.9.0.1 -d 10.96.0.1 --sport 2 --dport 53 -r 10.1.0.2 -q 10.9.0.1 --reply-port-src 53 --reply-port-dst 2 -m 0x30abc")
	entry(t, "-p udp -s 10.1.0.3 -d 10.9.0.1 --sport 3 --dport 53 -m 0x10abc")
	entry(t, "-p udp -s fd00::2 -d fd00::9 --sport 4 --dport 53 -m 0x10000")
	addrs := []netip.Addr{netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("fd00::2")}
	if err := conntrack.ResetVerdict(addrs, 0xff0000); err != nil {
		t.Fatal(err)
	}
	for m, want := range map[string]string{"0xabc/0xffffffff": "1 2", "0x10abc/0xffffffff": "3", "0/0xffffffff": "4"} {
		if got := sources(t, "-m", m); got != want {
			t.Errorf("flows with mark %s: %q, want %q", m, got, want)
		}
	}
}

// Rejudge takes the bits off what carries the mark and has an end in the set.
func TestRejudge(t *testing.T) {
	netns.Enter(t)
	entry(t, "-p udp -s 10.1.0.2 -d 10.9.0.1 --sport 1 --dport 53 -m 0x10abc")
	entry(t, "-p udp -s 10.9.0.1 -d 10.96.0.1 --sport 2 --dport 53 -r 10.1.0.2 -q 10.9.0.1 --reply-port-src 53 --reply-port-dst 2 -m 0x10abc")
	entry(t, "-p udp -s 10.1.0.2 -d 10.9.0.1 --sport 3 --dport 53 -m 0x20abc") // of another epoch
	entry(t, "-p udp -s 10.1.1.3 -d 10.9.0.1 --sport 4 --dport 53 -m 0x10abc")
	entry(t, "-p udp -s fd00::9 -d fd00::2 --sport 5 --dport 53 -m 0x10abc")
	entry(t, "-p udp -s fd00::9 -d fd00::3 --sport 6 --dport 53 -m 0x10abc")
	var b netipx.IPSetBuilder
	b.AddPrefix(netip.MustParsePrefix("10.1.0.0/24"))
	b.AddPrefix(netip.MustParsePrefix("fd00::2/128"))
	set, err := b.IPSet()
	if err != nil {
		t.Fatal(err)
	}
	if err := conntrack.Reevaluate(mark.Mark{Value: 0x10000, Mask: 0xff0000}, set); err != nil {
		t.Fatal(err)
	}
	for m, want := range map[string]string{"0xabc/0xffffffff": "1 2 5", "0x10abc/0xffffffff": "4 6", "0x20abc/0xffffffff": "3"} {
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
	if err := conntrack.ClearEpoch(mark.Mark{Value: 0x10000, Mask: 0xff0000}); err != nil {
		t.Fatal(err)
	}
	for m, want := range map[string]string{"0xabc/0xffffffff": "1", "0x20abc/0xffffffff": "2", "0/0xffffffff": "3"} {
		if got := sources(t, "-m", m); got != want {
			t.Errorf("flows with mark %s: %q, want %q", m, got, want)
		}
	}
}

// Of many flows too, which take many messages.
func TestClearOthersAmongMany(t *testing.T) {
	netns.Enter(t)
	crowd(t, 1234)
	entry(t, "-p udp -s 10.1.0.2 -d 10.9.0.1 --sport 1 --dport 53 -m 0x20abc")
	if err := conntrack.ClearOtherEpochs(mark.Mark{Value: 0x20000, Mask: 0xff0000}); err != nil {
		t.Fatal(err)
	}
	for m, want := range map[string]int{"0xabc/0xffffffff": 1234, "0x10abc/0xffffffff": 0, "0x20abc/0xffffffff": 1} {
		out, err := exec.Command("conntrack", "-L", "-m", m).Output()
		if err != nil {
			t.Fatalf("conntrack -L: %v", err)
		}
		if got := strings.Count(string(out), "\n"); got != want {
			t.Errorf("%d flows with mark %s, want %d", got, m, want)
		}
	}
}

// BenchmarkForget is what a DEL pays for two addresses without flows, on a node
// with few flows of others and with many.
func BenchmarkForget(b *testing.B) {
	for _, others := range []int{0, 5000, 50000} {
		b.Run(strconv.Itoa(others), func(b *testing.B) { benchmarkForget(b, others) })
	}
}

func benchmarkForget(b *testing.B, others int) {
	netns.Enter(b)
	crowd(b, others)
	addrs := []netip.Addr{netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("fd00::2")}
	for b.Loop() {
		if err := conntrack.DeleteFlows(addrs); err != nil {
			b.Fatal(err)
		}
	}
}
