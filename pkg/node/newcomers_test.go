package node

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/podmark/podmark/pkg/endpoint"
	"github.com/podmark/podmark/pkg/ident"
)

// What is new is what an attachment may send from that it could not before; one that is not
// finished has nothing yet.
func TestNewcomersCompare(t *testing.T) {
	record := func(container string, committed bool, address string, further ...string) ident.Record {
		r := ident.Record{Key: ident.Key{ContainerID: container}, Committed: committed, Endpoint: endpoint.Endpoint{
			Addresses: []netip.Addr{netip.MustParseAddr(address)},
		}}
		for _, p := range further {
			r.Sources = append(r.Sources, netip.MustParsePrefix(p))
		}
		return r
	}
	var c newcomers
	for _, step := range []struct {
		what    string
		records []ident.Record
		come    string
	}{
		{"podmarkd starts", []ident.Record{record("a", true, "10.1.0.2")}, "[10.1.0.2/32]"},
		{"nothing is new", []ident.Record{record("a", true, "10.1.0.2")}, "[]"},
		{"an ADD has begun", []ident.Record{record("a", true, "10.1.0.2"), record("b", false, "fd00::3")}, "[]"},
		{"and ended", []ident.Record{record("a", true, "10.1.0.2"), record("b", true, "fd00::3")}, "[fd00::3/128]"},
		{"a prefix comes", []ident.Record{record("a", true, "10.1.0.2", "172.16.0.0/12"), record("b", true, "fd00::3")}, "[172.16.0.0/12]"},
		{"and goes", []ident.Record{record("a", true, "10.1.0.2"), record("b", true, "fd00::3")}, "[]"},
		{"and comes again", []ident.Record{record("a", true, "10.1.0.2", "172.16.0.0/12")}, "[172.16.0.0/12]"},
		{"another pod has the address", []ident.Record{record("c", true, "10.1.0.2")}, "[10.1.0.2/32]"},
	} {
		known, come := c.compare(step.records)
		if fmt.Sprint(come) != step.come {
			t.Errorf("%s: %v is new, want %s", step.what, come, step.come)
		}
		c.known = known
	}
}
