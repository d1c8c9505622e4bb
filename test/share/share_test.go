package share_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/podmark/podmark/test/share"
)

// Each share of a test has one, and shares that follow each other have each in turn.
func TestOneOf(t *testing.T) {
	all := []string{"a", "b", "c"}
	t.Setenv("PODMARK_SHARE", "")
	if got := share.OneOf(t, all); !slices.Equal(got, all) {
		t.Errorf("without a share: %v", got)
	}
	seen := map[string]int{}
	for n := range 6 {
		t.Setenv("PODMARK_SHARE", fmt.Sprint(n))
		got := share.OneOf(t, all)
		if len(got) != 1 {
			t.Fatalf("share %d: %v", n, got)
		}
		seen[got[0]]++
	}
	for _, s := range all {
		if seen[s] != 2 {
			t.Errorf("%v in six shares", seen)
		}
	}
	if !slices.Equal(all, []string{"a", "b", "c"}) {
		t.Errorf("%v", all)
	}
	if got := share.OneOf(t, []string{}); len(got) != 0 {
		t.Errorf("of none: %v", got)
	}
}
