package oracle_test

import (
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/mark"
	"github.com/podmark/podmark/pkg/policy"
	corev1 "k8s.io/api/core/v1"
)

// The nodes of every cluster here. A flow between them is judged twice, by the state of
// either: egress where it starts, ingress where it ends.
var nodes = []string{"one", "two"}

// uplink is the interface of a node that leads to all that is not on it.
const uplink = "eth0"

// cluster is what podmark knows of one: the state of each node, and where each pod is.
type cluster struct {
	states map[string]desired.State
	places map[netip.Addr]place
	hosts  map[netip.Addr]string // the node that has the address itself
	// told gets what is decided about each end of a flow.
	told func(desired.Decision)
}

type place struct{ node, iface string }

// newCluster builds the states of the nodes from what an API server tells; others are in no place. Pods that share
// the address of a node and those that have ended are nobody.
func newCluster(t *testing.T, policies desired.Policies, pods []*corev1.Pod, others ...desired.Pod) cluster {
	t.Helper()
	layout, err := mark.NewLayout(0xffff0000)
	if err != nil {
		t.Fatal(err)
	}
	c := cluster{
		states: map[string]desired.State{}, places: map[netip.Addr]place{}, hosts: map[netip.Addr]string{},
		told: func(desired.Decision) {},
	}
	records, elsewhere := map[string][]attachment.Record{}, map[string][]desired.Pod{}
	for _, node := range nodes {
		elsewhere[node] = slices.Clone(others)
	}
	for i, p := range pods {
		switch {
		case p.Spec.HostNetwork:
			for _, a := range addresses(p) {
				c.hosts[a] = p.Spec.NodeName
			}
			continue
		case p.Status.Phase == corev1.PodSucceeded, p.Status.Phase == corev1.PodFailed:
			continue
		}
		pod := desired.Pod{
			Namespace: p.Namespace, Name: p.Name, Labels: p.Labels,
			Addresses: addresses(p), Ports: policy.NamedPorts(&p.Spec),
		}
		iface := fmt.Sprintf("veth%d", i)
		for _, a := range pod.Addresses {
			c.places[a] = place{p.Spec.NodeName, iface}
		}
		for _, node := range nodes {
			if node != p.Spec.NodeName {
				elsewhere[node] = append(elsewhere[node], pod)
				continue
			}
			records[node] = append(records[node], attached(pod, mark.First+mark.ID(i), iface))
		}
	}
	for _, node := range nodes {
		// The other nodes' pods come by way of an index, as they do in podmarkd.
		var there []*desired.IndexedPod
		index := desired.NewIndex(func(namespace string) iter.Seq[*desired.IndexedPod] {
			return func(yield func(*desired.IndexedPod) bool) {
				for _, p := range there {
					if (namespace == "" || p.Namespace == namespace) && !yield(p) {
						return
					}
				}
			}
		})
		for name, labels := range policies.Namespaces {
			index.Label(name, labels)
		}
		for i, p := range elsewhere[node] {
			there = append(there, indexed(p, uint64(i)))
			index.Put(nil, there[i])
		}
		index.Follow(policies)
		index.Settle()
		c.states[node] = index.Complete(desired.Build(desired.Node{Layout: layout, Epoch: 1}, policies, records[node]))
	}
	return c
}

// indexed is a pod as an index takes it.
func indexed(p desired.Pod, rank uint64) *desired.IndexedPod {
	var labels []desired.Label
	for k, v := range p.Labels {
		labels = append(labels, desired.Label{Key: []byte(k), Value: []byte(v)})
	}
	return &desired.IndexedPod{
		Template: &desired.Template{Namespace: p.Namespace, Labels: desired.NewLabelSets().Of(labels), Ports: p.Ports},
		Name:     p.Name, Addresses: desired.AddressesOf(p.Addresses...), Rank: rank,
	}
}

func attached(p desired.Pod, id mark.ID, iface string) attachment.Record {
	return attachment.Record{
		Key: attachment.Key{Network: "pods", ContainerID: p.Namespace + "/" + p.Name, IfName: "eth0"},
		ID:  id,
		Endpoint: attachment.Endpoint{
			Namespace: p.Namespace, Pod: p.Name, Labels: p.Labels, L3Interface: iface, HostVeth: iface,
			Addresses: p.Addresses, NamedPorts: p.Ports,
		},
		Policed: true, Committed: true,
	}
}

func addresses(p *corev1.Pod) []netip.Addr {
	var out []netip.Addr
	for _, ip := range p.Status.PodIPs {
		out = append(out, netip.MustParseAddr(ip.IP))
	}
	return out
}

// flow is the first packet of one, behind IPVS: it goes to the pod that answers, and to the
// port of that pod, whatever the service's is.
type flow struct {
	src, dst netip.Addr
	protocol desired.Protocol
	port     uint16
}

func (f flow) String() string { return fmt.Sprintf("%v > %v %v/%d", f.src, f.dst, f.protocol, f.port) }

// verdict is what is allowed of a flow.
type verdict struct{ ingress, egress, both bool }

// judge asks the node of the source about egress, that of the destination about ingress,
// and whoever sees the packet about both. A pod that sends to itself does so by a
// service, or its packet would not leave it: the node sees it come and go by one interface.
func (c cluster) judge(f flow) verdict {
	src, fromPod := c.places[f.src]
	dst, toPod := c.places[f.dst]
	ask := func(node, in, out string, directions ...desired.Direction) bool {
		p := desired.Packet{In: in, Out: out, Src: f.src, Dst: f.dst, Protocol: f.protocol, DstPort: f.port}
		if f.protocol == desired.ICMPv6 {
			p.ICMPType = 128 // echo request
		}
		s := c.states[node]
		s.Endpoints = slices.Clone(s.Endpoints)
		for i := range s.Endpoints {
			for _, d := range desired.Directions {
				if !slices.Contains(directions, d) {
					s.Endpoints[i].Profiles[d] = ""
				}
			}
		}
		v := s.Evaluate(p)
		for _, d := range v.Evaluated {
			c.told(d)
		}
		return v.Allowed
	}
	if fromPod && toPod && src.node == dst.node {
		return verdict{
			egress:  ask(src.node, src.iface, dst.iface, desired.Egress),
			ingress: ask(src.node, src.iface, dst.iface, desired.Ingress),
			both:    ask(src.node, src.iface, dst.iface, desired.Directions[:]...),
		}
	}
	v := verdict{ingress: true, egress: true}
	if fromPod {
		out := uplink
		if c.hosts[f.dst] == src.node {
			out = "" // for a process of the node
		}
		v.egress = ask(src.node, src.iface, out, desired.Egress)
	}
	if toPod {
		v.ingress = ask(dst.node, uplink, dst.iface, desired.Ingress)
	}
	v.both = v.ingress && v.egress
	return v
}

// named gives each namespace the label with its name, as the API server does.
func named(namespaces map[string]map[string]string) map[string]map[string]string {
	out := map[string]map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(namespaces)) {
		out[name] = maps.Clone(namespaces[name])
		if out[name] == nil {
			out[name] = map[string]string{}
		}
		out[name][corev1.LabelMetadataName] = name
	}
	return out
}
