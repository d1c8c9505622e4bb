package main_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/state"
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

// pod is a container's namespace with an interface as ptp makes it: a veth, a
// route to it in the node. It listens on ports 8001 and 8002.
type pod struct {
	*space
	n                  *node
	id                 string // CNI_CONTAINERID
	veth               string
	v4, v6             string
	labels             map[string]string
	forbidden, allowed *server // 8001, 8002
}

// addPod makes a pod that podmark does not know yet, app=web.
func (n *node) addPod() *pod {
	n.t.Helper()
	n.pods++
	return n.addPodAt(fmt.Sprintf("10.1.0.%d", n.pods+1), fmt.Sprintf("fd00:10::%x", n.pods+1))
}

// addPodAt is addPod for given addresses. The node's routes to them lead to the
// new pod from now on.
func (n *node) addPodAt(v4, v6 string) *pod {
	n.t.Helper()
	p := &pod{
		space: newSpace(n.t), n: n, v4: v4, v6: v6,
		labels: map[string]string{"app": "web"},
	}
	p.veth = fmt.Sprintf("veth%s", filepath.Base(filepath.Dir(filepath.Dir(p.path))))
	p.id = "container-" + p.veth
	veth(n.t, p.veth, p.space, "eth0")
	p.do(n.t, func() error {
		return errors.Join(
			address("eth0", v4+"/32"), address("eth0", v6+"/128"),
			route("eth0", "10.1.0.1/32", ""), route("eth0", "fd00:10::1/128", ""),
			route("eth0", "0.0.0.0/0", "10.1.0.1"), route("eth0", "::/0", "fd00:10::1"),
		)
	})
	err := errors.Join(
		address(p.veth, "10.1.0.1/32"), address(p.veth, "fd00:10::1/128"),
		route(p.veth, v4+"/32", ""), route(p.veth, v6+"/128", ""),
	)
	if err != nil {
		n.t.Fatal(err)
	}
	return p
}

// listen starts the pod's servers; only pods that are sent something need any.
func (p *pod) listen() *pod {
	p.forbidden, p.allowed = p.serve(p.n.t, 8001), p.serve(p.n.t, 8002)
	return p
}

// prevResult is what ptp returns, in spec version 1.
func (p *pod) prevResult() conf {
	return conf{
		"cniVersion": "1.1.0",
		"interfaces": []conf{{"name": p.veth}, {"name": "eth0", "sandbox": p.path}},
		"ips": []conf{
			{"address": p.v4 + "/32", "gateway": "10.1.0.1", "interface": 1},
			{"address": p.v6 + "/128", "gateway": "fd00:10::1", "interface": 1},
		},
	}
}

// onlyIPv4 are the keys of a network that has given the pod no IPv6 address.
func (p *pod) onlyIPv4() conf {
	r := p.prevResult()
	r["ips"] = r["ips"].([]conf)[:1]
	return conf{"prevResult": r}
}

// env is the environment of a call about the pod.
func (p *pod) env() []string {
	return []string{
		"CNI_CONTAINERID=" + p.id, "CNI_NETNS=" + p.path, "CNI_IFNAME=eth0",
		"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=" + p.id,
	}
}

// conf is the node's configuration with the pod's prevResult and labels.
func (p *pod) conf(more ...conf) conf {
	return p.n.conf(append([]conf{{
		"prevResult": p.prevResult(),
		"args":       conf{"cni": conf{"labels": p.labels}},
	}}, more...)...)
}

func (p *pod) add(more ...conf) reply   { return p.n.call("ADD", p.conf(more...), p.env()...) }
func (p *pod) check(more ...conf) reply { return p.n.call("CHECK", p.conf(more...), p.env()...) }

// del runs DEL as most runtimes do: without prevResult.
func (p *pod) del(more ...conf) reply { return p.n.call("DEL", p.n.conf(more...), p.env()...) }

// unlink deletes the pod's interface, as the main plugin's DEL does.
func (p *pod) unlink() {
	p.n.t.Helper()
	link, err := netlink.LinkByName(p.veth)
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil {
		p.n.t.Fatalf("deleting %s: %v", p.veth, err)
	}
}

// record reads what podmark knows of the pod.
func (p *pod) record(t *testing.T) attachment.Record {
	t.Helper()
	r, err := state.At(p.n.dir).Get(p.key())
	if err != nil {
		t.Fatalf("record of %s: %v", p.id, err)
	}
	return r
}

func (p *pod) key() attachment.Key {
	return attachment.Key{Network: "net", ContainerID: p.id, IfName: "eth0"}
}

func (p *pod) recordFile() string { return filepath.Join(p.n.dir, "attachments", p.key().Hash()) }

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
	if err := os.WriteFile(p.recordFile(), b, 0o600); err != nil {
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
	for _, a := range [][2]string{{p.v4, h.v4}, {p.v6, h.v6}} {
		pod, host := netip.MustParseAddr(a[0]), netip.MustParseAddr(a[1])
		flows = append(
			flows,
			flow{"forbidden egress", p.space, netip.AddrPortFrom(host, 9001), h.forbidden, false},
			flow{"forbidden ingress", h.space, netip.AddrPortFrom(pod, 8001), p.forbidden, false},
		)
		if how != guarded {
			flows = append(
				flows,
				flow{"allowed egress", p.space, netip.AddrPortFrom(host, 9002), h.allowed, how == policed},
				flow{"allowed ingress", h.space, netip.AddrPortFrom(pod, 8002), p.allowed, how == policed},
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
