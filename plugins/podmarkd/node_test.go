package main_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/agent"
	"github.com/podmark/podmark/pkg/state"
	"github.com/podmark/podmark/test/contain"
	"github.com/podmark/podmark/test/netns"
	"github.com/podmark/podmark/test/saved"
	"github.com/podmark/podmark/test/share"
	"github.com/podmark/podmark/test/testnode"
	"github.com/podmark/podmark/test/wait"
)

func TestMain(m *testing.M) {
	contain.Main()
	os.Exit(testnode.Main(m))
}

// backend is what enforces on a test's node.
type backend struct {
	name    string // as node.json has it
	key     string // as the conflist has it
	variant string // of iptables, in which the kubelet has its chain
}

var (
	nftables = backend{"nftables", "nftables", "nft"}
	backends = []backend{nftables, {"iptables-nft", "iptables", "nft"}, {"iptables-legacy", "iptables", "legacy"}}
)

// eachBackend runs test on a node of each backend.
func eachBackend(t *testing.T, test func(t *testing.T, n *host)) {
	t.Parallel()
	for _, b := range share.OneOf(t, backends) {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			test(t, newHost(t, b))
		})
	}
}

// host is the test's own network namespace and a state directory.
type host struct {
	t       *testing.T
	backend backend
	dir     string
	pods    int
	spaces  []string // of the pods, by path
}

func newHost(t *testing.T, b backend) *host {
	t.Helper()
	netns.Enter(t)
	h := &host{t: t, backend: b, dir: filepath.Join(t.TempDir(), "state")}
	h.exec("", "ip", "link", "set", "lo", "up")
	h.iptables("-N", "KUBE-IPTABLES-HINT")
	return h
}

// exec runs a command that must succeed.
func (h *host) exec(stdin, name string, args ...string) string {
	h.t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		h.t.Fatalf("%s %q: %v: %s", name, args, err, stderr.String())
	}
	return stdout.String()
}

// iptables runs the node's variant, IPv4 and IPv6, on table mangle.
func (h *host) iptables(args ...string) {
	h.t.Helper()
	for _, f := range []string{"iptables", "ip6tables"} {
		h.exec("", f+"-"+h.backend.variant, append([]string{"-w", "30", "-t", "mangle"}, args...)...)
	}
}

// ctl runs podmarkctl.
func (h *host) ctl(stdin string, args ...string) string {
	h.t.Helper()
	return h.exec(stdin, filepath.Join(testnode.Programs(h.t), "podmarkctl"), append([]string{"--state-dir", h.dir}, args...)...)
}

// addPod adds a pod that has a routed veth and both kinds of address.
func (h *host) addPod() {
	h.t.Helper()
	end := h.addPodUntil()
	h.t.Cleanup(end)
}

// addPodUntil adds such a pod, whose network namespace is gone after end.
func (h *host) addPodUntil() (end func()) {
	h.t.Helper()
	path, end := h.space()
	h.addPodIn(path)
	return end
}

// addPodIn adds such a pod, whose network namespace is that.
func (h *host) addPodIn(path string) {
	h.t.Helper()
	h.addPodBy(path, func(string) {})
}

// addPodBy adds one whose host veth attach puts where it belongs.
func (h *host) addPodBy(path string, attach func(veth string)) {
	h.t.Helper()
	h.pods++
	h.spaces = append(h.spaces, path)
	ns, err := os.Open(path)
	if err != nil {
		h.t.Fatal(err)
	}
	defer ns.Close()
	veth := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: fmt.Sprintf("veth%d", h.pods)}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(ns.Fd())),
	}
	if err := netlink.LinkAdd(veth); err != nil {
		h.t.Fatal(err)
	}
	attach(veth.Name)
	if out, err := h.plugin("ADD", h.pods, nil); err != nil {
		h.t.Fatalf("ADD: %v: %s", err, out)
	}
	h.decide()
}

// decide says that there are to be no policies, where the test has said nothing about them: the
// pods would count as open.
func (h *host) decide() {
	h.t.Helper()
	if b, err := os.ReadFile(filepath.Join(h.dir, "node.json")); err == nil && bytes.Contains(b, []byte(`"policiesHash":"none"`)) && !bytes.Contains(b, []byte(`"kubernetes":true`)) {
		h.ctl("", "apply", "--delete")
	}
}

// plugin calls podmark for a pod, by number; more replaces keys of its configuration.
func (h *host) plugin(verb string, pod int, more map[string]any) (string, error) {
	h.t.Helper()
	conf := map[string]any{
		"cniVersion": "1.1.0", "name": "net", "type": "podmark", "stateDir": h.dir, "policy": "files", "backend": h.backend.key,
		"prevResult": map[string]any{
			"cniVersion": "1.1.0",
			"ips":        []any{map[string]any{"address": fmt.Sprintf("10.1.0.%d/32", pod+1)}, map[string]any{"address": fmt.Sprintf("fd00:10::%x/128", pod+1)}},
		},
	}
	maps.Copy(conf, more)
	stdin, err := json.Marshal(conf)
	if err != nil {
		h.t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(testnode.Programs(h.t), "podmark"))
	cmd.Stdin = bytes.NewReader(stdin)
	cmd.Env = append(
		os.Environ(), "CNI_COMMAND="+verb, fmt.Sprintf("CNI_CONTAINERID=container-%d", pod), "CNI_NETNS="+h.spaces[pod-1], "CNI_IFNAME=eth0",
		"CNI_PATH=/", fmt.Sprintf("CNI_ARGS=K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-%d", pod))
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// space makes a network namespace that lives until end.
func (h *host) space() (path string, end func()) {
	h.t.Helper()
	ready, over := make(chan error), make(chan struct{})
	var enter func()
	enter = func() {
		runtime.LockOSThread() // never unlocked: thread and namespace end together
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread() // but for the main thread, which never ends
			go enter()
			<-over
			return
		}
		err := unix.Unshare(unix.CLONE_NEWNET)
		path = fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid())
		ready <- err
		<-over
	}
	go enter()
	if err := <-ready; err != nil {
		h.t.Fatal(err)
	}
	return path, func() { close(over) }
}

var (
	generation = regexp.MustCompile(`\b(podmark-[a-z]+[46])[ab]\b`)
	changing   = regexp.MustCompile(`\[\d+:\d+\]| (hashsize|bucketsize|initval|references) \S+| packets \d+ bytes \d+`)
)

// kernel is what of podmark's is in the kernel, in a stable order, whichever
// generation of sets is used.
func (h *host) kernel() string {
	h.t.Helper()
	var lines []string
	lines = append(lines, h.exec("", "nft", "-s", "list", "ruleset", "inet"), h.exec("", "nft", "-s", "list", "ruleset", "bridge"))
	if h.backend != nftables {
		for line := range strings.Lines(h.exec("", "ipset", "save")) {
			lines = append(lines, generation.ReplaceAllString(line, "$1"))
		}
		slices.Sort(lines)
		for _, f := range []string{"iptables", "ip6tables"} {
			for line := range strings.Lines(saved.Rules(h.t, f+"-"+h.backend.variant)) {
				if !strings.HasPrefix(line, "#") {
					lines = append(lines, generation.ReplaceAllString(line, "$1"))
				}
			}
		}
	}
	return changing.ReplaceAllString(strings.Join(lines, ""), "")
}

// daemon is a running podmarkd.
type daemon struct {
	h       *host
	cmd     *exec.Cmd
	log     *logBuffer
	address string
}

// logBuffer collects what a process writes while it is read.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// start runs podmarkd in the node's network namespace until the test ends, and
// waits until it has reconciled the node.
func (h *host) start(args ...string) *daemon { h.t.Helper(); return h.startIn(nil, args...) }

// startIn adds to the environment.
func (h *host) startIn(env []string, args ...string) *daemon {
	h.t.Helper()
	d := &daemon{h: h, log: &logBuffer{}}
	d.cmd = exec.Command(filepath.Join(testnode.Programs(h.t), "podmarkd"), append([]string{"--state-dir", h.dir, "--listen", "127.0.0.1:0", "--interval", "300ms", "--cni-conf-dir", ""}, args...)...)
	d.cmd.Stderr, d.cmd.Env = d.log, append(os.Environ(), env...)
	if err := d.cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() {
		_ = d.cmd.Process.Kill()
		_ = d.cmd.Wait()
		if h.t.Failed() {
			h.t.Logf("podmarkd said:\n%s", d.log)
		}
	})
	h.eventually("podmarkd has reconciled the node", func() error {
		if s, err := d.status(); err != nil || s.PID != d.cmd.Process.Pid {
			return fmt.Errorf("status of %d: %w", s.PID, err)
		}
		m := regexp.MustCompile(`address=(\S+)`).FindStringSubmatch(d.log.String())
		if m == nil {
			return errors.New("it does not say where it serves metrics")
		}
		d.address = m[1]
		return nil
	})
	return d
}

func (d *daemon) status() (agent.Status, error) { return agent.ReadStatus(state.At(d.h.dir)) }

// stop ends podmarkd as a service manager does and returns its exit status.
func (d *daemon) stop() int {
	d.h.t.Helper()
	if err := d.cmd.Process.Signal(unix.SIGTERM); err != nil {
		d.h.t.Fatal(err)
	}
	_ = d.cmd.Wait()
	return d.cmd.ProcessState.ExitCode()
}

// get asks podmarkd over HTTP, from the test's own thread: it is the one that is in
// the node's network namespace.
func (d *daemon) get(path string) (code int, body string) {
	d.h.t.Helper()
	conn, err := net.DialTimeout("tcp", d.address, wait.Still)
	if err != nil {
		d.h.t.Fatal(err)
	}
	defer conn.Close()
	request, err := http.NewRequest(http.MethodGet, "http://"+d.address+path, nil)
	if err == nil {
		err = request.Write(conn)
	}
	if err != nil {
		d.h.t.Fatal(err)
	}
	r, err := http.ReadResponse(bufio.NewReader(conn), request)
	if err != nil {
		d.h.t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		d.h.t.Fatal(err)
	}
	return r.StatusCode, string(b)
}

// metric is the value of a metric, with its labels as Prometheus writes them.
func (d *daemon) metric(name string) string {
	d.h.t.Helper()
	_, body := d.get("/metrics")
	for line := range strings.Lines(body) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	d.h.t.Fatalf("no metric %s in:\n%s", name, body)
	return ""
}

// paused calls f while podmarkd stands still.
func (d *daemon) paused(f func()) {
	d.h.t.Helper()
	if err := d.cmd.Process.Signal(unix.SIGSTOP); err != nil {
		d.h.t.Fatal(err)
	}
	f()
	if err := d.cmd.Process.Signal(unix.SIGCONT); err != nil {
		d.h.t.Fatal(err)
	}
}

// repairs counts them, of every kind.
func (d *daemon) repairs() (sum int) {
	d.h.t.Helper()
	_, body := d.get("/metrics")
	for _, m := range regexp.MustCompile(`(?m)^podmark_repairs_total\{.*\} (\d+)$`).FindAllStringSubmatch(body, -1) {
		n, err := strconv.Atoi(m[1])
		if err != nil {
			d.h.t.Fatal(err)
		}
		sum += n
	}
	return sum
}

// eventually waits until check returns nil.
func (h *host) eventually(what string, check func() error) {
	h.t.Helper()
	wait.Until(h.t, what, check)
}
