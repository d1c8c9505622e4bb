package agent

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/podmark/podmark/pkg/attachment"
)

// What is new is what an attachment may send from that it could not before; one that is not
// finished has nothing yet.
func TestNewcomersCompare(t *testing.T) {
	record := func(container string, committed bool, address string, further ...string) attachment.Record {
		r := attachment.Record{Key: attachment.Key{ContainerID: container}, Committed: committed, Endpoint: attachment.Endpoint{
			Addresses: []netip.Addr{netip.MustParseAddr(address)},
		}}
		for _, p := range further {
			r.AllowedSources = append(r.AllowedSources, netip.MustParsePrefix(p))
		}
		return r
	}
	var c newcomers
	for _, step := range []struct {
		what    string
		records []attachment.Record
		come    string
	}{
		{"podmarkd starts", []attachment.Record{record("a", true, "10.1.0.2")}, "[10.1.0.2/32]"},
		{"nothing is new", []attachment.Record{record("a", true, "10.1.0.2")}, "[]"},
		{"an ADD has begun", []attachment.Record{record("a", true, "10.1.0.2"), record("b", false, "fd00::3")}, "[]"},
		{"and ended", []attachment.Record{record("a", true, "10.1.0.2"), record("b", true, "fd00::3")}, "[fd00::3/128]"},
		{"a prefix comes", []attachment.Record{record("a", true, "10.1.0.2", "172.16.0.0/12"), record("b", true, "fd00::3")}, "[172.16.0.0/12]"},
		{"and goes", []attachment.Record{record("a", true, "10.1.0.2"), record("b", true, "fd00::3")}, "[]"},
		{"and comes again", []attachment.Record{record("a", true, "10.1.0.2", "172.16.0.0/12")}, "[172.16.0.0/12]"},
		{"another pod has the address", []attachment.Record{record("c", true, "10.1.0.2")}, "[10.1.0.2/32]"},
	} {
		known, come := c.compare(step.records)
		if fmt.Sprint(come) != step.come {
			t.Errorf("%s: %v is new, want %s", step.what, come, step.come)
		}
		c.known = known
	}
}
