package main_test

import (
	"context"
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/podmark/podmark/pkg/whois"
)

// While podmarkd is asked who a pod is, which may take long, nothing passes to or from it.
func TestClosedWhilePodmarkdIsAsked(t *testing.T) {
	on(t, backends, func(t *testing.T, n *node) {
		p := n.withHost().addPod().listen()
		n.settle()
		asked, known := make(chan struct{}), make(chan struct{})
		l, err := whois.Listen(filepath.Join(n.dir, "podmarkd.sock"))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		served := make(chan struct{})
		go func() {
			defer close(served)
			whois.Serve(ctx, l, func(context.Context, whois.Request) (whois.Answer, error) {
				close(asked)
				<-known
				return whois.Answer{}, nil
			})
		}()
		t.Cleanup(func() { cancel(); <-served })
		flows := func(pass bool) []flow {
			return []flow{
				{"pod", p.space, netip.MustParseAddrPort(n.outside.v4 + ":9002"), n.outside.allowed, pass},
				{"outside", n.outside.space, netip.MustParseAddrPort(p.v4 + ":8002"), p.allowed, pass},
			}
		}
		if err := problem(t, flows(true)...); err != nil {
			t.Fatalf("before the ADD: %v", err)
		}
		added := make(chan reply, 1)
		go func() {
			if err := n.enter(); err != nil {
				t.Error(err)
			}
			added <- p.add(conf{"policy": "kubernetes"})
		}()
		select {
		case <-asked:
		case r := <-added:
			t.Fatalf("the ADD ended without asking: %v", r)
		}
		if err := problem(t, flows(false)...); err != nil {
			t.Errorf("while podmarkd is asked: %v", err)
		}
		close(known)
		(<-added).ok(t)
		if err := problem(t, flows(true)...); err != nil {
			t.Errorf("after the ADD: %v", err)
		}
	})
}
