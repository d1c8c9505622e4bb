package config_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/podmark/podmark/pkg/config"
)

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range list {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

// An annotation names prefixes inside the bound, and nothing else.
func TestSources(t *testing.T) {
	bound := prefixes("172.16.0.0/12", "10.0.0.0/24", "fd00:30::/32")
	tests := []struct {
		annotation string
		want       string // "" where it is refused
		words      []string
	}{
		{"", "[]", nil},
		{"172.30.0.5/32", "[172.30.0.5/32]", nil},
		{"172.16.0.0/12", "[172.16.0.0/12]", nil},
		{"fd00:30:1::/48,172.30.0.0/16, 172.30.7.0/24", "[172.30.0.0/16 fd00:30:1::/48]", nil},
		{"172.0.0.0/8", "", []string{"172.0.0.0/8", "allowedSourcePrefixes"}},
		{"172.30.0.0/16,192.0.2.0/24", "", []string{"192.0.2.0/24"}},
		{"fd00::/16", "", []string{"fd00::/16"}},
		{"::ffff:172.30.0.0/112", "", []string{"IPv4"}},
		{"0.0.0.0/0", "", []string{"/0"}},
		{"172.30.0.5", "", []string{`"172.30.0.5"`}},
		{"172.30.0.5/16", "", []string{"172.30.0.0/16"}},
		{",", "", []string{`""`}},
		{"172.30.0.0/16,", "", []string{`""`}},
		{`["172.30.0.0/16"]`, "", []string{"no prefix"}},
		{"172.30.0.0/16 172.31.0.0/16", "", []string{"no prefix"}},
		{strings.Repeat("172.30.0.0/16,", 64) + "172.30.0.0/16", "", []string{"65"}},
		{strings.Repeat(" ", 5000) + "172.30.0.0/16", "", []string{"4096"}},
	}
	for _, tt := range tests {
		list, err := config.Sources(config.ShortSources(tt.annotation), bound)
		switch {
		case (err == nil) != (tt.want != ""):
			t.Errorf("%.40q: %v, %v", tt.annotation, list, err)
		case err == nil && fmt.Sprint(list) != tt.want:
			t.Errorf("%.40q: %v, want %s", tt.annotation, list, tt.want)
		case err != nil:
			for _, w := range append(tt.words, config.SourcesAnnotation) {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%.40q: error %q does not say %q", tt.annotation, err, w)
				}
			}
		}
	}
	if list, err := config.Sources("172.30.0.0/16", nil); err == nil {
		t.Errorf("where the network allows none: %v", list)
	}
}

// FuzzSources: whatever is taken is inside the bound, sorted, and none is inside another.
func FuzzSources(f *testing.F) {
	for _, seed := range []string{"172.30.0.0/16", "172.30.0.5/32, fd00:30::/64", "::/0", ",", "172.16.0.0/12,172.16.0.0/13"} {
		f.Add(seed)
	}
	bound := prefixes("172.16.0.0/12", "fd00:30::/32")
	f.Fuzz(func(t *testing.T, annotation string) {
		list, err := config.Sources(annotation, bound)
		if err != nil {
			return
		}
		for i, p := range list {
			if p != p.Masked() || p.Addr().Is4In6() || !config.Within(p, bound) {
				t.Errorf("%q gives %s", annotation, p)
			}
			if config.Within(p, slices.Delete(slices.Clone(list), i, i+1)) {
				t.Errorf("%q gives %s inside another of %v", annotation, p, list)
			}
		}
		if !slices.IsSortedFunc(list, netip.Prefix.Compare) {
			t.Errorf("%q gives %v, which is not sorted", annotation, list)
		}
	})
}
