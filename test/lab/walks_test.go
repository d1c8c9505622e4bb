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
		// Expected failure: IPVS hands the packet to the host process without a
		// hook that iptables could use after it. INPUT sees a service address,
		// which must be left to OUTPUT, and OUTPUT is never reached.
		rows = want(t, rows, lab.OK, "pod to ClusterIP of host process")
		lab.Table(t, rows)
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
