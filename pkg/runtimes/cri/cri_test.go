package cri_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podmark/podmark/pkg/runtimes"
	"github.com/podmark/podmark/pkg/runtimes/cri"
)

// server is a runtime that answers Status.
type server struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	info map[string]string
	err  error
}

func (s server) Status(_ context.Context, req *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	if s.err != nil {
		return nil, s.err
	}
	answer := &runtimeapi.StatusResponse{
		Status:   &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{{Type: runtimeapi.RuntimeReady, Status: true}}},
		Features: &runtimeapi.RuntimeFeatures{SupplementalGroupsPolicy: true},
	}
	if req.Verbose {
		answer.Info = s.info
	}
	return answer, nil
}

// listen serves until the test ends.
func listen(t *testing.T, register func(*grpc.Server)) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "cri")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	register(s)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	return socket
}

func TestAsk(t *testing.T) {
	config := func(text string) map[string]string {
		return map[string]string{"golang": `"go1.26"`, "config": text, "lastCNILoadStatus": "OK"}
	}
	for _, tt := range []struct {
		name   string
		server server
		want   runtimes.Place
		words  string // of an error
		silent bool
	}{
		{"containerd", server{info: config(`{"containerd": {"snapshotter": "overlayfs"}, "cni": {"binDir": "/opt/cni/bin", "confDir": "/etc/cni/net.d", "maxConfNum": 1}}`)}, runtimes.NewPlace("/etc/cni/net.d", "/opt/cni/bin"), "", false},
		{"containerd 2.1", server{info: config(`{"cni": {"binDir": "", "binDirs": ["/opt/cni/bin/", "/usr/lib/cni"], "confDir": "/etc/cni/net.d"}}`)}, runtimes.NewPlace("/etc/cni/net.d", "/opt/cni/bin", "/usr/lib/cni"), "", false},
		{"CRI-O that was told a network", server{info: config(`{"crio": {"CNIDefaultNetwork": "pods", "NetworkDir": "/etc/cni/net.d/", "PluginDirs": ["/usr/libexec/cni/"]}}`)}, runtimes.Place{Conf: "/etc/cni/net.d", Bins: []string{"/usr/libexec/cni"}, Network: "pods"}, "", false},
		{"CRI-O", server{info: config(`{"sandboxImage": "pause", "crio": {"NetworkDir": "/etc/cni/net.d/", "PluginDir": "", "PluginDirs": ["/usr/libexec/cni/"]}}`)}, runtimes.NewPlace("/etc/cni/net.d", "/usr/libexec/cni"), "", false},
		{"CRI-O that does not tell", server{info: config(`{"sandboxImage": "pause"}`)}, runtimes.Place{}, "does not have them", true},
		{"nothing told", server{}, runtimes.Place{}, "does not have them", true},
		{"no JSON", server{info: config("{")}, runtimes.Place{}, "configuration", false},
		{"large", server{info: map[string]string{"config": `{"cni": {"binDir": "/b", "confDir": "/c"}}`, "other": strings.Repeat("x", 1<<20)}}, runtimes.NewPlace("/c", "/b"), "", false},
		{"an error", server{err: status.Error(codes.Unavailable, "not yet")}, runtimes.Place{}, "not yet", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			socket := listen(t, func(s *grpc.Server) { runtimeapi.RegisterRuntimeServiceServer(s, tt.server) })
			got, err := cri.Ask(t.Context(), socket)
			if tt.words != "" {
				if err == nil || !strings.Contains(err.Error(), tt.words) || !strings.Contains(err.Error(), socket) || errors.Is(err, cri.ErrNoDirectories) != tt.silent {
					t.Fatalf("%+v, %v", got, err)
				}
				return
			}
			if !strings.Contains(got.How, socket) {
				t.Errorf("it does not say how it knows: %q", got.How)
			}
			if got.From != runtimes.Reported {
				t.Errorf("source %v", got.From)
			}
			got.How, got.From = "", 0
			if diff := cmp.Diff(tt.want, got); diff != "" || err != nil {
				t.Errorf("%v\n%s", err, diff)
			}
		})
	}
}

// What is no runtime is told from one that is broken.
func TestAskNobody(t *testing.T) {
	if _, err := cri.Ask(t.Context(), filepath.Join(t.TempDir(), "sock")); !errors.Is(err, cri.ErrNoDirectories) {
		t.Errorf("no socket: %v", err)
	}
	if _, err := cri.Ask(t.Context(), listen(t, func(*grpc.Server) {})); !errors.Is(err, cri.ErrNoDirectories) {
		t.Errorf("no CRI: %v", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := cri.Ask(t.Context(), file); err == nil || errors.Is(err, cri.ErrNoDirectories) {
		t.Errorf("a file: %v", err)
	}
	// One that never answers.
	l, err := net.Listen("unix", filepath.Join(filepath.Dir(file), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := cri.Ask(t.Context(), l.Addr().String()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("silence: %v", err)
	}
}

// Nobody is asked, one that is named, or whoever listens at the usual sockets. Who answers
// and is broken is not passed over.
func TestSaid(t *testing.T) {
	runtime := func(conf string) string {
		info := map[string]string{"config": `{"cni": {"binDir": "/b", "confDir": "` + conf + `"}}`}
		return listen(t, func(s *grpc.Server) { runtimeapi.RegisterRuntimeServiceServer(s, server{info: info}) })
	}
	one, other := runtime("/one"), runtime("/other")
	silent := listen(t, func(*grpc.Server) {})
	broken := listen(t, func(s *grpc.Server) {
		runtimeapi.RegisterRuntimeServiceServer(s, server{err: status.Error(codes.Unavailable, "not yet")})
	})
	dir, err := os.MkdirTemp("", "cri")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	none := filepath.Join(dir, "none")
	dead := filepath.Join(dir, "dead") // a socket that nobody listens at
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	usual := runtimes.Sockets
	t.Cleanup(func() { runtimes.Sockets = usual })
	for _, tt := range []struct {
		name, endpoint string
		usual          []string
		want           []string
		fails          bool
		words          string
	}{
		{"nobody is to be asked", "", []string{one}, nil, false, ""},
		{"one is named", one, []string{other}, []string{"/one"}, false, ""},
		{"by a URL", "unix://" + one, nil, []string{"/one"}, false, ""},
		{"one is named and not there", none, []string{one}, nil, true, none},
		{"one is named and does not tell", silent, []string{one}, nil, true, "leave --runtime-endpoint empty"},
		{"the usual ones", runtimes.Auto, []string{none, one, dead, silent, other}, []string{"/one", "/other"}, false, ""},
		{"nobody is there", runtimes.Auto, []string{none, dead}, nil, false, ""},
		{"one of them is broken", runtimes.Auto, []string{one, broken}, nil, true, "--runtime-endpoint names another"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			runtimes.Sockets = tt.usual
			said, err := cri.Places(t.Context(), tt.endpoint)
			if (err != nil) != tt.fails || err != nil && !strings.Contains(err.Error(), tt.words) {
				t.Errorf("%v", err)
			}
			var got []string
			for _, p := range said {
				got = append(got, p.Conf)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}
