package agent

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/podmark/podmark/pkg/agent/runner"
	"github.com/podmark/podmark/pkg/attachment"
)

// What a node needs follows from how its services are done, and from the policed
// pods that it has on bridges.
func TestNeeds(t *testing.T) {
	pod := func(port string, policed bool, addresses ...string) attachment.Record {
		r := attachment.Record{Endpoint: attachment.Endpoint{L3Interface: "cni0", HostVeth: port}, Policed: policed}
		for _, a := range addresses {
			r.Addresses = append(r.Addresses, netip.MustParseAddr(a))
		}
		return r
	}
	const source = "net.ipv4.conf.all.accept_source_route"
	const conntrack, four, six = "net.ipv4.vs.conntrack", "net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables"
	for name, tt := range map[string]struct {
		mode    Mode
		records []attachment.Record
		policed bool
		bridged bool
		want    []string
	}{
		"nothing":                  {},
		"IPVS":                     {mode: Mode{IPVS: true}, want: []string{conntrack}},
		"link or services only":    {mode: Mode{Link: true, Services: 1}},
		"a routed pod":             {records: []attachment.Record{pod("cni0", true, "10.1.0.2", "fd00::2")}, want: []string{source}},
		"a bridged pod, unpoliced": {records: []attachment.Record{pod("veth1", false, "10.1.0.2")}},
		"a bridged pod, IPv4":      {records: []attachment.Record{pod("veth1", true, "10.1.0.2")}, want: []string{four, source}},
		"a bridged pod, IPv6":      {records: []attachment.Record{pod("veth1", true, "fd00::2")}, want: []string{six}},
		"both":                     {records: []attachment.Record{pod("veth1", true, "10.1.0.2"), pod("veth2", true, "fd00::2")}, want: []string{four, six, source}},
		"no bridged pod yet":       {mode: Mode{IPVS: true}, policed: true, bridged: true, want: []string{conntrack, four, six, source}},
		"no routed pod yet":        {policed: true, want: []string{source}},
		"a bridge, unpoliced":      {bridged: true},
	} {
		var got []string
		for _, s := range NeedsOf(tt.mode, tt.records, tt.policed, tt.bridged).Sysctls() {
			got = append(got, s.Name)
			if off := s.Name == source; (s.Want == "0") != off || s.Value != "" || s.OK() || (s.Module == "") != off {
				t.Errorf("%s: %+v", name, s)
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(tt.want) {
			t.Errorf("%s: got %q, want %q", name, got, tt.want)
		}
	}
}

// A value is set once each time that it was changed; whoever changes it again and
// again is answered less and less often.
func TestPace(t *testing.T) {
	start := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	k := sysctls{set: true, backoffs: map[string]*runner.Backoff{}}
	sets, ok := 0, false
	look := func(after time.Duration) bool {
		s := Sysctl{Name: "a", Want: "1", Value: "0"}
		if ok {
			s.Value = "1"
		}
		set := k.may(s, start.Add(after))
		if set {
			sets, ok = sets+1, true
		}
		return set
	}
	if !look(0) || look(time.Second) {
		t.Error("it is not set once")
	}
	// A fight: it is changed before each look, and looked at each second for a day.
	for after := 2 * time.Second; after < 24*time.Hour; after += time.Second {
		ok = false
		look(after)
	}
	if sets < 24 || sets > 40 {
		t.Errorf("set %d times in a day of fighting", sets)
	}
	// Peace for long enough, and the next change is answered at once, and the one after soon.
	ok = true
	if look(28 * time.Hour) {
		t.Error("what is right is set")
	}
	for after := 28*time.Hour + time.Second; after <= 28*time.Hour+minPause+time.Second; after += minPause {
		if ok = false; !look(after) {
			t.Errorf("not set %v later", after-28*time.Hour)
		}
	}
}
