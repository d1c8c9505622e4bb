package main_test

import (
	"os"
	"strings"
	"testing"

	"github.com/podmark/podmark/pkg/config"
)

// The manual page is written by hand: it names every key and every version of CNI.
func TestManual(t *testing.T) {
	b, err := os.ReadFile("podmark.8")
	if err != nil {
		t.Fatal(err)
	}
	page := string(b)
	_, keys, _ := strings.Cut(page, ".SH CONFIGURATION\n")
	keys, _, _ = strings.Cut(keys, "\n.SH ")
	for _, key := range config.Keys() {
		if key == "cniVersion" || key == "name" || key == "args" || key == "prevResult" { // CNI's own
			continue
		}
		if !strings.Contains(keys, `\fB`+key+`\fR`) {
			t.Errorf("it does not name %s", key)
		}
	}
	versions := config.Versions.SupportedVersions()
	last := len(versions) - 1
	if want := strings.Join(versions[:last], ", ") + " and " + versions[last]; !strings.Contains(page, want) {
		t.Errorf("it does not say %q", want)
	}
	if !strings.Contains(page, `\fI`+config.DefaultStateDir+`\fR`) {
		t.Errorf("it does not name %s", config.DefaultStateDir)
	}
}
