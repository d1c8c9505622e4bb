package cluster_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/podmark/podmark/test/lab"
	"github.com/podmark/podmark/test/wait"
)

// running is what the API has of a pod that was attached.
func running(p *lab.Pod, labels map[string]string) lab.Manifest {
	return lab.Manifest{
		Namespace: p.Spec.Namespace, Name: p.Spec.Name, Labels: labels, NodeName: lab.NodeName, Phase: "Running", Addresses: addresses(p),
	}
}

func namespace(name, more string) string {
	return fmt.Sprintf("---\n{apiVersion: v1, kind: Namespace, metadata: {name: %s%s}}\n", name, more)
}

// A named port is another number in each pod, of the protocol that the policy says, in
// whatever container it is.
func TestNamedPorts(t *testing.T) {
	onNode(t, func(t *testing.T, k *lab.Kubernetes) {
		k.Apply(namespace("default", ""))
		k.Apply(policy("web", "web", "policyTypes: [Ingress], ingress: [{ports: [{port: http}]}]"))
		k.Apply(policy("client", "client", "policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: http}]}]"))
		client := k.RunPod(lab.Manifest{Name: "client", Labels: app("client")})
		named := func(number int, protocol string) []map[string]any {
			return []map[string]any{{"name": "http", "containerPort": number, "protocol": protocol}}
		}
		one := k.RunPod(lab.Manifest{Name: "one", Labels: app("web"), Ports: named(8081, "TCP")})
		two := k.RunPod(lab.Manifest{Name: "two", Labels: app("web"), More: map[string]any{
			"initContainers": []any{map[string]any{"name": "sidecar", "restartPolicy": "Always", "ports": named(8082, "TCP")}},
		}})
		udp := k.RunPod(lab.Manifest{Name: "udp", Labels: app("web"), Ports: named(8081, "UDP")})
		for _, p := range []*lab.Pod{one, two, udp} {
			p.Listen(lab.TCP, 8081)
			p.Listen(lab.TCP, 8082)
		}
		for _, f := range lab.Families {
			for _, tt := range []struct {
				to   *lab.Pod
				port uint16
				want lab.Outcome
			}{{one, 8081, lab.OK}, {one, 8082, lab.Blocked}, {two, 8082, lab.OK}, {two, 8081, lab.Blocked}, {udp, 8081, lab.Blocked}} {
				k.Eventually(fmt.Sprintf("port %d of %s", tt.port, tt.to.Spec.Name), client.NS, lab.Request{Protocol: lab.TCP, To: tt.to.At(f, tt.port)}, tt.want)
			}
		}
	})
}

// Who is no pod is nobody's peer by a selector: the node's addresses, with which pods of
// the host's network speak, and a pod that has ended, whose address another one has now.
// A pod that is about to end is one until then.
func TestWhoIsAPeer(t *testing.T) {
	onNode(t, func(t *testing.T, k *lab.Kubernetes) {
		k.Apply(namespace("default", ""))
		k.Apply(policy("web", "web", "policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]"))
		web := k.RunPod(lab.Manifest{Name: "web", Labels: app("web")})
		web.Listen(lab.TCP, port)
		far := k.AddHost("far", "10.2.0.1/24", "fd00:10:2::1/64")
		to := lab.Request{Protocol: lab.TCP, To: web.At(lab.V4, port)}
		elsewhere := func(name, label, phase string, more map[string]any) {
			k.Put(lab.Manifest{Name: name, Labels: app(label), NodeName: "elsewhere", Phase: phase, Addresses: addressesOf(far.NS), More: more})
		}
		elsewhere("host", "client", "Running", map[string]any{"hostNetwork": true})
		elsewhere("old", "client", "Succeeded", nil)
		elsewhere("marker", "other", "Running", nil)
		k.Eventually("a pod of the host's network, one that has ended, and one that is no client", far.NS, to, lab.Blocked)
		elsewhere("marker", "client", "Running", nil)
		k.Eventually("the pod that has the address", far.NS, to, lab.OK)
		elsewhere("older", "other", "Failed", nil)
		k.Eventually("whoever had it before", far.NS, to, lab.OK)
		if err := k.API.Delete(lab.APIPods, "default", "marker"); err != nil {
			t.Fatal(err)
		}
		k.Eventually("when it is gone", far.NS, to, lab.Blocked)
		ends := func(at time.Time) {
			k.Apply(fmt.Sprintf(`{apiVersion: v1, kind: Pod, metadata: {namespace: default, name: ending, labels: {app: client}, deletionTimestamp: %q},
 spec: {nodeName: elsewhere, containers: [{name: main}]}, status: {phase: Running, podIP: %s, podIPs: [{ip: %s}]}}`, at.UTC().Format(time.RFC3339), far.Addr(lab.V4), far.Addr(lab.V4)))
		}
		ends(time.Now().Add(time.Hour))
		k.Eventually("a pod that is about to end", far.NS, to, lab.OK)
		ends(time.Now().Add(-time.Minute))
		k.Eventually("one that should have ended, as on a node that is dead", far.NS, to, lab.Blocked)
	})
}

// Namespaces are selected by labels that change, and by the name that each has.
func TestNamespaceSelectors(t *testing.T) {
	onNode(t, func(t *testing.T, k *lab.Kubernetes) {
		k.Apply(namespace("default", "") + namespace("red", ", labels: {team: red}") + namespace("blue", ", labels: {team: blue}"))
		k.Apply(policy("web", "web", "policyTypes: [Ingress], ingress: [{from: [{namespaceSelector: {matchLabels: {team: red}}}]}]"))
		k.Apply(policy("db", "db", "policyTypes: [Ingress], ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: red}}, podSelector: {matchLabels: {app: client}}}]}]"))
		web, db := k.RunPod(lab.Manifest{Name: "web", Labels: app("web")}), k.RunPod(lab.Manifest{Name: "db", Labels: app("db")})
		web.Listen(lab.TCP, port)
		db.Listen(lab.TCP, port)
		far := k.AddHost("far", "10.2.0.1/24", "fd00:10:2::1/64")
		toWeb, toDB := lab.Request{Protocol: lab.TCP, To: web.At(lab.V6, port)}, lab.Request{Protocol: lab.TCP, To: db.At(lab.V6, port)}
		red := k.RunPod(lab.Manifest{Namespace: "red", Name: "a", Labels: app("client")})
		blue := k.RunPod(lab.Manifest{Namespace: "blue", Name: "a", Labels: app("client")})
		k.Eventually("red to web", red.NS, toWeb, lab.OK)
		k.Eventually("red to db", red.NS, toDB, lab.OK)
		k.Eventually("blue to web", blue.NS, toWeb, lab.Blocked)
		k.Eventually("blue to db", blue.NS, toDB, lab.Blocked)
		k.Put(lab.Manifest{Namespace: "blue", Name: "far", Labels: app("client"), NodeName: "elsewhere", Phase: "Running", Addresses: addressesOf(far.NS)})
		k.Apply(namespace("blue", ", labels: {team: red}"))
		k.Eventually("a pod of this node, in blue with the label", blue.NS, toWeb, lab.OK)
		k.Eventually("a pod of another node, in blue with the label", far.NS, toWeb, lab.OK)
		k.Apply(namespace("blue", ", labels: {team: blue}"))
		k.Eventually("a pod of this node, in blue without it", blue.NS, toWeb, lab.Blocked)
		k.Eventually("a pod of another node, in blue without it", far.NS, toWeb, lab.Blocked)
	})
}

// Policies that are deleted with their namespace hold as long as its pods run; one that
// a user deletes does not (CVE-2024-7598).
func TestNamespaceIsDeleted(t *testing.T) {
	onNode(t, func(t *testing.T, k *lab.Kubernetes) {
		k.Apply(namespace("default", ""))
		k.Apply(policy("web", "web", "policyTypes: [Ingress]") + policy("db", "db", "policyTypes: [Ingress]"))
		web, db := k.RunPod(lab.Manifest{Name: "web", Labels: app("web")}), k.RunPod(lab.Manifest{Name: "db", Labels: app("db")})
		other := k.RunPod(lab.Manifest{Name: "other", Labels: app("other")})
		web.Listen(lab.TCP, port)
		db.Listen(lab.TCP, port)
		toWeb, toDB := lab.Request{Protocol: lab.TCP, To: web.At(lab.V4, port)}, lab.Request{Protocol: lab.TCP, To: db.At(lab.V4, port)}
		k.Eventually("before", other.NS, toWeb, lab.Blocked)
		if err := k.API.Delete(lab.APIPolicies, "default", "web"); err != nil {
			t.Fatal(err)
		}
		k.Eventually("a policy that somebody has deleted", other.NS, toWeb, lab.OK)
		k.Apply("{apiVersion: v1, kind: Namespace, metadata: {name: default, deletionTimestamp: \"2020-01-01T00:00:00Z\"}, status: {phase: Terminating}}")
		if err := k.API.Delete(lab.APIPolicies, "default", "db"); err != nil {
			t.Fatal(err)
		}
		wait.For(t, "podmarkd says that the policy outlives its deletion", func() bool { return strings.Contains(k.Said(), "outlives") })
		for range 5 {
			if got := other.Send(lab.Request{Protocol: lab.TCP, To: toDB.To, Limit: 200 * time.Millisecond}); got.Outcome != lab.Blocked {
				t.Errorf("a policy that went with its namespace: %v", got)
			}
		}
		// Also for a podmarkd that was not there when it went.
		k.Stop()
		k.Start()
		wait.For(t, "another podmarkd says so too", func() bool { return strings.Count(k.Said(), "outlives") == 2 })
		k.Eventually("after a restart", other.NS, toDB, lab.Blocked)
	})
}

// The runtime's pod and the API's are the same one by UID. A mirror pod has the UID of its
// manifest in an annotation, and a pod that was replaced meanwhile is not taken for its
// successor.
func TestWhichPod(t *testing.T) {
	t.Parallel()
	k := lab.NewNode(t, lab.Options{Plain: true}).Kubernetes(nil)
	k.Apply(namespace("default", ""))
	k.Apply(`{apiVersion: v1, kind: Pod, metadata: {namespace: default, name: static, annotations: {kubernetes.io/config.hash: abc}}, spec: {nodeName: node, containers: [{name: main}]}, status: {phase: Pending}}`)
	k.Put(lab.Manifest{Name: "web", NodeName: lab.NodeName})
	add := func(name, uid string) error {
		_, err := k.TryAddPod(lab.PodSpec{Name: name, Network: k.Network, Args: map[string]string{"K8S_POD_UID": uid}})
		return err
	}
	if err := add("static", "abc"); err != nil {
		t.Errorf("a static pod: %v", err)
	}
	for _, tt := range []struct{ name, uid, want string }{
		{"web", "another", "deleted meanwhile"},
		{"nobody", "any", "not found"},
	} {
		if err := add(tt.name, tt.uid); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("pod %s with UID %s: %v, want %q", tt.name, tt.uid, err, tt.want)
		}
	}
}
