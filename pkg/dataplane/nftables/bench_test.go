package nftables

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/mark"
	"github.com/podmark/podmark/test/netns"
)

var sizes = []int{10, 1000, 4000}

// nth is the i-th of many endpoints, isolated both ways.
func nth(i int) attachment.Record {
	r := pod(2, "web", fmt.Sprintf("veth%d", i))
	r.ContainerID, r.HostVeth, r.ID = r.L3Interface, r.L3Interface, mark.First+mark.ID(i)
	r.L3InterfaceIndex, r.HostVethIndex = 1000+i, 1000+i
	r.Addresses = []netip.Addr{
		netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}),
		netip.AddrFrom16([16]byte{0xfd, 13: byte(i >> 16), 14: byte(i >> 8), 15: byte(i)}),
	}
	return r
}

// BenchmarkAdd is endpoints that come to a node with so many, its profiles in
// place; making room is in it.
func BenchmarkAdd(b *testing.B) {
	for _, size := range sizes {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			netns.Enter(b)
			ctx := context.Background()
			var all []attachment.Record
			for i := range size {
				all = append(all, nth(i))
			}
			if err := (Backend{}).Sync(ctx, node(b, 0xffff0000, all...)); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				all = append(all, nth(len(all)))
				err := Backend{}.Update(ctx, node(b, 0xffff0000), node(b, 0xffff0000, all[len(all)-1]))
				if errors.Is(err, ErrIncomplete) { // no room
					err = Backend{}.Sync(ctx, node(b, 0xffff0000, all...))
				}
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkCheck is a CHECK of one endpoint among so many, and what an ADD asks instead.
func BenchmarkCheck(b *testing.B) {
	for name, look := range map[string]func(all, one desired.State) error{
		"Check":  func(_, one desired.State) error { return Backend{}.Check(context.Background(), one) },
		"Verify": func(all, _ desired.State) error { return Backend{}.Verify(context.Background(), all) },
		"Stands": func(_, one desired.State) error { return Backend{}.Stands(context.Background(), one.Node) },
	} {
		for _, size := range sizes {
			b.Run(fmt.Sprint(name, "/", size), func(b *testing.B) {
				netns.Enter(b)
				var list []attachment.Record
				for i := range size {
					list = append(list, nth(i))
				}
				all, one := node(b, 0xffff0000, list...), node(b, 0xffff0000, list[size/2])
				if err := (Backend{}).Sync(context.Background(), all); err != nil {
					b.Fatal(err)
				}
				for b.Loop() {
					if err := look(all, one); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkSync is a policy change on a node with so many endpoints.
func BenchmarkSync(b *testing.B) {
	for _, size := range sizes {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			netns.Enter(b)
			ctx := context.Background()
			var all []attachment.Record
			for i := range size {
				all = append(all, nth(i))
			}
			with := node(b, 0xffff0000, all...)
			without := desired.Build(with.Node, desired.Policies{}, all)
			for b.Loop() {
				for _, s := range []desired.State{with, without} {
					if err := (Backend{}).Sync(ctx, s); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}

// BenchmarkVerdicts is the way not taken: a chain an endpoint that sets its
// mark, and maps that lead to it and to its profile by a verdict. The kernel
// walks them all, from each base chain, when one comes.
func BenchmarkVerdicts(b *testing.B) {
	endpoints := set{table: inet, name: "endpoints4", key: concat(nftables.TypeIFIndex, nftables.TypeIPAddr), data: nftables.TypeVerdict}
	egress := set{table: inet, name: "egress", key: nftables.TypeMark, data: nftables.TypeVerdict}
	web := chain{table: inet, name: "web"}
	come := func(i int) []command {
		r := nth(i)
		id := layout(b, 0xffff0000).ID(r.ID)
		own := chain{table: inet, name: fmt.Sprintf("id-%d", r.ID)}
		own.rules = rules(on(setMark(id)))
		return append([]command{addChain(own), addRule(own, 0)}, append(
			addElements(endpoints, []element{{key: link(r.L3InterfaceIndex).and(r.Addresses[0].AsSlice()), chain: own.name}}),
			addElements(egress, []element{{key: string(native(id.Value)), chain: web.name}})...)...)
	}
	for _, size := range sizes {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			netns.Enter(b)
			c, err := dial()
			if err != nil {
				b.Fatal(err)
			}
			defer c.close()
			commands := []command{addTable(inet), addSet(endpoints), addSet(egress), addChain(web)}
			web := web
			for i := range 10 {
				web.rules = append(web.rules, rule{parts: on(counter(), returnVerdict())})
				commands = append(commands, addRule(web, i))
			}
			for i, h := range []hook{hookInput, hookForward} {
				base := chain{table: inet, name: fmt.Sprint("base-", i), hook: &h, rules: rules(
					on(lookup(v4.inputAndSource(endpoints, reg), endpoints)), on(lookup(maskedMark(0xffff0000, reg), egress)))}
				commands = append(append(commands, addChain(base)), fill(base)...)
			}
			for i := range size {
				commands = append(commands, come(i)...)
			}
			if err := c.commit(0, commands); err != nil {
				b.Fatal(err)
			}
			next := size
			for b.Loop() {
				if err := c.commit(0, come(next)); err != nil {
					b.Fatal(err)
				}
				next++
			}
		})
	}
}

func lookup(key part, s set) part {
	key.exprs = append(key.exprs, &expr.Lookup{SourceRegister: reg, SetName: s.name, IsDestRegSet: true})
	return key
}
