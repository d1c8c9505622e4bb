package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/ashanbrown/forbidigo/v2/pkg/analyzer"
	"github.com/fzipp/gocyclo"
	"github.com/golangci/misspell"
	"github.com/polyfloyd/go-errorlint/errorlint"
	"github.com/ultraware/funlen"
	"go.yaml.in/yaml/v3"
	"golang.org/x/tools/go/analysis"
)

// config is the part of .golangci.yml that is read here.
type config struct {
	Linters struct {
		Enable   []string
		Settings struct {
			Errorlint map[string]bool
			Forbidigo struct {
				AnalyzeTypes bool `yaml:"analyze-types"`
				Forbid       []struct{ Pattern, Pkg, Msg string }
			}
			Funlen struct {
				Lines, Statements int
				IgnoreComments    bool `yaml:"ignore-comments"`
			}
			Gocyclo struct {
				MinComplexity int `yaml:"min-complexity"`
			}
			Lll struct {
				LineLength int `yaml:"line-length"`
				TabWidth   int `yaml:"tab-width"`
			}
			Misspell struct {
				IgnoreRules []string `yaml:"ignore-rules"`
			}
		}
		Exclusions struct{ Rules []exclusion }
	}
}

// exclusion takes back the findings that all of its keys fit.
type exclusion struct {
	Linters    []string
	Path       string
	PathExcept string `yaml:"path-except"`
	Text       string
	Source     string // of the line

	path, pathExcept, text, source *regexp.Regexp
}

// parse reads the rules. Keys that it does not know are for linters that run elsewhere.
func parse(b []byte) (config, error) {
	var c config
	if err := yaml.Unmarshal(b, &c); err != nil {
		return c, err
	}
	for i := range c.Linters.Exclusions.Rules {
		e := &c.Linters.Exclusions.Rules[i]
		if e.Path == "" && e.PathExcept == "" && e.Text == "" && e.Source == "" {
			return c, fmt.Errorf("exclusion %d fits everything, or has a key that is not known", i+1)
		}
		var errs [4]error
		e.path, errs[0] = compile(e.Path)
		e.pathExcept, errs[1] = compile(e.PathExcept)
		e.text, errs[2] = compile(e.Text)
		e.source, errs[3] = compile(e.Source)
		if err := errors.Join(errs[:]...); err != nil {
			return c, fmt.Errorf("exclusion %d: %w", i+1, err)
		}
	}
	return c, nil
}

// compile is nil for an empty expression.
func compile(expression string) (*regexp.Regexp, error) {
	if expression == "" {
		return nil, nil
	}
	return regexp.Compile(expression)
}

// fits reports whether what linter says of a line of a file is excluded; file has slashes.
func (e exclusion) fits(linter, file, line, text string) bool {
	return (len(e.Linters) == 0 || slices.Contains(e.Linters, linter)) &&
		(e.path == nil || e.path.MatchString(file)) &&
		(e.pathExcept == nil || !e.pathExcept.MatchString(file)) &&
		(e.text == nil || e.text.MatchString(text)) &&
		(e.source == nil || e.source.MatchString(line))
}

// analyzers are the linters that are enabled and belong here; root is the directory that paths of
// exclusions begin in.
func (c config) analyzers(root string) ([]*analysis.Analyzer, error) {
	var out []*analysis.Analyzer
	for name, make := range map[string]func() (*analysis.Analyzer, error){
		"errorlint": c.errorlint, "forbidigo": c.forbidigo, "funlen": c.funlen, "gocyclo": c.gocyclo, "lll": c.lll, "misspell": c.misspell,
	} {
		if !slices.Contains(c.Linters.Enable, name) {
			continue
		}
		a, err := make()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		out = append(out, c.excluding(a, root))
	}
	if out == nil {
		return nil, errors.New("no linter is enabled that runs here")
	}
	return out, nil
}

// excluding has a report only what no rule excludes, and no comment //nolint:NAME on its line.
func (c config) excluding(a *analysis.Analyzer, root string) *analysis.Analyzer {
	run := a.Run
	a.Run = func(pass *analysis.Pass) (any, error) {
		var failed error
		inner := *pass
		inner.Report = func(d analysis.Diagnostic) {
			p := pass.Fset.Position(d.Pos)
			file, err := filepath.Rel(root, p.Filename)
			if err != nil {
				failed = err
				return
			}
			if !filepath.IsLocal(file) {
				return // go test has written it, to start the tests
			}
			b, err := pass.ReadFile(p.Filename)
			if err != nil {
				failed = err
				return
			}
			line := ""
			if lines := bytes.Split(b, []byte("\n")); p.Line <= len(lines) {
				line = string(lines[p.Line-1])
			}
			excluded := func(e exclusion) bool { return e.fits(a.Name, filepath.ToSlash(file), line, d.Message) }
			if permits(line, a.Name) || slices.ContainsFunc(c.Linters.Exclusions.Rules, excluded) {
				return
			}
			pass.Report(d)
		}
		result, err := run(&inner)
		return result, errors.Join(err, failed)
	}
	return a
}

// permits reports whether a line of code has a comment //nolint:A,B that names linter.
func permits(line, linter string) bool {
	_, names, found := strings.Cut(line, "//nolint:")
	names, _, _ = strings.Cut(names, " ")
	return found && slices.Contains(strings.Split(names, ","), linter)
}

func (c config) errorlint() (*analysis.Analyzer, error) {
	a := errorlint.NewAnalyzer()
	for name, on := range c.Linters.Settings.Errorlint {
		if err := a.Flags.Set(name, fmt.Sprint(on)); err != nil {
			return nil, err
		}
	}
	return a, nil
}

func (c config) forbidigo() (*analysis.Analyzer, error) {
	settings := c.Linters.Settings.Forbidigo
	a := analyzer.NewAnalyzer()
	if len(settings.Forbid) == 0 {
		return nil, errors.New("nothing is forbidden")
	}
	err := errors.Join(a.Flags.Set("analyze_types", fmt.Sprint(settings.AnalyzeTypes)), a.Flags.Set("permit", "false"))
	for _, f := range settings.Forbid {
		if f.Pattern == "" || f.Msg == "" {
			return nil, fmt.Errorf("pattern %q has no pattern or says no reason", f.Pattern)
		}
		pattern, e := json.Marshal(map[string]string{"p": f.Pattern, "pkg": f.Pkg, "msg": f.Msg})
		err = errors.Join(err, e, a.Flags.Set("p", string(pattern)))
	}
	return a, err
}

func (c config) funlen() (*analysis.Analyzer, error) {
	settings := c.Linters.Settings.Funlen
	if settings.Lines == 0 || settings.Statements == 0 {
		return nil, errors.New("lines and statements are not both set; below 0 is no limit")
	}
	return funlen.NewAnalyzer(settings.Lines, settings.Statements, settings.IgnoreComments), nil
}

func (c config) gocyclo() (*analysis.Analyzer, error) {
	most := c.Linters.Settings.Gocyclo.MinComplexity
	if most <= 0 {
		return nil, errors.New("min-complexity is not set")
	}
	return &analysis.Analyzer{
		Name: "gocyclo",
		Doc:  "finds functions with many ways through them",
		Run: func(pass *analysis.Pass) (any, error) {
			for _, file := range pass.Files {
				f := pass.Fset.File(file.FileStart)
				for _, s := range gocyclo.AnalyzeASTFile(file, pass.Fset, nil) {
					if s.Complexity > most {
						pass.Reportf(f.LineStart(s.Pos.Line), "cyclomatic complexity %d of func `%s` is high (> %d)", s.Complexity, s.FuncName, most)
					}
				}
			}
			return nil, nil
		},
	}, nil
}

// lll counts as golangci-lint does: characters, with tabs of a width, and no directives of go generate.
func (c config) lll() (*analysis.Analyzer, error) {
	s := c.Linters.Settings.Lll
	if s.LineLength <= 0 || s.TabWidth <= 0 {
		return nil, errors.New("want a line-length and a tab-width above 0")
	}
	tab := strings.Repeat(" ", s.TabWidth)
	return &analysis.Analyzer{
		Name: "lll",
		Doc:  "finds long lines",
		Run: func(pass *analysis.Pass) (any, error) {
			for _, file := range pass.Files {
				f := pass.Fset.File(file.FileStart)
				b, err := pass.ReadFile(f.Name())
				if err != nil {
					return nil, err
				}
				for i, line := range strings.Split(string(b), "\n") {
					if strings.HasPrefix(line, "//go:generate ") || i >= f.LineCount() {
						continue
					}
					if n := utf8.RuneCountInString(strings.ReplaceAll(line, "\t", tab)); n > s.LineLength {
						pass.Reportf(f.LineStart(i+1), "the line is %d characters long, which exceeds the maximum of %d", n, s.LineLength)
					}
				}
			}
			return nil, nil
		},
	}, nil
}

func (c config) misspell() (*analysis.Analyzer, error) {
	r := &misspell.Replacer{Replacements: misspell.DictMain}
	r.RemoveRule(c.Linters.Settings.Misspell.IgnoreRules)
	r.Compile()
	return &analysis.Analyzer{
		Name: "misspell",
		Doc:  "finds words that are often misspelled",
		Run: func(pass *analysis.Pass) (any, error) {
			for _, file := range pass.Files {
				f := pass.Fset.File(file.FileStart)
				b, err := pass.ReadFile(f.Name())
				if err != nil {
					return nil, err
				}
				_, diffs := r.Replace(string(b))
				for _, d := range diffs {
					pass.Reportf(f.LineStart(d.Line), "`%s` is a misspelling of `%s`", d.Original, d.Corrected)
				}
			}
			return nil, nil
		},
	}, nil
}
