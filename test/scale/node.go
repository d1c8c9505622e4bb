package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/mark"
	enforced "github.com/podmark/podmark/pkg/node"
	"github.com/podmark/podmark/pkg/policy"
	"github.com/podmark/podmark/pkg/state"
	"github.com/podmark/podmark/test/scale/cluster"
)

// network is the name of the CNI network.
const network = "scale"

// node is this network namespace as a node: pods of the cluster are attached to it as the
// plugin attaches them, but without a process for each.
type node struct {
	dir, state, confDir string
	backend             config.Backend
	pods                netns.NsHandle // all container interfaces
	attached            []*corev1.Pod
}

func newNode(dir string, backend config.Backend) (*node, error) {
	n := &node{dir: dir, state: filepath.Join(dir, "state"), confDir: filepath.Join(dir, "net.d"), backend: backend}
	here, err := netns.Get()
	if err != nil {
		return nil, err
	}
	defer here.Close()
	if n.pods, err = netns.New(); err != nil {
		return nil, fmt.Errorf("making a network namespace: %w", err)
	}
	if err := netns.Set(here); err != nil {
		return nil, err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return nil, err
	}
	list, err := json.Marshal(map[string]any{"cniVersion": "1.0.0", "name": network, "plugins": []any{
		map[string]any{"type": "ptp"}, map[string]any{"type": "podmark", "policy": "kubernetes", "backend": backend, "stateDir": n.state},
	}})
	return n, errors.Join(err, netlink.LinkSetUp(lo),
		os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644),
		os.MkdirAll(n.confDir, 0o755), os.WriteFile(filepath.Join(n.confDir, "10-scale.conflist"), list, 0o600))
}

// attachAll attaches the pods of the first node.
func (n *node) attachAll(ctx context.Context, c *cluster.Cluster) error {
	for p := range c.Pods() {
		if p.Spec.NodeName != cluster.Node(0) || p.Spec.HostNetwork {
			continue
		}
		if err := n.attach(ctx, p); err != nil {
			return fmt.Errorf("attaching %s/%s: %w", p.Namespace, p.Name, err)
		}
	}
	return nil
}

// attach is what the ADDs of ptp and podmark come to for a pod.
func (n *node) attach(ctx context.Context, p *corev1.Pod) error {
	i := len(n.attached)
	r := attachment.Record{
		Key: attachment.Key{Network: network, ContainerID: string(p.UID), IfName: fmt.Sprintf("c%d", i)},
		Endpoint: attachment.Endpoint{
			Namespace: p.Namespace, Pod: p.Name, Labels: p.Labels, NamedPorts: policy.NamedPorts(&p.Spec),
			L3Interface: fmt.Sprintf("veth%d", i), HostVeth: fmt.Sprintf("veth%d", i),
		},
		Netns: fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(n.pods)), UID: string(p.UID), Policed: true, Kubernetes: true,
	}
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: r.L3Interface}, PeerName: r.IfName, PeerNamespace: netlink.NsFd(int(n.pods))}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("making %s: %w", r.L3Interface, err)
	}
	link, err := netlink.LinkByName(r.L3Interface)
	if err != nil {
		return err
	}
	err = netlink.LinkSetUp(link)
	for _, ip := range p.Status.PodIPs {
		a, parseErr := netip.ParseAddr(ip.IP)
		r.Addresses = append(r.Addresses, a)
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}}
		err = errors.Join(err, parseErr, netlink.RouteAdd(route))
	}
	if err != nil {
		return err
	}
	layout, err := mark.NewLayout(config.DefaultMask)
	if err != nil {
		return err
	}
	settings := enforced.Settings{Layout: layout, Backend: n.backend, NodePorts: []config.PortRange{config.DefaultNodePorts}}
	at := enforced.Node{Store: state.At(n.state), LockTimeout: time.Minute}
	if _, err := at.Add(ctx, settings, r, nil, func() (bool, error) { return false, nil }); err != nil {
		return err
	}
	n.attached = append(n.attached, p)
	return nil
}

// selecting is how many policies of the cluster select a pod that is attached.
func (n *node) selecting(c *cluster.Cluster) (sum int, err error) {
	for p := range c.Policies() {
		selector, err := metav1.LabelSelectorAsSelector(&p.Spec.PodSelector)
		if err != nil {
			return 0, err
		}
		if slices.ContainsFunc(n.attached, func(o *corev1.Pod) bool {
			return o.Namespace == p.Namespace && selector.Matches(labels.Set(o.Labels))
		}) {
			sum++
		}
	}
	return sum, nil
}
