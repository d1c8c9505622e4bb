package man

import (
	"flag"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

var into = flag.String("man", "", "write the manual pages into this directory")

// Check fails the test unless each command has a page that names its flags. With -man it writes
// the pages.
func Check(t *testing.T, root *cobra.Command) {
	t.Helper()
	pages := Pages(root)
	for _, c := range append(root.Commands(), root) {
		page := string(pages[strings.ReplaceAll(c.CommandPath(), " ", "-")+".8"])
		if page == "" && !c.Hidden {
			t.Errorf("there is no page of %q", c.CommandPath())
		}
		for _, line := range strings.Split(c.Flags().FlagUsages(), "\n") {
			_, name, is := strings.Cut(line, "--")
			name, _, _ = strings.Cut(name, " ")
			if is && name != "help" && !strings.Contains(page, `\-\-`+strings.ReplaceAll(name, "-", `\-`)+`\fR`) {
				t.Errorf("the page of %q does not have --%s", c.CommandPath(), name)
			}
		}
	}
	if *into != "" {
		if err := Write(*into, pages); err != nil {
			t.Fatal(err)
		}
	}
}
