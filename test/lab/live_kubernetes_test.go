package lab_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/podmark/podmark/test/lab"
)

// What changes in the API stops the live connections that it forbids, through IPVS too,
// and no other: as those of test/cluster, which need no services.
func TestLiveConnectionsOfTheAPI(t *testing.T) {
	t.Parallel()
	lab.Backends(t, func(t *testing.T, backend lab.Backend) {
		k := lab.NewNode(t, lab.Options{Backend: backend}).Kubernetes(nil)
		k.Apply("{apiVersion: v1, kind: Namespace, metadata: {name: default}}")
		outside := k.AddHost("outside")
		server := k.RunPod(lab.Manifest{Name: "b", Labels: map[string]string{"app": "b"}})
		client := k.RunPod(lab.Manifest{Name: "a", Labels: map[string]string{"app": "a"}})
		other := k.RunPod(lab.Manifest{Name: "other", Labels: map[string]string{"app": "other"}})
		vips := map[lab.Family]netip.Addr{lab.V4: netip.MustParseAddr("10.96.0.10"), lab.V6: netip.MustParseAddr("fd00:96::10")}
		beats := k.Beats(200 * time.Millisecond)
		for _, p := range []lab.Protocol{lab.TCP, lab.UDP} {
			server.Listen(p, podPort)
			backends := []netip.AddrPort{server.At(lab.V4, podPort), server.At(lab.V6, podPort)}
			services := []lab.Service{{Kind: lab.NodePort, Protocol: p, Port: nodePort, Backends: backends}}
			for _, f := range lab.Families {
				services = append(services, lab.Service{Kind: lab.ClusterIP, Protocol: p, Address: vips[f], Port: vipPort, Backends: backends})
			}
			k.AddServices(services...)
			for _, f := range lab.Families {
				vip := netip.AddrPortFrom(vips[f], vipPort)
				beats.Start("pod to pod", client.NS, lab.Request{Protocol: p, To: server.At(f, podPort)})
				beats.Start("pod to VIP", client.NS, lab.Request{Protocol: p, To: vip})
				beats.Start("other pod to VIP", other.NS, lab.Request{Protocol: p, To: vip})
				beats.Start("outside to NodePort", outside.NS, lab.Request{Protocol: p, To: k.At(f, nodePort)})
			}
		}
		beats.Are("no policy")

		from := func(peers string) string {
			return "---\n{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: b, namespace: default}, spec: {podSelector: {matchLabels: {app: b}}, policyTypes: [Ingress], ingress: " + peers + "}}\n"
		}
		const (
			pods = "{from: [{podSelector: {matchLabels: {app: a}}}, {podSelector: {matchLabels: {app: other}}}]}"
			host = `{from: [{ipBlock: {cidr: 192.168.50.0/24}}, {ipBlock: {cidr: "fd00:50::/64"}}]}`
		)
		label := func(app string) {
			m := lab.Manifest{Name: "a", Labels: map[string]string{"app": app}, NodeName: lab.NodeName, Phase: "Running"}
			for _, a := range client.Addresses {
				m.Addresses = append(m.Addresses, a.String())
			}
			k.Put(m)
		}
		for _, step := range []struct {
			name   string
			change func()
			silent []string
		}{
			{"a policy comes that allows all", func() { k.Apply(from("[" + pods + "," + host + "]")) }, nil},
			{"the client has another label", func() { label("stranger") }, []string{"pod to pod", "pod to VIP"}},
			{"a rule is taken away", func() { k.Apply(from("[" + pods + "]")) }, []string{"pod to pod", "pod to VIP", "outside to NodePort"}},
			{"the client has its label again", func() { label("a") }, []string{"outside to NodePort"}},
			{"a peer is taken out", func() {
				k.Apply(from("[{from: [{podSelector: {matchLabels: {app: a}}}]}]"))
			}, []string{"other pod to VIP", "outside to NodePort"}},
			{"the policy is deleted", func() {
				if err := k.API.Delete(lab.APIPolicies, "default", "b"); err != nil {
					t.Fatal(err)
				}
			}, nil},
		} {
			step.change()
			beats.Are(step.name, step.silent...)
		}
	})
}
