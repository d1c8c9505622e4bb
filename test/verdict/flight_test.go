package verdict_test

import (
	"context"
	"sync"
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
			end := sync.OnceFunc(func() { close(stop) })
			defer end()
			eth0 := b.wire("eth0")
			go func() { stopped <- flood(eth0, pod, eth0, &sent, stop) }()
			go func() { stopped <- flood(pod, eth0, pod, &sent, stop) }()
			// What passed is asked for behind each change, since it is the change that is at fault.
			changes := 0
			for range rounds(map[string]int{"nftables": 200}[name] + 20) {
				states := []desired.State{nobody, isolated("a"), isolated("b"), nobody}
				names := []string{"nobody", "one policy", "another policy", "nobody again"}
				for i := range states[1:] {
					if err := backend.Update(ctx, states[i], states[i+1]); err != nil {
						t.Fatal(err)
					}
					changes++
					if n := arrived(pod, eth0); n != [2]int{} {
						t.Fatalf("change %d, from %s to %s: %d packets passed to the pod, %d from it", changes, names[i], names[i+1], n[0], n[1])
					}
				}
			}
			end()
			for range 2 {
				if err := <-stopped; err != nil {
					t.Fatal(err)
				}
			}
			t.Logf("%d packets, %d changes", sent.Load(), changes)
			if n := arrived(pod, eth0); n != [2]int{} {
				t.Errorf("at the end: %d packets passed to the pod, %d from it", n[0], n[1])
			}
		})
	}
}

// flood sends one UDP packet over and over until stop is closed, and counts.
func flood(from, to, into *wire, sent *atomic.Int64, stop <-chan struct{}) error {
	p := desired.Packet{Src: from.addrs[0], Dst: to.addrs[0], Protocol: desired.UDP, SrcPort: 1234, DstPort: 80}
	f := ethernet(into.far, into.mac, injection{packet: p}, 0)
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		if _, err := unix.Write(into.sock, f); err != nil {
			return err
		}
		sent.Add(1)
	}
}

// arrived is how many UDP packets have come out at each of two wires since it was asked last.
func arrived(wires ...*wire) (out [2]int) {
	for i, w := range wires {
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
