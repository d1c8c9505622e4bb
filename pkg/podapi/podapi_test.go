package podapi_test

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/mark"
	"github.com/podmark/podmark/pkg/node"
	"github.com/podmark/podmark/pkg/podapi"
)

type answering func(context.Context, podapi.Request) (podapi.Response, error)

// serve answers at the socket that it returns until the test ends, or end is called, which
// returns when all questions have ended.
func serve(t *testing.T, answer answering) (path string, end func()) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "s")
	l, err := podapi.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		podapi.Serve(ctx, l, answer)
		close(done)
	}()
	end = func() { cancel(); <-done }
	t.Cleanup(end)
	return path, end
}

var question = podapi.Request{Namespace: "shop", Pod: "web-0", UID: "1234"}

func TestAsk(t *testing.T) {
	layout, err := mark.NewLayout(0xffff0000)
	if err != nil {
		t.Fatal(err)
	}
	settings := node.Settings{
		Layout: layout, NodePorts: []desired.PortRange{{First: 30000, Last: 32767}}, Backend: config.BackendNFTables,
		MarkCollision: config.CollisionRefuse, AllowTunnels: true,
	}
	want := podapi.Response{
		Labels: map[string]string{"app": "web"}, Ports: []attachment.NamedPort{{Name: "http", Protocol: 6, Number: 80}},
		Sources: "10.9.0.0/24", Addresses: []netip.Addr{netip.MustParseAddr("fd00::1")},
	}
	var asked podapi.Request
	path, end := serve(t, func(_ context.Context, r podapi.Request) (podapi.Response, error) {
		asked = r
		return want, nil
	})
	got, err := podapi.Get(t.Context(), path, question.With(settings))
	end()
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" || err != nil {
		t.Errorf("the answer: %v\n%s", err, diff)
	}
	if asked.Namespace != "shop" || asked.Pod != "web-0" || asked.UID != "1234" || asked.Locate {
		t.Errorf("the question: %+v", asked)
	}
	back, err := asked.Settings()
	if diff := cmp.Diff(settings, back, cmpopts.EquateComparable(mark.Layout{})); diff != "" || err != nil {
		t.Errorf("the node's settings: %v\n%s", err, diff)
	}
}

// What the node is to choose is not said, and what is no mask is no settings.
func TestSettings(t *testing.T) {
	for mask, valid := range map[uint32]bool{0: true, 0xff0000: true, 0x4000: false, 0xf0f00000: true} {
		s, err := podapi.Request{Mask: mask}.Settings()
		if (err == nil) != valid || valid && s.Layout.Mask() != mask {
			t.Errorf("mask %#x: %#x, %v", mask, s.Layout.Mask(), err)
		}
	}
}

func TestErrors(t *testing.T) {
	tooMuch := strings.Repeat("x", 1<<20)
	answers := map[string]struct {
		answer answering
		want   error
		words  string
	}{
		"refused": {func(context.Context, podapi.Request) (podapi.Response, error) {
			return podapi.Response{Labels: map[string]string{"app": "web"}}, errors.New("no such pod")
		}, podapi.ErrUnknownPod, "no such pod"},
		"too long": {func(context.Context, podapi.Request) (podapi.Response, error) {
			return podapi.Response{Sources: tooMuch}, nil
		}, podapi.ErrUnreachable, "more than 1048576 bytes"},
	}
	for name, c := range answers {
		path, _ := serve(t, c.answer)
		got, err := podapi.Get(t.Context(), path, question)
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.words) || got.Labels != nil {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	none := filepath.Join(t.TempDir(), "s")
	if _, err := podapi.Get(t.Context(), none, question); !errors.Is(err, podapi.ErrUnreachable) || !strings.Contains(err.Error(), "is podmarkd running?") {
		t.Errorf("nobody there: %v", err)
	}
	// A question that is too long is none, and who asks it hears nothing.
	path, _ := serve(t, func(context.Context, podapi.Request) (podapi.Response, error) {
		t.Error("it was asked")
		return podapi.Response{}, nil
	})
	if _, err := podapi.Get(t.Context(), path, podapi.Request{Pod: tooMuch}); !errors.Is(err, podapi.ErrUnreachable) {
		t.Errorf("a question that is too long: %v", err)
	}
	for _, text := range []string{"", "{", "[]", `{"namespace": 1}`} {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte(text)); err != nil {
			t.Error(err)
		}
		_ = conn.(*net.UnixConn).CloseWrite()
		if err := json.NewDecoder(conn).Decode(&podapi.Response{}); err == nil {
			t.Errorf("%q is answered", text)
		}
		conn.Close()
	}
}

// Who asks may stop to wait: then it is told so, and so is who answers.
func TestAskedNoMore(t *testing.T) {
	asked, ended := make(chan struct{}), make(chan error, 1)
	path, _ := serve(t, func(ctx context.Context, _ podapi.Request) (podapi.Response, error) {
		close(asked)
		<-ctx.Done()
		ended <- ctx.Err()
		return podapi.Response{}, ctx.Err()
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-asked; cancel() }()
	if _, err := podapi.Get(ctx, path, question); !errors.Is(err, podapi.ErrUnreachable) || !strings.Contains(err.Error(), "in time") {
		t.Errorf("no answer: %v", err)
	}
	<-ended
}

// The end of podmarkd is that of the questions that it is asked, which it waits for.
func TestServeEnds(t *testing.T) {
	asked, answered := make(chan struct{}), false
	path, end := serve(t, func(ctx context.Context, _ podapi.Request) (podapi.Response, error) {
		close(asked)
		<-ctx.Done()
		for range 1000 { // everybody else has had a turn by then
			runtime.Gosched()
		}
		answered = true
		return podapi.Response{}, errors.New("podmarkd ends")
	})
	told := make(chan error)
	go func() {
		_, err := podapi.Get(context.Background(), path, question)
		told <- err
	}()
	<-asked
	end()
	if !answered {
		t.Error("Serve has returned before its answers")
	}
	if err := <-told; !errors.Is(err, podapi.ErrUnknownPod) || !strings.Contains(err.Error(), "podmarkd ends") {
		t.Errorf("who asked: %v", err)
	}
	if _, err := podapi.Get(t.Context(), path, question); !errors.Is(err, podapi.ErrUnreachable) {
		t.Errorf("behind the end: %v", err)
	}
}

// The socket is its owner's alone from its first moment on, and takes the place of what was
// left there.
func TestListen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	if err := os.WriteFile(path, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	l, err := podapi.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	info, err := os.Lstat(path)
	if err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("the socket: %v, %v", info.Mode(), err)
	}
	if _, err := podapi.Listen(filepath.Join(path, "below")); err == nil {
		t.Error("there can be no socket below a socket")
	}
}
