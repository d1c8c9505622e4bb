package explain_test

import (
	"fmt"
	"net/netip"

	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/dataplane"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/explain"
)

func Example() {
	q, err := explain.Parse("client", "db:5432")
	if err != nil {
		fmt.Println(err)
		return
	}
	f := explain.Facts{
		State:   desired.Build(desired.Node{Epoch: 1}, policies, records),
		Backend: config.BackendNFTables,
		Chains:  dataplane.ChainsOf(config.BackendNFTables),
		Routes:  map[netip.Addr]explain.Route{addr("10.1.0.3"): {Interface: "veth-db"}},
	}
	a, err := q.Explain(f)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, w := range a.Walks {
		fmt.Println(w.To, w.Allowed, w.By)
	}
	// Output:
	// shop/db 10.1.0.3:5432 false ingress of shop/db: isolated by shop/db, and no rule allows this
}
