package deploy_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

func read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The image is built from nothing, and of the programs that 'make release' makes for the
// architecture it is built for, which are where the manifests start them.
func TestDockerfile(t *testing.T) {
	ast, err := parser.Parse(bytes.NewReader(read(t, "conf/Dockerfile")))
	if err != nil {
		t.Fatal(err)
	}
	if len(ast.Warnings) > 0 {
		t.Errorf("%+v", ast.Warnings)
	}
	stages, arguments, err := instructions.Parse(ast.AST, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(stages) != 1 || stages[0].BaseName != "${BASE}" || len(arguments) != 1 || *arguments[0].Args[0].Value != "scratch" {
		t.Fatalf("%+v, %+v", stages, arguments)
	}
	there := map[string]bool{}
	var entry []string
	for _, c := range stages[0].Commands {
		switch c := c.(type) {
		case *instructions.CopyCommand:
			for _, from := range c.SourcePaths {
				dir, program := filepath.Split(from)
				if _, err := os.Stat(filepath.Join(root, "plugins", program, "main.go")); err != nil || dir != "linux-${TARGETARCH}/" {
					t.Errorf("%q is not there after 'make release': %v", from, err)
				}
				there[filepath.Join(c.DestPath, program)] = true
			}
		case *instructions.ArgCommand:
			if c.Args[0].Key != "TARGETARCH" || c.Args[0].Value != nil { // what BuildKit says
				t.Errorf("%+v", c.Args)
			}
		case *instructions.EntrypointCommand:
			entry = c.CmdLine
		default:
			t.Errorf("%s needs a program in the image", c.Name())
		}
	}
	c := container(t, built(t))
	if !there[entry[0]] || !slices.Equal(entry, c.Command) {
		t.Errorf("the image starts %q, the DaemonSet %q, and there are %v", entry, c.Command, there)
	}
	for _, program := range []string{"podmark", "podmarkd", "podmarkctl"} {
		if !there["/opt/podmark/"+program] {
			t.Errorf("no %s in the image", program)
		}
	}
}

// systemd takes the unit, alone and with what iptables needs, without a word, and
// finds its rights small. What it may do is proven in test/lab.
func TestUnit(t *testing.T) {
	dir := t.TempDir()
	program, err := filepath.Abs(filepath.Join(root, "bin/podmarkd"))
	if err != nil {
		t.Fatal(err)
	}
	unit := strings.ReplaceAll(string(read(t, "conf/podmarkd.service")), "/usr/local/lib/podmark/podmarkd", program)
	if !strings.Contains(unit, "\nExecStart="+program+" --keep-installed\n") {
		t.Fatal("it does not start podmarkd --keep-installed")
	}
	file := filepath.Join(dir, "podmarkd.service")
	for _, dropIn := range []string{"", "conf/podmarkd-iptables.conf"} {
		if err := os.WriteFile(file, []byte(unit), 0o644); err != nil {
			t.Fatal(err)
		}
		if dropIn != "" {
			if err := os.Mkdir(file+".d", 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(file+".d", "iptables.conf"), read(t, dropIn), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		for _, args := range [][]string{{"verify", "--man=no", file}, {"security", "--offline=true", "--threshold=25", file}} {
			out, err := exec.Command("systemd-analyze", args...).CombinedOutput()
			if err != nil || args[0] == "verify" && len(out) > 0 {
				t.Errorf("systemd-analyze %q: %v\n%s", args, err, out)
			}
		}
	}
}

// The documents name files and values that there are, and docs/install.md says what each directory of
// the container is for.
func TestDocuments(t *testing.T) {
	values := load(t).Values
	names, err := filepath.Glob(filepath.Join(root, "docs/*.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range append(names, filepath.Join(root, "README.md")) {
		name, err := filepath.Rel(root, file)
		if err != nil {
			t.Fatal(err)
		}
		document := string(read(t, name))
		for _, path := range regexp.MustCompile(`conf/[a-zA-Z/.-]*[a-zA-Z]`).FindAllString(document, -1) {
			if _, err := os.Stat(filepath.Join(root, path)); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		for _, m := range regexp.MustCompile(`--set ([a-zA-Z]+)`).FindAllStringSubmatch(document, -1) {
			if _, ok := values[m[1]]; !ok {
				t.Errorf("%s sets %s, which is no value", name, m[1])
			}
		}
	}
	document := string(read(t, "docs/install.md"))
	for _, m := range container(t, built(t)).VolumeMounts {
		if !strings.Contains(document, "`"+m.MountPath+"`") && m.Name != "entry" {
			t.Errorf("docs/install.md does not say what %s is for", m.MountPath)
		}
	}
}
