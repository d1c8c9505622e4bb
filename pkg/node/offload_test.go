package node

import (
	"net/netip"
	"testing"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/desired"
)

// What a flowtable carries is asked for by all that isolated endpoints send from: a router in
// a pod opens flows from its further prefixes, and answers those to them.
func TestIsolated(t *testing.T) {
	profiles := map[desired.ProfileID]desired.Profile{
		"denies": {ID: "denies", Stages: []desired.Stage{{Default: desired.Deny}}},
		"audits": {ID: "audits", Stages: []desired.Stage{{Default: desired.Deny, Audit: true}}},
	}
	at := func(profiles [2]desired.ProfileID, address string, sources ...string) desired.Endpoint {
		e := desired.Endpoint{
			Record:   attachment.Record{Endpoint: attachment.Endpoint{Addresses: []netip.Addr{netip.MustParseAddr(address)}}},
			Profiles: profiles,
		}
		for _, s := range sources {
			e.AllowedSources = append(e.AllowedSources, netip.MustParsePrefix(s))
		}
		return e
	}
	set, err := isolated(desired.State{Profiles: profiles, Endpoints: []desired.Endpoint{
		at([2]desired.ProfileID{desired.Ingress: "denies"}, "10.0.0.1"),
		at([2]desired.ProfileID{desired.Egress: "denies"}, "fd00::2", "172.30.0.0/16", "fd00:30::/64"),
		at([2]desired.ProfileID{"audits", "audits"}, "10.0.0.3", "172.31.0.0/16"),
		at([2]desired.ProfileID{}, "10.0.0.4"),
	}})
	if err != nil {
		t.Fatal(err)
	}
	for addr, want := range map[string]bool{
		"10.0.0.1": true, "fd00::2": true, "172.30.7.9": true, "fd00:30::7": true,
		"10.0.0.3": false, "172.31.0.1": false, "10.0.0.4": false, "fd00:31::7": false,
	} {
		if got := set.Contains(netip.MustParseAddr(addr)); got != want {
			t.Errorf("flows of %s are asked for: %v, want %v", addr, got, want)
		}
	}
}
