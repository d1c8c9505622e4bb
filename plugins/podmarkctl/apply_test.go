package main_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const webPolicy = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: default}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress, Egress]
  ingress:
  - from: [{podSelector: {matchLabels: {app: client}}}]
    ports: [{protocol: TCP, port: 80}]
`

// manyRules has every kind of rule and peer that can be rendered.
const manyRules = webPolicy + `
---
apiVersion: v1
kind: Namespace
metadata: {name: prod, labels: {tier: one}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: a-name-of-sixty-three-characters-which-is-all-that-a-label-may-have}
spec:
  podSelector: {}
  policyTypes: [Ingress, Egress]
  ingress:
  - {}
  - from:
    - ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/8, 192.168.0.0/16]}
    - ipBlock: {cidr: "::/0", except: ["fd00::/8"]}
    - namespaceSelector: {matchExpressions: [{key: tier, operator: In, values: [one, two]}]}
      podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [db]}]}
    - namespaceSelector: {}
    ports:
    - {protocol: TCP, port: 1, endPort: 65535}
    - {protocol: UDP, port: 53}
    - {protocol: SCTP, port: 9, endPort: 10}
    - {protocol: TCP}
  - ports: [` + "{port: 1}, {port: 3}, {port: 5}, {port: 7}, {port: 9}, {port: 11}, {port: 13}, {port: 15}, {port: 17}, {port: 19}, {port: 21}, {port: 23}, {port: 25}, {port: 27}, {port: 29}, {port: 31}, {port: 33, endPort: 40}" + `]
  egress:
  - to: [{ipBlock: {cidr: 0.0.0.0/0}}, {ipBlock: {cidr: "::/0"}}]
  - to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/9, 10.128.0.0/9]}}]
  - to: [{podSelector: {}}]
    ports: [{protocol: UDP}, {protocol: SCTP, port: 9999}]
`

// ofPolicies are the chains and sets that are there for policies only.
var ofPolicies = regexp.MustCompile(`create podmark-[a-z]+[46][ab]-[0-9a-f]{16}|:PODMARK-[EI]A?-\S+|(?:chain|set|map) [a-z][46]?-[0-9a-f]{16}`)

func write(t *testing.T, name, content string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func lstat(name string) (os.FileInfo, error) { return os.Lstat(name) }

func TestApply(t *testing.T) {
	eachBackend(t, func(t *testing.T, n *node) {
		n.addPod(map[string]string{"app": "web"})
		n.addPod(map[string]string{"app": "client"})
		apply := func(args ...string) (got map[string]any) {
			t.Helper()
			out := n.ctl(append([]string{"apply", "-o", "json"}, args...)...).ok(t).stdout
			if err := json.Unmarshal([]byte(out), &got); err != nil {
				t.Fatalf("%v in %s", err, out)
			}
			return got
		}
		dir := manifests(t, map[string]string{"web.yaml": webPolicy, "README.md": "# not a manifest"})
		other := strings.Replace(webPolicy, "port: 80", "port: 81", 1)
		others := manifests(t, map[string]string{"port.yaml": other, "more.yaml": other + "  - ports: [{protocol: UDP, port: 53}]\n"})
		steps := []struct {
			name string
			args []string
			want map[string]any
		}{
			{"first", []string{"-f", dir}, map[string]any{"policies": 1., "endpoints": 2., "epoch": 2., "narrowed": true}},
			{"the same", []string{"-f", filepath.Join(dir, "web.yaml")}, map[string]any{"policies": 1., "endpoints": 2., "epoch": 2., "narrowed": false}},
			{"another port", []string{"-f", filepath.Join(others, "port.yaml")}, map[string]any{"policies": 1., "endpoints": 2., "epoch": 3., "narrowed": true}},
			{"a rule more", []string{"-f", filepath.Join(others, "more.yaml")}, map[string]any{"policies": 1., "endpoints": 2., "epoch": 3., "narrowed": false}},
			{"the rule goes", []string{"-f", filepath.Join(others, "port.yaml")}, map[string]any{"policies": 1., "endpoints": 2., "epoch": 4., "narrowed": true}},
			{"delete", []string{"--delete"}, map[string]any{"policies": 0., "endpoints": 2., "epoch": 4., "narrowed": false}},
		}
		for _, s := range steps {
			if diff := cmp.Diff(s.want, apply(s.args...)); diff != "" {
				t.Errorf("%s:\n%s", s.name, diff)
			}
			if found := ofPolicies.FindAllString(n.kernel(), -1); (len(found) == 0) != (s.name == "delete") {
				t.Errorf("%s: the kernel has %q of policies", s.name, found)
			}
		}
		table := n.ctl("apply", "-f", dir).ok(t).stdout
		if table != "1 policies in force on 2 endpoints, epoch 5: live connections are judged again\n" {
			t.Errorf("it says %q", table)
		}
	})
}

// One invalid document, and nothing changes.
func TestApplyInvalid(t *testing.T) {
	n := newNode(t, nftables)
	n.ctlIn(webPolicy, "apply", "-f", "-").ok(t)
	n.addPod(map[string]string{"app": "web"})
	kernel, files := n.kernel(), n.files()
	invalid := strings.Replace(webPolicy, "port: 80}", "port: 65536}", 1)
	tests := []struct {
		name  string
		files map[string]string
		words []string
	}{
		{"one field", map[string]string{"a.yaml": webPolicy, "b.yaml": manyRules + "\n---" + invalid}, []string{"b.yaml", "document 4", "spec.ingress[0].ports[0].port", "65536"}},
		{"another kind", map[string]string{"a.yaml": webPolicy, "b.yml": "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\n"}, []string{"b.yml", "document 1", "Pod"}},
		{"not YAML", map[string]string{"a.yaml": webPolicy, "b.json": "{"}, []string{"b.json"}},
		{"twice the same", map[string]string{"a.yaml": webPolicy, "b.yaml": webPolicy}, []string{"b.yaml", "default/web"}},
		{"empty folder", nil, []string{"--delete"}},
		{"nothing but comments", map[string]string{"a.yaml": "# a: b\n", "b.yaml": "# nothing\n---\n# at all\n"}, []string{"a.yaml: no manifest", "b.yaml: no manifest", "--delete"}},
		{"one that is being written", map[string]string{"a.yaml": webPolicy, "b.yaml": "", "c.json": " \n"}, []string{"b.yaml: no manifest", "c.json: no manifest", "--delete"}},
		{"folder without manifests", map[string]string{"README.md": "x"}, []string{"*.yaml", "--delete"}},
	}
	for _, tt := range tests {
		dir := manifests(t, tt.files)
		n.ctl("apply", "-f", dir).fails(t, append(tt.words, dir)...)
		if diff := cmp.Diff(files, n.files()) + cmp.Diff(kernel, n.kernel()); diff != "" {
			t.Fatalf("%s: it changed something:\n%s", tt.name, diff)
		}
	}
}

// What 'kubectl get networkpolicies -o yaml | podmarkctl apply -f -' is where kubectl fails
// changes nothing; a list without items says that there are no policies.
func TestApplyNothing(t *testing.T) {
	n := newNode(t, nftables)
	n.ctlIn(webPolicy, "apply", "-f", "-").ok(t)
	n.addPod(map[string]string{"app": "web"})
	kernel, files := n.kernel(), n.files()
	for _, nothing := range []string{"", "\n", "# nothing\n", "---\n---\n", "null\n"} {
		n.ctlIn(nothing, "apply", "-f", "-").fails(t, "stdin: no manifest", "apply --delete")
		if diff := cmp.Diff(files, n.files()) + cmp.Diff(kernel, n.kernel()); diff != "" {
			t.Fatalf("%q: it changed something:\n%s", nothing, diff)
		}
	}
	if got := n.ctlIn("apiVersion: v1\nkind: List\nitems: []\n", "apply", "-f", "-").ok(t).stdout; !strings.HasPrefix(got, "0 policies") {
		t.Errorf("it says %q", got)
	}
}

// A policy can be there before the first pod, and then nothing must be made
// where it is invalid.
func TestApplyOnVirginNode(t *testing.T) {
	n := newNode(t, nftables)
	n.ctlIn("kind: nonsense", "apply", "-f", "-").fails(t, "stdin: document 1", "apiVersion")
	if _, err := lstat(n.dir); err == nil {
		t.Error("an invalid policy made the state folder")
	}
	n.ctlIn(webPolicy, "apply", "-f", "-").ok(t)
	if got := n.ctl("list", "-o", "json").ok(t).stdout; got != "[]\n" {
		t.Errorf("list says %s", got)
	}
}

// Without the lock nothing is applied.
func TestApplyLocked(t *testing.T) {
	n := newNode(t, nftables)
	n.ctlIn(webPolicy, "apply", "-f", "-").ok(t)
	release := hold(t, filepath.Join(n.dir, "lock"))
	defer release()
	files := n.files()
	for _, args := range [][]string{{"apply", "--delete"}, {"gc"}, {"uninstall"}} {
		n.ctl(append(args, "--lock-timeout", "50ms")...).fails(t, "50ms", "lock")
	}
	n.ctl("list").ok(t)
	n.ctl("render").ok(t)
	if diff := cmp.Diff(files, n.files()); diff != "" {
		t.Error(diff)
	}
}

// What apply would refuse, check refuses, for the same reason; it changes nothing, and needs
// neither root nor a node.
func TestCheck(t *testing.T) {
	n := newNode(t, nftables)
	empty := t.TempDir()
	for _, tt := range []struct{ name, stdin, file string }{
		{"a policy", webPolicy, "-"},
		{"a wrong one", strings.Replace(webPolicy, "podSelector", "podSelectro", 1), "-"},
		{"nothing", "", "-"},
		{"an empty folder", "", empty},
		{"no file", "", "/does/not/exist"},
	} {
		files := n.files()
		checked := n.ctlIn(tt.stdin, "check", "-f", tt.file)
		if diff := cmp.Diff(files, n.files()); diff != "" {
			t.Errorf("%s: it changed something:\n%s", tt.name, diff)
		}
		applied := n.ctlIn(tt.stdin, "apply", "-f", tt.file)
		if checked.exit != applied.exit || checked.stderr != applied.stderr || (checked.exit == 0) != (tt.name == "a policy") {
			t.Errorf("%s: check ends with %d, %q, and apply with %d, %q", tt.name, checked.exit, checked.stderr, applied.exit, applied.stderr)
		}
	}
	if o := n.ctlIn(webPolicy, "check", "-f", "-", "-o", "json").ok(t); !strings.Contains(o.stdout, `"policies": 1`) {
		t.Errorf("%s", o.stdout)
	}
}
