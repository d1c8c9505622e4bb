package verdict_test

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/dataplane"
	"github.com/podmark/podmark/pkg/dataplane/iptables"
	"github.com/podmark/podmark/pkg/dataplane/nftables"
	"github.com/podmark/podmark/pkg/desired"
)

// While one backend takes over from the other, what is forbidden is dropped at every step.
func TestTakingOver(t *testing.T) {
	for _, v := range []iptables.Variant{iptables.NFT, iptables.Legacy} {
		t.Run(string(v), func(t *testing.T) {
			ctx := context.Background()
			b := newBench(t, podCount)
			pod, eth0 := b.wires[0], b.wire("eth0")
			b.run("ip", "link", "set", pod.name, "group", "1886")
			none := &desired.Isolation{}
			state := desired.Build(nodeOf(t, b), desired.Policies{Policies: []desired.Policy{
				{Namespace: "one", Name: "none", Ingress: none, Egress: none},
			}}, []attachment.Record{records(b)[0]})
			var sent atomic.Int64
			stop, stopped := make(chan struct{}), make(chan error, 2)
			end := sync.OnceFunc(func() { close(stop) })
			defer end()
			step := func(name string) {
				for before := sent.Load(); sent.Load() < before+500 && len(stopped) == 0; {
					runtime.Gosched()
				}
				if n := arrived(pod, eth0); n != [2]int{} {
					t.Errorf("before %q: %d packets passed to the pod, %d from it", name, n[0], n[1])
				}
			}
			nft := nftables.Backend{Step: step}
			ipt := dataplane.Guarded{Backend: iptables.Backend{Variant: v, Wait: 30e9, Step: step}, Guard: nftables.Guard{Step: step}}
			if err := (nftables.Backend{}).Sync(ctx, state); err != nil {
				t.Fatal(err)
			}
			go func() { stopped <- flood(eth0, pod, eth0, &sent, stop) }()
			go func() { stopped <- flood(pod, eth0, pod, &sent, stop) }()
			for range rounds(10) {
				if err := ipt.Sync(ctx, state); err != nil {
					t.Fatal(err)
				}
				step("nftables takes over")
				if err := nft.Sync(ctx, state); err != nil {
					t.Fatal(err)
				}
				if err := (iptables.Backend{Variant: v, Wait: 30e9}).Remove(ctx); err != nil {
					t.Fatal(err)
				}
				step("iptables takes over")
			}
			end()
			for range 2 {
				if err := <-stopped; err != nil {
					t.Fatal(err)
				}
			}
			t.Logf("%d packets", sent.Load())
		})
	}
}
