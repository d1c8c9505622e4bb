package desired_test

import (
	"maps"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/podmark/podmark/pkg/desired"
)

// A set of labels has the labels that it was made of, whatever they are, and equal ones are
// one set.
func TestLabelSet(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	sets := desired.NewLabelSets()
	word := func() string { return strings.Repeat(string(rune('a'+r.IntN(3))), r.IntN(4)*r.IntN(60)) }
	for range 2000 {
		want := map[string]string{}
		var labels []desired.Label
		for range r.IntN(6) {
			k, v := word(), word()
			want[k] = v // of two with one key the later counts
			labels = append(labels, desired.Label{Key: []byte(k), Value: []byte(v)})
		}
		s := sets.Of(labels)
		if got := maps.Collect(s.All()); !maps.Equal(got, want) {
			t.Fatalf("%q became %q", want, got)
		}
		for k, v := range want {
			if got, ok := s.Get(k); got != v || !ok {
				t.Fatalf("of %q, %q is %q, %t", want, k, got, ok)
			}
		}
		if got, ok := s.Get("absent"); got != "" || ok {
			t.Fatalf("of %q, there is %q for a key that is absent", want, got)
		}
		var again []desired.Label
		for k, v := range want {
			again = append(again, desired.Label{Key: []byte(k), Value: []byte(v)})
		}
		if sets.Of(again) != s {
			t.Fatalf("%q is two sets", want)
		}
	}
}
