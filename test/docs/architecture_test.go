package docs_test

import (
	"go/ast"
	"go/parser"
	"go/token"
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
	pure := append(find(`split\("([^"]+)", names, " "\)\s+for \(i in names\) pure`), find(`view = module "/pkg/([^"]+)"`)...)
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

// Each Go name of these documents exists: package.Name, package.Type.Member or Type.Member.
func TestGoNames(t *testing.T) {
	declared := goNames(t)
	name := regexp.MustCompile(`^(?:[a-z]+|[A-Z][A-Za-z]+)(?:\.[A-Z][A-Za-z]+)+$`)
	n := 0
	for _, document := range documents(t) {
		if !slices.Contains([]string{architecture, "docs/glossary.md", packetPath}, document) && !strings.HasPrefix(document, "docs/design/") {
			continue
		}
		for _, s := range spans(fence.ReplaceAllString(read(t, document), "")) {
			if !name.MatchString(s) {
				continue
			}
			if n++; !declared[s] {
				t.Errorf("%s names %s, which is not in the code", document, s)
			}
		}
	}
	if n < 30 {
		t.Errorf("%d names were found", n)
	}
}

// goNames are the names that packages declare, each with its package and without.
func goNames(t *testing.T) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		declare := func(parts ...string) {
			name := strings.Join(parts, ".")
			names[name], names[file.Name.Name+"."+name] = true, true
		}
		for _, decl := range file.Decls {
			switch decl := decl.(type) {
			case *ast.FuncDecl:
				if decl.Recv == nil {
					declare(decl.Name.Name)
				} else {
					declare(typeName(decl.Recv.List[0].Type), decl.Name.Name)
				}
			case *ast.GenDecl:
				for _, spec := range decl.Specs {
					if s, ok := spec.(*ast.TypeSpec); ok {
						declare(s.Name.Name)
						for _, field := range fields(s) {
							declare(s.Name.Name, field)
						}
					}
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// typeName is the name of a receiver's type.
func typeName(e ast.Expr) string {
	if s, ok := e.(*ast.StarExpr); ok {
		e = s.X
	}
	if i, ok := e.(*ast.Ident); ok {
		return i.Name
	}
	return ""
}

// fields are the names of a struct's fields.
func fields(s *ast.TypeSpec) []string {
	var out []string
	if s, ok := s.Type.(*ast.StructType); ok {
		for _, field := range s.Fields.List {
			for _, name := range field.Names {
				out = append(out, name.Name)
			}
		}
	}
	return out
}
