package lab_test

import (
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/podmark/podmark/pkg/explain"
	"github.com/podmark/podmark/test/lab"
)

// explained asks podmarkctl on the node.
func explained(t *testing.T, n *lab.Node, src, dst string, flags ...string) explain.Answer {
	t.Helper()
	path, err := filepath.Abs("../../bin/podmarkctl")
	if err != nil {
		t.Fatal(err)
	}
	out, err := n.Try(path, append([]string{"--state-dir", n.StateDir, "explain", src, dst, "-o", "json"}, flags...)...)
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 1) {
		t.Fatal(err)
	}
	var a explain.Answer
	if err := json.Unmarshal([]byte(out), &a); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if a.Allowed != (err == nil) || len(a.Walks) == 0 {
		t.Errorf("%s to %s: %v with %+v", src, dst, err, a)
	}
	return a
}

// called is how explain knows a namespace: a pod and the node have names.
func (c *cluster) called(ns *lab.NS, f lab.Family) string {
	switch ns {
	case c.a.NS, c.b.NS:
		return ns.Name
	case c.Node.NS:
		return explain.Host
	}
	return ns.Addr(f).String()
}

// What explain says of a flow becomes of its packets, for every flow of the cluster.
func TestExplain(t *testing.T) {
	onRouted(t, func(t *testing.T, c *cluster) {
		for _, tt := range []struct {
			name, policies string
			lab.Family
		}{
			{"a reaches b only", isolate("a", "Egress") + allowAToB + allowBFromA, lab.V4},
			{"a reaches the host only", isolate("a", "Egress") + allowAToHost + "---" + isolate("b", "Ingress"), lab.V6},
		} {
			apply(t, c.Node, tt.policies)
			rows := slices.DeleteFunc(overUDP(c.everything()), func(r lab.Row) bool { return r.To.Addr().Is4() != (tt.Family == lab.V4) })
			allowed := 0
			for i, r := range rows {
				a := explained(t, c.Node, c.called(r.From, tt.Family), r.To.String()+"/"+r.Protocol.String())
				rows[i].Want = lab.Blocked
				if a.Allowed {
					allowed++
					rows[i].Want = lab.OK
				}
				if len(a.Walks) != 1 {
					t.Errorf("%s: %+v, want one walk", r.Name, a)
				}
			}
			if allowed < 4 || allowed > len(rows)-4 {
				t.Errorf("%s: %d of %d are allowed", tt.name, allowed, len(rows))
			}
			t.Log(tt.name)
			lab.Table(t, rows)
		}
		nobody := netip.AddrPortFrom(c.vips[lab.V4], 99)
		if a := explained(t, c.Node, "a", nobody.String()+"/udp"); a.Allowed || a.Walks[0].Service != "" {
			t.Errorf("a port without service: %+v", a)
		}
		lab.Table(t, []lab.Row{{Name: "no such service", From: c.a.NS, Protocol: lab.UDP, To: nobody, Want: lab.Refused}})
	})
}

// mixedPort is a service with one backend of each kind.
const mixedPort = 83

// A service with mixed backends has a walk for each, and those that are allowed are
// those that answer. A policy that is not applied yet is explained as it will be.
func TestExplainMixedService(t *testing.T) {
	onRouted(t, func(t *testing.T, c *cluster) {
		d := addPod(c.Node, "d", routed(c.Node))
		c.AddServices(lab.Service{
			Kind: lab.ClusterIP, Protocol: lab.UDP, Address: c.vips[lab.V4], Port: mixedPort,
			Backends: []netip.AddrPort{c.b.At(lab.V4, podPort), d.At(lab.V4, podPort), c.remote.At(lab.V4, podPort), c.At(lab.V4, hostPort)},
		})
		names := map[string]string{"default/b": "b", "default/d": "d", "host": "node", "": "remote"}
		to := netip.AddrPortFrom(c.vips[lab.V4], mixedPort)
		for _, policies := range []string{
			isolate("d", "Ingress"),
			isolate("d", "Ingress") + isolateAFromHost,
			isolate("a", "Egress") + allowAToHost,
		} {
			file := filepath.Join(c.Dir, "not-applied.yaml")
			if err := os.WriteFile(file, []byte(policies), 0o600); err != nil {
				t.Fatal(err)
			}
			before := explained(t, c.Node, "a", to.String()+"/udp", "--policy", file, "-n", "default")
			apply(t, c.Node, policies)
			a := explained(t, c.Node, "a", to.String()+"/udp")
			if diff := cmp.Diff(a, before, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
				t.Errorf("the policy once applied (-) and before (+):\n%s", diff)
			}
			want, allowed := map[string]bool{}, 0
			for _, w := range a.Walks {
				want[names[w.To.Name]] = w.Allowed
				if w.Allowed {
					allowed++
				}
			}
			if len(a.Walks) != 4 || allowed == 0 || allowed == len(a.Walks) {
				t.Errorf("with%s\nthe backends are not mixed: %+v", policies, a)
			}
			t.Logf("with%s\nexplain says %v", policies, want)
			if got := c.answers(to, 3*len(want)); !cmp.Equal(got, want) {
				t.Errorf("with%s\nanswered: %v, and explain says %v", policies, got, want)
			}
		}
	})
}

// isolateAFromHost lets a reach pods, here and elsewhere, and no process of the node.
const isolateAFromHost = `---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: isolate-a-from-host}
spec:
  podSelector: {matchLabels: {app: a}}
  policyTypes: [Egress]
  egress:
  - to: [{ipBlock: {cidr: 10.1.0.0/24}}, {ipBlock: {cidr: 10.2.0.0/16}}]
`

// answers sends n requests of a to a service whose backends take turns, and tells which
// of them answer.
func (c *cluster) answers(to netip.AddrPort, n int) map[string]bool {
	out := map[string]bool{"b": false, "d": false, "remote": false, "node": false}
	results := make(chan lab.Result)
	for range n {
		go func() {
			results <- c.a.Send(lab.Request{Protocol: lab.UDP, To: to, Limit: 3 * lab.SilenceLimit})
		}()
	}
	for range n {
		if r := <-results; r.Outcome == lab.OK {
			out[r.By] = true
		}
	}
	return out
}
