package verdict_test

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/dataplane"
	"github.com/podmark/podmark/pkg/dataplane/conntrack"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/test/frame"
	"github.com/podmark/podmark/test/share"
)

// A packet in flight while an isolated endpoint comes, gets other policies and goes, each
// of them a new profile, is dropped as those before and behind it are.
func TestPacketsInFlight(t *testing.T) {
	for _, name := range share.OneOf(t, slices.Sorted(maps.Keys(backends()))) {
		backend := backends()[name]
		t.Run(name, func(t *testing.T) {
			ctx := context.Background()
			b := newBench(t, podCount)
			node := nodeOf(t, b)
			pod := b.wires[0]
			list := []attachment.Record{records(b)[0]}
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

// A flow that began before an endpoint had its address, or the veth, goes on in neither
// direction: what its other end still answers makes nobody take it for allowed.
func TestFlowsOlderThanTheirEndpoint(t *testing.T) {
	for name, backend := range backends() {
		t.Run(name, func(t *testing.T) { olderFlows(t, newBench(t, podCount), backend) })
	}
}

func olderFlows(t *testing.T, b *bench, backend dataplane.Backend) {
	ctx := context.Background()
	node := nodeOf(t, b)
	pod, other := b.wires[0], b.wire("eth0")
	whole := records(b)[0]
	part := whole
	part.Addresses = slices.DeleteFunc(slices.Clone(whole.Addresses), netip.Addr.Is6)
	for _, tt := range []struct {
		when   string
		is     attachment.Record
		closed bool // by its device group, as in an ADD
	}{
		{"the port closed", whole, true},
		{"with one of two addresses", part, false},
	} {
		nobody := desired.Build(node, desired.Policies{}, nil)
		isolated := desired.Build(node, desired.Policies{Policies: []desired.Policy{{
			Namespace: tt.is.Namespace, Name: "nothing", Ingress: &desired.Isolation{}, Egress: &desired.Isolation{},
		}}}, []attachment.Record{tt.is})
		group(b, nil)
		if err := backend.Sync(ctx, nobody); err != nil {
			t.Fatal(err)
		}
		flows := flowsBetween(t, b, pod, other)
		none := func(when string) {
			t.Helper()
			for i, places := range b.inject(flows) {
				if len(places) != 0 {
					t.Errorf("%s, %s, %+v came out at %q", tt.when, when, flows[i].packet, places)
				}
			}
		}
		if tt.closed {
			group(b, []attachment.Record{tt.is})
		}
		if err := conntrack.ResetVerdict(pod.addrs, node.Layout.Mask()); err != nil {
			t.Fatal(err)
		}
		if tt.closed {
			none("before its elements are there")
		}
		if err := backend.Update(ctx, nobody, isolated); err != nil {
			t.Fatal(err)
		}
		none("behind its ADD")
	}
}

// flowsBetween opens flows from either end, has them answered, and returns a further packet of
// each in each direction.
func flowsBetween(t *testing.T, b *bench, one, other *wire) (further []injection) {
	t.Helper()
	var opening, answers []injection
	for _, ends := range [][2]*wire{{one, other}, {other, one}} {
		for f := range 2 {
			for _, protocol := range []desired.Protocol{desired.TCP, desired.UDP} {
				b.port++
				p := desired.Packet{Src: ends[0].addrs[f], Dst: ends[1].addrs[f], Protocol: protocol, SrcPort: b.port, DstPort: 80}
				opening = append(opening, injection{wire: ends[0], packet: p})
				answers = append(answers, injection{wire: ends[1], packet: turned(p), flags: frame.SYN | frame.ACK})
				further = append(further, injection{wire: ends[0], packet: p, flags: frame.ACK}, injection{wire: ends[1], packet: turned(p), flags: frame.ACK})
			}
		}
	}
	for _, some := range [][]injection{opening, answers, further} {
		for i, places := range b.inject(some) {
			if len(places) != 1 {
				t.Fatalf("%+v, which nothing forbids, came out at %q", some[i].packet, places)
			}
		}
	}
	return further
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
