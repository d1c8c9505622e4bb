package explain_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"testing"

	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/explain"
)

// Every walk's verdict is that of State.Allows on the packet that is judged, in random
// states. PODMARK_SEED repeats a run.
func TestRandomStates(t *testing.T) {
	seed := rand.Uint64()
	if text := os.Getenv("PODMARK_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("PODMARK_SEED=%d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	denied, asked := 0, 0
	for range 300 {
		f := facts(t, backends[r.IntN(2)], randomPolicies(r))
		for range 30 {
			src := pick(r, "10.1.0.2", "10.1.0.3", "10.1.0.4", "10.1.0.5", "192.168.50.7", "10.2.0.9", "192.168.50.1", "10.1.0.99")
			dst := netip.AddrPortFrom(addr(pick(r, "10.1.0.2", "10.1.0.3", "10.1.0.4", "10.1.0.5", "192.168.50.1", "10.1.0.1", "10.2.0.9", "10.96.0.10", "224.0.0.9")),
				pick(r, uint16(80), 8080, 9000, 30080, 40080, 30001))
			if src == dst.Addr().String() {
				continue
			}
			a := ask(t, f, src, dst.String())
			want := wanted(f, addr(src), dst)
			if len(a.Walks) != len(want) {
				t.Fatalf("%s: %s to %s: %s, want %d walks", f.Backend, src, dst, outcome(a), len(want))
			}
			for i, w := range a.Walks {
				asked++
				if !want[i] {
					denied++
				}
				if w.Allowed != want[i] {
					t.Fatalf("%s: %s to %s: %+v, want allowed %t", f.Backend, src, dst, w, want[i])
				}
			}
		}
	}
	t.Logf("%d of %d walks were denied", denied, asked)
	if denied < asked/10 || denied > asked*9/10 {
		t.Errorf("%d of %d walks were denied: the states are too one-sided to prove much", denied, asked)
	}
}

func pick[T any](r *rand.Rand, list ...T) T { return list[r.IntN(len(list))] }

func randomPolicies(r *rand.Rand) desired.Policies {
	var out desired.Policies
	isolation := func() *desired.Isolation {
		if r.IntN(3) == 0 {
			return nil
		}
		i := from(pick(r, "web", "db", "client", "mute"), pick(r, "0.0.0.0/0", "192.168.50.0/24", "10.1.0.2/31", "10.2.0.0/16"))
		if r.IntN(2) == 0 {
			i.Rules[0].Ports = nil
		}
		i.Rules = i.Rules[:r.IntN(2)]
		return i
	}
	for i := range 1 + r.IntN(3) {
		out.Policies = append(out.Policies, desired.Policy{
			Namespace: "shop", Name: fmt.Sprint("p", i), Pods: app(pick(r, "web", "db", "client", "mute")), Ingress: isolation(), Egress: isolation(),
		})
	}
	return out
}

// wanted says by hand what becomes of a TCP packet: at most one judgement at INPUT, and
// one for each backend.
func wanted(f explain.Facts, src netip.Addr, dst netip.AddrPort) []bool {
	p := desired.Packet{In: f.Routes[src].Interface, Src: src, Protocol: desired.TCP}
	if f.Routes[src].Local {
		p.In = ""
	}
	allows := func(to netip.AddrPort, out string) bool {
		p.Dst, p.DstPort, p.Out = to.Addr(), to.Port(), out
		return f.State.Evaluate(p).Allowed
	}
	route := f.Routes[dst.Addr()]
	if !route.Local && !route.Many {
		return []bool{allows(dst, route.Interface)}
	}
	posing := p.In == "veth-web" && src != addr("10.1.0.2")
	if posing {
		return []bool{false}
	}
	nodes, exact := slices.Contains(hosts, dst.Addr()), f.Backend == config.BackendNFTables
	inRange := dst.Port() >= 30000 && dst.Port() <= 32767
	if !exact && (route.Many || nodes && !inRange) && !allows(dst, "") {
		return []bool{false}
	}
	for _, s := range f.IPVS.Services {
		if s.At != dst || s.Protocol != desired.TCP {
			continue
		}
		var out []bool
		for _, b := range s.Destinations {
			if f.Routes[b.At.Addr()].Local {
				out = append(out, !exact || allows(b.At, ""))
			} else {
				out = append(out, allows(b.At, f.Routes[b.At.Addr()].Interface))
			}
		}
		return out
	}
	switch {
	case !nodes && !route.Many:
		return []bool{false} // kube-proxy rejects it
	case !exact && nodes && inRange:
		return []bool{true}
	}
	return []bool{allows(dst, "")}
}
