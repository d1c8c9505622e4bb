package conntrack_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/netlink"
	"github.com/mdlayher/netlink/nltest"
	"go4.org/netipx"
	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/dataplane/conntrack"
	"github.com/podmark/podmark/pkg/mark"
	"github.com/podmark/podmark/test/netns"
)

// listed is how conntrack(8) shows the flows, without what changes by itself.
func listed(t *testing.T) []string {
	t.Helper()
	seconds := regexp.MustCompile(`^(\w+ +\d+) \d+ `)
	var flows []string
	for _, family := range []string{"ipv4", "ipv6"} {
		out, err := exec.Command("conntrack", "-L", "-f", family).Output()
		if err != nil {
			t.Fatalf("conntrack -L: %v", err)
		}
		for line := range strings.Lines(string(out)) {
			flows = append(flows, seconds.ReplaceAllString(strings.TrimSpace(line), "$1 "))
		}
	}
	slices.Sort(flows)
	return flows
}

// A flow that is made again is what it was, but for the bits in its mark: NAT, what IPVS
// did to its reply, and the direction too. The kernel knows of its NAT: NAT is what
// conntrack(8) finds it by.
func TestRenew(t *testing.T) {
	netns.Enter(t)
	for _, fields := range []string{
		"-p udp -s 10.1.0.2 -d 10.9.0.1 --sport 1 --dport 53 -u SEEN_REPLY -m 0x10abc",
		"-p tcp -s 10.1.0.2 -d 10.9.0.1 --sport 2 --dport 80 --state ESTABLISHED -u SEEN_REPLY,ASSURED -m 0x10abc",
		// Masqueraded, with another port.
		"-p tcp -s 10.1.0.2 -d 10.9.0.1 --sport 3 --dport 80 --state ESTABLISHED -u SEEN_REPLY,ASSURED -m 0x10abc --src-nat 10.8.0.1:4003",
		"-p udp -s fd00::2 -d fd00::9 --sport 4 --dport 53 -u SEEN_REPLY -m 0x10abc --src-nat [fd00::8]:4004",
		// To a host port.
		"-p tcp -s 10.9.0.1 -d 10.8.0.1 --sport 5 --dport 80 --state ESTABLISHED -u SEEN_REPLY,ASSURED -m 0x10abc --dst-nat 10.1.0.2:8080",
		// Behind IPVS, which changes the reply and notes no NAT.
		"-p udp -s 10.9.0.1 -d 10.96.0.1 --sport 6 --dport 53 -r 10.1.0.2 -q 10.9.0.1 --reply-port-src 5353 --reply-port-dst 6 -u SEEN_REPLY -m 0x10abc",
		"-p udp -s fd00::2 -d fd00::9 --sport 7 --dport 53 -u SEEN_REPLY -m 0x10abc -w 7",
		"-p udp -s 10.1.0.3 -d 10.9.0.1 --sport 8 --dport 53 -u SEEN_REPLY -m 0x10abc",
	} {
		entry(t, fields)
	}
	natted := func() string { return sources(t, "--src-nat") + ", " + sources(t, "--dst-nat") }
	before, nat := listed(t), natted()
	if len(before) != 8 || nat != "3 4, 5" {
		t.Fatalf("flows before: %q, with NAT %s", before, nat)
	}
	addrs := []netip.Addr{netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("fd00::2")}
	renewed, err := conntrack.Renew(addrs, 0xff0000)
	if err != nil || renewed != 7 {
		t.Fatalf("%d flows were made anew, want 7: %v", renewed, err)
	}
	want := slices.Clone(before)
	for i, line := range want {
		if !strings.Contains(line, "src=10.1.0.3") {
			want[i] = strings.ReplaceAll(line, "mark=68284", "mark=2748")
		}
	}
	slices.Sort(want)
	if diff := cmp.Diff(want, listed(t)); diff != "" {
		t.Errorf("flows made anew (-want +got):\n%s", diff)
	}
	if now := natted(); now != nat {
		t.Errorf("the kernel knows of NAT of %s, want %s", now, nat)
	}
}

// What no flowtable carries is left alone.
func TestTakeBackNothing(t *testing.T) {
	netns.Enter(t)
	crowd(t, 100)
	entry(t, "-p udp -s 10.1.0.2 -d 10.9.0.1 --sport 1 --dport 53 -u SEEN_REPLY -m 0x10abc")
	before := listed(t)
	m := mark.Mark{Value: 0x20000, Mask: 0xff0000}
	var b netipx.IPSetBuilder
	b.AddPrefix(netip.MustParsePrefix("10.0.0.0/8"))
	set, err := b.IPSet()
	if err != nil {
		t.Fatal(err)
	}
	done, err := conntrack.Reclaim(m, set)
	if err != nil || done != (conntrack.Reclaimed{}) {
		t.Errorf("%+v, %v", done, err)
	}
	if n, err := conntrack.Offloaded(m, set); err != nil || n != 0 {
		t.Errorf("%d offloaded, %v", n, err)
	}
	if diff := cmp.Diff(before, listed(t)); diff != "" {
		t.Errorf("flows changed (-before +after):\n%s", diff)
	}
}

// The kernel may not let go of a flow, which is said and left alone; the flow may have ended,
// and is not made again then; and a packet may begin another one in its place first.
func TestTakeBackAnswers(t *testing.T) {
	const remove, make = conntrack.RequestDelete, conntrack.RequestMake
	for name, tt := range map[string]struct {
		answers []unix.Errno
		want    []netlink.HeaderType
		taken   bool
		err     error
	}{
		"taken":           {[]unix.Errno{0, 0}, []netlink.HeaderType{remove, make}, true, nil},
		"not let go":      {[]unix.Errno{unix.EBUSY}, []netlink.HeaderType{remove}, false, nil},
		"ended":           {[]unix.Errno{unix.ENOENT}, []netlink.HeaderType{remove}, true, nil},
		"not permitted":   {[]unix.Errno{unix.EPERM}, []netlink.HeaderType{remove}, false, unix.EPERM},
		"another first":   {[]unix.Errno{0, unix.EEXIST, 0, 0}, []netlink.HeaderType{remove, make, remove, make}, true, nil},
		"and ended":       {[]unix.Errno{0, unix.EEXIST, unix.ENOENT, 0}, []netlink.HeaderType{remove, make, remove, make}, true, nil},
		"cannot be made":  {[]unix.Errno{0, unix.ENOMEM}, []netlink.HeaderType{remove, make}, true, unix.ENOMEM},
		"kept by another": {[]unix.Errno{0, unix.EEXIST, unix.EBUSY}, []netlink.HeaderType{remove, make, remove}, true, unix.EBUSY},
	} {
		t.Run(name, func(t *testing.T) {
			var got []netlink.HeaderType
			c := nltest.Dial(func(requests []netlink.Message) ([]netlink.Message, error) {
				if len(requests) == 0 { // asked for what follows an answer
					return nil, nil
				}
				got = append(got, requests[0].Header.Type)
				if len(got) > len(tt.answers) {
					return nil, fmt.Errorf("request %d was not expected", len(got))
				}
				return nltest.Error(int(tt.answers[len(got)-1]), requests)
			})
			defer c.Close()
			taken, err := conntrack.TakeBackOn(c)
			if taken != tt.taken || !errors.Is(err, tt.err) {
				t.Errorf("taken: %v, %v; want %v, %v", taken, err, tt.taken, tt.err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("requests (-want +got):\n%s", diff)
			}
		})
	}
}
