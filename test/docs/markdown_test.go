package docs_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// root is the work tree; go test runs tests in their package's directory.
const root = "../.."

// documents are those that users and contributors read.
func documents(t *testing.T) []string {
	t.Helper()
	var names []string
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/*/*.md", "plugins/*/*.md"} {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range found {
			name, err := filepath.Rel(root, f)
			if err != nil {
				t.Fatal(err)
			}
			names = append(names, name)
		}
	}
	if !slices.Contains(names, "README.md") {
		t.Fatalf("no README.md among %q", names)
	}
	return names
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// table returns the cells of the table whose first header is first.
func table(t *testing.T, document, first string) [][]string {
	t.Helper()
	var rows [][]string
	inside := false
	for line := range strings.Lines(document) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "| "+first+" |"):
			inside = true
		case inside && !strings.HasPrefix(line, "|"):
			return rows
		case inside && !strings.HasPrefix(line, "|--"):
			cells := strings.Split(strings.Trim(line, "|"), "|")
			for i := range cells {
				cells[i] = strings.TrimSpace(cells[i])
			}
			rows = append(rows, cells)
		}
	}
	t.Fatalf("no table whose first column is %q, or no text behind it", first)
	return nil
}

var codeSpan = regexp.MustCompile("`([^`]+)`")

// spans lists what stands between backticks.
func spans(s string) []string {
	var out []string
	for _, m := range codeSpan.FindAllStringSubmatch(s, -1) {
		out = append(out, m[1])
	}
	return out
}

// marked is what stands between the comments NAME:begin and NAME:end.
func marked(t *testing.T, document, name string) string {
	t.Helper()
	_, rest, begun := strings.Cut(document, "<!-- "+name+":begin -->\n")
	block, _, ended := strings.Cut(rest, "<!-- "+name+":end -->\n")
	if !begun || !ended {
		t.Fatalf("no lines %q and %q around a block", "<!-- "+name+":begin -->", "<!-- "+name+":end -->")
	}
	return block
}

var fence = regexp.MustCompile("(?s)```[a-z]*\n(.*?)```\n")

// blocks lists the contents of the code blocks.
func blocks(document string) []string {
	var out []string
	for _, m := range fence.FindAllStringSubmatch(document, -1) {
		out = append(out, m[1])
	}
	return out
}

// commands lists the lines and spans of code that may be commands.
func commands(document string) []string {
	var out []string
	for _, b := range blocks(document) {
		out = append(out, strings.Split(b, "\n")...)
	}
	for _, s := range spans(fence.ReplaceAllString(document, "")) {
		out = append(out, strings.Join(strings.Fields(s), " "))
	}
	return out
}

var (
	anchored = regexp.MustCompile(`\]\(([^)# ]*)#([^)]+)\)`)
	heading  = regexp.MustCompile(`(?m)^#+ (.*)$`)
	unslug   = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// Each link to a heading of a document leads to one, by the name that GitHub gives it.
func TestAnchors(t *testing.T) {
	for _, name := range documents(t) {
		for _, m := range anchored.FindAllStringSubmatch(fence.ReplaceAllString(read(t, name), ""), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			to := name
			if m[1] != "" {
				to = filepath.Join(filepath.Dir(name), m[1])
			}
			var anchors []string
			for _, h := range heading.FindAllStringSubmatch(fence.ReplaceAllString(read(t, to), ""), -1) {
				anchors = append(anchors, strings.ReplaceAll(unslug.ReplaceAllString(strings.ToLower(h[1]), ""), " ", "-"))
			}
			if !slices.Contains(anchors, m[2]) {
				t.Errorf("%s: %s has no heading for #%s", name, to, m[2])
			}
		}
	}
}
