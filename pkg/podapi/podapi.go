// Package podapi is how the plugin asks podmarkd who a pod is: its labels and named ports
// in the Kubernetes API, which no container runtime tells a plugin.
//
//	answer, err := whois.Ask(ctx, "/run/podmark/podmarkd.sock", whois.Request{Namespace: "shop", Pod: "web-0"})
//
// The answer comes once the node's policies for that pod are known and what they name is
// in the kernel, so that an ADD only has to put the pod into it.
//
// On the wire it is one JSON object each way over a unix socket, a connection a question.
// Only the socket's owner may ask.
package podapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/mark"
	"github.com/podmark/podmark/pkg/node"
)

// Errors that callers branch on.
var (
	// ErrUnreachable: nobody answers at the socket.
	ErrUnreachable = errors.New("podmarkd cannot be asked")
	// ErrUnknownPod: podmarkd says why it cannot tell.
	ErrUnknownPod = errors.New("podmarkd does not know the pod")
)

// Request is a question.
type Request struct {
	Namespace string `json:"namespace"`
	Pod       string `json:"pod"`
	// UID is what the runtime says it is; empty where it does not.
	UID string `json:"uid,omitempty"`
	// Attachment is what the pod is to get; zero from a plugin that does not say it yet.
	Attachment attachment.Key `json:"attachment"`
	// Locate asks for no more than the addresses of a pod, on whatever node.
	Locate bool `json:"locate,omitempty"`
	// What the network's configuration says of the node, which nobody else may know yet.
	Mask      uint32              `json:"mask"` // 0 where the node chooses
	NodePorts []desired.PortRange `json:"nodePorts"`
	Backend   config.Backend      `json:"backend"`
	// AllowTunnels is one of these, too.
	AllowTunnels bool `json:"allowTunnels,omitempty"`
	// MarkCollision is empty from a plugin that does not know it yet.
	MarkCollision config.MarkCollision `json:"markCollision,omitempty"`
}

// Settings are those of the node in the question.
func (r Request) Settings() (node.Settings, error) {
	s := node.Settings{
		NodePorts: r.NodePorts, Backend: r.Backend, MarkCollision: r.MarkCollision,
		AllowTunnels: r.AllowTunnels,
	}
	var err error
	if r.Mask != 0 {
		s.Layout, err = mark.NewLayout(r.Mask)
	}
	return s, err
}

// With is r with the node's settings.
func (r Request) With(s node.Settings) Request {
	r.Mask, r.NodePorts, r.Backend = s.Layout.Mask(), s.NodePorts, s.Backend
	r.MarkCollision, r.AllowTunnels = s.MarkCollision, s.AllowTunnels
	return r
}

// Response is who the pod is.
type Response struct {
	Labels map[string]string      `json:"labels,omitempty"`
	Ports  []attachment.NamedPort `json:"ports,omitempty"`
	// Sources is what the annotation [config.SourcesAnnotation] says.
	Sources string `json:"sources,omitempty"`
	// UID is that of the pod, as a runtime would tell it; empty from a podmarkd that does
	// not tell yet.
	UID string `json:"uid,omitempty"`
	// NamespaceUID is that of its namespace; empty where it is not known.
	NamespaceUID string `json:"namespaceUID,omitempty"`
	// Profiles are those that the pod gets by the policies that are in the kernel, by
	// Direction; nil from a podmarkd that does not tell yet.
	Profiles *[2]desired.ProfileID `json:"profiles,omitempty"`
	// Addresses are the answer to Locate.
	Addresses []netip.Addr `json:"addresses,omitempty"`
	// Error is why there is no answer.
	Error string `json:"error,omitempty"`
}

// limit is how long a message may be, in bytes: labels of an object of the API and more.
const limit = 1 << 20

// Get puts a question to the podmarkd that listens at path, and waits for the answer
// until ctx is done. Errors: ErrUnreachable, ErrRefused.
func Get(ctx context.Context, path string, r Request) (Response, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return Response{}, fmt.Errorf("%w: %w: is podmarkd running?", ErrUnreachable, err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	var a Response
	err = json.NewEncoder(conn).Encode(r)
	if err == nil {
		err = json.NewDecoder(&limited{conn, limit}).Decode(&a)
	}
	switch {
	case err != nil && ctx.Err() != nil:
		return Response{}, fmt.Errorf("%w: no answer at %q in time", ErrUnreachable, path)
	case err != nil:
		return Response{}, fmt.Errorf("%w: %q: %w", ErrUnreachable, path, err)
	case a.Error != "":
		return Response{}, fmt.Errorf("%w: %s", ErrUnknownPod, a.Error)
	}
	return a, nil
}

// limited ends a reader's input with an error, where io.LimitReader ends it as a whole
// message might.
type limited struct {
	net.Conn
	left int
}

func (l *limited) Read(p []byte) (int, error) {
	if l.left <= 0 {
		return 0, fmt.Errorf("message of more than %d bytes", limit)
	}
	n, err := l.Conn.Read(p[:min(len(p), l.left)])
	l.left -= n
	return n, err
}

// Listen makes the socket, for its owner alone. What a podmarkd that died left there goes:
// the caller is the node's only one.
func Listen(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("removing the socket of before: %w", err)
	}
	// The mode that a socket has when it is bound is its file's (unix_bind).
	private := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		return errors.Join(c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }), err)
	}}
	l, err := private.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listening for the plugin: %w", err)
	}
	return l, nil
}

// Serve answers until ctx is done, and then returns when the questions under way have
// ended. The context of answer ends with ctx, and when who asked has gone.
func Serve(ctx context.Context, l net.Listener, answer func(context.Context, Request) (Response, error)) {
	defer context.AfterFunc(ctx, func() { l.Close() })()
	var running sync.WaitGroup
	defer running.Wait()
	for ctx.Err() == nil {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() == nil {
				time.Sleep(10 * time.Millisecond) // out of files: there may be some again
			}
			continue
		}
		running.Go(func() { serveConn(ctx, conn, answer) })
	}
}

func serveConn(ctx context.Context, conn net.Conn, answer func(context.Context, Request) (Response, error)) {
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })()
	var r Request
	if err := json.NewDecoder(&limited{conn, limit}).Decode(&r); err != nil {
		return
	}
	go func() { // who asks says no more: the end of its input is its own
		_, _ = conn.Read(make([]byte, 1))
		cancel()
	}()
	a, err := answer(ctx, r)
	if err != nil {
		a = Response{Error: err.Error()}
	}
	_ = json.NewEncoder(conn).Encode(a)
}
