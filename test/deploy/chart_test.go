package deploy_test

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"

	"github.com/podmark/podmark/pkg/config"
)

// root is the work tree; go test runs tests in their package's directory.
const root = "../.."

func load(t *testing.T) *chart.Chart {
	t.Helper()
	c, err := loader.Load(filepath.Join(root, "conf/helm/podmark"))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// render renders the chart as helm install does, with values in YAML.
func render(t *testing.T, namespace, values string) (objects, error) {
	t.Helper()
	c := load(t)
	given, err := loader.LoadValues(strings.NewReader(values))
	if err != nil {
		t.Fatal(err)
	}
	release := common.ReleaseOptions{Name: "podmark", Namespace: namespace, Revision: 1, IsInstall: true}
	all, err := util.ToRenderValues(c, given, release, common.DefaultCapabilities.Copy())
	if err != nil {
		return nil, err
	}
	files, err := engine.Engine{Strict: true}.RenderWithContext(t.Context(), c, all)
	if err != nil {
		return nil, err
	}
	var text strings.Builder
	for _, name := range slices.Sorted(maps.Keys(files)) {
		text.WriteString("\n---\n" + files[name])
	}
	return decode(t, text.String()), nil
}

func mustRender(t *testing.T, values string) objects {
	t.Helper()
	out, err := render(t, "kube-system", values)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// built builds conf/kustomize as kubectl apply -k does.
func built(t *testing.T) objects {
	t.Helper()
	m, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), filepath.Join(root, "conf/kustomize"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := m.AsYaml()
	if err != nil {
		t.Fatal(err)
	}
	return decode(t, string(b))
}

// objects are Kubernetes objects by kind and name.
type objects map[string]runtime.Object

// decode refuses fields that the API does not have.
func decode(t *testing.T, text string) objects {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{appsv1.AddToScheme, corev1.AddToScheme, rbacv1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	decoder := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
	out := objects{}
	for document := range strings.SplitSeq(text, "\n---\n") {
		if strings.TrimSpace(document) == "" {
			continue
		}
		object, kind, err := decoder.Decode([]byte(document), nil, nil)
		if err != nil {
			t.Fatalf("%v in:\n%s", err, document)
		}
		named, ok := object.(interface{ GetName() string })
		if !ok {
			t.Fatalf("a %v has no name", kind)
		}
		key := kind.Kind + " " + named.GetName()
		if out[key] != nil {
			t.Fatalf("%s is there twice", key)
		}
		out[key] = object
	}
	return out
}

func of[T runtime.Object](t *testing.T, o objects, key string) T {
	t.Helper()
	out, ok := o[key].(T)
	if !ok {
		t.Fatalf("%s is %T, want %T", key, o[key], out)
	}
	return out
}

func container(t *testing.T, o objects) corev1.Container {
	t.Helper()
	return of[*appsv1.DaemonSet](t, o, "DaemonSet podmarkd").Spec.Template.Spec.Containers[0]
}

// Who takes the chart and who takes kustomize gets the same.
func TestChartIsBase(t *testing.T) {
	if diff := cmp.Diff(built(t), mustRender(t, "")); diff != "" {
		t.Errorf("kustomize (-) and chart (+):\n%s", diff)
	}
}

// The rights that plugins/podmarkd proves to be enough, and how the pod is to be treated.
func TestPod(t *testing.T) {
	d := of[*appsv1.DaemonSet](t, built(t), "DaemonSet podmarkd")
	pod := d.Spec.Template.Spec
	if pod.PriorityClassName != "system-node-critical" || !slices.Equal(pod.Tolerations, []corev1.Toleration{{Operator: corev1.TolerationOpExists}}) {
		t.Errorf("%s, %+v: not on every node, or not before others", pod.PriorityClassName, pod.Tolerations)
	}
	if !pod.HostNetwork || pod.HostPID || pod.HostIPC || pod.DNSPolicy != "" {
		t.Errorf("of the node: network %t, processes %t, IPC %t", pod.HostNetwork, pod.HostPID, pod.HostIPC)
	}
	if pod.TerminationGracePeriodSeconds == nil || *pod.TerminationGracePeriodSeconds > 30 {
		t.Error("it would be waited for")
	}
	if u := d.Spec.UpdateStrategy; u.Type != appsv1.RollingUpdateDaemonSetStrategyType || u.RollingUpdate.MaxUnavailable == nil {
		t.Errorf("%+v", u)
	}
	c := pod.Containers[0]
	s := c.SecurityContext
	if *s.Privileged || *s.AllowPrivilegeEscalation || !*s.ReadOnlyRootFilesystem || s.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault ||
		!slices.Equal(s.Capabilities.Add, []corev1.Capability{"NET_ADMIN"}) {
		t.Errorf("rights: %+v", s)
	}
	for name, p := range map[string]*corev1.Probe{"liveness": c.LivenessProbe, "readiness": c.ReadinessProbe} {
		if p == nil || !slices.Contains(c.Args, fmt.Sprintf("--listen=%s:%d", p.HTTPGet.Host, p.HTTPGet.Port.IntValue())) {
			t.Errorf("%s asks where nothing listens: %+v, %q", name, p, c.Args)
		}
	}
	// What podmarkd needs at most, and a third of that besides; see docs/performance.md.
	const most = 144 << 20
	if limit := c.Resources.Limits.Memory().Value(); limit*3 < most*4 {
		t.Errorf("the limit is %d bytes, and %d may be needed", limit, most)
	}
	if !slices.ContainsFunc(c.Env, func(e corev1.EnvVar) bool {
		return e.Name == "GOMEMLIMIT" && e.ValueFrom != nil && e.ValueFrom.ResourceFieldRef != nil && e.ValueFrom.ResourceFieldRef.Resource == "limits.memory"
	}) {
		t.Errorf("podmarkd does not know its limit: %+v", c.Env)
	}
	if c.Resources.Requests.Cpu().IsZero() || c.Resources.Requests.Memory().IsZero() || c.Resources.Limits.Memory().IsZero() {
		t.Errorf("%+v", c.Resources)
	}
}

// Every value does what it says.
func TestValues(t *testing.T) {
	args := func(t *testing.T, values string, want ...string) {
		t.Helper()
		got := container(t, mustRender(t, values)).Args
		for _, w := range want {
			if !slices.Contains(got, w) {
				t.Errorf("%s: arguments %q, want %q", values, got, w)
			}
		}
	}
	args(t, "metrics: {port: 9999, expose: true}", "--listen=:9999")
	args(t, "args: [--node-port-mode=range]", "--node-port-mode=range")

	entry := entryOf(t, mustRender(t, "{iptablesMarkMask: '0x00ff0000', kubeNodePortRanges: [30080, '31000:31999'], backend: nftables, policy: files}"))
	want := map[string]any{"type": "podmark", "iptablesMarkMask": "0x00ff0000", "kubeNodePortRanges": []any{30080.0, "31000:31999"}, "backend": "nftables", "policy": "files"}
	if diff := cmp.Diff(want, entry); diff != "" {
		t.Errorf("entry:\n%s", diff)
	}

	entry = entryOf(t, mustRender(t, "{policy: kubernetes, failOpen: true, iptablesMarkMask: auto, markCollision: warn}"))
	if entry["policy"] != "kubernetes" || entry["failOpen"] != true || entry["iptablesMarkMask"] != "auto" || entry["markCollision"] != "warn" {
		t.Errorf("entry %v", entry)
	}

	o := mustRender(t, "{backend: iptables, seLinuxOptions: {type: spc_t}, image: {repository: example.test/podmark, tag: v1}, imagePullSecrets: [{name: s}]}")
	c := container(t, o)
	if c.Image != "example.test/podmark:v1" || c.SecurityContext.SELinuxOptions.Type != "spc_t" {
		t.Errorf("%s, %+v", c.Image, c.SecurityContext.SELinuxOptions)
	}
	mounted := slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.MountPath == "/run/xtables.lock" })
	if got := c.SecurityContext.Capabilities.Add; !mounted || !slices.Equal(got, []corev1.Capability{"NET_ADMIN", "NET_RAW"}) {
		t.Errorf("iptables has %q, and the lock: %t", got, mounted)
	}
	pod := of[*appsv1.DaemonSet](t, o, "DaemonSet podmarkd").Spec.Template.Spec
	if len(pod.ImagePullSecrets) != 1 {
		t.Errorf("%+v", pod.ImagePullSecrets)
	}

	c = container(t, mustRender(t, "{runtimeSocket: /run/k3s/containerd/containerd.sock, cniConfName: 10-a.conflist}"))
	socket := slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.MountPath == "/run/k3s/containerd" && m.ReadOnly })
	if !socket || !slices.Contains(c.Args, "--runtime-endpoint=/run/k3s/containerd/containerd.sock") || !slices.Contains(c.Args, "--cni-conf-name=10-a.conflist") {
		t.Errorf("the socket is mounted: %t, args %q", socket, c.Args)
	}

	pod = of[*appsv1.DaemonSet](t, mustRender(t, "{uninstall: true, cniConfDir: /etc/c, cniBinDir: /opt/b, nodeSelector: {a: b}, tolerations: [], priorityClassName: p, resources: {limits: {memory: 1Gi}}}"), "DaemonSet podmarkd").Spec.Template.Spec
	var paths []string
	for _, v := range pod.Volumes {
		if v.HostPath != nil {
			paths = append(paths, v.HostPath.Path)
		}
	}
	if !slices.Equal(paths, []string{"/run/podmark", "/etc/c", "/opt/b", "/var/lib/cni", "/var/run/netns", "/sys/fs/bpf"}) {
		t.Errorf("directories %q", paths)
	}
	if pod.NodeSelector["a"] != "b" || len(pod.Tolerations) != 0 || pod.PriorityClassName != "p" || pod.Containers[0].Resources.Limits.Memory().String() != "1Gi" {
		t.Errorf("%+v", pod)
	}
	directories := []string{"--cni-conf-dir=/etc/c", "--cni-bin-dir=/opt/b", "--runtime-endpoint="}
	// The same container, but for what it runs: first it uninstalls, then podmarkd is one to which
	// nothing is missing. TestContainedUninstall runs both.
	first, then := pod.InitContainers[0], pod.Containers[0]
	at := func(name string) string {
		return first.VolumeMounts[slices.IndexFunc(first.VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == name })].MountPath
	}
	if at("cni-conf") != "/etc/c" || at("cni-bin") != "/opt/b" || slices.ContainsFunc(directories, func(f string) bool { return !slices.Contains(first.Args, f) }) {
		t.Errorf("directories at %s and %s, args %q", at("cni-conf"), at("cni-bin"), first.Args)
	}
	if first.Command[1] != "uninstall" || !slices.Equal(then.Args, []string{"--cni-conf-dir=", "--listen=127.0.0.1:9469"}) {
		t.Errorf("%q, then %q", first.Command, then.Args)
	}
	if diff := cmp.Diff(then.VolumeMounts, first.VolumeMounts) + cmp.Diff(then.SecurityContext, first.SecurityContext); diff != "" {
		t.Error(diff)
	}
}

// In another namespace the role for kube-apiserver's pods stays where these are.
func TestNamespace(t *testing.T) {
	o, err := render(t, "podmark", "policy: kubernetes")
	if err != nil {
		t.Fatal(err)
	}
	if role := of[*rbacv1.Role](t, o, "Role podmarkd"); role.Namespace != "kube-system" {
		t.Errorf("the role is in %s", role.Namespace)
	}
	for _, subjects := range [][]rbacv1.Subject{
		of[*rbacv1.RoleBinding](t, o, "RoleBinding podmarkd").Subjects, of[*rbacv1.ClusterRoleBinding](t, o, "ClusterRoleBinding podmarkd").Subjects,
		of[*rbacv1.ClusterRoleBinding](t, o, "ClusterRoleBinding podmarkd-policies").Subjects,
	} {
		if len(subjects) != 1 || subjects[0].Namespace != "podmark" {
			t.Errorf("%+v", subjects)
		}
	}
	if d := of[*appsv1.DaemonSet](t, o, "DaemonSet podmarkd"); d.Namespace != "podmark" {
		t.Errorf("the DaemonSet is in %s", d.Namespace)
	}
}

// Wrong values are refused, by name.
func TestWrongValues(t *testing.T) {
	for values, word := range map[string]string{
		"iptablesMarkMask: 16711680":      "iptablesMarkMask", // YAML numbers lose digits
		"iptablesMarkMask: ffff0000":      "iptablesMarkMask",
		"iptablesMarkMask: automatic":     "iptablesMarkMask",
		"markCollision: ignore":           "markCollision",
		"backend: ebpf":                   "backend",
		"policy: api":                     "policy",
		"{failOpen: true, policy: files}": "policy",
		"kubeNodePortRanges: all":         "kubeNodePortRanges",
		"image: {name: podmark}":          "name",
		"metrics: {port: 0}":              "port",
		"args: [node-port-mode]":          "args",
		"tolerations: all":                "tolerations",
		"args: ['--interval=0']":          "args",
		"args: ['--interval=50ms']":       "args",
		"args: ['--collect-after=-5m']":   "args",
		"args: [interval]":                "args",
		"backends: auto":                  "backends",
	} {
		if _, err := render(t, "kube-system", values); err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%s: %v, want an error with %s", values, err, word)
		}
	}
}

// The chart refuses what the plugin would refuse, before there is a pod that cannot start.
func TestChartJudgesAsPlugin(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	port := func() string {
		return strconv.Itoa(random.IntN([]int{12, 1000, 70000}[random.IntN(3)]))
	}
	for range 150 {
		mask := fmt.Sprintf("0x%x", []uint32{random.Uint32(), random.Uint32() &^ 0xc000, 1 << random.IntN(32), 0, random.Uint32() & 0xfff}[random.IntN(5)])
		ports := port()
		if random.IntN(2) == 0 {
			ports += []string{":", "-"}[random.IntN(2)] + port()
		}
		for key, value := range map[string]any{"iptablesMarkMask": mask, "kubeNodePortRanges": []any{ports}} {
			values, err := json.Marshal(map[string]any{key: value})
			if err != nil {
				t.Fatal(err)
			}
			_, refused := config.ParseEntry(values, "net", "1.0.0")
			if _, err := render(t, "kube-system", string(values)); (err != nil) != (refused != nil) {
				t.Errorf("%s: the chart says %v, and the plugin %v", values, err, refused)
			}
		}
	}
}

// The schema knows the values that there are.
func TestSchema(t *testing.T) {
	var schema struct {
		Properties map[string]struct {
			Properties map[string]any
			Enum       []config.Backend
		}
	}
	c := load(t)
	if err := json.Unmarshal(c.Schema, &schema); err != nil {
		t.Fatal(err)
	}
	delete(schema.Properties, "global") // Helm's
	var known, there []string
	for key, p := range schema.Properties {
		known = append(known, key)
		for inner := range p.Properties {
			known = append(known, key+"."+inner)
		}
	}
	for key, value := range c.Values {
		there = append(there, key)
		if inner, ok := value.(map[string]any); ok && schema.Properties[key].Properties != nil {
			for k := range inner {
				there = append(there, key+"."+k)
			}
		}
	}
	slices.Sort(known)
	slices.Sort(there)
	if diff := cmp.Diff(known, there); diff != "" {
		t.Errorf("values.schema.json (-) and values.yaml (+):\n%s", diff)
	}
	if diff := cmp.Diff(config.Backends, schema.Properties["backend"].Enum); diff != "" {
		t.Errorf("the plugin's backends (-) and the schema's (+):\n%s", diff)
	}
}

// entryOf is the entry in the ConfigMap.
func entryOf(t *testing.T, o objects) map[string]any {
	t.Helper()
	entry := map[string]any{}
	data := of[*corev1.ConfigMap](t, o, "ConfigMap podmarkd").Data["entry.json"]
	if err := json.Unmarshal([]byte(data), &entry); err != nil {
		t.Fatalf("%v in\n%s", err, data)
	}
	return entry
}

// The entry says the plugin's defaults, and polices: nobody gets podmark and no policy unasked.
func TestEntry(t *testing.T) {
	entry := entryOf(t, built(t))
	entry["name"] = "net"
	b, err := json.Marshal(entry)
	if err != nil {
		t.Fatal(err)
	}
	got, err := config.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	want, err := config.Parse([]byte(`{"name": "net", "type": "podmark", "policy": "kubernetes"}`))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", want); got != want {
		t.Errorf("the entry means\n%s\nand the defaults are\n%s", got, want)
	}
}

// Nothing in conf goes unread: each of its files is one that some test knows.
func TestEveryFileIsRead(t *testing.T) {
	known := []string{
		"Dockerfile", "podmarkd.service", "podmarkd-iptables.conf", "*.conflist", "policies/*", "dashboards/*", "alerts/*", "kustomize/*",
		"helm/podmark/*", "helm/podmark/templates/*",
	}
	dir := filepath.Join(root, "conf")
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if !slices.ContainsFunc(known, func(pattern string) bool { ok, _ := filepath.Match(pattern, name); return ok }) {
			t.Errorf("no test reads conf/%s", name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
