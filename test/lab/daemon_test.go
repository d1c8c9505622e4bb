package lab_test

import (
	"bytes"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/podmark/podmark/pkg/agent"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/state"
	"github.com/podmark/podmark/test/lab"
	"github.com/podmark/podmark/test/wait"
)

// startDaemon runs podmarkd on the node until the test ends.
func startDaemon(t *testing.T, n *lab.Node, args ...string) {
	t.Helper()
	path, err := filepath.Abs("../../bin/podmarkd")
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	cmd := exec.Command(path, append([]string{"--state-dir", n.StateDir, "--lock-timeout", lab.LockTimeout, "--listen", "", "--interval", "2s"}, args...)...)
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := n.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("podmarkd said:\n%s", log.String())
		}
	})
}

// becomes waits until podmarkd says that the node is as check wants it.
func becomes(t *testing.T, n *lab.Node, what string, check func(agent.Status) bool) {
	t.Helper()
	wait.Until(t, what, func() error {
		s, err := agent.ReadStatus(state.At(n.StateDir))
		if err == nil && !check(s) {
			err = fmt.Errorf("it is %+v", s)
		}
		return err
	})
}

// NodePorts are the ones that IPVS has, wherever they are, as they come and go, so that
// a process of the node on another port is policed as one. Nothing restarts.
func TestDaemonKnowsNodePorts(t *testing.T) {
	onRouted(t, func(t *testing.T, c *cluster) {
		const inRange, later = 30999, 31500
		apply(t, c.Node, isolate("a", "Egress")+allowAToB)
		startDaemon(t, c.Node)
		// NodePorts that are next to each other.
		used, odd := desired.PortRange{First: nodePort, Last: localPort}, desired.PortRange{First: oddPort, Last: oddPort}
		ports := func(want ...desired.PortRange) func(agent.Status) bool {
			return func(s agent.Status) bool {
				return slices.Equal(s.Ports.Ranges, want) && slices.Equal(s.Ports.Outside, []uint16{oddPort})
			}
		}
		becomes(t, c.Node, "the ports in use are known", ports(used, odd))
		var rows, added []lab.Row
		for _, p := range []lab.Protocol{lab.TCP, lab.UDP} {
			c.Node.Listen(p, inRange)
			for _, f := range lab.Families {
				row := func(name string, port uint16, by string, want lab.Outcome) lab.Row {
					return lab.Row{Name: fmt.Sprintf("%s %v %v", name, p, f), From: c.a.NS, Protocol: p, To: c.Node.At(f, port), By: by, Want: want}
				}
				rows = append(rows,
					row("pod to NodePort", nodePort, "b", lab.OK),
					row("pod to odd NodePort", oddPort, "b", lab.OK),
					row("pod to host process inside the range", inRange, "node", lab.Blocked),
				)
				added = append(added, row("pod to a new NodePort", later, "b", lab.OK))
			}
		}
		lab.Table(t, rows)

		var services []lab.Service
		for _, p := range []lab.Protocol{lab.TCP, lab.UDP} {
			services = append(services, lab.Service{
				Kind: lab.NodePort, Protocol: p, Port: later,
				Backends: []netip.AddrPort{c.b.At(lab.V4, podPort), c.b.At(lab.V6, podPort)},
			})
		}
		c.AddServices(services...)
		becomes(t, c.Node, "a new port is known", ports(used, desired.PortRange{First: later, Last: later}, odd))
		lab.Table(t, append(rows, added...))
		c.RemoveServices(services...)
		becomes(t, c.Node, "it is gone", ports(used, odd))
	})
}

// Whether services are done by IPVS is noticed in both directions, and a link that
// kube-proxy left behind does not count.
func TestDaemonKnowsIPVS(t *testing.T) {
	t.Parallel()
	c := newCluster(t, lab.Options{Backend: lab.NFTables}, routed)
	startDaemon(t, c.Node)
	ipvs := func(want bool) func(agent.Status) bool {
		return func(s agent.Status) bool { return s.Mode.IPVS == want }
	}
	becomes(t, c.Node, "IPVS is used", ipvs(true))
	c.Node.Run("ip", "link", "del", "kube-ipvs0")
	becomes(t, c.Node, "the link is gone", ipvs(false))
	c.Node.Run("ip", "link", "add", "kube-ipvs0", "type", "dummy")
	becomes(t, c.Node, "the link is back", ipvs(true))
	c.Node.Run("ipvsadm", "-C")
	becomes(t, c.Node, "services are gone, and the link is not", func(s agent.Status) bool { return !s.Mode.IPVS && s.Mode.Link })
}

// While others flush everything again and again, what is forbidden is soon forbidden
// again, and what is allowed goes on.
func TestDaemonRepairs(t *testing.T) {
	onRouted(t, func(t *testing.T, c *cluster) {
		apply(t, c.Node, isolate("a", "Egress")+allowAToB)
		startDaemon(t, c.Node)
		becomes(t, c.Node, "it has looked", func(s agent.Status) bool { return s.Mode.IPVS })
		live := c.a.Stream(lab.Request{Protocol: lab.TCP, To: c.b.At(lab.V4, podPort)})
		rows := []lab.Row{
			{Name: "pod to pod", From: c.a.NS, Protocol: lab.TCP, To: c.b.At(lab.V4, podPort), By: "b"},
			{Name: "pod to outside", From: c.a.NS, Protocol: lab.TCP, To: c.outside.At(lab.V4, podPort), Want: lab.Blocked},
		}
		for i := range 3 {
			if c.Backend() == lab.NFTables {
				c.Node.Run("nft", "delete", "table", "inet", "podmark")
			} else {
				for _, f := range lab.Families {
					c.Iptables(f, "-t", "mangle", "-F")
				}
			}
			becomes(t, c.Node, "it has repaired", func(s agent.Status) bool { return s.Repairs > i })
			lab.Table(t, rows)
			if r := live.Ping(10 * time.Second); r.Outcome != lab.OK {
				t.Errorf("a live connection: %v", r)
			}
		}
	})
}
