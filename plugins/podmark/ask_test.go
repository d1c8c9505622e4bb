package main_test

import (
	"context"
	"crypto/rand"
	"net"
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/podapi"
	"github.com/podmark/podmark/pkg/state"
	"github.com/podmark/podmark/test/wait"
)

// While podmarkd is asked who a pod is, which may take long, nothing passes to or from it,
// and no flow goes on that it has begun before.
func TestClosedWhilePodmarkdIsAsked(t *testing.T) {
	on(t, backends, func(t *testing.T, n *node) {
		p := n.withHost().addPod().listen()
		n.settle()
		asked, known := make(chan struct{}), make(chan struct{})
		l, err := podapi.Listen(filepath.Join(n.Dir, "podmarkd.sock"))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		served := make(chan struct{})
		go func() {
			defer close(served)
			podapi.Serve(ctx, l, func(context.Context, podapi.Request) (podapi.Response, error) {
				close(asked)
				<-known
				return podapi.Response{}, nil
			})
		}()
		t.Cleanup(func() { cancel(); <-served })
		flows := func(pass bool) []flow {
			return []flow{
				{"pod", p.Space, netip.MustParseAddrPort(n.outside.v4 + ":9002"), n.outside.allowed, pass},
				{"outside", n.outside.Space, netip.MustParseAddrPort(p.V4 + ":8002"), p.allowed, pass},
			}
		}
		if err := problem(t, flows(true)...); err != nil {
			t.Fatalf("before the ADD: %v", err)
		}
		before := make([]*net.UDPConn, 2)
		for i, f := range flows(true) {
			f.from.Do(t, func() (err error) {
				before[i], err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(f.to))
				return err
			})
			defer before[i].Close()
		}
		arrivals := func(nonce string) (n int) {
			for i, f := range flows(true) {
				before[i].Write([]byte(nonce)) //nolint:errcheck // a refusal shows as silence
				if f.at.has(nonce) {
					n++
				}
			}
			return n
		}
		first := rand.Text()
		wait.For(t, "flows begin before the ADD", func() bool { return arrivals(first) == len(before) })
		added := make(chan reply, 1)
		go func() {
			if err := n.Enter(); err != nil {
				t.Error(err)
			}
			added <- p.Add(conf{"policy": "kubernetes"})
		}()
		select {
		case <-asked:
		case r := <-added:
			t.Fatalf("the ADD ended without asking: %v", r)
		}
		nonce := rand.Text()
		arrivals(nonce)
		if err := problem(t, flows(false)...); err != nil {
			t.Errorf("while podmarkd is asked: %v", err)
		}
		if n := arrivals(nonce); n > 0 {
			t.Errorf("while podmarkd is asked, %d flows go on", n)
		}
		close(known)
		(<-added).OK(t)
		if err := problem(t, flows(true)...); err != nil {
			t.Errorf("after the ADD: %v", err)
		}
	})
}

// answers has the test answer the plugin in podmarkd's place.
func (n *node) answers(answer func(podapi.Request) podapi.Response) {
	n.T.Helper()
	if err := state.At(n.Dir).Init(); err != nil {
		n.T.Fatal(err)
	}
	l, err := podapi.Listen(filepath.Join(n.Dir, "podmarkd.sock"))
	if err != nil {
		n.T.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan struct{})
	go func() {
		defer close(served)
		podapi.Serve(ctx, l, func(_ context.Context, r podapi.Request) (podapi.Response, error) { return answer(r), nil })
	}()
	n.T.Cleanup(func() { cancel(); <-served })
}

// A pod that would get another policy than podmarkd has told is not added: it is asked again,
// and nothing of the pod is open or noted until then.
func TestPromise(t *testing.T) {
	n := newNode(t, nftables)
	p := n.addPod()
	var asked []podapi.Request
	n.answers(func(r podapi.Request) podapi.Response {
		asked = append(asked, r)
		promised := [2]desired.ProfileID{"0123456789abcdef", ""}
		if len(asked) > 2 {
			promised = [2]desired.ProfileID{}
		}
		if got := n.attachments(); len(got) > 0 {
			t.Errorf("the answer is wrong, and there is %q", got)
		}
		return podapi.Response{UID: "who", Profiles: &promised}
	})
	p.Add(conf{"policy": "kubernetes"}).OK(t)
	if len(asked) != 3 {
		t.Errorf("podmarkd was asked %d times", len(asked))
	}
	r := p.Record(t)
	if asked[0].Attachment != r.Key || r.UID != "who" {
		t.Errorf("asked for %v, noted UID %q for %v", asked[0].Attachment, r.UID, r.Key)
	}
}
