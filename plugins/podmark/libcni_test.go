package main_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"

	"github.com/podmark/podmark/test/needs"
	"github.com/podmark/podmark/test/testnode"
)

// network is a conflist of ptp and podmark, run by libcni as runtimes do.
func (n *node) network(version string) (*libcni.CNIConfig, *libcni.NetworkConfigList) {
	n.T.Helper()
	plugins, err := filepath.Abs("../../bin/cni")
	if err != nil {
		n.T.Fatal(err)
	}
	needs.All(n.T, func() error {
		if _, err := os.Stat(filepath.Join(plugins, "ptp")); err != nil {
			return fmt.Errorf("ptp and host-local: run scripts/tools.sh cni: %w", err)
		}
		return nil
	})
	b, err := json.Marshal(conf{"cniVersion": version, "name": "net", "plugins": []conf{
		{"type": "ptp", "ipam": conf{
			"type": "host-local", "dataDir": n.T.TempDir(),
			"ranges": [][]conf{{{"subnet": "10.1.0.0/24"}}, {{"subnet": "fd00:10::/64"}}},
			"routes": []conf{{"dst": "0.0.0.0/0"}, {"dst": "::/0"}},
		}},
		{"type": "podmark", "backend": n.Backend.Key, "stateDir": n.Dir, "policy": "files", "args": conf{"cni": conf{"labels": conf{"app": "web"}}}},
	}})
	if err != nil {
		n.T.Fatal(err)
	}
	list, err := libcni.NetworkConfFromBytes(b)
	if err != nil {
		n.T.Fatal(err)
	}
	return libcni.NewCNIConfigWithCacheDir([]string{testnode.Programs(n.T), plugins}, n.T.TempDir(), nil), list
}

func TestLibcni(t *testing.T) {
	for _, version := range versions {
		t.Run(version, func(t *testing.T) {
			eachKind(t, func(t *testing.T, n *node) {
				n.withHost().Apply(webPolicy)
				n.settle()
				n.ctl("gc")
				kernel := n.kernel()
				cni, list := n.network(version)
				ctx := context.Background()
				p := &pod{Pod: &testnode.Pod{Space: testnode.NewSpace(t), Node: n.Node, ID: "container", IfName: "eth0"}, n: n}
				rt := &libcni.RuntimeConf{
					ContainerID: p.ID, NetNS: p.Path, IfName: "eth0",
					Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "default"}, {"K8S_POD_NAME", "web-0"}},
				}
				got, err := cni.AddNetworkList(ctx, list, rt)
				if err != nil {
					t.Fatal(err)
				}
				if got.Version() != version {
					t.Errorf("result has version %s", got.Version())
				}
				result, err := types100.GetResult(got)
				if err != nil {
					t.Fatal(err)
				}
				p.V4, p.V6 = result.IPs[0].Address.IP.String(), result.IPs[1].Address.IP.String()
				p.listen().is(t, policed)
				if r := p.Record(t); r.Namespace != "default" || r.Pod != "web-0" {
					t.Errorf("record is of %s/%s", r.Namespace, r.Pod)
				}
				if version >= "0.4.0" {
					if err := cni.CheckNetworkList(ctx, list, rt); err != nil {
						t.Error(err)
					}
				}
				if err := cni.GetStatusNetworkList(ctx, list); err != nil {
					t.Error(err)
				}
				if version == "1.1.0" {
					if err := cni.GCNetworkList(ctx, list, &libcni.GCArgs{ValidAttachments: []types.GCAttachment{{ContainerID: p.ID, IfName: "eth0"}}}); err != nil {
						t.Error(err)
					}
					if err := cni.CheckNetworkList(ctx, list, rt); err != nil {
						t.Errorf("after GC: %v", err)
					}
					// libcni deletes what it has cached and is not listed, then says so to the plugins.
					if err := cni.GCNetworkList(ctx, list, &libcni.GCArgs{}); err != nil {
						t.Error(err)
					}
					if left := n.attachments(); left != nil {
						t.Errorf("left after GC: %v", left)
					}
				}
				for range 2 {
					if err := cni.DelNetworkList(ctx, list, rt); err != nil {
						t.Error(err)
					}
				}
				if left := n.attachments(); left != nil {
					t.Errorf("left behind: %v", left)
				}
				n.ctl("gc") // ptp took its gateway address away after podmark
				if diff := cmp.Diff(kernel, n.kernel()); diff != "" {
					t.Errorf("left in the kernel:\n%s", diff)
				}
			})
		})
	}
}

// A pod that podmark refuses leaves nothing of the plugins before it.
func TestLibcniRefused(t *testing.T) {
	n := newNode(t, nftables)
	cni, list := n.network("1.0.0")
	if err := os.MkdirAll(n.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	n.write(t, "node.json", "{")
	s := testnode.NewSpace(t)
	rt := &libcni.RuntimeConf{ContainerID: "container", NetNS: s.Path, IfName: "eth0"}
	if _, err := cni.AddNetworkList(context.Background(), list, rt); err == nil {
		t.Fatal("ADD succeeded")
	}
	if err := cni.DelNetworkList(context.Background(), list, rt); err != nil {
		t.Errorf("the DEL that follows: %v", err)
	}
	s.Do(t, func() error {
		if testnode.Up("eth0") == nil {
			t.Error("ptp's interface is left")
		}
		return nil
	})
}
