package docs_test

import (
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"
)

// Dependabot looks at each module of the repository.
func TestDependabot(t *testing.T) {
	list := exec.Command("git", "ls-files", "*go.mod")
	list.Dir = root
	out, err := list.Output()
	if err != nil {
		t.Skipf("this is no work tree of git: %v", err)
	}
	var want []string
	for _, file := range strings.Fields(string(out)) {
		want = append(want, path.Clean("/"+path.Dir(file)))
	}
	var config struct {
		Updates []struct {
			Ecosystem   string   `json:"package-ecosystem"`
			Directory   string   `json:"directory"`
			Directories []string `json:"directories"`
		} `json:"updates"`
	}
	if err := yaml.Unmarshal([]byte(read(t, ".github/dependabot.yml")), &config); err != nil {
		t.Fatal(err)
	}
	got := map[string][]string{}
	for _, u := range config.Updates {
		if u.Directory != "" {
			u.Directories = append(u.Directories, u.Directory)
		}
		got[u.Ecosystem] = append(got[u.Ecosystem], u.Directories...)
	}
	slices.Sort(got["gomod"])
	slices.Sort(want)
	if diff := cmp.Diff(map[string][]string{"gomod": want, "github-actions": {"/"}}, got); diff != "" {
		t.Errorf("the repository (-) and .github/dependabot.yml (+):\n%s", diff)
	}
}

// The workflows call nothing but verbs of make, and name actions by their commit.
func TestWorkflows(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(root, ".github/workflows/*.yml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("workflows %q: %v", files, err)
	}
	makefile := read(t, "Makefile")
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var workflow struct {
			Jobs map[string]struct {
				Steps []struct{ Name, Run, Uses string } `json:"steps"`
			} `json:"jobs"`
		}
		if err := yaml.Unmarshal(b, &workflow); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		for name, job := range workflow.Jobs {
			for _, step := range job.Steps {
				if step.Uses != "" && !regexp.MustCompile(`@[0-9a-f]{40}$`).MatchString(step.Uses) {
					t.Errorf("%s, job %s: %q is no commit", file, name, step.Uses)
				}
				if strings.Contains(step.Run, "go ") || strings.Contains(step.Run, "scripts/") {
					t.Errorf("%s, job %s: %q is for a verb of make", file, name, step.Run)
				}
			}
		}
		for _, m := range regexp.MustCompile(`\["[^\]]*"\]`).FindAllString(string(b), -1) {
			for _, verb := range strings.FieldsFunc(m, func(r rune) bool { return strings.ContainsRune(`[]", `, r) }) {
				if !strings.Contains(makefile, "\n"+verb+": ##") {
					t.Errorf("%s: there is no 'make %s'", file, verb)
				}
			}
		}
	}
}

// The template of pull requests asks what CONTRIBUTING.md asks, and the form for bugs wants the
// output of commands that exist.
func TestForms(t *testing.T) {
	_, questions, _ := strings.Cut(read(t, "CONTRIBUTING.md"), "## Questions of a review\n")
	questions, _, _ = strings.Cut(questions, "\n## ")
	n := 0
	for _, line := range regexp.MustCompile(`(?m)^\d\. .+$`).FindAllString(questions, -1) {
		n++
		if !strings.Contains(read(t, ".github/PULL_REQUEST_TEMPLATE.md"), line+"\n") {
			t.Errorf("the template of pull requests does not ask %q", line)
		}
	}
	if n == 0 {
		t.Error("CONTRIBUTING.md has no questions of a review")
	}
	for _, command := range []string{"podmarkctl version", "podmarkctl doctor", "podmarkctl explain"} {
		for _, file := range []string{".github/ISSUE_TEMPLATE/bug.yml", "SECURITY.md", "docs/configuration.md"} {
			if !strings.Contains(read(t, file), command) {
				t.Errorf("%s does not name %q", file, command)
			}
		}
	}
	forms, err := filepath.Glob(filepath.Join(root, ".github/ISSUE_TEMPLATE/*.yml"))
	if err != nil || len(forms) != 3 {
		t.Fatalf("forms %q: %v", forms, err)
	}
	for _, form := range forms {
		b, err := os.ReadFile(form)
		if err != nil {
			t.Fatal(err)
		}
		var content map[string]any
		if err := yaml.UnmarshalStrict(b, &content); err != nil {
			t.Errorf("%s: %v", form, err)
		}
	}
}
