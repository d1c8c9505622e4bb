package manifest_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/manifest"
	"github.com/podmark/podmark/pkg/policy"
)

const (
	web = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: web, namespace: shop}\nspec: {podSelector: {}}\n"
	db  = `{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "db", "namespace": "shop"}, "spec": {"podSelector": {}}}`
)

// Files, directories and a pipe are read, together; what gives nothing is refused, and said by name.
func TestRead(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	all := filepath.Dir(write("all/web.yaml", web))
	write("all/db.json", db)
	write("all/notes.txt", "none of these")
	write("all/deeper/wrong.yaml", "kind: Nonsense")
	one, wrong := write("one.yml", web), write("wrong.yaml", strings.Replace(web, "podSelector", "podSelectro", 1))
	comments, empty := write("comments.yaml", "# nothing\n"), filepath.Dir(write("empty/notes.txt", ""))
	for name, tt := range map[string]struct {
		paths []string
		stdin string
		want  string // names, in order
		err   string
	}{
		"a file":                  {paths: []string{one}, want: "web"},
		"a directory":             {paths: []string{all}, want: "db web"},
		"stdin":                   {paths: []string{"-"}, stdin: db, want: "db"},
		"stdin and a file":        {paths: []string{"-", one}, stdin: db, want: "db web"},
		"a wrong one":             {paths: []string{wrong}, err: "podSelectro"},
		"a policy twice":          {paths: []string{one, all}, err: "shop/web"},
		"no file":                 {paths: []string{filepath.Join(dir, "none")}, err: "none"},
		"nothing on stdin":        {paths: []string{"-"}, err: "--delete"},
		"comments":                {paths: []string{comments}, err: "--delete"},
		"namespaces alone":        {paths: []string{"-"}, stdin: "{apiVersion: v1, kind: Namespace, metadata: {name: shop}}", err: "--delete"},
		"an empty list":           {paths: []string{"-"}, stdin: "{apiVersion: v1, kind: List, items: []}"},
		"a directory without any": {paths: []string{empty}, err: "--delete"},
	} {
		t.Run(name, func(t *testing.T) {
			sources, err := manifest.Read(tt.paths, false, strings.NewReader(tt.stdin))
			var got desired.Policies
			if err == nil {
				got, _, err = manifest.Compile(policy.Options{Whole: true}, sources...)
			}
			var names []string
			for _, p := range got.Policies {
				names = append(names, p.Name)
			}
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) || len(names) > 0 {
					t.Errorf("%v, %q: want an error with %q", err, names, tt.err)
				}
				return
			}
			if err != nil || strings.Join(names, " ") != tt.want {
				t.Errorf("%q, %v, want %q", names, err, tt.want)
			}
		})
	}
}
