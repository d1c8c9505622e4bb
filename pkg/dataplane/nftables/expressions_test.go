package nftables

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/podmark/podmark/pkg/desired"
)

// Each rule of a node, as people read it, behind the stamp of what the kernel gets for it: what
// changes in the one and not in the other is a mistake. -update writes the golden again, after
// TestFrame and TestRender have held both together on a kernel.
func TestExpressions(t *testing.T) {
	var got strings.Builder
	for _, mask := range []uint32{0xffff0000, 0xa0500f01} {
		s := node(t, mask, records()...)
		s.Unfiltered = desired.Unfiltered{IPv4: true, IPv6: true}
		fmt.Fprintf(&got, "# mask %#x\n", mask)
		for _, c := range render(s, numbers{}).chains {
			stamps, err := c.stamps()
			if err != nil {
				t.Fatal(err)
			}
			for i, r := range c.rules {
				fmt.Fprintf(&got, "%016x %s %s\n", uint64(stamps[i]), path(c.table, c.name), r)
			}
		}
	}
	const golden = "testdata/expressions.txt"
	if *rewrite {
		if err := os.WriteFile(golden, []byte(got.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got.String(), "\n")); diff != "" {
		t.Errorf("rules differ from %s:\n%s", golden, diff)
	}
}
