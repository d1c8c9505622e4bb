//go:build !podmark_fault

package fault_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/podmark/podmark/pkg/fault"
)

// A program that is shipped cannot be told to end, nor to write a file.
func TestShipped(t *testing.T) {
	log := filepath.Join(t.TempDir(), "steps")
	t.Setenv("PODMARK_STEPS", log)
	t.Setenv("PODMARK_KILL_AFTER", "1")
	t.Setenv("PODMARK_NO_EXCHANGE", "1")
	fault.Steps()("first")
	if _, err := os.Stat(log); err == nil {
		t.Error("the step was written down")
	}
	if err := fault.Exchange(func(string, string) error { return nil })("a", "b"); err != nil {
		t.Errorf("it cannot exchange files: %v", err)
	}
}
