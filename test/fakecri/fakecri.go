// Package fakecri is a container runtime that says which directories of CNI it reads, and does
// nothing else.
package fakecri

import (
	"context"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Runtime listens at Socket, from Listen until Stop or the end of the test.
type Runtime struct {
	Socket string

	runtimeapi.UnimplementedRuntimeServiceServer
	t      testing.TB
	config atomic.Value
	server *grpc.Server
}

// New is a runtime that listens, and reads these directories.
func New(t testing.TB, conf string, bins ...string) *Runtime {
	t.Helper()
	dir, err := os.MkdirTemp("", "cri") // the path of a socket is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return At(t, filepath.Join(dir, "sock"), conf, bins...)
}

// At is that runtime with this socket, whose directory is there.
func At(t testing.TB, socket, conf string, bins ...string) *Runtime {
	t.Helper()
	r := &Runtime{Socket: socket, t: t}
	r.Reads(conf, bins...)
	r.Listen()
	return r
}

// Status is RuntimeService.Status.
func (r *Runtime) Status(context.Context, *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	return &runtimeapi.StatusResponse{Info: map[string]string{"config": r.config.Load().(string)}}, nil
}

// Reads has the runtime read these directories from now on; none where it is not to say.
func (r *Runtime) Reads(conf string, bins ...string) {
	r.t.Helper()
	b, err := json.Marshal(map[string]any{"cni": map[string]any{"confDir": conf, "binDirs": bins}})
	if err != nil {
		r.t.Fatal(err)
	}
	r.config.Store(string(b))
}

// Listen has it answer.
func (r *Runtime) Listen() {
	r.t.Helper()
	l, err := net.Listen("unix", r.Socket)
	if err != nil {
		r.t.Fatal(err)
	}
	r.server = grpc.NewServer()
	runtimeapi.RegisterRuntimeServiceServer(r.server, r)
	go func() { _ = r.server.Serve(l) }()
	r.t.Cleanup(r.Stop)
}

// Stop has it be away.
func (r *Runtime) Stop() { r.server.Stop() }
