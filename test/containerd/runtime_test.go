package containerd_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podmark/podmark/pkg/state"
	"github.com/podmark/podmark/test/needs"
	"github.com/podmark/podmark/test/netns"
	"github.com/podmark/podmark/test/wait"
)

// root is the work tree; go test runs tests in their package's directory.
const root = "../.."

// loopback is a directory with the CNI plugin that containerd itself calls.
var loopback string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	// Syncing a file costs nothing there, as in /run.
	if info, err := os.Stat("/dev/shm"); err == nil && info.IsDir() {
		os.Setenv("TMPDIR", "/dev/shm")
	}
	dir, err := os.MkdirTemp("", "containerd-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	cmd := exec.Command("go", "build", "-o", dir+"/", "github.com/containernetworking/plugins/plugins/main/loopback")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "building: %v\n%s", err, out)
		return 1
	}
	loopback = dir
	return m.Run()
}

// node is a network namespace with a containerd, whose pods have no other.
type node struct {
	t *testing.T
	// dir is the directory below which everything is; conf and bin are CNI's.
	dir, conf, bin, state string
	address               string
	cri                   cri.RuntimeServiceClient
	pods                  int
	// pid is a process that sees what containerd sees.
	pid int
}

// boot runs containerd with /run, /proc and processes of its own, so that they end
// with it. The machine may forbid it to lower its score for the OOM killer.
const boot = `set -e
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
mount --make-rshared /
mkdir -p /run/netns
containerd --config "$DIR/config.toml" &
wait`

const configuration = `version = 2
root = "DIR/root"
state = "DIR/state"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
  address = "DIR/s"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "podmark.test/pause:1"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "DIR/bin"
    conf_dir = "DIR/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
    default_runtime_name = "runc"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
`

func newNode(t *testing.T) *node {
	t.Helper()
	needs.All(t, needs.Command("containerd", "--version"), needs.Command("runc", "--version"), needs.Command("ctr", "--version"), needs.Command("busybox", "true"))
	netns.Enter(t)
	dir, err := os.MkdirTemp("", "ctd-") // short: a socket is in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	n := &node{t: t, dir: dir, conf: dir + "/net.d", bin: dir + "/bin", state: dir + "/podmark", address: dir + "/s"}
	for _, d := range []string{n.conf, n.bin} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	n.copy(loopback+"/loopback", n.bin+"/loopback")
	for _, plugin := range []string{"ptp", "host-local", "portmap"} {
		n.copy(filepath.Join(root, "bin/cni", plugin), filepath.Join(n.bin, plugin))
	}
	n.write("10-net.conflist", n.conflist())
	if err := os.WriteFile(dir+"/config.toml", []byte(strings.ReplaceAll(configuration, "DIR", dir)), 0o600); err != nil {
		t.Fatal(err)
	}
	n.run("ip", "link", "set", "lo", "up")
	log, err := os.Create(dir + "/log")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command("bash", "-c", boot)
	cmd.Env = append(os.Environ(), "DIR="+dir)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID, Pdeathsig: unix.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // process 1 there: all the others end with it
		_ = cmd.Wait()
		removeGroups(n.group())
		if t.Failed() {
			said, _ := os.ReadFile(dir + "/log")
			t.Logf("containerd said:\n%s", said)
		}
	})
	n.pid = cmd.Process.Pid
	conn, err := grpc.NewClient("unix://"+n.address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	n.cri = cri.NewRuntimeServiceClient(conn)
	n.eventually("containerd has a network", func() error {
		ready, _, err := n.network()
		if err == nil && !ready {
			err = fmt.Errorf("it has not")
		}
		return err
	})
	n.importPause()
	return n
}

// group is the control group of this node's pods.
func (n *node) group() string { return filepath.Base(n.dir) }

// removeGroups removes what runc leaves of control groups, in every hierarchy; their
// processes have been killed.
func removeGroups(name string) {
	for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		found, _ := filepath.Glob(pattern + name)
		for _, top := range found {
			var groups []string
			_ = filepath.WalkDir(top, func(path string, e fs.DirEntry, err error) error {
				if err == nil && e.IsDir() {
					groups = append(groups, path)
				}
				return nil
			})
			slices.Reverse(groups) // the inner ones first
			deadline := time.Now().Add(5 * time.Second)
			for _, g := range groups {
				for unix.Rmdir(g) == unix.EBUSY && time.Now().Before(deadline) {
					time.Sleep(5 * time.Millisecond) //nolint:forbidigo // the kernel tells nobody when a group is free
				}
			}
		}
	}
}

// conflist is what the agent of the main plugin writes.
func (n *node) conflist() string {
	return fmt.Sprintf(`{
  "name": "net",
  "cniVersion": "1.0.0",
  "plugins": [
    {"type": "ptp", "ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": "10.22.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
`, n.dir+"/ipam")
}

func (n *node) write(name, content string) {
	n.t.Helper()
	tmp := filepath.Join(n.conf, "."+name)
	err := os.WriteFile(tmp, []byte(content), 0o600)
	if err == nil {
		err = os.Rename(tmp, filepath.Join(n.conf, name))
	}
	if err != nil {
		n.t.Fatal(err)
	}
}

// copy copies a program, with what is to stand behind its end.
func (n *node) copy(from, to string, more ...byte) {
	n.t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, append(b, more...), 0o755)
	}
	if err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) run(name string, args ...string) string {
	n.t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		n.t.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
	return string(out)
}

// podmarkd is that with this node's directories.
func (n *node) podmarkd(args ...string) *exec.Cmd {
	args = append(args, "--state-dir", n.state, "--cni-conf-dir", n.conf, "--cni-bin-dir", n.bin)
	cmd := exec.Command(filepath.Join(root, "bin/podmarkd"), args...)
	cmd.Env = append(os.Environ(), "PODMARKD_POLICY=none") // nothing here is about policies
	return cmd
}

// must runs it to its end.
func (n *node) must(args ...string) string {
	n.t.Helper()
	out, err := n.podmarkd(args...).CombinedOutput()
	if err != nil {
		n.t.Fatalf("podmarkd %q: %v: %s", args, err, out)
	}
	return string(out)
}

func (n *node) eventually(what string, check func() error) {
	n.t.Helper()
	wait.Until(n.t, what, check)
}

func limited() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), wait.Still)
}

// network is whether the runtime has one, and the plugins that it has loaded for it.
func (n *node) network() (ready bool, plugins []string, err error) {
	ctx, stop := limited()
	defer stop()
	s, err := n.cri.Status(ctx, &cri.StatusRequest{Verbose: true})
	if err != nil {
		return false, nil, err
	}
	for _, c := range s.Status.Conditions {
		ready = ready || c.Type == cri.NetworkReady && c.Status
	}
	var cni struct {
		Networks []struct {
			Config struct {
				Name    string
				Plugins []struct{ Network struct{ Type string } }
			}
		}
	}
	if err := json.Unmarshal([]byte(s.Info["cniconfig"]), &cni); err != nil {
		return ready, nil, err
	}
	for _, network := range cni.Networks {
		if network.Config.Name == "net" {
			for _, p := range network.Config.Plugins {
				plugins = append(plugins, p.Network.Type)
			}
		}
	}
	return ready, plugins, nil
}

// loads waits until the runtime has loaded these plugins.
func (n *node) loads(want string) {
	n.t.Helper()
	n.eventually("the runtime has loaded "+want, func() error {
		_, plugins, err := n.network()
		if got := strings.Join(plugins, " "); err == nil && got != want {
			err = fmt.Errorf("it has %s", got)
		}
		return err
	})
}

// alwaysReady wants the runtime to have a network, all the time until stop.
func (n *node) alwaysReady() (stop func()) {
	end := make(chan struct{})
	var done sync.WaitGroup
	asked := 0
	done.Go(func() {
		for {
			select {
			case <-end:
				return
			case <-time.After(time.Millisecond):
			}
			ready, _, err := n.network()
			if err != nil || !ready {
				n.t.Errorf("the runtime's network is not ready: %v", err)
				return
			}
			asked++
		}
	})
	return func() {
		close(end)
		done.Wait()
		n.t.Logf("the runtime was asked %d times", asked)
	}
}

// pod is a sandbox.
type pod struct {
	*node
	id, name string
}

// start starts one, as the kubelet does.
func (n *node) start() (*pod, error) {
	n.pods++
	p := &pod{node: n, name: fmt.Sprintf("pod-%d", n.pods)}
	ctx, stop := limited()
	defer stop()
	r, err := n.cri.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: p.name, Namespace: "default", Uid: p.name},
		Hostname: p.name, LogDirectory: n.dir + "/logs", Linux: &cri.LinuxPodSandboxConfig{CgroupParent: "/" + n.group()},
	}})
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", p.name, err)
	}
	p.id = r.PodSandboxId
	return p, nil
}

func (n *node) mustStart() *pod {
	n.t.Helper()
	p, err := n.start()
	if err != nil {
		n.t.Fatal(err)
	}
	return p
}

// end stops and removes it: two DELs.
func (p *pod) end() error {
	ctx, stop := limited()
	defer stop()
	if _, err := p.cri.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
		return fmt.Errorf("stopping %s: %w", p.name, err)
	}
	if _, err := p.cri.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
		return fmt.Errorf("removing %s: %w", p.name, err)
	}
	return nil
}

func (p *pod) mustEnd() {
	p.t.Helper()
	if err := p.end(); err != nil {
		p.t.Fatal(err)
	}
}

// marked is whether podmark knows it, finished and by its name.
func (p *pod) marked() bool {
	p.t.Helper()
	list, err := state.At(p.state).List()
	if err != nil {
		p.t.Fatal(err)
	}
	for _, r := range list {
		if r.ContainerID == p.id {
			if !r.Committed || r.Pod != p.name || r.Namespace != "default" || r.ID == 0 {
				p.t.Errorf("%+v", r)
			}
			return true
		}
	}
	return false
}

// importPause gives the runtime the image of its sandboxes.
func (n *node) importPause() {
	n.t.Helper()
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		n.t.Fatal(err)
	}
	n.importImage("podmark.test/pause:1", map[string]string{"busybox": busybox}, "/busybox", "sleep", "100000")
}

// importImage gives it an image of programs, without a registry.
func (n *node) importImage(name string, programs map[string]string, entrypoint ...string) {
	n.t.Helper()
	type files map[string][]byte
	archive := func(f files) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for name, content := range f {
			if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(content))}); err != nil {
				n.t.Fatal(err)
			}
			_, _ = w.Write(content) // to memory
		}
		_ = w.Close()
		return b.Bytes()
	}
	image := files{"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`)}
	blob := func(kind string, content []byte) map[string]any {
		sum := fmt.Sprintf("%x", sha256.Sum256(content))
		image["blobs/sha256/"+sum] = content
		return map[string]any{"mediaType": "application/vnd.oci.image." + kind, "digest": "sha256:" + sum, "size": len(content)}
	}
	encode := func(v any) []byte {
		b, err := json.Marshal(v)
		if err != nil {
			n.t.Fatal(err)
		}
		return b
	}
	content := files{}
	for path, from := range programs {
		b, err := os.ReadFile(from)
		if err != nil {
			n.t.Fatal(err)
		}
		content[path] = b
	}
	layer := blob("layer.v1.tar", archive(content))
	config := blob("config.v1+json", encode(map[string]any{
		"architecture": "amd64", "os": "linux", "config": map[string]any{"Entrypoint": entrypoint},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []any{layer["digest"]}},
	}))
	manifest := blob("manifest.v1+json", encode(map[string]any{"schemaVersion": 2, "config": config, "layers": []any{layer}}))
	manifest["annotations"] = map[string]string{"io.containerd.image.name": name}
	image["index.json"] = encode(map[string]any{"schemaVersion": 2, "manifests": []any{manifest}})
	cmd := exec.Command("ctr", "--address", n.address, "--namespace", "k8s.io", "image", "import", "--snapshotter", "native", "-")
	cmd.Stdin = bytes.NewReader(archive(image))
	out, err := cmd.CombinedOutput()
	if err != nil {
		n.t.Fatalf("importing the image: %v: %s", err, out)
	}
}

// daemon runs podmarkd --keep-installed until stop, or the end of the test.
func (n *node) daemon() (stop func()) {
	n.t.Helper()
	var log strings.Builder
	cmd := n.podmarkd("--keep-installed", "--listen", "")
	cmd.Stderr = io.Writer(&log)
	if err := cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	stop = sync.OnceFunc(func() {
		_ = cmd.Process.Signal(unix.SIGTERM)
		if err := cmd.Wait(); err != nil {
			n.t.Errorf("podmarkd: %v", err)
		}
		if n.t.Failed() {
			n.t.Logf("podmarkd said:\n%s", log.String())
		}
	})
	n.t.Cleanup(stop)
	return stop
}
