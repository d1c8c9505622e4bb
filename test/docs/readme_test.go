package docs_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"

	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/mark"
)

// with is a configuration with one key set to a value in JSON.
func with(key, value string) []byte {
	if key == "args.cni.labels" {
		var in struct{ Args json.RawMessage }
		if json.Unmarshal([]byte(value), &in) == nil && in.Args != nil {
			return fmt.Appendf(nil, `{"name": "net", "args": %s}`, in.Args)
		}
		return fmt.Appendf(nil, `{"name": "net", "args": {"cni": {"labels": %s}}}`, value)
	}
	return fmt.Appendf(nil, `{"name": "net", %q: %s}`, key, value)
}

// The keys of the table are those that the plugin reads, with the defaults and
// values that it takes.
func TestConfigurationKeys(t *testing.T) {
	unset, err := config.Parse([]byte(`{"name": "net"}`))
	if err != nil {
		t.Fatal(err)
	}
	documented := []string{"cniVersion", "name"} // CNI's own
	for _, row := range table(t, read(t, "docs/configuration.md"), "key") {
		key := spans(row[0])[0]
		documented = append(documented, key)
		values := spans(row[1])
		if len(values) == 0 {
			t.Errorf("%s: no example of a value", key)
		}
		for _, value := range values {
			if _, err := config.Parse(with(key, value)); err != nil {
				t.Errorf("%s: the example %s is refused: %v", key, value, err)
			}
		}
		var wrong *config.Error
		if _, err := config.Parse(with(key, "[true]")); !errors.As(err, &wrong) || wrong.Key != key {
			t.Errorf("%s: a wrong value is not refused as that key's: %v", key, err)
		}
		if row[2] == "none" {
			continue
		}
		set, err := config.Parse(with(key, spans(row[2])[0]))
		if err != nil {
			t.Errorf("%s: the default is refused: %v", key, err)
		} else if diff := cmp.Diff(unset, set, cmp.AllowUnexported(mark.Layout{})); diff != "" {
			t.Errorf("%s: the default is another:\n%s", key, diff)
		}
	}
	var known []string
	for _, m := range regexp.MustCompile(`read\(&[^,]+, "([^"]+)"`).FindAllStringSubmatch(read(t, "pkg/config/config.go"), -1) {
		known = append(known, m[1])
	}
	slices.Sort(known)
	slices.Sort(documented)
	if diff := cmp.Diff(known, documented); diff != "" {
		t.Errorf("keys that package config reads (-) and that docs/configuration.md has (+):\n%s", diff)
	}
}

func TestMasks(t *testing.T) {
	for _, row := range table(t, read(t, "docs/configuration.md"), "mask") {
		mask, err := mark.ParseMask(spans(row[0])[0])
		if err != nil {
			t.Fatal(err)
		}
		layout, err := mark.NewLayout(mask)
		if err != nil {
			t.Fatal(err)
		}
		example := "does not fit"
		if layout.Max() >= 37 {
			example = fmt.Sprintf("`%#x`", layout.ID(37).Value)
		}
		want := []string{row[0], fmt.Sprint(layout.Capacity()), fmt.Sprint(layout.Max()), example}
		if diff := cmp.Diff(want, row); diff != "" {
			t.Errorf("mask %#x:\n%s", mask, diff)
		}
	}
}

// cniCodes are CNI's own codes by the names that the plugin may use.
var cniCodes = map[string]uint{
	"ErrUnknownContainer":            types.ErrUnknownContainer,
	"ErrInvalidEnvironmentVariables": types.ErrInvalidEnvironmentVariables,
	"ErrIOFailure":                   types.ErrIOFailure,
	"ErrDecodingFailure":             types.ErrDecodingFailure,
	"ErrInvalidNetworkConfig":        types.ErrInvalidNetworkConfig,
	"ErrTryAgainLater":               types.ErrTryAgainLater,
	"ErrPluginNotAvailable":          types.ErrPluginNotAvailable,
	"ErrInternal":                    types.ErrInternal,
}

// The codes of the table are those in the plugin's source.
func TestErrorCodes(t *testing.T) {
	used := map[string]bool{}
	files, err := filepath.Glob(filepath.Join(root, "plugins/podmark/*.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.SelectorExpr:
				if x, ok := n.X.(*ast.Ident); ok && x.Name == "types" && strings.HasPrefix(n.Sel.Name, "Err") && n.Sel.Name != "Error" {
					code, ok := cniCodes[n.Sel.Name]
					if !ok {
						t.Fatalf("%s uses types.%s, whose code this test does not know", name, n.Sel.Name)
					}
					used[fmt.Sprint(code)] = true
				}
			case *ast.ValueSpec:
				if strings.HasPrefix(n.Names[0].Name, "code") && len(n.Values) == 1 {
					if v, ok := n.Values[0].(*ast.BasicLit); ok {
						used[v.Value] = true
					}
				}
			}
			return true
		})
	}
	documented := map[string]bool{}
	for _, row := range table(t, read(t, "docs/configuration.md"), "code") {
		documented[row[0]] = true
	}
	if diff := cmp.Diff(used, documented); diff != "" {
		t.Errorf("codes that the plugin gives (-) and that docs/configuration.md has (+):\n%s", diff)
	}
}

// A block that says it shows a file shows that file.
func TestShownFiles(t *testing.T) {
	shown := regexp.MustCompile("(?s)<!-- file: ([^ ]+) -->\n```[a-z]*\n(.*?)```\n")
	n := 0
	for _, name := range documents(t) {
		for _, m := range shown.FindAllStringSubmatch(read(t, name), -1) {
			n++
			if diff := cmp.Diff(read(t, m[1]), m[2]); diff != "" {
				t.Errorf("%s shows %s as it is not:\n%s", name, m[1], diff)
			}
		}
	}
	if n < 2 {
		t.Errorf("%d files are shown, want a conflist and a policy", n)
	}
}

// Each podmarkctl command of the documents exists, with its flags, and docs/configuration.md
// has them all. Those that change nothing are run.
func TestPodmarkctl(t *testing.T) {
	program := filepath.Join(t.TempDir(), "podmarkctl")
	build := exec.Command("go", "build", "-o", program, "./plugins/podmarkctl")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building podmarkctl: %v\n%s", err, out)
	}
	run := func(args ...string) string {
		t.Helper()
		cmd := exec.Command(program, args...)
		cmd.Dir = root
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("podmarkctl %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	help := map[string]string{}
	_, list, _ := strings.Cut(run("--help"), "Available Commands:\n")
	for line := range strings.Lines(list) {
		fields := strings.Fields(line)
		if len(fields) == 0 {
			break
		}
		if fields[0] != "help" {
			help[fields[0]] = run(fields[0], "--help")
		}
	}
	shown := map[string]bool{}
	flag := regexp.MustCompile(`(?m)^ +(-[a-zA-Z])?,? +(--[a-z-]+)`)
	flags := func(command string) []string {
		var out []string
		for _, m := range flag.FindAllStringSubmatch(help[command], -1) {
			out = append(out, m[1], m[2])
		}
		return out
	}
	for _, name := range documents(t) {
		for _, line := range commands(read(t, name)) {
			_, call, found := strings.Cut(line, "podmarkctl ")
			call, _, _ = strings.Cut(call, " #")
			args := strings.Fields(call)
			if !found || len(args) == 0 || !regexp.MustCompile(`^[a-z]+$`).MatchString(args[0]) {
				continue
			}
			command := args[0]
			if help[command] == "" {
				t.Errorf("%s: %q: there is no such command", name, line)
				continue
			}
			if name == "docs/configuration.md" {
				shown[command] = true
			}
			for i, a := range args {
				if a != "-" && strings.HasPrefix(a, "-") && !slices.Contains(flags(command), a) {
					t.Errorf("%s: %q: there is no flag %s", name, line, a)
				}
				if i > 0 && args[i-1] == "-f" && a != "-" {
					if _, err := os.Stat(filepath.Join(root, a)); err != nil {
						t.Errorf("%s: %q: %v", name, line, err)
					}
				}
			}
			// These change nothing; with a state directory of the test's, the node does not matter.
			if command == "list" || command == "render" || slices.Contains(args, "--dry-run") {
				run(append(args, "--state-dir", filepath.Join(t.TempDir(), "state"))...)
			}
		}
	}
	for command := range help {
		if !shown[command] {
			t.Errorf("docs/configuration.md has no example of podmarkctl %s", command)
		}
	}
	everywhere := "`--state-dir`, `--lock-timeout` and `-o json` or `-o table`"
	if !strings.Contains(read(t, "docs/configuration.md"), everywhere) {
		t.Errorf("docs/configuration.md does not say %q", everywhere)
	}
	for _, f := range []string{"--state-dir", "--lock-timeout", "-o"} {
		if !slices.Contains(flags("list"), f) {
			t.Errorf("there is no flag %s", f)
		}
	}
}

// flagLine is one of podmarkd's flags in its help: the name, and all that is said of it.
var flagLine = regexp.MustCompile(`(?m)^ +(?:-[a-z], )?(--[a-z-]+) (.*)$`)

// The flags of the table are podmarkd's, with the defaults that its help says.
func TestPodmarkdFlags(t *testing.T) {
	cmd := exec.Command("go", "run", "./plugins/podmarkd", "--help")
	cmd.Dir = root
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("podmarkd --help: %v\n%s", err, out)
	}
	said := map[string]string{}
	for _, m := range flagLine.FindAllStringSubmatch(string(out), -1) {
		if m[1] != "--help" && m[1] != "--version" {
			said[m[1]] = m[2]
		}
	}
	for _, row := range table(t, read(t, "docs/configuration.md"), "flag") {
		flag := spans(row[0])[0]
		text, ok := said[flag]
		if !ok {
			t.Errorf("podmarkd has no %s", flag)
			continue
		}
		delete(said, flag)
		value := spans(row[1])
		if len(value) != 1 || row[1] != "`"+value[0]+"`" {
			continue // a default in words
		}
		for _, form := range []string{"%s", "%q", "[%s]"} {
			ok = ok && !strings.Contains(text, "(default "+fmt.Sprintf(form, value[0])+")")
		}
		if ok {
			t.Errorf("%s: the default is not %s: %s", flag, value[0], text)
		}
	}
	for flag := range said {
		t.Errorf("docs/configuration.md does not have %s", flag)
	}
}

// README.md is one screen, or nearly.
func TestReadmeIsShort(t *testing.T) {
	const most = 900
	if n := len(strings.Fields(read(t, "README.md"))); n > most {
		t.Errorf("README.md has %d words, want %d at most: it leads to the pages in docs", n, most)
	}
}

// Each verb of make that the documents name is in the Makefile.
func TestMakeVerbs(t *testing.T) {
	makefile := read(t, "Makefile")
	call := regexp.MustCompile(`^make ([a-z-]+)`)
	for _, name := range documents(t) {
		for _, line := range commands(read(t, name)) {
			if m := call.FindStringSubmatch(line); m != nil && !strings.Contains(makefile, "\n"+m[1]+":") {
				t.Errorf("%s: there is no %q", name, m[0])
			}
		}
	}
}

// Each link to a file leads to one, and to a heading that it has.
func TestLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#]*)(?:#([^)]+))?\)`)
	for _, name := range documents(t) {
		for _, m := range link.FindAllStringSubmatch(read(t, name), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			target := name
			if m[1] != "" {
				target = filepath.Join(filepath.Dir(name), m[1])
			}
			if _, err := os.Stat(filepath.Join(root, target)); err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if m[2] != "" && !slices.Contains(anchors(read(t, target)), m[2]) {
				t.Errorf("%s: %s has no heading for #%s", name, target, m[2])
			}
		}
	}
}

// anchors are those that code hosts give the headings of a document.
func anchors(document string) []string {
	var out []string
	for _, m := range regexp.MustCompile(`(?m)^#+ (.+)$`).FindAllStringSubmatch(fence.ReplaceAllString(document, ""), -1) {
		heading := regexp.MustCompile(`\[([^]]*)\]\([^)]*\)`).ReplaceAllString(m[1], "$1")
		heading = regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(strings.ToLower(heading), "")
		out = append(out, strings.ReplaceAll(heading, " ", "-"))
	}
	return out
}

// Numbers of docs/configuration.md that stand in the code and nowhere in a table.
func TestNumbers(t *testing.T) {
	document := read(t, "docs/configuration.md")
	for _, want := range []struct{ text, file, code string }{
		{"at most 600", "pkg/config/config.go", "maxLockTimeout     = 10 * time.Minute"},
		{"group 1886", "pkg/dataplane/hostport/port.go", "const Group = 1886"},
		{"0.3.0, 0.3.1, 0.4.0, 1.0.0 and 1.1.0", "pkg/config/version.go", `VersionsStartingFrom("0.3.0")`},
		{"0 if all went well, 2 for wrong usage or failure", "plugins/podmarkctl/main.go", "exitFailure = 2"},
		{"none of kube-proxy's 0xc000", "pkg/mark/mark.go", "KubeProxy uint32 = 0xC000"},
	} {
		if !strings.Contains(document, want.text) {
			t.Errorf("docs/configuration.md does not say %q", want.text)
		}
		if !strings.Contains(read(t, want.file), want.code) {
			t.Errorf("%s does not say %q, so docs/configuration.md may be wrong with %s", want.file, want.code, strconv.Quote(want.text))
		}
	}
}
