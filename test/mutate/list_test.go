package main

import (
	"os"
	"path/filepath"
	"testing"
)

// Each change of the list can still be made, and says why it matters. What a rewrite has taken
// away, something that matters now takes the place of.
func TestList(t *testing.T) {
	const least = 40
	if len(mutants) < least {
		t.Errorf("%d changes, want %d at least", len(mutants), least)
	}
	seen := map[string]bool{}
	for _, m := range mutants {
		b, err := os.ReadFile(filepath.Join("../..", m.Package, m.File))
		if err != nil {
			t.Error(err)
			continue
		}
		text, err := m.apply(string(b))
		if err != nil {
			t.Error(err)
		}
		if m.Why == "" || seen[m.File+text] {
			t.Errorf("%s is there twice, or says nothing", m)
		}
		seen[m.File+text] = true
	}
}
