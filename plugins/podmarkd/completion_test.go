package main

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What a shell offers for the values of flags; ":4" is cobra's for no files, ":16" for directories.
func TestCompletion(t *testing.T) {
	for words, want := range map[string]string{
		"install --policy":      "kubernetes files none :4",
		"--policy":              "kubernetes files none :4",
		"install -o":            "table json :4",
		"version -o":            "table json :4",
		"--node-port-mode":      "exact range :4",
		"--log-format":          "text json :4",
		"--log-level":           "debug info warn error :4",
		"--policy-dir":          ":16",
		"--state-dir":           ":16",
		"install --source":      ":16",
		"uninstall --state-dir": ":16",
	} {
		var out, stderr bytes.Buffer
		args := append([]string{"__complete"}, append(strings.Fields(words), "")...)
		if code := run(context.Background(), args, &out, &stderr); code != 0 {
			t.Errorf("%s: exit %d: %s", words, code, &stderr)
		}
		if diff := cmp.Diff(want, strings.Join(strings.Fields(out.String()), " ")); diff != "" {
			t.Errorf("%s:\n%s", words, diff)
		}
	}
}
