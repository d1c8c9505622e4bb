package nodeports_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/podmark/podmark/pkg/agent"
	"github.com/podmark/podmark/pkg/agent/nodeports"
	"github.com/podmark/podmark/pkg/desired"
)

// ranges makes ranges of pairs of ports.
func ranges(ports ...uint16) []desired.PortRange {
	out := []desired.PortRange{}
	for i := 0; i < len(ports); i += 2 {
		out = append(out, desired.PortRange{First: ports[i], Last: ports[i+1]})
	}
	return out
}

// compare compares what a parser returned; wantErr is a part of its error, empty for none.
func compare(t *testing.T, want, got any, wantErr string, err error) {
	t.Helper()
	switch {
	case err == nil && wantErr != "":
		t.Errorf("got no error, want one with %q", wantErr)
	case err != nil && (wantErr == "" || !strings.Contains(err.Error(), wantErr)):
		t.Errorf("got error %q, want %q", err, wantErr)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestParseConfig(t *testing.T) {
	for name, tt := range map[string]struct {
		data string
		want nodeports.Config
		err  string
	}{
		"empty":            {},
		"only a comment":   {data: "# nothing\n"},
		"another key":      {data: "interval: 10s\n", err: `"interval"`},
		"misspelt":         {data: "nodePortRange: [1]\n", err: `"nodePortRange"`},
		"a key twice":      {data: "nodePortMode: exact\nnodePortMode: range\n", err: "nodePortMode"},
		"null":             {data: "nodePortRanges:\n"},
		"none at all":      {data: "nodePortRanges: []\n", want: nodeports.Config{Ranges: ranges()}},
		"numbers, ranges":  {data: "nodePortRanges: [80, '81', \"100-200\", 30000:32767]\nnodePortMode: range\n", want: nodeports.Config{Ranges: ranges(80, 80, 81, 81, 100, 200, 30000, 32767), Mode: agent.PortsRange}},
		"mode alone":       {data: "nodePortMode: exact\n", want: nodeports.Config{Mode: agent.PortsExact}},
		"JSON":             {data: `{"nodePortRanges":["1-2"]}`, want: nodeports.Config{Ranges: ranges(1, 2)}},
		"unknown mode":     {data: "nodePortMode: both\n", err: `nodePortMode "both"`},
		"no list":          {data: "nodePortRanges: 30000-32767\n", err: "nodePortRanges"},
		"port 0":           {data: "nodePortRanges: [1, 0]\n", err: "nodePortRanges[1]"},
		"too high":         {data: "nodePortRanges: [65536]\n", err: "nodePortRanges[0]"},
		"reversed":         {data: "nodePortRanges: [5-4]\n", err: "nodePortRanges[0]"},
		"no whole number":  {data: "nodePortRanges: [1.5]\n", err: "nodePortRanges[0]"},
		"a list in it":     {data: "nodePortRanges: [[1]]\n", err: "nodePortRanges[0]"},
		"null in it":       {data: "nodePortRanges: [null]\n", err: "nodePortRanges[0]"},
		"not YAML":         {data: "nodePortRanges: [", err: "reading YAML"},
		"no object":        {data: "- 1\n", err: "reading YAML"},
		"half of it wrong": {data: "nodePortRanges: [1]\nnodePortMode: 7\n", err: `nodePortMode "7"`},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := nodeports.ParseConfig([]byte(tt.data))
			compare(t, tt.want, got, tt.err, err)
		})
	}
}

// felixObject reads one as a dynamic client does.
func felixObject(t *testing.T, text string) *unstructured.Unstructured {
	t.Helper()
	data, err := yaml.YAMLToJSON([]byte("apiVersion: crd.projectcalico.org/v1\nkind: FelixConfiguration\nmetadata: {name: default}\n" + text))
	if err != nil {
		t.Fatal(err)
	}
	u := &unstructured.Unstructured{}
	if err := u.UnmarshalJSON(data); err != nil {
		t.Fatal(err)
	}
	return u
}

func TestParseFelix(t *testing.T) {
	mask := func(m uint32) *uint32 { return &m }
	for name, tt := range map[string]struct {
		data string
		want nodeports.FelixConfiguration
		err  string
	}{
		"no spec":               {},
		"nothing of ours":       {data: "spec: {logSeverityScreen: Info}"},
		"ranges":                {data: "spec: {kubeNodePortRanges: [8080, '30000:32767']}", want: nodeports.FelixConfiguration{Ranges: ranges(8080, 8080, 30000, 32767), Name: "default"}},
		"no range in the list":  {data: "spec: {kubeNodePortRanges: []}"},
		"null":                  {data: "spec: {kubeNodePortRanges: null, iptablesMarkMask: null}"},
		"mask":                  {data: "spec: {iptablesMarkMask: 0xff000000}", want: nodeports.FelixConfiguration{Mask: mask(0xff000000)}},
		"mask as text":          {data: "spec: {iptablesMarkMask: '0xff'}", want: nodeports.FelixConfiguration{Mask: mask(0xff)}},
		"mask of too many bits": {data: "spec: {iptablesMarkMask: 0x1ff000000, kubeNodePortRanges: [1]}", want: nodeports.FelixConfiguration{Ranges: ranges(1, 1), Name: "default"}, err: "iptablesMarkMask"},
		"nftables": {
			data: "spec: {nftablesMode: Enabled, nftablesMarkMask: 4294901760, iptablesMarkMask: 0xff}",
			want: nodeports.FelixConfiguration{Mask: mask(0xffff0000)},
		},
		"nftables, whatever the case": {data: "spec: {nftablesMode: enabled, nftablesMarkMask: 0xff}", want: nodeports.FelixConfiguration{Mask: mask(0xff)}},
		"nftables, another mask":      {data: "spec: {nftablesMode: Enabled, iptablesMarkMask: 0xff}"},
		"nftables is off":             {data: "spec: {nftablesMode: Disabled, nftablesMarkMask: 0xff, iptablesMarkMask: 0xff00}", want: nodeports.FelixConfiguration{Mask: mask(0xff00)}},
		"nftables, not told":          {data: "spec: {nftablesMode: Auto, nftablesMarkMask: 0xff, iptablesMarkMask: 0xff00}", want: nodeports.FelixConfiguration{Mask: mask(0xff00)}},
		"nftables by default":         {data: "spec: {nftablesMarkMask: 0xff}"},
		"nftables, wrong":             {data: "spec: {nftablesMode: Enabled, nftablesMarkMask: x, iptablesMarkMask: 0xff}", err: "nftablesMarkMask"},
		"mode of another kind":        {data: "spec: {nftablesMode: 7, iptablesMarkMask: 0xff}", want: nodeports.FelixConfiguration{Mask: mask(0xff)}},
		"mask below 0":                {data: "spec: {iptablesMarkMask: -1}", err: "iptablesMarkMask"},
		"named port":                  {data: "spec: {kubeNodePortRanges: [http], iptablesMarkMask: 255}", want: nodeports.FelixConfiguration{Mask: mask(255)}, err: "kubeNodePortRanges[0]"},
		"no list":                     {data: "spec: {kubeNodePortRanges: '30000:32767'}", err: "want a list"},
		"fraction":                    {data: "spec: {kubeNodePortRanges: [1.5]}", err: "kubeNodePortRanges[0]"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := nodeports.ParseFelix(felixObject(t, tt.data))
			compare(t, tt.want, got, tt.err, err)
		})
	}
}

// What a node's own object says takes the place of what holds for all, key by key.
func TestParseFelixOfNode(t *testing.T) {
	mask := func(m uint32) *uint32 { return &m }
	const all = "spec: {kubeNodePortRanges: [1], iptablesMarkMask: 0xff, nftablesMarkMask: 0xff00}"
	for name, tt := range map[string]struct {
		all, own string
		want     nodeports.FelixConfiguration
		err      string
	}{
		"nothing of its own": {all: all, own: "spec: {logSeverityScreen: Info}", want: nodeports.FelixConfiguration{Ranges: ranges(1, 1), Name: "default", Mask: mask(0xff)}},
		"null":               {all: all, own: "spec: {iptablesMarkMask: null}", want: nodeports.FelixConfiguration{Ranges: ranges(1, 1), Name: "default", Mask: mask(0xff)}},
		"a mask":             {all: all, own: "spec: {iptablesMarkMask: 0xf0}", want: nodeports.FelixConfiguration{Ranges: ranges(1, 1), Name: "default", Mask: mask(0xf0)}},
		"ranges":             {all: all, own: "spec: {kubeNodePortRanges: [2]}", want: nodeports.FelixConfiguration{Ranges: ranges(2, 2), Name: "node.a", Mask: mask(0xff)}},
		"the mode":           {all: all, own: "spec: {nftablesMode: Enabled}", want: nodeports.FelixConfiguration{Ranges: ranges(1, 1), Name: "default", Mask: mask(0xff00)}},
		"all of its own":     {own: "spec: {nftablesMode: Enabled, nftablesMarkMask: 0xf}", want: nodeports.FelixConfiguration{Mask: mask(0xf)}},
		"a wrong one":        {all: all, own: "spec: {iptablesMarkMask: x}", want: nodeports.FelixConfiguration{Ranges: ranges(1, 1), Name: "default"}, err: "iptablesMarkMask"},
	} {
		t.Run(name, func(t *testing.T) {
			own := felixObject(t, tt.own)
			own.SetName("node.a")
			var whole *unstructured.Unstructured
			if tt.all != "" {
				whole = felixObject(t, tt.all)
			}
			got, err := nodeports.ParseFelix(whole, own)
			compare(t, tt.want, got, tt.err, err)
		})
	}
}

func TestParseArguments(t *testing.T) {
	given := func(first, last uint16) *nodeports.APIServer {
		return &nodeports.APIServer{Range: desired.PortRange{First: first, Last: last}}
	}
	byDefault := given(30000, 32767)
	byDefault.ByDefault = true
	const binary, etcd = "/usr/local/bin/kube-apiserver", "--etcd-servers=https://127.0.0.1:2379"
	for name, tt := range map[string]struct {
		command []string
		want    *nodeports.APIServer
		err     string
	}{
		"nothing":                {},
		"with =":                 {command: []string{binary, "--service-node-port-range=20000-22767"}, want: given(20000, 22767)},
		"two words":              {command: []string{binary, "--service-node-port-range", "20000-22767"}, want: given(20000, 22767)},
		"underscores":            {command: []string{binary, "--service_node_port_range=1-2"}, want: given(1, 2)},
		"from and how many":      {command: []string{binary, "--service-node-port-range=100+9"}, want: given(100, 109)},
		"one port":               {command: []string{binary, "--service-node-port-range=100"}, want: given(100, 100)},
		"from 0":                 {command: []string{binary, "--service-node-port-range=0-10"}, want: given(1, 10)},
		"the last one counts":    {command: []string{binary, "--service-node-port-range=1-2", "--service-node-port-range=3-4"}, want: given(3, 4)},
		"in a shell":             {command: []string{"/bin/sh", "-c", "exec " + binary + " " + etcd + " --service-node-port-range='5-6' 1>>/var/log/kube-apiserver.log 2>&1"}, want: given(5, 6)},
		"in a shell, all quoted": {command: []string{"/bin/sh", "-c", `"` + binary + `" "--service-node-port-range=5-6"`}, want: given(5, 6)},
		"behind another program": {command: []string{"/go-runner", "--log-file=/var/log/kube-apiserver.log", binary, etcd}, want: byDefault},
		"by default":             {command: []string{"kube-apiserver", etcd}, want: byDefault},
		"empty is the default":   {command: []string{"kube-apiserver", etcd, "--service-node-port-range="}, want: byDefault},
		"only mentioned":         {command: []string{"tail", "-f", "/var/log/kube-apiserver"}},
		"another program":        {command: []string{"etcd-backup", etcd}},
		"flag without a value":   {command: []string{binary, "--service-node-port-range"}},
		"a longer flag":          {command: []string{binary, "--service-node-port-range-of-old=1-2"}},
		"variable":               {command: []string{binary, "--service-node-port-range=$(RANGE)"}, err: `"$(RANGE)"`},
		"reversed":               {command: []string{binary, "--service-node-port-range=5-4"}, err: `"5-4"`},
		"too high":               {command: []string{binary, "--service-node-port-range=1-65536"}, err: "65535"},
		"port 0 alone":           {command: []string{binary, "--service-node-port-range=0"}, err: "1 to 65535"},
		"below 0":                {command: []string{binary, "--service-node-port-range=5+-9"}, err: `"5+-9"`},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := nodeports.ParseArguments(tt.command)
			compare(t, tt.want, got, tt.err, err)
		})
	}
}

// kubeadm is a manifest as kubeadm writes it, in short.
const kubeadm = `apiVersion: v1
kind: Pod
metadata:
  annotations:
    kubeadm.kubernetes.io/kube-apiserver.advertise-address.endpoint: 192.0.2.1:6443
  labels:
    component: kube-apiserver
    tier: control-plane
  name: kube-apiserver
  namespace: kube-system
spec:
  containers:
  - command:
    - kube-apiserver
    - --advertise-address=192.0.2.1
    - --etcd-servers=https://127.0.0.1:2379
    - --service-cluster-ip-range=10.96.0.0/12
    image: registry.k8s.io/kube-apiserver:v1.34.0
    name: kube-apiserver
    livenessProbe:
      httpGet:
        path: /livez
        port: probe-port
  hostNetwork: true
  priorityClassName: system-node-critical
status: {}
`

// withFlag is the manifest with one more argument.
func withFlag(portRange string) string {
	return strings.Replace(kubeadm, "    image:", "    - --service-node-port-range="+portRange+"\n    image:", 1)
}

func TestParseManifest(t *testing.T) {
	defaultServer := &nodeports.APIServer{Range: desired.PortRange{First: 30000, Last: 32767}, ByDefault: true}
	for name, tt := range map[string]struct {
		data string
		want *nodeports.APIServer
		err  string
	}{
		"empty":              {},
		"kubeadm's":          {data: kubeadm, want: defaultServer},
		"with a flag":        {data: withFlag("20000-22767"), want: &nodeports.APIServer{Range: desired.PortRange{First: 20000, Last: 22767}}},
		"JSON, in args":      {data: `{"kind":"Pod","spec":{"containers":[{"name":"log"},{"name":"a","command":["kube-apiserver"],"args":["--service-node-port-range=1-2"]}]}}`, want: &nodeports.APIServer{Range: desired.PortRange{First: 1, Last: 2}}},
		"another pod":        {data: strings.NewReplacer("- kube-apiserver", "- kube-scheduler").Replace(kubeadm)},
		"no pod":             {data: strings.Replace(kubeadm, "kind: Pod", "kind: Job", 1)},
		"not YAML":           {data: "kube-apiserver: [", err: "reading YAML"},
		"half written":       {data: kubeadm[:strings.Index(kubeadm, "    - --adv")] + "    - \"--", err: "reading YAML"},
		"an unusual range":   {data: withFlag("many"), err: `container "kube-apiserver"`},
		"not for Kubernetes": {data: "[", want: nil},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := nodeports.ParseManifest([]byte(tt.data))
			compare(t, tt.want, got, tt.err, err)
		})
	}
}

// A pod that has ended serves nobody.
func TestParsePodEnded(t *testing.T) {
	pod := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Command: []string{"kube-apiserver", "--service-node-port-range=1-2"}}}}}
	for phase, serves := range map[corev1.PodPhase]bool{corev1.PodRunning: true, corev1.PodPending: true, corev1.PodFailed: false, corev1.PodSucceeded: false} {
		pod.Status.Phase = phase
		got, err := nodeports.ParsePod(pod)
		if err != nil || (got != nil) != serves {
			t.Errorf("%s: got %v, %v", phase, got, err)
		}
	}
}

func TestOptions(t *testing.T) {
	ports := []desired.Port{{Protocol: desired.TCP, PortRange: desired.PortRange{First: 30080, Last: 30080}}}
	for name, tt := range map[string]struct {
		facts nodeports.Facts
		want  agent.PortOptions
	}{
		"nobody says anything": {want: agent.PortOptions{Mode: agent.PortsExact}},
		"the first counts": {
			facts: nodeports.Facts{Mode: agent.PortsRange, Ranges: []nodeports.Stated{{nodeports.File, "/etc/x", ranges(1, 2)}, {nodeports.Felix, "default", ranges(3, 4)}}},
			want:  agent.PortOptions{Mode: agent.PortsRange, Ranges: ranges(1, 2), Source: "configuration file /etc/x"},
		},
		"there are none": {
			facts: nodeports.Facts{Ranges: []nodeports.Stated{{Source: nodeports.Flag, Ranges: ranges()}}, Services: nodeports.Services{Listed: true, Ports: ports}},
			want:  agent.PortOptions{Mode: agent.PortsExact, Ranges: ranges(), Source: "--node-port-ranges", Services: ports},
		},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, tt.facts.Options()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
