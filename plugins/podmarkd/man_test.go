package main

import (
	"flag"
	"strings"
	"testing"

	"github.com/podmark/podmark/test/man"
)

var manual = flag.String("man", "", "write the manual pages into this directory")

// Each command has a page that names its flags; with -man the pages are kept.
func TestManual(t *testing.T) {
	root := newRoot()
	pages := man.Pages(root)
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
	if *manual != "" {
		if err := man.Write(*manual, pages); err != nil {
			t.Fatal(err)
		}
	}
}
