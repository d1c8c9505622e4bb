package lab_test

import (
	"testing"

	"github.com/podmark/podmark/test/lab"
)

// Without a policy podmark marks every pod and cuts nothing.
func TestNoPolicy(t *testing.T) {
	eachWay(t, func(t *testing.T, c *cluster) {
		lab.Table(t, c.everything())
	})
}

// Every walk of docs/packet-path.md on which egress(A) is judged.
func TestEgressIsolation(t *testing.T) {
	eachWay(t, func(t *testing.T, c *cluster) {
		c.besideOthers()
		apply(t, c.Node, isolate("a", "Egress"))
		rows := want(t, c.everything(), lab.Blocked,
			"pod to pod", "pod to remote pod", "pod to outside",
			"pod to host process",
			"pod to ClusterIP", "pod to ClusterIP of remote pod", "pod to external IP",
			"pod to NodePort", "pod to odd NodePort",
		)
		// Expected failure of iptables: IPVS hands the packet to the host process
		// without a hook that iptables could use after it. INPUT sees a service
		// address, which must be left to OUTPUT, and OUTPUT is never reached.
		rows = wantOn(t, rows, onlyNFTablesBlocks, "pod to ClusterIP of host process")
		lab.Table(t, rows)
	})
}

// egressToB is what becomes of everything where a may reach b and nothing else.
func (c *cluster) egressToB(t *testing.T) []lab.Row {
	t.Helper()
	rows := want(t, c.everything(), lab.Blocked,
		"pod to remote pod", "pod to outside", "pod to host process", "pod to ClusterIP of remote pod",
		"pod to odd NodePort",
	)
	// Outside the ranges it is a host process to iptables, which a may not reach.
	rows = wantOn(t, rows, onlyNFTablesAllows, "pod to odd NodePort")
	return wantOn(t, rows, onlyNFTablesBlocks, "pod to ClusterIP of host process")
}

const allowAToHost = `---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: allow-a-to-host}
spec:
  podSelector: {matchLabels: {app: a}}
  policyTypes: [Egress]
  egress:
  - to: [{ipBlock: {cidr: 192.168.50.1/32}}, {ipBlock: {cidr: "fd00:50::1/128"}}]
`

// With NodePort ranges that are wrong, nothing passes unjudged. On nftables
// everything goes the way it goes with the right ones.
func TestWrongNodePortRanges(t *testing.T) {
	t.Parallel()
	lab.Backends(t, func(t *testing.T, backend lab.Backend) {
		c := newCluster(t, lab.Options{Backend: backend}, func(n *lab.Node) lab.Network {
			return n.PTP(n.Podmark(lab.Plugin{"policy": "files", "kubeNodePortRanges": []string{"1:2"}}))
		})
		apply(t, c.Node, isolate("a", "Egress")+allowAToB+allowBFromA)
		rows := want(t, c.egressToB(t), lab.Blocked,
			"remote pod to pod", "outside to pod", "outside to ClusterIP", "pod to own ClusterIP",
			"outside to NodePort", "outside to odd NodePort", "outside to local NodePort", "outside to external IP",
			"pod to NodePort",
		)
		lab.Table(t, overUDP(wantOn(t, rows, onlyNFTablesAllows, "pod to NodePort")))

		// What allows the host's address allows its processes, behind a service too,
		// and not the pods that answer on the same address.
		apply(t, c.Node, isolate("a", "Egress")+allowAToHost)
		rows = want(t, c.everything(), lab.Blocked,
			"pod to pod", "pod to remote pod", "pod to outside",
			"pod to ClusterIP", "pod to ClusterIP of remote pod", "pod to external IP",
			"pod to NodePort", "pod to odd NodePort",
		)
		lab.Table(t, overUDP(rows))
	})
}

// Every walk on which ingress(B) is judged, the NodePort outside the configured range
// included: nothing is unmarked, so nothing passes for the node's own traffic.
func TestIngressIsolation(t *testing.T) {
	eachWay(t, func(t *testing.T, c *cluster) {
		c.besideOthers()
		apply(t, c.Node, isolate("b", "Ingress"))
		lab.Table(t, want(t, c.everything(), lab.Blocked,
			"pod to pod", "remote pod to pod", "outside to pod",
			"pod to ClusterIP", "outside to ClusterIP", "pod to own ClusterIP",
			"pod to NodePort", "pod to odd NodePort",
			"outside to NodePort", "outside to odd NodePort", "outside to local NodePort",
			"pod to external IP", "outside to external IP",
		))
	})
}
