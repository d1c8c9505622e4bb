package nftables

import (
	"fmt"
	"strings"

	"github.com/google/nftables"

	"github.com/podmark/podmark/pkg/desired"
)

// Render is what a Sync writes, as nft would write it: no nft knows the rules that
// look something up and go on from there, whose comments name the map.
func Render(s desired.State) string {
	return render(s, numbers{}.with(s)).text()
}

// RenderGuard is what a Sync of Guard writes.
func RenderGuard(s desired.State) string {
	return renderGuard(s).text()
}

func (r ruleset) text() string {
	var b strings.Builder
	for _, t := range r.tables {
		fmt.Fprintf(&b, "table %s {\n", path(t))
		for _, set := range r.sets {
			if set.table == t {
				b.WriteString(set.text(r.elements[set.name]))
			}
		}
		for _, c := range r.chains {
			if c.table == t {
				b.WriteString(c.text())
			}
		}
		b.WriteString("}\n")
	}
	return b.String()
}

// path names a table, or an object in it.
func path(t nftables.Table, names ...string) string {
	family := "inet"
	if t.Family == nftables.TableFamilyBridge {
		family = "bridge"
	}
	return strings.Join(append([]string{family, t.Name}, names...), " ")
}

func (s set) text(content elements) string {
	kind, types := "set", s.key.Name
	if s.isMap() {
		kind, types = "map", s.key.Name+" : "+s.data.Name
	}
	var b strings.Builder
	fmt.Fprintf(&b, "\t%s %s {\n\t\ttype %s\n", kind, s.name, types)
	switch {
	case s.interval:
		b.WriteString("\t\tflags interval\n")
	case s.meter:
		b.WriteString("\t\tflags dynamic,timeout\n")
	}
	if s.size > 0 {
		fmt.Fprintf(&b, "\t\tsize %d\n", s.size)
	}
	if len(content) > 0 {
		b.WriteString("\t\telements = {\n")
		for _, e := range content.sorted() {
			fmt.Fprintf(&b, "\t\t\t%s,\n", s.show(e))
		}
		b.WriteString("\t\t}\n")
	}
	b.WriteString("\t}\n")
	return b.String()
}

func (c chain) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "\tchain %s {\n", c.name)
	if c.hook != nil {
		fmt.Fprintf(&b, "\t\t%s\n", c.hook.text)
	}
	for _, r := range c.rules {
		fmt.Fprintf(&b, "\t\t%s\n", r)
	}
	b.WriteString("\t}\n")
	return b.String()
}
