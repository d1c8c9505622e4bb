package iptables

import (
	"fmt"
	"strings"

	"github.com/podmark/podmark/pkg/dataplane/ipset"
	"github.com/podmark/podmark/pkg/desired"
)

// Rendered is what a Sync writes for one family, for people to read and for
// tests to load with other tools than ours.
type Rendered struct {
	Family string `json:"family"` // IPv4 or IPv6
	Sets   string `json:"sets"`   // input of ipset restore
	Rules  string `json:"rules"`  // input of iptables-restore --noflush; hooks included
}

// Render renders the whole of s in both families, in the first generation.
func Render(s desired.State) []Rendered {
	var out []Rendered
	for _, f := range []family{v4, v6} {
		n := naming{f, genA}
		var sets strings.Builder
		for _, c := range append(everySet(s, n), populations(s, f)...) {
			sets.WriteString(createLine(c.Set))
			for _, e := range c.elements {
				fmt.Fprintf(&sets, "add %s %s\n", c.Name, e)
			}
		}
		out = append(out, Rendered{Family: "IPv" + f.digit, Sets: sets.String(), Rules: whole(chainsOf(s, n), nil)})
	}
	return out
}

func createLine(s ipset.Set) string {
	line := fmt.Sprintf("create %s %s", s.Name, s.Type)
	switch s.Type {
	case ipset.BitmapPort:
		line += " range 0-65535"
	case ipset.HashNetIface:
		line += fmt.Sprintf(" family %s skbinfo", s.Family)
	default:
		line += fmt.Sprintf(" family %s", s.Family)
	}
	return line + "\n"
}
