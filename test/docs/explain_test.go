package docs_test

import (
	"net/netip"
	"testing"

	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/explain"
)

// The answer in docs/troubleshooting.md is the one on the node that docs/packet-path.md shows,
// with a service that has a pod of another node behind it too.
func TestExplain(t *testing.T) {
	q, err := explain.Parse("db", "10.96.0.80:80")
	if err != nil {
		t.Fatal(err)
	}
	at := netip.MustParseAddrPort
	a, err := q.Explain(explain.Facts{
		State: example(t), Backend: config.BackendNFTables, Watched: true,
		IPVS: explain.IPVS{Loaded: true, Used: true, Services: []explain.Service{{
			Protocol: desired.TCP, At: at("10.96.0.80:80"),
			Destinations: []explain.Destination{
				{At: at("10.22.0.2:8080"), Weight: 1, Method: explain.Masquerade},
				{At: at("10.24.0.9:8080"), Weight: 1, Method: explain.Masquerade},
			},
		}}},
		Routes: map[netip.Addr]explain.Route{
			netip.MustParseAddr("10.96.0.80"): {Interface: "lo", Local: true},
			netip.MustParseAddr("10.22.0.2"):  {Interface: "veth1a2b3c4d"},
			netip.MustParseAddr("10.24.0.9"):  {Interface: "eth0"},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	showsIn(t, "docs/troubleshooting.md", "explain", "```\n"+a.Text()+"```\n")
}
