package agent

import (
	"context"
	"log/slog"
	"os/exec"
	"testing"
	"time"

	"github.com/podmark/podmark/pkg/dataplane/nftables"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/mark"
	"github.com/podmark/podmark/test/netns"
)

// What this program does to nf_tables is no news to it, and what another one does is.
func TestOwnChangesAreNoNews(t *testing.T) {
	netns.Enter(t)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	told := make(chan Trigger, 100)
	if err := watch(ctx, slog.New(slog.DiscardHandler), func(r Trigger) { told <- r }); err != nil {
		t.Fatal(err)
	}
	layout, err := mark.NewLayout(0xffff0000)
	if err != nil {
		t.Fatal(err)
	}
	if err := (nftables.Backend{}).Sync(ctx, desired.State{Node: desired.Node{Layout: layout, Epoch: 1}}); err != nil {
		t.Fatal(err)
	}
	// Notifications come in order.
	for _, args := range [][]string{{"add", "table", "ip", "other"}, {"delete", "table", "ip", "other"}} {
		if out, err := exec.Command("nft", args...).CombinedOutput(); err != nil {
			t.Fatalf("nft %v: %v: %s", args, err, out)
		}
	}
	for i := range 2 {
		select {
		case r := <-told:
			if r != OnRulesetChange {
				t.Errorf("told of %q", r)
			}
		case <-time.After(2 * time.Minute):
			t.Fatalf("%d of nft's 2 changes were told", i)
		}
	}
	select {
	case r := <-told:
		t.Errorf("told of %q besides", r)
	default:
	}
}
