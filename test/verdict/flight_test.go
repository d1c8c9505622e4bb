package verdict_test

import (
	"context"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/ident"
)

// A packet in flight while an isolated endpoint comes, gets other policies and goes, each
// of them a new profile, is dropped as those before and behind it are.
func TestPacketsInFlight(t *testing.T) {
	for name, backend := range backends() {
		t.Run(name, func(t *testing.T) {
			ctx := context.Background()
			b := newBench(t, podCount)
			node := nodeOf(t, b)
			pod := b.wires[0]
			list := []ident.Record{records(b)[0]}
			b.run("ip", "link", "set", pod.name, "group", "1886")
			isolated := func(policy string) desired.State {
				some := []desired.Rule{{Ports: []desired.Port{{Protocol: desired.TCP, PortRange: desired.PortRange{First: 9, Last: 9}}}}}
				return desired.Build(node, desired.Policies{Policies: []desired.Policy{{
					Namespace: "one", Name: policy, Ingress: &desired.Isolation{Rules: some}, Egress: &desired.Isolation{Rules: some},
				}}}, list)
			}
			nobody := desired.Build(node, desired.Policies{}, nil)
			if err := backend.Sync(ctx, nobody); err != nil {
				t.Fatal(err)
			}
			var sent atomic.Int64
			stop, stopped := make(chan struct{}), make(chan error, 2)
			flood := func(from, to *wire, into *wire) {
				p := desired.Packet{Src: from.addrs[0], Dst: to.addrs[0], Protocol: desired.UDP, DstPort: 80}
				p.SrcPort = 1234
				f := ethernet(into.far, into.mac, p, nil, 0)
				for {
					select {
					case <-stop:
						stopped <- nil
						return
					default:
					}
					if _, err := unix.Write(into.sock, f); err != nil {
						stopped <- err
						return
					}
					sent.Add(1)
				}
			}
			eth0 := b.wire("eth0")
			go flood(eth0, pod, eth0)
			go flood(pod, eth0, pod)
			// What passed is asked for behind each change, since it is the change that is at fault.
			passed := func() (out [2]int) {
				for i, w := range []*wire{pod, eth0} {
					for buf := make([]byte, 2048); ; {
						n, err := unix.Read(w.sock, buf)
						if err != nil {
							break
						}
						if n >= 14+20 && buf[14] == 0x45 && buf[23] == byte(desired.UDP) {
							out[i]++
						}
					}
				}
				return out
			}
			changes := 0
			for range rounds(map[string]int{"nftables": 200}[name] + 20) {
				states := []desired.State{nobody, isolated("a"), isolated("b"), nobody}
				names := []string{"nobody", "one policy", "another policy", "nobody again"}
				for i := range states[1:] {
					if err := backend.Update(ctx, states[i], states[i+1]); err != nil {
						t.Fatal(err)
					}
					changes++
					if n := passed(); n != [2]int{} {
						t.Fatalf("change %d, from %s to %s: %d packets passed to the pod, %d from it", changes, names[i], names[i+1], n[0], n[1])
					}
				}
			}
			close(stop)
			for range 2 {
				if err := <-stopped; err != nil {
					t.Fatal(err)
				}
			}
			t.Logf("%d packets, %d changes", sent.Load(), changes)
			if n := passed(); n != [2]int{} {
				t.Errorf("at the end: %d packets passed to the pod, %d from it", n[0], n[1])
			}
		})
	}
}
