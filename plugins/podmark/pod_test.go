package main_test

import (
	"cmp"
	"encoding/json"
	"net/netip"
	"os"
	"testing"

	"github.com/podmark/podmark/test/testnode"
)

// webPolicy lets pods labelled app=web talk to port 9002 of the host outside, and
// lets that talk to their port 8002. Anything else is forbidden.
const webPolicy = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: default}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress, Egress]
  ingress:
  - from: [{ipBlock: {cidr: 192.168.50.0/24}}, {ipBlock: {cidr: "fd00:50::/64"}}]
    ports: [{protocol: UDP, port: 8002}]
  egress:
  - to: [{ipBlock: {cidr: 192.168.50.0/24}}, {ipBlock: {cidr: "fd00:50::/64"}}]
    ports: [{protocol: UDP, port: 9002}]
`

// pod is one that the node has routes to. It listens on ports 8001 and 8002.
type pod struct {
	*testnode.Pod
	n                  *node
	forbidden, allowed *server // 8001, 8002
}

// addPod makes a pod that podmark does not know yet, app=web.
func (n *node) addPod() *pod { n.T.Helper(); return n.addPodAt("", "") }

// addPodAt is addPod for given addresses. The node's routes to them lead to the
// new pod from now on.
func (n *node) addPodAt(v4, v6 string) *pod {
	n.T.Helper()
	p := &pod{Pod: n.NewPod(testnode.NewSpace(n.T)), n: n}
	p.V4, p.V6 = cmp.Or(v4, p.V4), cmp.Or(v6, p.V6)
	p.Labels = map[string]string{"app": "web"}
	p.Connect()
	return p
}

// listen starts the pod's servers; only pods that are sent something need any.
func (p *pod) listen() *pod {
	p.forbidden, p.allowed = serve(p.n.T, p.Space, 8001), serve(p.n.T, p.Space, 8002)
	return p
}

// onlyIPv4 are the keys of a network that has given the pod no IPv6 address.
func (p *pod) onlyIPv4() conf {
	r := p.PrevResult()
	r["ips"] = r["ips"].([]conf)[:1]
	return conf{"prevResult": r}
}

// damage overwrites the pod's record.
func (p *pod) damage(t *testing.T, content any) {
	t.Helper()
	b, isBytes := content.([]byte)
	if !isBytes {
		var err error
		if b, err = json.Marshal(content); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(p.RecordFile(), b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// policing is how a pod's traffic with the host outside may be treated.
type policing int

const (
	policed policing = iota // what the policy allows gets through
	closed                  // nothing gets through
	guarded                 // nothing that is forbidden gets through
)

// flows are the pod's flows to and from the host outside, in both families.
func (p *pod) flows(how policing) []flow {
	h := p.n.outside
	var flows []flow
	for _, a := range [][2]string{{p.V4, h.v4}, {p.V6, h.v6}} {
		pod, host := netip.MustParseAddr(a[0]), netip.MustParseAddr(a[1])
		flows = append(
			flows,
			flow{"forbidden egress", p.Space, netip.AddrPortFrom(host, 9001), h.forbidden, false},
			flow{"forbidden ingress", h.Space, netip.AddrPortFrom(pod, 8001), p.forbidden, false},
		)
		if how != guarded {
			flows = append(
				flows,
				flow{"allowed egress", p.Space, netip.AddrPortFrom(host, 9002), h.allowed, how == policed},
				flow{"allowed ingress", h.Space, netip.AddrPortFrom(pod, 8002), p.allowed, how == policed},
			)
		}
	}
	return flows
}

// is fails the test unless the pod's traffic is treated so.
func (p *pod) is(t *testing.T, how policing) {
	t.Helper()
	if err := problem(t, p.flows(how)...); err != nil {
		t.Error(err)
	}
}
