package docs_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const architecture = "docs/architecture.md"

// The packages of docs/architecture.md are those below pkg/.
func TestPackages(t *testing.T) {
	var want []string
	err := filepath.WalkDir(filepath.Join(root, "pkg"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		name, err := filepath.Rel(filepath.Join(root, "pkg"), filepath.Dir(path))
		want = append(want, filepath.ToSlash(name))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(want)
	var got []string
	for _, row := range table(t, read(t, architecture), "package") {
		got = append(got, spans(row[0])...)
	}
	slices.Sort(got)
	if diff := cmp.Diff(slices.Compact(want), got); diff != "" {
		t.Errorf("packages that there are (-) and that %s describes (+):\n%s", architecture, diff)
	}
}

// The order of packages that docs/architecture.md shows is the one that make lint checks, and
// what it calls pure is what make lint holds to that.
func TestPackageOrder(t *testing.T) {
	script := read(t, "scripts/check-arrows.sh")
	find := func(pattern string) []string {
		m := regexp.MustCompile(pattern).FindStringSubmatch(script)
		if m == nil {
			t.Fatalf("scripts/check-arrows.sh has no %s", pattern)
		}
		return strings.Fields(m[1])
	}
	var want [][]string
	for _, place := range find(`n = split\("([^"]+)", places`) {
		want = append(want, strings.Split(place, ","))
	}
	document := read(t, architecture)
	_, order, found := strings.Cut(document, "do not import each other.\n")
	if !found {
		t.Fatalf("%s shows no order", architecture)
	}
	var got [][]string
	for line := range strings.Lines(blocks(order)[0]) {
		got = append(got, strings.Fields(line))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the order that make lint checks (-) and that %s shows (+):\n%s", architecture, diff)
	}
	_, list, found := strings.Cut(document, "The pure packages are ")
	list, _, ended := strings.Cut(list, ".")
	if !found || !ended {
		t.Fatalf("%s does not say which packages are pure", architecture)
	}
	pure := append(find(`split\("([^"]+)", names, " "\)\s+for \(i in names\) pure`), "node/cluster/view")
	if diff := cmp.Diff(pure, spans(list)); diff != "" {
		t.Errorf("packages that make lint holds to be pure (-) and that %s calls so (+):\n%s", architecture, diff)
	}
}

// CONTRIBUTING.md says what each directory of tests is for.
func TestTestDirectories(t *testing.T) {
	entries, err := os.ReadDir(filepath.Join(root, "test"))
	if err != nil {
		t.Fatal(err)
	}
	var want, got []string
	for _, e := range entries {
		if e.IsDir() {
			want = append(want, "test/"+e.Name())
		}
	}
	_, tests, _ := strings.Cut(read(t, "CONTRIBUTING.md"), "The tests:\n")
	for _, row := range table(t, tests, "directory") {
		got = append(got, spans(row[0])...)
	}
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("directories of tests that there are (-) and that CONTRIBUTING.md has (+):\n%s", diff)
	}
}
