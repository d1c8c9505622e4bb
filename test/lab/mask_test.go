package lab_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/podmark/podmark/pkg/mark"
	nodes "github.com/podmark/podmark/pkg/node"
	"github.com/podmark/podmark/pkg/state"
	"github.com/podmark/podmark/test/lab"
)

// The masks that a node goes through: disjoint, overlapping, with holes, and such in
// which a mark that meant an endpoint means "outside".
var masks = []uint32{0xffff0000, 0x00000fff, 0x00ff0000, 0xfffe0000}

// IPVS takes a packet between the rules that mark it and those that judge it. While
// the node moves to another mask, packets that carry marks of the former one are
// judged as those that carry new ones are, and live connections go on.
func TestMaskMoves(t *testing.T) {
	onRouted(t, func(t *testing.T, c *cluster) {
		apply(t, c.Node, switchPolicy())
		rows := overUDP(c.switchWalks(t))
		ctx, stop := context.WithCancel(t.Context())
		var lives sync.WaitGroup
		defer lives.Wait()
		defer stop()
		for _, f := range lab.Families {
			for _, live := range []liveFlow{
				live("pod to ClusterIP "+f.String(), c.a.Stream(lab.Request{Protocol: lab.TCP, To: c.vip(lab.TCP, f)})),
				live("outside to NodePort "+f.String(), c.outside.Stream(lab.Request{Protocol: lab.TCP, To: c.Node.At(f, nodePort)})),
			} {
				lives.Go(func() { keepAlive(ctx, t, live) })
			}
		}
		for i, mask := range masks[1:] {
			former, to := layoutOf(t, masks[i]), layoutOf(t, mask)
			times := 0
			n := nodeOf(c.Node)
			n.Step = func(name string) {
				if name != "understands both" {
					return
				}
				times++
				t.Logf("%#x to %#x, time %d", masks[i], mask, times)
				lab.Table(t, rows)
				c.remark(t, former, to)
				defer c.Run("nft", "delete table inet before")
				lab.Table(t, rows)
			}
			err := c.Do(func() error {
				moved, err := n.ChangeMask(ctx, to)
				if !moved && err == nil {
					err = fmt.Errorf("nothing was moved to %#x", mask)
				}
				return err
			})
			if err != nil || times == 0 {
				t.Fatalf("moved by way of %d sets of rules: %v", times, err)
			}
		}
		lab.Table(t, rows)
	})
}

// remark makes packets come to IPVS as they would if the former rules had marked them.
func (c *cluster) remark(t *testing.T, former, now mark.Layout) {
	t.Helper()
	var rules strings.Builder
	records, err := state.At(c.StateDir).List()
	if err != nil {
		t.Fatal(err)
	}
	over := now.Over(former)
	replace := func(match string, value uint32) {
		fmt.Fprintf(&rules, "%s meta mark set meta mark & %#x | %#x accept\n", match, ^over.Mask(), value)
	}
	for _, r := range records { // with the IDs that they had
		for _, a := range r.Addresses {
			family := "ip6"
			if a.Is4() {
				family = "ip"
			}
			replace(fmt.Sprintf("%s saddr %s meta mark & %#x != 0", family, a, over.Mask()), former.ID(r.ID).Value)
		}
	}
	replace(fmt.Sprintf("meta mark & %#x == %#x", over.Mask(), over.ID(mark.Outside).Value), former.ID(mark.Outside).Value)
	behind := -149 // podmark's chain, and before IPVS
	if c.Backend() == lab.NFTables {
		behind = 97 // of chains of one priority, the one that came last is the last
	}
	c.RunInput(fmt.Sprintf("table inet before {\nchain input {\ntype filter hook input priority %d\n%s}\n}\n", behind, &rules), "nft", "-f", "-")
}

func layoutOf(t *testing.T, mask uint32) mark.Layout {
	t.Helper()
	layout, err := mark.NewLayout(mask)
	if err != nil {
		t.Fatal(err)
	}
	return layout
}

func nodeOf(n *lab.Node) nodes.Node {
	return nodes.Node{Store: state.At(n.StateDir), LockTimeout: 2 * time.Minute}
}
