package doctor_test

import (
	"fmt"

	"github.com/podmark/podmark/pkg/doctor"
	"github.com/podmark/podmark/pkg/mark"
)

func Example() {
	layout, err := mark.NewLayout(0x00ff0000)
	if err != nil {
		fmt.Println(err)
		return
	}
	// Gather reads these off a node.
	facts := doctor.Facts{State: doctor.State{Ran: true, Layout: layout}}
	facts.Chains, facts.Rules = doctor.ParseLegacy("ip", `*mangle
:PREROUTING ACCEPT [0:0]
-A PREROUTING -i wg0 -j MARK --set-xmark 0x1/0xffffffff
COMMIT
`)
	for _, f := range doctor.Examine(facts) {
		fmt.Printf("%s: %s\n", f.Check, f.Mend)
	}
	// Output:
	// mark-rules: iptables-legacy -t mangle -D PREROUTING -i wg0 -j MARK --set-xmark 0x1/0xffffffff
}
