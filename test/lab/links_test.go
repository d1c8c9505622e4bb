package lab_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/dataplane/tunnel"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/endpoint"
	"github.com/podmark/podmark/test/lab"
)

// A pod whose packets enter the node by the interface of a VLAN is refused, however the
// bridge plugin is told to do that, and says what to do. One on a bridge that filters VLANs
// and has only the default one is not.
func TestRefusedVLANs(t *testing.T) {
	t.Parallel()
	node := lab.NewNode(t, lab.Options{})
	for name, keys := range map[string]lab.Plugin{
		"vlan":                         {"vlan": 100},
		"vlan, default preserved":      {"vlan": 100, "preserveDefaultVlan": true},
		"vlan, default not preserved":  {"vlan": 100, "preserveDefaultVlan": false},
		"vlan is the default":          {"vlan": 1},
		"trunk":                        {"vlanTrunk": []lab.Plugin{{"minID": 5, "maxID": 7}}},
		"trunk, default not preserved": {"vlanTrunk": []lab.Plugin{{"id": 5}}, "preserveDefaultVlan": false},
	} {
		network := bridged(node)
		for k, v := range keys {
			network.Plugins[0][k] = v
		}
		if keys["vlanTrunk"] != nil {
			network.Plugins[0]["isGateway"] = false
		}
		pod, err := node.TryAddPod(lab.PodSpec{Name: "vlan", Network: network})
		var refused *types.Error
		if !errors.As(err, &refused) || refused.Code != 104 || !strings.Contains(refused.Details, "preserveDefaultVlan") {
			t.Errorf("%s: error %v, want code 104 with what to do", name, err)
		}
		if err := pod.Del(); err != nil {
			t.Errorf("%s: the DEL that follows: %v", name, err)
		}
	}
	if _, err := node.TryAddPod(lab.PodSpec{Name: "plain", Network: bridged(node)}); err != nil {
		t.Errorf("on the same bridge, without VLANs: %v", err)
	}
}

// A host veth in a VRF is a routed endpoint's, and a bridge may be in a VRF. Where one is
// put into a VRF behind the ADD, CHECK says so.
func TestInVRF(t *testing.T) {
	t.Parallel()
	node := lab.NewNode(t, lab.Options{})
	node.Run("ip", "link", "add", "red", "type", "vrf", "table", "77")
	plain := node.AddPod(lab.PodSpec{Name: "plain", Network: node.PTP()})
	node.Run("ip", "link", "set", plain.HostVeth, "master", "red")
	onBridge := node.AddPod(lab.PodSpec{Name: "bridged", Network: node.Bridge()})
	node.Run("ip", "link", "set", "cni0", "master", "red")
	for _, pod := range []*lab.Pod{plain, onBridge} {
		var e attachment.Endpoint
		err := node.Do(func() (err error) {
			e, err = endpoint.FromOutside(pod.Result, pod.Path, "eth0")
			return err
		})
		if err != nil {
			t.Fatalf("%s: %v", pod.Name, err)
		}
		if e.VRF != "red" || e.VRFIndex == 0 || e.HostVethIndex == 0 || e.L3InterfaceIndex == 0 || e.Routed() != (pod == plain) || !e.Routed() && e.L3Interface != "cni0" {
			t.Errorf("%s: %+v", pod.Name, e)
		}
	}
	pod := node.AddPod(lab.PodSpec{Name: "moved", Network: routed(node)})
	if err := pod.Check(); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	node.Run("ip", "link", "set", pod.HostVeth, "master", "red")
	if err := pod.Check(); err == nil || !strings.Contains(err.Error(), `enslaved to "red"`) {
		t.Errorf("CHECK of a pod that is in a VRF now: %v", err)
	}
}

// The UDP ports of tunnels are read off the kernel. Debian has no bareudp.
func TestTunnelsOfTheNode(t *testing.T) {
	t.Parallel()
	node := lab.NewNode(t, lab.Options{})
	node.Run("modprobe", "fou") // "ip fou" does not load it
	for _, args := range []string{
		"link add t1 type vxlan id 1 dstport 10001",
		"link add t2 type vxlan external dstport 10002",
		"link add t3 type geneve id 3 remote 192.0.2.1 dstport 10003",
		"link add t4 type geneve external dstport 10004",
		"link add t6 type ipip local 192.0.2.1 remote 192.0.2.2",
		"link add t7 type gretap local 192.0.2.1 remote 192.0.2.2",
		"fou add port 10008 ipproto 4",
		"fou add port 10009 gue",
	} {
		node.Run("ip", strings.Fields(args)...)
	}
	var got desired.Tunnels
	err := node.Do(func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		got, err = tunnel.Read(links)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, port := range []uint16{10001, 10002, 10003, 10004, 10008, 10009} {
		if !slices.Contains(got.UDPPorts, port) {
			t.Errorf("%d is not among %v", port, got.UDPPorts)
		}
	}
}
