package verdict_test

import (
	"context"
	"runtime"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/apply"
	"github.com/podmark/podmark/pkg/apply/iptables"
	"github.com/podmark/podmark/pkg/apply/nftables"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/ident"
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
			}}, []ident.Record{records(b)[0]})
			var sent atomic.Int64
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
			step := func(name string) {
				for before := sent.Load(); sent.Load() < before+500; {
					runtime.Gosched()
				}
				if n := passed(); n != [2]int{} {
					t.Errorf("before %q: %d packets passed to the pod, %d from it", name, n[0], n[1])
				}
			}
			nft := nftables.Backend{Step: step}
			ipt := apply.Guarded{Backend: iptables.Backend{Variant: v, Wait: 30e9, Step: step}, Guard: nftables.Guard{Step: step}}
			if err := (nftables.Backend{}).Sync(ctx, state); err != nil {
				t.Fatal(err)
			}
			stop, stopped := make(chan struct{}), make(chan error, 2)
			flood := func(from, to, into *wire) {
				p := desired.Packet{Src: from.addrs[0], Dst: to.addrs[0], Protocol: desired.UDP, SrcPort: 1234, DstPort: 80}
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
			go flood(eth0, pod, eth0)
			go flood(pod, eth0, pod)
			for range rounds(10) {
				if err := ipt.Sync(ctx, state); err != nil {
					t.Fatal(err)
				}
				step("nftables takes over")
				if err := nft.Sync(ctx, state); err != nil {
					t.Fatal(err)
				}
				if err := iptables.Remove(ctx, 30e9, v); err != nil {
					t.Fatal(err)
				}
				step("iptables takes over")
			}
			close(stop)
			for range 2 {
				if err := <-stopped; err != nil {
					t.Fatal(err)
				}
			}
			t.Logf("%d packets", sent.Load())
		})
	}
}
