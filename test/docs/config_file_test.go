package docs_test

import (
	"regexp"
	"strings"
	"testing"

	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/agent/nodeports"
)

// podmarkd takes the file that docs/configuration.md shows for --config.
func TestConfigFile(t *testing.T) {
	m := regexp.MustCompile("(?s)A file for `--config`:\n\n```yaml\n(.*?)```\n").FindStringSubmatch(read(t, "docs/configuration.md"))
	if m == nil {
		t.Fatal("docs/configuration.md shows none")
	}
	c, err := nodeports.ParseConfig([]byte(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Ranges) == 0 || c.Mode == "" {
		t.Errorf("it says %+v, want ranges and a mode", c)
	}
}

// The plugin takes each entry that the documents show alone.
func TestShownEntries(t *testing.T) {
	const begin = `{"type": "podmark", `
	n := 0
	for _, name := range documents(t) {
		for _, block := range blocks(read(t, name)) {
			entry, found := strings.CutPrefix(block, begin)
			if !found {
				continue
			}
			n++
			if _, err := config.Parse([]byte(`{"name": "net", ` + entry)); err != nil {
				t.Errorf("%s shows an entry that is refused: %v\n%s", name, err, block)
			}
		}
	}
	if n == 0 {
		t.Error("no entry is shown")
	}
}
