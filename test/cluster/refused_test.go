package cluster_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/podmark/podmark/pkg/agent"
	"github.com/podmark/podmark/pkg/state"
	"github.com/podmark/podmark/test/lab"
	"github.com/podmark/podmark/test/wait"
)

// refuse is what an API server answers that has no room for a long request, and refuses
// those of a resource in a namespace; empty for none.
func refuse(resource, namespace string, status int) func(*http.Request) int {
	return func(r *http.Request) int {
		switch {
		case len(r.URL.RequestURI()) > 8<<10:
			return http.StatusRequestHeaderFieldsTooLarge
		case resource != "" && strings.HasSuffix(r.URL.Path, "/namespaces/"+namespace+"/"+resource):
			return status
		}
		return 0
	}
}

// A policy that is too large isolates its pods, allows nothing, and delays nobody else. It is in
// force as soon as it is small.
func TestTooLarge(t *testing.T) {
	onNode(t, func(t *testing.T, k *lab.Kubernetes) {
		var ports, rules []string
		for p := range 200 {
			ports = append(ports, fmt.Sprintf("{port: %d}", 2*p+8000)) // 8080 among them
		}
		for r := range 100 {
			peers := []string{fromFar}
			for p := range 49 {
				peers = append(peers, fmt.Sprintf("{podSelector: {matchLabels: {app: peer-%d-%d}}}", r, p))
			}
			rules = append(rules, fmt.Sprintf("{from: [%s], ports: [%s]}", strings.Join(peers, ", "), strings.Join(ports, ", ")))
		}
		k.Apply(namespace("default", "") + namespace("other", ""))
		far := k.AddHost("far", "10.2.0.1/24", "fd00:10:2::1/64")
		k.Put(elsewhere(far, "far"))
		web := k.RunPod(lab.Manifest{Name: "web", Labels: app("web")})
		web.Listen(lab.TCP, port)
		toWeb := lab.Request{Protocol: lab.TCP, To: web.At(lab.V4, port)}
		k.Eventually("without a policy", far.NS, toWeb, lab.OK)
		k.Apply(policy("web", "web", "policyTypes: [Ingress], ingress: ["+strings.Join(rules, ", ")+"]"))
		k.RunPod(lab.Manifest{Namespace: "other", Name: "web", Labels: app("web")})
		k.Eventually("with a large one", far.NS, toWeb, lab.Blocked)
		wait.For(t, "the status says why", func() bool {
			s, err := agent.ReadStatus(state.At(k.StateDir))
			return err == nil && len(s.Policies.Troubles) == 1 && s.Policies.Troubles[0].Of() == "default/web" && s.Policies.Troubles[0].Reason == "TooLarge"
		})
		k.Apply(policy("web", "web", ingress(fromFar)))
		k.Eventually("with a small one", far.NS, toWeb, lab.OK)
	})
}

// What the API refuses for the policies of one namespace stays there: pods of another start,
// and their policies follow, also after a restart of podmarkd.
func TestRefused(t *testing.T) {
	for _, tt := range []struct {
		resource string
		status   int
		// far is what a client elsewhere gets, and starts whether pods of the namespace start.
		far    lab.Outcome
		starts bool
		reason string // that podmarkd names
	}{
		{"", 0, lab.OK, true, ""}, // but for selectors of 40 KB
		{"pods", 431, lab.OK, true, ""},
		{"pods", 403, lab.Blocked, true, "Forbidden"},
		{"networkpolicies", 403, lab.OK, false, "Forbidden"},
		{"networkpolicies", 400, lab.OK, false, "Refused"},
	} {
		t.Run(fmt.Sprintf("%s %d", tt.resource, tt.status), func(t *testing.T) {
			t.Parallel()
			k := lab.NewNode(t, lab.Options{Plain: true}).Kubernetes(nil)
			var values []string
			for i := range 5000 {
				values = append(values, fmt.Sprintf("client-%d", i))
			}
			k.Apply(namespace("default", "") + namespace("other", ""))
			long := fmt.Sprintf("policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchExpressions: [{key: app, operator: In, values: [client, %s]}]}}]}]", strings.Join(values, ", "))
			k.Apply(policy("web", "web", long))
			k.API.Refuse(refuse("", "", 0))
			web := k.RunPod(lab.Manifest{Name: "web", Labels: app("web")})
			web.Listen(lab.TCP, port)
			far := k.AddHost("far", "10.2.0.1/24", "fd00:10:2::1/64")
			k.Put(elsewhere(far, "client"))
			toWeb := lab.Request{Protocol: lab.TCP, To: web.At(lab.V4, port)}
			k.Eventually("a client elsewhere", far.NS, toWeb, lab.OK)

			k.Stop()
			k.API.Refuse(refuse(tt.resource, "default", tt.status))
			k.Start()
			of := func(spec string) {
				k.Apply(strings.ReplaceAll(policy("web", "web", spec), "namespace: default", "namespace: other"))
			}
			of("policyTypes: [Ingress]")
			second := k.RunPod(lab.Manifest{Namespace: "other", Name: "web", Labels: app("web")})
			second.Listen(lab.TCP, port)
			toSecond := lab.Request{Protocol: lab.TCP, To: second.At(lab.V4, port)}
			k.Eventually("a pod of another namespace", far.NS, toSecond, lab.Blocked)
			of(ingress(`{ipBlock: {cidr: 10.2.0.0/24}}`))
			k.Eventually("its policy has changed", far.NS, toSecond, lab.OK)
			k.Eventually("a client elsewhere, after the restart", far.NS, toWeb, tt.far)
			if tt.reason != "" {
				wait.For(t, "the status says why", func() bool {
					s, err := agent.ReadStatus(state.At(k.StateDir))
					return err == nil && len(s.Policies.Troubles) == 1 && s.Policies.Troubles[0].Namespace == "default" && s.Policies.Troubles[0].Reason == tt.reason
				})
				wait.For(t, "an event is made", func() bool { return k.API.Traffic()[""]["events"].Writes > 0 })
			}
			if !tt.starts {
				k.Put(lab.Manifest{Name: "late", Labels: app("web"), NodeName: lab.NodeName})
				if _, err := k.TryAddPod(lab.PodSpec{Name: "late", Network: k.Network}); err == nil || !strings.Contains(err.Error(), "watching networkpolicies of default") {
					t.Errorf("a pod of the namespace: %v", err)
				}
			}
			for line := range strings.Lines(k.Said()) {
				if len(line) > 4<<10 {
					t.Errorf("podmarkd says a line of %d bytes: %.300s", len(line), line)
				}
			}
			k.API.Refuse(nil)
			k.RunPod(lab.Manifest{Name: "late", Labels: app("web")})
			k.Eventually("at last, a client elsewhere", far.NS, toWeb, lab.OK)
		})
	}
}
