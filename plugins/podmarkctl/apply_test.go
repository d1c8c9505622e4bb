package main_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/podmark/podmark/test/testnode"
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
metadata: {name: a-name-of-sixty-three-characters-which-is-all-that-a-label-may-have, namespace: default}
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
			out := n.ctl(append([]string{"apply", "-o", "json"}, args...)...).ok(t).Stdout
			if err := json.Unmarshal([]byte(out), &got); err != nil {
				t.Fatalf("%v in %s", err, out)
			}
			return got
		}
		dir := manifests(t, map[string]string{"web.yaml": webPolicy, "README.md": "# not a manifest"})
		other := strings.Replace(webPolicy, "port: 80", "port: 81", 1)
		others := manifests(t, map[string]string{"port.yaml": other, "more.yaml": other + "  - ports: [{protocol: UDP, port: 53}]\n"})
		all := map[string]any{"pods": 2., "policed": 2., "unseen": "podmarkd does not run"}
		steps := []struct {
			name string
			args []string
			want map[string]any
		}{
			{"first", []string{"-f", dir}, map[string]any{"policies": 1., "coverage": all, "epoch": 2., "restricted": true}},
			{"the same", []string{"-f", filepath.Join(dir, "web.yaml")}, map[string]any{"policies": 1., "coverage": all, "epoch": 2., "restricted": false}},
			{"another port", []string{"-f", filepath.Join(others, "port.yaml")}, map[string]any{"policies": 1., "coverage": all, "epoch": 3., "restricted": true}},
			{"a rule more", []string{"-f", filepath.Join(others, "more.yaml")}, map[string]any{"policies": 1., "coverage": all, "epoch": 3., "restricted": false}},
			{"the rule goes", []string{"-f", filepath.Join(others, "port.yaml")}, map[string]any{"policies": 1., "coverage": all, "epoch": 4., "restricted": true}},
			{"delete", []string{"--delete"}, map[string]any{"policies": 0., "coverage": all, "epoch": 4., "restricted": false}},
		}
		for _, s := range steps {
			if diff := cmp.Diff(s.want, apply(s.args...)); diff != "" {
				t.Errorf("%s:\n%s", s.name, diff)
			}
			if found := ofPolicies.FindAllString(n.kernel(), -1); (len(found) == 0) != (s.name == "delete") {
				t.Errorf("%s: the kernel has %q of policies", s.name, found)
			}
		}
		table := n.ctl("apply", "-f", dir).ok(t).Stdout
		if table != "1 policies in force, epoch 5: live connections are judged again\n2 of 2 pods policed"+unseen+"\n" {
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
		{"a policy of another API", map[string]string{"a.yaml": webPolicy, "b.yml": "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: x}\n"}, []string{"b.yml", "document 1", "CiliumNetworkPolicy", "not enforced"}},
		{"a kind that is misspelt", map[string]string{"a.yaml": webPolicy, "b.yml": "apiVersion: networking.k8s.io/v1\nkind: NetworkPolcy\nmetadata: {name: x}\n"}, []string{"b.yml", "document 1", "NetworkPolcy", "not enforced"}},
		{"nothing but other kinds", map[string]string{"a.yaml": deployment + "---" + deployment}, []string{"a.yaml: no manifest in it but 2 of other kinds", "--delete"}},
		{"namespaces alone", map[string]string{"a.yaml": namespaces, "b.yaml": deployment}, []string{"a.yaml: no NetworkPolicy in it but 2 namespaces", "b.yaml: no NetworkPolicy in it but 1 of other kinds", "--delete", "items: []"}},
		{"not YAML", map[string]string{"a.yaml": webPolicy, "b.json": "{"}, []string{"b.json"}},
		{"twice the same", map[string]string{"a.yaml": webPolicy, "b.yaml": webPolicy}, []string{"b.yaml", "default/web"}},
		{"empty directory", nil, []string{"--delete"}},
		{"nothing but comments", map[string]string{"a.yaml": "# a: b\n", "b.yaml": "# nothing\n---\n# at all\n"}, []string{"a.yaml: no manifest", "b.yaml: no manifest", "--delete"}},
		{"one that is being written", map[string]string{"a.yaml": webPolicy, "b.yaml": "", "c.json": " \n"}, []string{"b.yaml: no manifest", "c.json: no manifest", "--delete"}},
		{"directory without manifests", map[string]string{"README.md": "x"}, []string{"*.yaml", "--delete"}},
	}
	for _, tt := range tests {
		dir := manifests(t, tt.files)
		n.ctl("apply", "-f", dir).fails(t, append(tt.words, dir)...)
		if diff := cmp.Diff(files, n.files()) + cmp.Diff(kernel, n.kernel()); diff != "" {
			t.Fatalf("%s: it changed something:\n%s", tt.name, diff)
		}
	}
}

// namespaces is what 'kubectl get networkpolicies,namespaces -o yaml' prints where there is no
// policy, or where it may not list them.
const namespaces = `apiVersion: v1
items:
- {apiVersion: v1, kind: Namespace, metadata: {name: default}}
- {apiVersion: v1, kind: Namespace, metadata: {name: shop}}
kind: List
`

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
	n.ctlIn(namespaces, "apply", "-f", "-").fails(t, "stdin: no NetworkPolicy in it but 2 namespaces", "apply --delete", "items: []")
	n.ctlIn(namespaces, "check", "-f", "-").fails(t, "stdin: no NetworkPolicy", "apply --delete")
	if diff := cmp.Diff(files, n.files()) + cmp.Diff(kernel, n.kernel()); diff != "" {
		t.Fatalf("without a policy: it changed something:\n%s", diff)
	}
	// To ask what would be without a policy is no change.
	n.route()
	if denied := n.ctl("explain", "outside", "default/web-1:81"); denied.Exit() != 1 {
		t.Errorf("by the policy in force: exit %d, %s", denied.Exit(), denied.Stdout)
	}
	n.ctlIn(namespaces, "explain", "outside", "default/web-1:81", "--policy", "-").ok(t)
	n.ctlIn(namespaces, "render", "-f", "-").ok(t)
	for _, list := range []string{"apiVersion: v1\nkind: List\nitems: []\n", "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicyList\nitems: []\n---\n" + namespaces} {
		n.ctlIn(webPolicy, "apply", "-f", "-").ok(t)
		if got := n.ctlIn(list, "apply", "-f", "-").ok(t).Stdout; !strings.HasPrefix(got, "0 policies") {
			t.Errorf("%s: it says %q", list, got)
		}
	}
}

// A policy can be there before the first pod, and then nothing must be made
// where it is invalid.
func TestApplyOnVirginNode(t *testing.T) {
	n := newNode(t, nftables)
	n.ctlIn("kind: nonsense", "apply", "-f", "-").fails(t, "stdin: document 1", "apiVersion")
	if _, err := lstat(n.Dir); err == nil {
		t.Error("an invalid policy made the state directory")
	}
	n.ctlIn(webPolicy, "apply", "-f", "-").ok(t)
	if got := n.ctl("list", "-o", "json").ok(t).Stdout; got != "[]\n" {
		t.Errorf("list says %s", got)
	}
}

// Without the lock nothing is applied.
func TestApplyLocked(t *testing.T) {
	n := newNode(t, nftables)
	n.ctlIn(webPolicy, "apply", "-f", "-").ok(t)
	release := n.HoldLock()
	defer release()
	files := n.files()
	for _, args := range [][]string{{"apply", "--delete"}, {"gc"}, {"uninstall", "--yes"}} {
		n.ctl(append(args, "--lock-timeout", "50ms")...).fails(t, "50ms", "lock")
	}
	n.ctl("list").ok(t)
	n.ctl("render").ok(t)
	if diff := cmp.Diff(files, n.files()); diff != "" {
		t.Error(diff)
	}
}

// Who has policies that hold for nobody, or pods for which none holds, is told so by whatever
// he asks.
func TestCoverage(t *testing.T) {
	n := newNode(t, nftables)
	n.addPod(nil)
	n.Keys = map[string]any{"policy": "none"}
	n.addPod(map[string]string{"app": "web"})
	const open = `1 of 2 pods policed, 1 unpoliced because its network asked for no policy (default/web-2)`
	const idle = `policy default/web selects no endpoint: 1 of 1 endpoints of namespace "default" have no labels`
	typo := strings.Replace(webPolicy, "namespace: default", "namespace: defualt", 1)
	for name, tt := range map[string]struct{ manifest, says string }{
		"no labels":      {webPolicy, idle},
		"namespace":      {typo, `policy defualt/web selects no endpoint: no pod of this node is in namespace "defualt", and no manifest declares it; they are in ["default"]`},
		"somewhere else": {typo + "---\n{apiVersion: v1, kind: Namespace, metadata: {name: defualt}}\n", `policy defualt/web selects no endpoint: namespace "defualt" has no pod on this node`},
	} {
		for verb, said := range map[string]string{
			"apply":  n.ctlIn(tt.manifest, "apply", "-f", "-").ok(t).Stdout,
			"status": n.ctl("status").ok(t).Stdout,
		} {
			if !strings.Contains(said, open) || !strings.Contains(said, tt.says) || strings.Contains(said, "endpoints, epoch") {
				t.Errorf("%s, %s: %s", name, verb, said)
			}
		}
	}
	list := n.ctl("list").ok(t).Stdout
	if !strings.HasSuffix(list, open+unseen+"\n") || strings.Count(list, " unpoliced  unpoliced\n") != 1 {
		t.Errorf("%s", list)
	}
	n.ctlIn(strings.Replace(webPolicy, "app: web", "app: wbe", 1), "apply", "-f", "-").ok(t)
	n.Keys = nil
	n.addPod(map[string]string{"app": "db"})
	var s struct {
		Coverage struct {
			Pods, Policed int
			Unpoliced     []struct{ Reason string }
			Idle          []struct{ Reason string }
		}
	}
	if err := json.Unmarshal([]byte(n.ctl("status", "-o", "json").ok(t).Stdout), &s); err != nil {
		t.Fatal(err)
	}
	if c := s.Coverage; c.Pods != 3 || c.Policed != 2 || len(c.Unpoliced) != 1 || c.Unpoliced[0].Reason != "none" || len(c.Idle) != 1 || c.Idle[0].Reason != "labels" {
		t.Errorf("%+v", s)
	}
}

// Where nobody has applied policies, as after a reboot, pods that want those of files are open, and
// that is said; that there are to be none is a policy too.
func TestCoverageUnapplied(t *testing.T) {
	n := newNode(t, nftables)
	n.addPod(map[string]string{"app": "web"})
	const open = "0 of 1 pods policed, 1 unpoliced because its network takes policies from files, and none were applied"
	for _, verb := range []string{"status", "list"} {
		if said := n.ctl(verb).ok(t).Stdout; !strings.Contains(said, open) {
			t.Errorf("%s: %s", verb, said)
		}
	}
	if said := n.ctl("doctor"); said.Exit() == 0 || !strings.Contains(said.Stdout, open) || !strings.Contains(said.Stdout, "apply -f POLICIES") {
		t.Errorf("doctor: %+v", said)
	}
	if said := n.ctl("apply", "--delete").ok(t).Stdout; !strings.Contains(said, "0 policies in force") || !strings.Contains(said, "1 of 1 pods policed") {
		t.Errorf("%s", said)
	}
	if said := n.ctl("list").ok(t).Stdout; strings.Contains(said, "unpoliced") {
		t.Errorf("list: %s", said)
	}
}

// unseen is what is said of unmarked pods where no podmarkd runs.
const unseen = "; pods that started without podmark are not known: podmarkd does not run"

// cached has the runtime's cache know an interface of a pod of namespace default.
func (n *node) cached(cache, network, container, ifName, pod string) {
	n.T.Helper()
	text := fmt.Sprintf(`{"kind": "cniCacheV1", "containerId": %q, "ifName": %q, "networkName": %q, "netns": %q,
		"cniArgs": [["K8S_POD_NAMESPACE", "default"], ["K8S_POD_NAME", %q]], "result": {"cniVersion": "1.0.0"}}`, container, ifName, network, testnode.NewSpace(n.T).Path, pod)
	if err := os.MkdirAll(filepath.Join(cache, "results"), 0o700); err != nil {
		n.T.Fatal(err)
	}
	write(n.T, filepath.Join(cache, "results", network+"-"+container+"-"+ifName), text)
}

// Pods that started without podmark are told by whatever is asked, while podmarkd sees them, and
// else that nobody does.
func TestCoverageUnmarked(t *testing.T) {
	p := newPatient(t, nftables, 1)
	cache := t.TempDir()
	p.cached(cache, "net", "container-1", "eth0", "web-1")
	p.cached(cache, "other", "old", "eth0", "old")
	said := func() map[string]string {
		t.Helper()
		return map[string]string{
			"apply": p.ctlIn(webPolicy, "apply", "-f", "-").ok(t).Stdout, "list": p.ctl("list").ok(t).Stdout, "status": p.ctl("status").ok(t).Stdout,
		}
	}
	says := func(words string) {
		t.Helper()
		for verb, text := range said() {
			if !strings.Contains(text, words) {
				t.Errorf("%s does not say %q: %s", verb, words, text)
			}
		}
	}
	says("1 of 1 pods policed" + unseen + "\n")
	d := p.podmarkd("--cni-cache-dir", cache)
	const open = "1 of 2 pods policed, 1 unpoliced because it started without podmark (default/old)\n"
	p.eventually("podmarkd has seen it", func() bool { return strings.Contains(p.ctl("status").ok(t).Stdout, open) })
	says(open)
	var list []map[string]any
	if err := json.Unmarshal([]byte(p.ctl("list", "-o", "json").ok(t).Stdout), &list); err != nil {
		t.Fatal(err)
	}
	if len(list) != 2 || list[0]["id"] != 2. || list[1]["id"] != nil || list[1]["pod"] != "old" || list[1]["unpolicedBecause"] != "unmarked" {
		t.Errorf("%v", list)
	}
	for _, verb := range [][]string{{"apply", "-f", "-"}, {"status"}} {
		var got struct{ Coverage struct{ Pods, Policed int } }
		if err := json.Unmarshal([]byte(p.ctlIn(webPolicy, append(verb, "-o", "json")...).ok(t).Stdout), &got); err != nil || got.Coverage.Pods != 2 || got.Coverage.Policed != 1 {
			t.Errorf("%s: %+v, %v", verb[0], got, err)
		}
	}
	d.Kill()
	says("1 of 1 pods policed" + unseen + "\n")
	p.podmarkd() // which is told to read no cache
	says("1 of 1 pods policed; pods that started without podmark are not known: podmarkd has not read the runtime's cache\n")
}

// A pod is marked where its own interface is: not where a further one is, nor less where a further
// one is not, by choice. Multus has that interface made by another network than the runtime calls.
func TestCoverageFurtherNetworks(t *testing.T) {
	p := newPatient(t, nftables, 2)
	cache := t.TempDir()
	p.cached(cache, "net", "container-1", "eth0", "web-1")
	p.cached(cache, "other", "container-1", "net1", "web-1")
	p.cached(cache, "cni-loopback", "container-1", "lo", "web-1")
	p.cached(cache, "multus-cni-network", "container-2", "eth0", "web-2")
	p.ifName = "net1"
	p.addPod(nil)
	p.cached(cache, "other", "container-3", "eth0", "web-3")
	p.cached(cache, "net", "container-3", "net1", "web-3")
	p.cached(cache, "cni-loopback", "container-3", "lo", "web-3")
	p.addPod(nil)
	p.cached(cache, "net", "container-4", "net1", "web-4")
	p.cached(cache, "cni-loopback", "container-4", "lo", "web-4")
	p.podmarkd("--cni-cache-dir", cache)
	const want = "3 of 4 pods policed, 1 unpoliced because it started without podmark (default/web-3)\n"
	p.eventually("podmarkd has seen them", func() bool { return strings.Contains(p.ctl("status").ok(t).Stdout, want) })
}

const deployment = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: shop, namespace: default}
`

// What counts otherwise than it is written is in force, is told on stderr by all that read
// manifests, and is refused with --strict.
func TestNotes(t *testing.T) {
	n := newNode(t, nftables)
	n.addPod(map[string]string{"app": "web"})
	nameless := strings.Replace(webPolicy, ", namespace: default", "", 1)
	tests := []struct {
		name  string
		files map[string]string
		notes [][]string // words of each
	}{
		{"nothing", map[string]string{"a.yaml": webPolicy}, nil},
		{"other kinds", map[string]string{
			"a.yaml": webPolicy + "---" + deployment, "kustomization.yaml": "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [a.yaml]\n",
		}, [][]string{
			{"a.yaml: document 2: apps/v1 Deployment default/shop: ", "passed over"},
			{"kustomization.yaml: document 1: kustomize.config.k8s.io/v1beta1 Kustomization: ", "passed over"},
		}},
		{"no namespace", map[string]string{"a.yaml": nameless}, [][]string{{"a.yaml: document 1: NetworkPolicy default/web: ", `counts as "default"`}}},
		{"host bits", map[string]string{"a.yaml": strings.Replace(webPolicy, "from: [", "from: [{ipBlock: {cidr: 10.10.1.12/24}}, ", 1)}, [][]string{{"a.yaml: document 1: NetworkPolicy default/web: ", "10.10.1.12/24", "10.10.1.0/24"}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n.T = t
			dir := manifests(t, tt.files)
			for _, args := range [][]string{{"render", "-f", dir}, {"explain", "outside", "default/web-1", "--policy", dir}, {"apply", "-f", dir}} {
				o := n.ctl(args...)
				if o.Exit() == 2 || o.Stdout == "" {
					t.Fatalf("%s: exit %d, %s", args[0], o.Exit(), o.Stderr)
				}
				lines := strings.Split(strings.TrimSuffix(o.Stderr, "\n"), "\n")
				if o.Stderr == "" {
					lines = nil
				}
				if len(lines) != len(tt.notes) {
					t.Fatalf("%s says %q, want %d notes", args[0], o.Stderr, len(tt.notes))
				}
				for i, line := range lines {
					for _, word := range append(tt.notes[i], "podmarkctl: note: "+dir) {
						if !strings.Contains(line, word) {
							t.Errorf("%s: note %q does not say %q", args[0], line, word)
						}
					}
				}
				kernel, files := n.kernel(), n.files()
				o = n.ctl(append(args, "--strict")...)
				if len(tt.notes) == 0 {
					if o.Exit() == 2 {
						t.Errorf("%s --strict: %s", args[0], o.Stderr)
					}
					continue
				}
				o.fails(t, tt.notes[0]...)
				if diff := cmp.Diff(files, n.files()) + cmp.Diff(kernel, n.kernel()); diff != "" {
					t.Fatalf("%s --strict changed something:\n%s", args[0], diff)
				}
			}
		})
	}
	if !strings.Contains(n.ctl("render").ok(t).Stdout, "10.10.1.0/24") {
		t.Error("the policy with host bits is not in force")
	}
}

// -n is what kubectl's is.
func TestApplyNamespace(t *testing.T) {
	n := newNode(t, nftables)
	n.addPod(map[string]string{"app": "web"})
	nameless := strings.Replace(webPolicy, ", namespace: default", "", 1)
	isolated := func() bool { return strings.Contains(n.ctl("list").ok(t).Stdout, " default/web\n") }
	n.ctlIn(nameless, "apply", "-f", "-", "-n", "shop").ok(t)
	if isolated() {
		t.Error("a policy of shop isolates a pod of default")
	}
	n.ctlIn(nameless, "apply", "-f", "-", "--namespace", "default").ok(t)
	if !isolated() {
		t.Error("the pod is not isolated")
	}
	before := n.files()
	n.ctlIn(webPolicy, "apply", "-f", "-", "-n", "shop").fails(t, "default/web", `the namespace from the provided object does not match "shop"`)
	n.ctlIn(nameless, "apply", "-f", "-", "-n", "Shop").fails(t, `"Shop"`)
	if diff := cmp.Diff(before, n.files()); diff != "" {
		t.Errorf("it changed something:\n%s", diff)
	}
}

// With -R directories are read as deep as they go, but for those that are hidden, as the kubelet's of
// a ConfigMap.
func TestApplyRecursive(t *testing.T) {
	n := newNode(t, nftables)
	named := func(name string) string { return strings.Replace(webPolicy, "name: web", "name: "+name, 1) }
	dir := manifests(t, map[string]string{"a.yaml": named("a"), "README.md": "x"})
	for directory, name := range map[string]string{"sub": "b", "sub/sub": "c", ".hidden": "a", "..data/x": "a"} {
		if err := os.MkdirAll(filepath.Join(dir, directory), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, directory, "p.json"), named(name))
	}
	if err := os.Symlink(filepath.Join(dir, "a.yaml"), filepath.Join(dir, "sub", "README")); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link[1]")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"-f", dir}, "1 policies"},
		{[]string{"-f", link}, "1 policies"},
		{[]string{"-R", "-f", dir}, "3 policies"},
		{[]string{"--recursive", "-f", link}, "3 policies"},
		{[]string{"-R", "-f", filepath.Join(dir, "sub"), "-f", filepath.Join(dir, "a.yaml")}, "3 policies"},
	} {
		if got := n.ctl(append([]string{"apply"}, tt.args...)...).ok(t).Stdout; !strings.HasPrefix(got, tt.want) {
			t.Errorf("%q: it says %q, want %s", tt.args, got, tt.want)
		}
	}
	if err := os.Symlink(t.TempDir(), filepath.Join(dir, "sub", "elsewhere")); err != nil {
		t.Fatal(err)
	}
	n.ctl("apply", "-R", "-f", dir).fails(t, "sub/elsewhere", "link to a directory")
	n.ctl("apply", "-f", dir).ok(t)
}

// -k reads what kustomize, or else kubectl, makes of a directory, and is nothing where neither is or
// it fails.
func TestApplyKustomize(t *testing.T) {
	n := newNode(t, nftables)
	path := t.TempDir()
	n.Path = path
	apply := func() output { return n.ctl("apply", "-k", "overlay") }
	program := func(name, text string) {
		write(t, filepath.Join(path, name), "#!/bin/sh\n"+text+"\n")
		if err := os.Chmod(filepath.Join(path, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	apply().fails(t, "neither kustomize nor kubectl", "overlay", "-f")
	file := filepath.Join(path, "built.yaml")
	write(t, file, webPolicy+"---"+deployment)
	cat := "while IFS= read -r line; do printf '%s\\n' \"$line\"; done <" + file
	program("kubectl", `[ "$*" = "kustomize -- overlay" ] || exit 3; `+cat)
	for range 2 {
		o := apply()
		if o.Exit() != 0 || !strings.HasPrefix(o.Stdout, "1 policies") || !strings.Contains(o.Stderr, "note: overlay: document 2: apps/v1 Deployment") {
			t.Errorf("exit %d, stdout %q, stderr %q", o.Exit(), o.Stdout, o.Stderr)
		}
		// kustomize goes before kubectl.
		program("kustomize", `[ "$*" = "build -- overlay" ] || exit 3; `+cat)
		program("kubectl", "exit 4")
	}
	before := n.files()
	program("kustomize", cat+"; echo no such resource >&2; exit 1")
	apply().fails(t, "overlay", "no such resource", "exit status 1")
	program("kustomize", ":")
	apply().fails(t, "overlay: no manifest", "--delete")
	if diff := cmp.Diff(before, n.files()); diff != "" {
		t.Errorf("it changed something:\n%s", diff)
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
		{"no policy", namespaces, "-"},
		{"an empty directory", "", empty},
		{"no file", "", "/does/not/exist"},
	} {
		files := n.files()
		checked := n.ctlIn(tt.stdin, "check", "-f", tt.file)
		if diff := cmp.Diff(files, n.files()); diff != "" {
			t.Errorf("%s: it changed something:\n%s", tt.name, diff)
		}
		applied := n.ctlIn(tt.stdin, "apply", "-f", tt.file)
		if checked.Exit() != applied.Exit() || checked.Stderr != applied.Stderr || (checked.Exit() == 0) != (tt.name == "a policy") {
			t.Errorf("%s: check ends with %d, %q, and apply with %d, %q", tt.name, checked.Exit(), checked.Stderr, applied.Exit(), applied.Stderr)
		}
	}
	if o := n.ctlIn(webPolicy, "check", "-f", "-", "-o", "json").ok(t); !strings.Contains(o.Stdout, `"policies": 1`) {
		t.Errorf("%s", o.Stdout)
	}
}
