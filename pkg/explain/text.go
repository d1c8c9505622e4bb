package explain

import (
	"fmt"
	"strings"
)

// Text is the answer for people: a block for each walk, then what is not known.
func (a Answer) Text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s -> %s, by %s\n", a.Source, a.Destination, a.Backend)
	for _, w := range a.Walks {
		fmt.Fprintf(&b, "\n%s: %s -> %s\n", verdict(w.Allowed), w.From, w.To)
		for _, s := range w.Steps {
			fmt.Fprintf(&b, "  %s, %s: %s\n", s.Hook, s.Chain, s.Action)
			for _, j := range s.Decision {
				fmt.Fprintf(&b, "    %s\n", j)
			}
		}
		if w.asked() == nil {
			fmt.Fprintf(&b, "  %s\n", w.By)
		}
	}
	if len(a.Unknown) > 0 {
		b.WriteString("\nnot known:\n")
	}
	for _, s := range a.Unknown {
		fmt.Fprintf(&b, "  %s\n", s)
	}
	return b.String()
}

func verdict(allowed bool) string {
	if allowed {
		return "allowed"
	}
	return "denied"
}
