package main_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"

	"github.com/podmark/podmark/test/testnode"
	"github.com/podmark/podmark/test/wait"
)

// Pods that the runtime made before podmark was in its conflist get an ID and their
// policy from podmarkd, while they run: nothing they may send is lost, what they may
// not ends, and their DEL is one like any other.
func TestAdopt(t *testing.T) {
	eachBackend(t, func(t *testing.T, n *node) {
		n.withHost().Apply(switchPolicy)
		n.keeper()
		_, chain := n.network("1.1.0")
		before := *chain
		before.Plugins = chain.Plugins[:1]
		plugins, err := filepath.Abs("../../bin/cni")
		if err != nil {
			t.Fatal(err)
		}
		cni := libcni.NewCNIConfigWithCacheDir([]string{testnode.Programs(t), plugins}, filepath.Join(filepath.Dir(n.Dir), "cache"), nil)
		ctx := context.Background()
		runtimeOf := func(p *pod) *libcni.RuntimeConf {
			return &libcni.RuntimeConf{
				ContainerID: p.ID, NetNS: p.Path, IfName: "eth0",
				Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "default"}, {"K8S_POD_NAME", "web-" + p.ID}},
			}
		}
		var pods []*pod
		for _, id := range []string{"first", "second"} {
			p := &pod{Pod: &testnode.Pod{Space: testnode.NewSpace(t), Node: n.Node, ID: id, IfName: "eth0"}, n: n}
			got, err := cni.AddNetworkList(ctx, &before, runtimeOf(p))
			if err != nil {
				t.Fatal(err)
			}
			result, err := types100.GetResult(got)
			if err != nil {
				t.Fatal(err)
			}
			p.V4, p.V6 = result.IPs[0].Address.IP.String(), result.IPs[1].Address.IP.String()
			pods = append(pods, p.listen())
		}
		p := pods[0]
		echo(t, n.outside.Space, 9001)
		echo(t, n.outside.Space, 9002)
		allowed, forbidden := dial(t, p.Space, net.JoinHostPort(n.outside.v4, "9002")), dial(t, p.Space, net.JoinHostPort(n.outside.v6, "9001"))
		for _, l := range []*line{allowed, forbidden} {
			if err := l.ping(); err != nil {
				t.Fatalf("before podmark: %v", err)
			}
		}
		stop := p.count(t, net.JoinHostPort(n.outside.v4, "9002"))
		allow := []string{"172.30.0.0/16"}
		n.configure(conf{"args": conf{"cni": conf{"labels": conf{"app": "web"}}}, "allowedSourcePrefixes": allow})
		if chain.Plugins[1], err = libcni.InjectConf(chain.Plugins[1], map[string]any{"allowedSourcePrefixes": allow}); err != nil {
			t.Fatal(err)
		}
		wait.For(t, "both pods are adopted", func() bool {
			list := n.ctl("list")
			return strings.Contains(list, "default/web-first") && strings.Contains(list, "default/web-second") && strings.Count(list, allow[0]) == 2
		})
		sent := stop()
		wait.For(t, fmt.Sprintf("all of %d datagrams that are allowed have arrived", sent), func() bool { return n.outside.allowed.count() == sent && sent > 0 })
		heard := forbidden.answers.Load()
		if err := allowed.ping(); err != nil {
			t.Errorf("a connection that is allowed broke: %v", err)
		}
		more := allowed.answers.Load() + 20 // the other one has as much time
		wait.For(t, "what is allowed goes on", func() bool { return allowed.answers.Load() >= more })
		allowed.close(t)
		if forbidden.answers.Load() != heard {
			t.Error("a connection that is not allowed goes on")
		}
		for _, p := range pods {
			p.is(t, policed)
			if err := cni.CheckNetworkList(ctx, chain, runtimeOf(p)); err != nil {
				t.Errorf("CHECK of %s: %v", p.ID, err)
			}
			if err := cni.DelNetworkList(ctx, chain, runtimeOf(p)); err != nil {
				t.Errorf("DEL of %s: %v", p.ID, err)
			}
		}
		if left := slicesWithout(n.attachments(), "daemon.json", "daemon.lock"); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
		if left := n.endpoints(); len(left) > 0 {
			t.Errorf("left in the kernel: %v", left)
		}
	})
}

// Pods of a network that wanted no policy get it when the network does, while they run.
func TestEnlist(t *testing.T) {
	eachBackend(t, func(t *testing.T, n *node) {
		n.withHost().Apply(switchPolicy)
		p := n.addPod().listen()
		n.configure(conf{"policy": "none"})
		p.Add(conf{"policy": "none"}).OK(t)
		k := n.keeper()
		echo(t, n.outside.Space, 9001)
		echo(t, n.outside.Space, 9002)
		allowed, forbidden := dial(t, p.Space, net.JoinHostPort(n.outside.v4, "9002")), dial(t, p.Space, net.JoinHostPort(n.outside.v6, "9001"))
		for _, l := range []*line{allowed, forbidden} {
			if err := l.ping(); err != nil {
				t.Fatalf("without a policy: %v", err)
			}
		}
		if said := n.ctl("status"); !strings.Contains(said, "0 of 1 pods policed") {
			t.Errorf("status says of a pod of a network without policy:\n%s", said)
		}
		n.configure(nil)
		wait.For(t, "the pod is policed", func() bool {
			return strings.Contains(k.Log.String(), "Enforcing policy on a pod, as its network requests it now")
		})
		if said := n.ctl("status"); !strings.Contains(said, "1 of 1 pods policed") {
			t.Errorf("status says of the pod then:\n%s", said)
		}
		heard := forbidden.answers.Load()
		more := allowed.answers.Load() + 20 // the other one has as much time
		wait.For(t, "what is allowed goes on", func() bool { return allowed.answers.Load() >= more })
		if forbidden.answers.Load() != heard {
			t.Error("a connection that is not allowed goes on")
		}
		allowed.close(t)
		p.is(t, policed)
	})
}

// count sends one datagram after the other, each a number, until stop, which returns
// how many there were.
func (p *pod) count(t *testing.T, to string) (stop func() int) {
	t.Helper()
	var c net.Conn
	p.Do(t, func() (err error) {
		c, err = net.Dial("udp", to)
		return err
	})
	end, sent := make(chan struct{}), make(chan int)
	go func() {
		defer c.Close()
		for n := 0; ; n++ {
			select {
			case <-end:
				sent <- n
				return
			case <-time.After(time.Millisecond):
				fmt.Fprintf(c, "number %d", n)
			}
		}
	}()
	return func() int {
		close(end)
		return <-sent
	}
}

// What is not a running pod of a network with podmark is left alone.
func TestNotAdopted(t *testing.T) {
	n := newNode(t, nftables)
	known, alive := n.addPod(), n.addPod()
	known.Add().OK(t)
	cache := filepath.Join(filepath.Dir(n.Dir), "cache", "results")
	if err := os.MkdirAll(cache, 0o700); err != nil {
		t.Fatal(err)
	}
	write := func(network, id, netns, result string) {
		t.Helper()
		text := fmt.Sprintf(`{"kind": "cniCacheV1", "containerId": %q, "ifName": "eth0", "networkName": %q, "netns": %q, "result": %s}`, id, network, netns, result)
		if err := os.WriteFile(filepath.Join(cache, network+"-"+id+"-eth0"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const bare = `{"cniVersion": "1.0.0", "ips": [{"address": "10.1.0.77/24"}]}`
	write("net", known.ID, known.Path, bare)
	write("net", "gone", "/run/netns/gone", bare)
	write("other", "foreign", alive.Path, bare)
	write("net", "without-result", alive.Path, "{}")
	write("net", "of-no-version", alive.Path, `{"cniVersion": "7.0.0"}`)
	write("net", "seen-last", alive.Path, `{"cniVersion": "1.0.0", "ips": []}`)
	if err := os.WriteFile(filepath.Join(cache, "net-damaged-eth0"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	n.configure(nil)
	list := func() string { return n.ctl("list", "-o", "json") }
	kernel, records := n.kernel(), list()
	k := n.keeper()
	wait.For(t, "podmarkd says why", func() bool {
		return strings.Contains(k.Log.String(), "net/seen-last/eth0") && strings.Contains(k.Log.String(), "net/of-no-version/eth0")
	})
	if diff := cmp.Diff(kernel, n.kernel()); diff != "" {
		t.Errorf("the kernel has changed:\n%s", diff)
	}
	if diff := cmp.Diff(records, list()); diff != "" {
		t.Errorf("the attachments have changed:\n%s", diff)
	}
	if alike := strings.Count(k.Log.String(), "net/seen-last/eth0"); alike != 1 {
		t.Errorf("it says so %d times:\n%s", alike, k.Log.String())
	}
}

func slicesWithout(list []string, names ...string) []string {
	var out []string
	for _, s := range list {
		if !strings.Contains(" "+strings.Join(names, " ")+" ", " "+s+" ") {
			out = append(out, s)
		}
	}
	return out
}
