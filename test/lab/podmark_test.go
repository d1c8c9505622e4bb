package lab_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/podmark/podmark/test/lab"
)

// routed and bridged are networks whose pods podmark marks and polices.
func routed(n *lab.Node) lab.Network  { return n.PTP(n.Podmark(lab.Plugin{"policy": "files"})) }
func bridged(n *lab.Node) lab.Network { return n.Bridge(n.Podmark(lab.Plugin{"policy": "files"})) }

// eachWay runs test for both variants, with routed pods and with pods on a bridge.
func eachWay(t *testing.T, test func(*testing.T, *cluster)) {
	t.Helper()
	t.Parallel()
	lab.Variants(t, func(t *testing.T, variant lab.Variant) {
		for name, network := range map[string]func(*lab.Node) lab.Network{"routed": routed, "bridged": bridged} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				test(t, newCluster(t, variant, network))
			})
		}
	})
}

// onRouted runs test for both variants with routed pods.
func onRouted(t *testing.T, test func(*testing.T, *cluster)) {
	t.Helper()
	t.Parallel()
	lab.Variants(t, func(t *testing.T, variant lab.Variant) { test(t, newCluster(t, variant, routed)) })
}

// podmarkctl runs the operator's tool on the node.
func podmarkctl(t *testing.T, n *lab.Node, args ...string) string {
	t.Helper()
	path, err := filepath.Abs("../../bin/podmarkctl")
	if err != nil {
		t.Fatal(err)
	}
	return n.Run(path, append([]string{"--state-dir", n.StateDir, "--lock-timeout", "2m"}, args...)...)
}

// apply makes manifests the node's policy.
func apply(t *testing.T, n *lab.Node, manifests string) string {
	t.Helper()
	file := filepath.Join(n.Dir, "policy.yaml")
	if err := os.WriteFile(file, []byte(manifests), 0o600); err != nil {
		t.Fatal(err)
	}
	return podmarkctl(t, n, "apply", "-f", file)
}

// isolate denies everything in one direction for the pods labelled app=app.
func isolate(app, direction string) string {
	return `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: isolate-` + app + `-` + strings.ToLower(direction) + `}
spec:
  podSelector: {matchLabels: {app: ` + app + `}}
  policyTypes: [` + direction + `]
`
}

// besideOthers puts rules of "another tool" first: an ACCEPT in every chain of
// filter, and a mark over the whole mark of whatever comes in.
func (c *cluster) besideOthers() {
	for _, f := range lab.Families {
		for _, chain := range []string{"INPUT", "FORWARD", "OUTPUT"} {
			c.Iptables(f, "-I", chain, "1", "-j", "ACCEPT")
		}
		c.Iptables(f, "-t", "mangle", "-I", "PREROUTING", "1", "-j", "MARK", "--set-mark", "0xffff0000")
	}
}

// want sets what the named flows of everything come to; all others reach their
// destination. A name that no row has is a mistake of the test.
func want(t *testing.T, rows []lab.Row, outcome lab.Outcome, flows ...string) []lab.Row {
	t.Helper()
	out := append([]lab.Row{}, rows...)
	for _, flow := range flows {
		found := false
		for i := range out {
			if out[i].Flow() == flow {
				out[i].Want, found = outcome, true
				if outcome != lab.OK {
					out[i].By = ""
				}
			}
		}
		if !found {
			t.Fatalf("no row is called %q", flow)
		}
	}
	return out
}
