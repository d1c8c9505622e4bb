package nodeports_test

import (
	"fmt"

	"github.com/podmark/podmark/pkg/agent/nodeports"
	"github.com/podmark/podmark/pkg/desired"
)

// The first source that says something counts.
func ExampleFacts_Options() {
	facts := nodeports.Facts{Ranges: []nodeports.Stated{
		{Source: nodeports.Felix, Detail: "default", Ranges: []desired.PortRange{{First: 20000, Last: 22767}}},
		{Source: nodeports.Pod, Detail: "kube-apiserver-a (by default)", Ranges: []desired.PortRange{{First: 30000, Last: 32767}}},
	}}
	o := facts.Options()
	fmt.Println(o.Source, o.Ranges)
	// Output: FelixConfiguration default [20000:22767]
}
