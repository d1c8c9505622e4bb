package lab_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/podmark/podmark/test/lab"
)

// routed and bridged are networks whose pods podmark marks and polices.
func routed(n *lab.Node) lab.Network  { return n.PTP(n.Podmark(lab.Plugin{"policy": "files"})) }
func bridged(n *lab.Node) lab.Network { return n.Bridge(n.Podmark(lab.Plugin{"policy": "files"})) }

// eachWay runs test for every backend, with routed pods and with pods on a bridge.
func eachWay(t *testing.T, test func(*testing.T, *cluster)) {
	t.Helper()
	t.Parallel()
	lab.Backends(t, func(t *testing.T, backend lab.Backend) {
		for name, network := range map[string]func(*lab.Node) lab.Network{"routed": routed, "bridged": bridged} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				test(t, newCluster(t, lab.Options{Backend: backend}, network))
			})
		}
	})
}

// onRouted runs test for every backend with routed pods.
func onRouted(t *testing.T, test func(*testing.T, *cluster)) {
	t.Helper()
	t.Parallel()
	lab.Backends(t, func(t *testing.T, backend lab.Backend) { test(t, newCluster(t, lab.Options{Backend: backend}, routed)) })
}

// podmarkctl runs the operator's tool on the node.
func podmarkctl(t *testing.T, n *lab.Node, args ...string) string {
	t.Helper()
	path, err := filepath.Abs("../../bin/podmarkctl")
	if err != nil {
		t.Fatal(err)
	}
	return n.Run(path, append([]string{"--state-dir", n.StateDir, "--lock-timeout", lab.LockTimeout}, args...)...)
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

// allowBFromA lets a reach b, where b's ingress is isolated.
const allowBFromA = `---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: allow-b-from-a}
spec:
  podSelector: {matchLabels: {app: b}}
  policyTypes: [Ingress]
  ingress:
  - from: [{podSelector: {matchLabels: {app: a}}}]
`

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
// filter, and a mark over the whole mark of whatever comes in, and of whatever is
// forwarded.
func (c *cluster) besideOthers() {
	for _, f := range lab.Families {
		for _, chain := range []string{"INPUT", "FORWARD", "OUTPUT"} {
			c.Iptables(f, "-I", chain, "1", "-j", "ACCEPT")
		}
		c.Iptables(f, "-t", "mangle", "-I", "PREROUTING", "1", "-j", "MARK", "--set-mark", "0xffff0000")
		c.Iptables(f, "-t", "filter", "-I", "FORWARD", "1", "-j", "MARK", "--set-mark", "0x1")
	}
}

// want sets what the named flows of everything come to; all others reach their
// destination. A name that no row has is a mistake of the test.
func want(t *testing.T, rows []lab.Row, outcome lab.Outcome, flows ...string) []lab.Row {
	t.Helper()
	return change(t, rows, flows, func(r *lab.Row) { r.Want, r.On = outcome, nil })
}

// wantOn is want for what comes to something else on some of the backends.
func wantOn(t *testing.T, rows []lab.Row, on lab.Outcomes, flows ...string) []lab.Row {
	t.Helper()
	return change(t, rows, flows, func(r *lab.Row) { r.On = on })
}

// change edits the rows of the named flows, in a copy.
func change(t *testing.T, rows []lab.Row, flows []string, edit func(*lab.Row)) []lab.Row {
	t.Helper()
	out := slices.Clone(rows)
	for _, flow := range flows {
		found := false
		for i := range out {
			if out[i].Flow() == flow {
				edit(&out[i])
				found = true
			}
		}
		if !found {
			t.Fatalf("no row is called %q", flow)
		}
	}
	return out
}

// overUDP are the rows of one protocol, where the others would go the same way.
func overUDP(rows []lab.Row) []lab.Row {
	return slices.DeleteFunc(slices.Clone(rows), func(r lab.Row) bool { return r.Protocol != lab.UDP })
}

// Where backends differ: nftables is asked again behind IPVS, so it knows what is
// for the host and what is for a service. iptables has to tell before.
var (
	onlyNFTablesBlocks = lab.Outcomes{lab.NFTables: lab.Blocked}
	onlyNFTablesAllows = lab.Outcomes{lab.NFTables: lab.OK}
)

// traces lists where something of podmark's is: in nf_tables the judge, or the guard that stands
// beside iptables too, the rules of either iptables, the ipsets. It is what a backend has, and
// nothing else.
func traces(n *lab.Node) []string {
	var found []string
	note := func(where, mark, text string) {
		if strings.Contains(text, mark) && !slices.Contains(found, where) {
			found = append(found, where)
		}
	}
	for _, table := range []string{"inet", "bridge"} {
		note("guard", table+" podmark", n.Run("nft", "list", "tables"))
	}
	note("nftables", "\tchain forward {", n.Run("nft", "list", "chains", "inet"))
	for _, v := range []lab.Variant{lab.NFT, lab.Legacy} {
		for _, command := range []string{"iptables-", "ip6tables-"} {
			note("iptables-"+string(v), "PODMARK", n.Run(command+string(v)+"-save"))
		}
	}
	note("ipset", "podmark-", n.Run("ipset", "list", "-name"))
	return found
}

// tracesOf is what traces lists where a backend enforces.
func tracesOf(b lab.Backend) []string {
	if b == lab.NFTables {
		return []string{"guard", "nftables"}
	}
	return []string{"guard", b.Name, "ipset"}
}

// ear is a server for what is sent to many.
type ear struct {
	name string
	*lab.Server
}

// hearing lists the ears that hear one of the requests of a pod, sent all at once.
func hearing(from *lab.Pod, requests []lab.Request, ears []ear) []string {
	before := make([]int64, len(ears))
	for i, e := range ears {
		before[i] = e.Requests()
	}
	var all sync.WaitGroup
	for _, r := range requests {
		r.Protocol, r.Limit = lab.UDP, lab.SilenceLimit
		all.Go(func() { from.Send(r) })
	}
	all.Wait()
	var heard []string
	for i, e := range ears {
		if e.Requests() > before[i] {
			heard = append(heard, e.name)
		}
	}
	return heard
}

// names of ears.
func names(ears []ear) []string {
	var out []string
	for _, e := range ears {
		out = append(out, e.name)
	}
	return out
}

// addPod adds a pod labelled app=name that serves UDP.
func addPod(n *lab.Node, name string, network lab.Network) *lab.Pod {
	p := n.AddPod(lab.PodSpec{Name: name, Labels: map[string]string{"app": name}, Network: network})
	p.Listen(lab.UDP, podPort)
	return p
}
