package doctor_test

import (
	"fmt"

	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/doctor"
	"github.com/podmark/podmark/pkg/foreign"
	"github.com/podmark/podmark/pkg/mark"
	"github.com/podmark/podmark/pkg/runtimes"
)

func Example() {
	layout, err := mark.NewLayout(0x00ff0000)
	if err != nil {
		fmt.Println(err)
		return
	}
	// Gather reads these off a node.
	facts := doctor.Facts{StateDir: config.DefaultStateDir, Endpoint: runtimes.Auto, ConfDir: runtimes.Default().Conf, BinDir: runtimes.Default().Bins[0], State: doctor.State{Ran: true, Layout: layout}}
	facts.Chains, facts.Rules = foreign.ParseLegacy("ip", `*mangle
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A PREROUTING -i wg0 -j MARK --set-xmark 0x10000/0x10000
-A POSTROUTING -o wg0 -j CONNMARK --set-xmark 0x20000/0x20000
COMMIT
`)
	for _, f := range doctor.Examine(facts) {
		fmt.Printf("%s: %s\n%s\n", f.Severity, f.Check, f.Fix)
	}
	// Output:
	// error: mark-rules
	// printf '%s\n' '{"iptablesMarkMask":"0xfffc1800","type":"podmark"}' | podmarkd install --policy files --entry /proc/self/fd/0
}
