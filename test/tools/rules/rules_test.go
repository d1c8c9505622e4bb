package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The rules of the repository find what they are for, and nothing where it may be.
func TestRules(t *testing.T) {
	rules, err := os.ReadFile("../../../" + configName)
	if err != nil {
		t.Fatal(err)
	}
	// Both are one over the limit.
	many := "\nfunc Many(n int) {\n" + strings.Repeat("\tif n > 0 {\n\t\tn++\n\t}\n", 15) + "}\n"
	long := "\nfunc Long(n int) {\n" + strings.Repeat("\tn++\n", 61) + "}\n"
	wide := func(n int) string { return "//" + strings.Repeat("é", n-2) + "\n" }
	dir := t.TempDir()
	for name, content := range map[string]string{
		configName: string(rules),
		"go.mod":   "module example.com/m\n\ngo 1.26\n",
		"pkg/a/a.go": `package a

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

var errGone = errors.New("gone")

// Bad does what is seper` + `ate from good.
func Bad(err error) error {
	fmt.Println("said")
	time.Sleep(1) // product code may
	if err == errGone {
		os.Exit(1)
	}
	_ = context.TODO()
	if err == io.EOF { //nolint:errorlint // the reader wraps nothing
		return nil
	}
	return fmt.Errorf("doing: %v", err)
}
`,
		"pkg/b/b.go":          "package b\n" + many + long,
		"pkg/l/l.go":          "package l\n\n" + wide(120) + wide(121) + "var _ = \"" + strings.Repeat("m", 150) + "\"\n",
		"pkg/l/l_test.go":     "package l\n\n" + wide(121),
		"pkg/b/b_test.go":     "package b_test\n" + many + long,
		"test/c/c.go":         "package c\n" + many + long,
		"pkg/a/a_test.go":     "package a\n\nimport (\n\t\"fmt\"\n\t\"testing\"\n\t\"time\"\n)\n\nfunc TestA(t *testing.T) {\n\tfmt.Println()\n\ttime.Sleep(1)\n}\n",
		"plugins/p/main.go":   "package main\n\nimport (\n\t\"fmt\"\n\t\"os\"\n)\n\nfunc main() {\n\tfmt.Println()\n\tos.Exit(other())\n}\n",
		"plugins/p/other.go":  "package main\n\nimport \"os\"\n\nfunc other() int {\n\tos.Exit(1)\n\treturn 0\n}\n",
		"test/bench/bench.go": "package bench\n\nimport \"time\"\n\nfunc wait() { time.Sleep(1) }\n\nvar _ = wait\n",
	} {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{
		"pkg/a/a.go:14: misspell",
		"pkg/a/a.go:16: forbidigo",
		"pkg/a/a.go:18: errorlint",
		"pkg/a/a.go:19: forbidigo",
		"pkg/a/a.go:21: forbidigo",
		"pkg/a/a.go:25: errorlint",
		"pkg/a/a_test.go:11: forbidigo",
		"pkg/b/b.go:3: gocyclo",
		"pkg/b/b.go:51: funlen",
		"pkg/l/l.go:4: lll",
		"plugins/p/other.go:6: forbidigo",
	}
	var out strings.Builder
	if n, err := run(dir, []string{"./..."}, &out); err != nil || n != len(want) {
		t.Errorf("%d findings, want %d: %v", n, len(want), err)
	}
	var got []string
	for line := range strings.Lines(out.String()) {
		where := strings.SplitN(line, ":", 4)
		_, linter, _ := strings.Cut(strings.TrimSuffix(line, ")\n"), " (")
		got = append(got, where[0]+":"+where[1]+": "+linter[strings.LastIndexByte(linter, '(')+1:])
	}
	if !slices.Equal(got, want) {
		t.Errorf("found\n%s\nwant\n%s\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"), &out)
	}
}

// A file of rules that would find nothing is refused.
func TestParse(t *testing.T) {
	for text, want := range map[string]string{
		"linters: {enable: [staticcheck]}":                                                "no linter",
		"linters: {enable: [forbidigo]}":                                                  "nothing is forbidden",
		"linters: {enable: [forbidigo], settings: {forbidigo: {forbid: [{pattern: a}]}}}": "no reason",
		"linters: {enable: [errorlint], settings: {errorlint: {nonsense: true}}}":         "nonsense",
		"linters: {enable: [errorlint], exclusions: {rules: [{linters: [errorlint]}]}}":   "fits everything",
		"linters: {enable: [errorlint], exclusions: {rules: [{path: '('}]}}":              "exclusion 1",
		"linters: {enable: [gocyclo]}":                                                    "min-complexity",
		"linters: {enable: [funlen], settings: {funlen: {lines: 60}}}":                    "lines and statements",
		"linters: [": "yaml",
		"linters: {enable: [errorlint, misspell], exclusions: {rules: [{path: a, text: b}]}}": "",
	} {
		c, err := parse([]byte(text))
		if err == nil {
			_, err = c.analyzers(".")
		}
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	if _, err := rootOf(filepath.Join(string(filepath.Separator), "does", "not", "exist")); err == nil {
		t.Error("there are rules where there is nothing")
	}
}
