// Command rules checks Go code by those rules of .golangci.yml that neither vet nor staticcheck
// has: errorlint, forbidigo, funlen, gocyclo, lll and misspell, with the settings and exclusions of that
// file. So golangci-lint, where it is installed, says the same; it is not what 'make lint' runs,
// because to build it takes minutes, and this takes seconds.
//
//	rules ./...
//
// It prints one finding a line, as FILE:LINE:COLUMN: text (linter). Exit status: 0 for none, 1
// for some, 2 for wrong usage or failure.
package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/tools/go/analysis/checker"
	"golang.org/x/tools/go/packages"
)

// configName is the file with the rules, which holds for the directory that it is in.
const configName = ".golangci.yml"

func main() {
	found, err := run(".", os.Args[1:], os.Stdout)
	if err != nil {
		fmt.Fprintf(os.Stderr, "rules: %v\n", err)
		os.Exit(2)
	}
	if found > 0 {
		os.Exit(1)
	}
}

// run checks the packages of dir that patterns name, their tests too, writes what it finds to
// out, and returns how much that is. Code that does not compile is an error.
func run(dir string, patterns []string, out io.Writer) (int, error) {
	root, err := rootOf(dir)
	if err != nil {
		return 0, err
	}
	b, err := os.ReadFile(filepath.Join(root, configName))
	if err != nil {
		return 0, err
	}
	c, err := parse(b)
	if err != nil {
		return 0, fmt.Errorf("reading %s: %w", configName, err)
	}
	analyzers, err := c.analyzers(root)
	if err != nil {
		return 0, fmt.Errorf("reading %s: %w", configName, err)
	}
	pkgs, err := packages.Load(&packages.Config{Mode: packages.LoadSyntax | packages.NeedModule, Tests: true, Dir: dir}, patterns...)
	if err != nil {
		return 0, err
	}
	if packages.PrintErrors(pkgs) > 0 {
		return 0, errors.New("the code does not compile")
	}
	graph, err := checker.Analyze(analyzers, pkgs, nil)
	if err != nil {
		return 0, err
	}
	// A package and its tests are analyzed as two that have files in common.
	said := map[finding]bool{}
	for _, act := range graph.Roots {
		if act.Err != nil {
			return 0, fmt.Errorf("%s: %w", act.Package.PkgPath, act.Err)
		}
		for _, d := range act.Diagnostics {
			p := act.Package.Fset.Position(d.Pos)
			file, err := filepath.Rel(root, p.Filename)
			if err != nil {
				return 0, err
			}
			said[finding{file, p.Line, p.Column, d.Message, act.Analyzer.Name}] = true
		}
	}
	for _, f := range slices.SortedFunc(maps.Keys(said), finding.compare) {
		fmt.Fprintf(out, "%s:%d:%d: %s (%s)\n", f.file, f.line, f.column, f.text, f.linter)
	}
	return len(said), nil
}

// finding is one place that breaks a rule; file is relative to the directory of the rules.
type finding struct {
	file         string
	line, column int
	text, linter string
}

func (f finding) compare(g finding) int {
	return cmp.Or(cmp.Compare(f.file, g.file), f.line-g.line, f.column-g.column, cmp.Compare(f.text, g.text))
}

// rootOf is the directory above dir, or dir itself, that has the rules.
func rootOf(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	for at := dir; ; at = filepath.Dir(at) {
		if _, err := os.Stat(filepath.Join(at, configName)); err == nil {
			return at, nil
		}
		if at == filepath.Dir(at) {
			return "", fmt.Errorf("no %s in %s, nor above", configName, dir)
		}
	}
}
