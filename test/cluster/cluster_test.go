// Package cluster_test runs a node whose policies come from an API server: packets between
// pods, as the API changes. It needs no IPVS, which test/lab has.
package cluster_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/podmark/podmark/test/lab"
	"github.com/podmark/podmark/test/wait"
)

const port = 8080

// onNode runs test on a node of each backend.
func onNode(t *testing.T, test func(t *testing.T, k *lab.Kubernetes)) {
	t.Parallel()
	lab.Backends(t, func(t *testing.T, b lab.Backend) {
		n := lab.NewNode(t, lab.Options{Backend: b, Plain: true})
		test(t, n.Kubernetes(nil))
	})
}

func app(name string) map[string]string { return map[string]string{"app": name} }

// policy is a NetworkPolicy of namespace default that selects the pods of an app.
func policy(name, of, spec string) string {
	return fmt.Sprintf("---\n{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: %s, namespace: default}, spec: {podSelector: {matchLabels: {app: %s}}, %s}}\n", name, of, spec)
}

// Pods start with their policy, and it changes while they run.
func TestPolicyFollowsAPI(t *testing.T) {
	onNode(t, func(t *testing.T, k *lab.Kubernetes) {
		k.Apply("{apiVersion: v1, kind: Namespace, metadata: {name: default}}")
		k.Apply(policy("web", "web", "policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: http}]}]"))
		web := k.RunPod(lab.Manifest{Name: "web", Labels: app("web"), Ports: []map[string]any{{"name": "http", "containerPort": port}}})
		client := k.RunPod(lab.Manifest{Name: "client", Labels: app("client")})
		other := k.RunPod(lab.Manifest{Name: "other", Labels: app("other")})
		web.Listen(lab.TCP, port)
		web.Listen(lab.TCP, port+1)
		for _, f := range lab.Families {
			request := func(port uint16) lab.Request { return lab.Request{Protocol: lab.TCP, To: web.At(f, port)} }
			k.Eventually("the client is let in", client.NS, request(port), lab.OK)
			k.Eventually("by no other port", client.NS, request(port+1), lab.Blocked)
			k.Eventually("another pod is not", other.NS, request(port), lab.Blocked)
		}
		to := lab.Request{Protocol: lab.TCP, To: web.At(lab.V4, port)}
		k.Put(lab.Manifest{Name: "other", Labels: app("client"), NodeName: lab.NodeName, Phase: "Running", Addresses: addresses(other)})
		k.Eventually("it is, with the client's label", other.NS, to, lab.OK)
		k.Put(lab.Manifest{Name: "other", Labels: app("other"), NodeName: lab.NodeName, Phase: "Running", Addresses: addresses(other)})
		k.Eventually("and no more without", other.NS, to, lab.Blocked)

		far := k.AddHost("far", "10.2.0.1/24", "fd00:10:2::1/64")
		k.Put(lab.Manifest{Name: "far", Labels: app("client"), NodeName: "elsewhere", Phase: "Running", Addresses: addressesOf(far.NS)})
		k.Eventually("a pod of another node is", far.NS, to, lab.OK)
		k.Put(lab.Manifest{Name: "far", Labels: app("client"), NodeName: "elsewhere", Phase: "Succeeded", Addresses: addressesOf(far.NS)})
		k.Eventually("until it has ended", far.NS, to, lab.Blocked)

		k.Apply(policy("web", "web", "policyTypes: [Ingress], ingress: [{from: [{ipBlock: {cidr: 10.2.0.0/24}}]}]"))
		k.Eventually("the policy names an ipBlock now", far.NS, to, lab.OK)
		k.Eventually("and no client", client.NS, to, lab.Blocked)
		if err := k.API.Delete(lab.APIPolicies, "default", "web"); err != nil {
			t.Fatal(err)
		}
		k.Eventually("the policy is gone", client.NS, to, lab.OK)
	})
}

func addressesOf(ns *lab.NS) (out []string) {
	for _, a := range ns.Addresses {
		out = append(out, a.String())
	}
	return out
}

func addresses(p *lab.Pod) []string { return addressesOf(p.NS) }

// What podmarkd enforced goes on without it, and a pod does not start then, unless it may
// start without its policy: that comes as soon as podmarkd is back.
func TestWithoutPodmarkd(t *testing.T) {
	onNode(t, func(t *testing.T, k *lab.Kubernetes) {
		k.Apply("{apiVersion: v1, kind: Namespace, metadata: {name: default}}")
		k.Apply(policy("web", "web", "policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]"))
		web := k.RunPod(lab.Manifest{Name: "web", Labels: app("web")})
		client := k.RunPod(lab.Manifest{Name: "client", Labels: app("client")})
		other := k.RunPod(lab.Manifest{Name: "other", Labels: app("other")})
		far := k.AddHost("far", "10.2.0.1/24", "fd00:10:2::1/64")
		k.Put(lab.Manifest{Name: "far", Labels: app("client"), NodeName: "elsewhere", Phase: "Running", Addresses: addressesOf(far.NS)})
		web.Listen(lab.TCP, port)
		to := lab.Request{Protocol: lab.TCP, To: web.At(lab.V4, port)}
		check := func(when string) {
			t.Helper()
			k.Eventually(when+", the client", client.NS, to, lab.OK)
			k.Eventually(when+", a pod elsewhere", far.NS, to, lab.OK)
			k.Eventually(when+", another pod", other.NS, to, lab.Blocked)
		}
		check("with podmarkd")
		k.Stop()
		check("without podmarkd")
		k.Put(lab.Manifest{Name: "late", Labels: app("web"), NodeName: lab.NodeName})
		if _, err := k.TryAddPod(lab.PodSpec{Name: "late", Network: k.Network}); err == nil || !strings.Contains(err.Error(), "podmarkd") {
			t.Errorf("a pod starts without podmarkd: %v", err)
		}
		open := k.PTP(k.Podmark(lab.Plugin{"policy": "kubernetes", "failOpen": true}))
		late := k.AddPod(lab.PodSpec{Name: "late", Network: open})
		late.Listen(lab.TCP, port)
		toLate := lab.Request{Protocol: lab.TCP, To: late.At(lab.V4, port)}
		k.Eventually("failOpen", other.NS, toLate, lab.OK)
		// What another program flushes meanwhile comes back with the next pod's end, but for who of
		// other nodes is in sets that are flushed too: only podmarkd knows.
		elsewhere := lab.OK
		switch k.Backend() {
		case lab.NFTables:
			k.Node.Run("nft", "flush", "ruleset")
			elsewhere = lab.Blocked
		default:
			for _, f := range lab.Families {
				k.Iptables(f, "-t", "mangle", "-F")
			}
		}
		if err := client.Del(); err != nil {
			t.Fatal(err)
		}
		client = k.AddPod(lab.PodSpec{Name: "plain", Network: k.PTP(k.Podmark(lab.Plugin{"policy": "none"}))})
		k.Eventually("after a flush, a pod elsewhere", far.NS, to, elsewhere)
		k.Eventually("after a flush, another pod", other.NS, to, lab.Blocked)
		k.Start()
		k.Eventually("podmarkd is back", other.NS, toLate, lab.Blocked)
		k.Eventually("podmarkd is back, a pod elsewhere", far.NS, to, lab.OK)
	})
}

// Who of other nodes is in a set that another program empties, or that goes with all the rules,
// is let in again.
func TestSetsAreKept(t *testing.T) {
	onNode(t, func(t *testing.T, k *lab.Kubernetes) {
		k.Apply("{apiVersion: v1, kind: Namespace, metadata: {name: default}}")
		k.Apply(policy("web", "web", "policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]"))
		web := k.RunPod(lab.Manifest{Name: "web", Labels: app("web")})
		web.Listen(lab.TCP, port)
		far := k.AddHost("far", "10.2.0.1/24", "fd00:10:2::1/64")
		k.Put(lab.Manifest{Name: "far", Labels: app("client"), NodeName: "elsewhere", Phase: "Running", Addresses: addressesOf(far.NS)})
		to := lab.Request{Protocol: lab.TCP, To: web.At(lab.V4, port)}
		k.Eventually("a pod elsewhere is let in", far.NS, to, lab.OK)

		list, prefix, flush := []string{"nft", "list", "sets", "inet"}, "p4-", []string{"nft", "flush", "set", "inet", "podmark"}
		if k.Backend() != lab.NFTables {
			list, prefix, flush = []string{"ipset", "list", "-n"}, "podmark-p4-", []string{"ipset", "flush"}
		}
		// Again and again: a round that happens to fill the set fixes it without a word.
		wait.For(t, "podmarkd says that a set had been changed", func() bool {
			for _, word := range strings.Fields(k.Node.Run(list[0], list[1:]...)) {
				if strings.HasPrefix(word, prefix) {
					k.Node.Run(flush[0], append(flush[1:], word)...)
				}
			}
			return strings.Contains(k.Said(), "Repaired a set")
		}, k.Progress)
		k.Eventually("it is again", far.NS, to, lab.OK)

		if k.Backend() == lab.NFTables {
			k.Node.Run("nft", "flush", "ruleset")
		} else {
			for _, f := range lab.Families {
				k.Iptables(f, "-t", "mangle", "-F")
			}
		}
		wait.For(t, "podmarkd repairs", func() bool { return strings.Contains(k.Said(), "Repaired the data plane") }, k.Progress)
		k.Eventually("after a flush too", far.NS, to, lab.OK)
	})
}

// Policies in force that the kernel has lost are written again, and pods start again.
func TestLostPoliciesComeBack(t *testing.T) {
	onNode(t, func(t *testing.T, k *lab.Kubernetes) {
		k.Apply("{apiVersion: v1, kind: Namespace, metadata: {name: default}}")
		k.Apply(policy("web", "web", "policyTypes: [Ingress]"))
		web := k.RunPod(lab.Manifest{Name: "web", Labels: app("web")})
		client := k.RunPod(lab.Manifest{Name: "client", Labels: app("client")})
		file := filepath.Join(k.StateDir, "policies.json")
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		wait.For(t, "the file is back", func() bool { _, err := os.Stat(file); return err == nil })
		late := k.RunPod(lab.Manifest{Name: "late", Labels: app("web")})
		for _, p := range []*lab.Pod{web, late} {
			p.Listen(lab.TCP, port)
			k.Eventually("what the policy forbids", client.NS, lab.Request{Protocol: lab.TCP, To: p.At(lab.V4, port)}, lab.Blocked)
		}
	})
}
