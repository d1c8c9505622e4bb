package docs_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/podmark/podmark/pkg/doctor"
	"github.com/podmark/podmark/pkg/foreign"
)

// The tables of docs/troubleshooting.md are those of the code.
func TestDoctor(t *testing.T) {
	document := read(t, "docs/troubleshooting.md")
	var checks, users [][]string
	for _, c := range doctor.Checks() {
		checks = append(checks, []string{"`" + c.Name + "`", c.Finds})
	}
	for _, u := range foreign.Users() {
		users = append(users, []string{u.Name, fmt.Sprintf("`%#x`", u.Bits)})
	}
	for first, want := range map[string][][]string{"check": checks, "program": users} {
		if diff := cmp.Diff(want, table(t, document, first)); diff != "" {
			t.Errorf("the code (-) and the table of docs/troubleshooting.md (+):\n%s\nthe table should be:\n%s", diff, rows(want))
		}
	}
	for _, way := range foreign.NotLookedAt() {
		if !strings.Contains(document, "\n| "+way+" | not looked at |\n") {
			t.Errorf("docs/troubleshooting.md does not say that doctor does not look at %s", way)
		}
	}
	if !strings.Contains(document, "`"+doctor.NotChecked+"`") {
		t.Errorf("docs/troubleshooting.md does not name %s", doctor.NotChecked)
	}
}

// rows are those of a table in Markdown.
func rows(cells [][]string) string {
	var b strings.Builder
	for _, row := range cells {
		fmt.Fprintf(&b, "| %s |\n", strings.Join(row, " | "))
	}
	return b.String()
}
