package main_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/state"
	testns "github.com/podmark/podmark/test/netns"
	"github.com/podmark/podmark/test/testnode"
	"github.com/podmark/podmark/test/wait"
)

// conf is a network configuration, or some keys of one.
type conf = map[string]any

// node is the test's own network namespace, set up as a Kubernetes node with
// one host outside, and a state directory.
type node struct {
	t       *testing.T
	backend backend
	dir     string // stateDir
	path    string // PATH of what is run
	program string // the podmark to run
	netns   string
	outside *host
	pods    int
	peer    *pod // see ensurePeer
}

// host is a machine beside the node that listens on ports 9001 and 9002.
type host struct {
	*space
	v4, v6    string
	forbidden *server // 9001
	allowed   *server // 9002
}

// newNode moves the test into a node of its own, on which nothing has run yet but
// the kubelet, if it has one.
func newNode(t *testing.T, b backend) *node {
	t.Helper()
	testns.Enter(t)
	n := &node{
		t: t, backend: b, netns: threadNetns(),
		dir:     filepath.Join(t.TempDir(), "state"),
		path:    os.Getenv("PATH"),
		program: filepath.Join(testnode.Programs(t), "podmark"),
	}
	err := errors.Join(
		up("lo"),
		sysctl("net/ipv4/ip_forward", "1"),
		sysctl("net/ipv6/conf/all/forwarding", "1"),
		sysctl("net/ipv6/conf/default/accept_dad", "0"),
	)
	if err != nil {
		t.Fatal(err)
	}
	if b.variant != "" {
		n.hint()
	}
	return n
}

// withHost connects the host outside.
func (n *node) withHost() *node {
	n.t.Helper()
	h := &host{space: newSpace(n.t), v4: "192.168.50.2", v6: "fd00:50::2"}
	veth(n.t, "outside", h.space, "eth0")
	if err := errors.Join(address("outside", "192.168.50.1/24"), address("outside", "fd00:50::1/64")); err != nil {
		n.t.Fatal(err)
	}
	h.do(n.t, func() error {
		return errors.Join(
			address("eth0", h.v4+"/24"), address("eth0", h.v6+"/64"),
			route("eth0", "0.0.0.0/0", "192.168.50.1"), route("eth0", "::/0", "fd00:50::1"),
		)
	})
	h.forbidden, h.allowed = h.serve(n.t, 9001), h.serve(n.t, 9002)
	n.outside = h
	return n
}

// enter moves the calling goroutine into the node's namespace: a subtest, or one
// that a test started, is not in it by itself.
func (n *node) enter() error {
	runtime.LockOSThread() // never unlocked: the runtime ends the thread
	ns, err := netns.GetFromPath(n.netns)
	if err != nil {
		return err
	}
	defer ns.Close()
	return netns.Set(ns)
}

// run is a subtest on the node.
func (n *node) run(t *testing.T, name string, test func(t *testing.T)) bool {
	return t.Run(name, func(t *testing.T) {
		if err := n.enter(); err != nil {
			t.Fatalf("entering the node's namespace: %v", err)
		}
		defer func(outer *testing.T) { n.t = outer }(n.t)
		n.t = t
		test(t)
	})
}

// exec runs a command that must succeed, on the calling thread.
func (n *node) exec(stdin, name string, args ...string) string {
	n.t.Helper()
	out, err := n.try(stdin, name, args...)
	if err != nil {
		n.t.Fatal(err)
	}
	return out
}

func (n *node) try(stdin, name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("running %q: %w: %s", append([]string{name}, args...), err, stderr.String())
	}
	return stdout.String(), err
}

// ctl runs podmarkctl.
func (n *node) ctl(args ...string) string { n.t.Helper(); return n.ctlIn("", args...) }

func (n *node) ctlIn(stdin string, args ...string) string {
	n.t.Helper()
	args = append([]string{"PATH=" + n.path, filepath.Join(testnode.Programs(n.t), "podmarkctl"), "--state-dir", n.dir, "--lock-timeout", "1m"}, args...)
	return n.exec(stdin, "env", args...)
}

// apply makes manifests the node's policy. On a virgin node that is podmarkctl's
// choice of backend, until the first ADD says which it is.
func (n *node) apply(manifests string) { n.t.Helper(); n.ctlIn(manifests, "apply", "-f", "-") }

// settle has the node's own backend in force although no pod has come yet.
func (n *node) settle() {
	n.t.Helper()
	p := n.addPod()
	p.labels = nil
	p.add().ok(n.t)
	p.del().ok(n.t)
	p.unlink()
}

// reply is what came of one call of the plugin.
type reply struct {
	stdout, stderr string
	state          *os.ProcessState
	// err is the error on stdout; nil when the plugin exited with 0.
	err *types.Error
}

// code is the reply's CNI error code, 0 for success.
func (r reply) code() uint {
	if r.err == nil {
		return 0
	}
	return r.err.Code
}

// text is all that the error says.
func (r reply) text() string {
	if r.err == nil {
		return ""
	}
	return r.err.Msg + "; " + r.err.Details
}

// killed reports whether the plugin died of SIGKILL.
func (r reply) killed() bool {
	status, ok := r.state.Sys().(interface{ Signaled() bool })
	return ok && status.Signaled()
}

// ok fails the test unless the call succeeded.
func (r reply) ok(t *testing.T) reply {
	t.Helper()
	if r.err != nil || r.state.ExitCode() != 0 {
		t.Fatalf("plugin ended with %v: %d: %s\n%s", r.state, r.code(), r.text(), r.stderr)
	}
	return r
}

// fails fails the test unless the call ended with code and an error that says all of words.
func (r reply) fails(t *testing.T, code uint, words ...string) {
	t.Helper()
	if r.code() != code {
		t.Errorf("code is %d (%s), want %d", r.code(), r.text(), code)
	}
	for _, w := range words {
		if !strings.Contains(r.text(), w) {
			t.Errorf("error %q does not say %q", r.text(), w)
		}
	}
}

// call runs the plugin on the calling thread. Whatever a failed call writes to
// stdout must be one CNI error and nothing else.
func (n *node) call(verb string, stdin any, env ...string) reply {
	n.t.Helper()
	in, isText := stdin.(string)
	if !isText {
		b, err := json.Marshal(stdin)
		if err != nil {
			n.t.Fatal(err)
		}
		in = string(b)
	}
	ctx, cancel := context.WithTimeout(context.Background(), wait.Still)
	defer cancel()
	cmd := exec.CommandContext(ctx, n.program)
	cmd.Stdin = strings.NewReader(in)
	cmd.Env = append([]string{"CNI_COMMAND=" + verb, "CNI_PATH=" + testnode.Programs(n.t), "PATH=" + n.path}, env...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		n.t.Fatalf("running podmark: %v", err)
	}
	r := reply{stdout: stdout.String(), stderr: stderr.String(), state: cmd.ProcessState}
	if err != nil && !r.killed() {
		r.err = &types.Error{}
		d := json.NewDecoder(strings.NewReader(r.stdout))
		d.DisallowUnknownFields()
		if err := d.Decode(r.err); err != nil || d.More() {
			n.t.Fatalf("%s ended with %v and stdout is not one CNI error: %v\n%s\n%s", verb, cmd.ProcessState, err, r.stdout, r.stderr)
		}
	}
	return r
}

// conf is the node's network configuration; later keys replace earlier ones, and
// a nil value removes its key.
func (n *node) conf(more ...conf) conf {
	c := conf{"cniVersion": "1.1.0", "name": "net", "type": "podmark", "stateDir": n.dir, "policy": "files"}
	if n.backend.key != "" {
		c["backend"] = n.backend.key
	}
	for _, m := range more {
		maps.Copy(c, m)
	}
	maps.DeleteFunc(c, func(_ string, v any) bool { return v == nil })
	return c
}

// status runs STATUS, gc GC with what the runtime says is valid.
func (n *node) status(more ...conf) reply { return n.call("STATUS", n.conf(more...)) }

func (n *node) gc(more ...conf) reply { return n.call("GC", n.conf(more...)) }

// files are the state directory's files with their content, but for the lock, the
// cursor, the spool and the socket, which are nobody's.
func (n *node) files() map[string]string {
	n.t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(n.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Type() == fs.ModeSocket {
			return err
		}
		b, err := os.ReadFile(path)
		if d.Type() == fs.ModeSymlink {
			var to string
			to, err = os.Readlink(path)
			b = []byte(to)
		}
		if name, _ := filepath.Rel(n.dir, path); name != "lock" && name != "next" && name != state.SpoolFile {
			files[name] = string(b)
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		n.t.Fatal(err)
	}
	return files
}

// attachments are the files but for those of the node, by name.
func (n *node) attachments() []string {
	files := n.files()
	for _, name := range []string{state.NodeFile, state.PoliciesFile} {
		delete(files, name)
	}
	return slices.Sorted(maps.Keys(files))
}

// shims makes the node's PATH a directory in which every command that podmark might
// run notes its name and then runs. What was run is told by the returned func,
// which forgets it.
func (n *node) shims() (ran func() []string) {
	n.t.Helper()
	dir := n.t.TempDir()
	log := filepath.Join(dir, "log")
	names := []string{"ipset", "ip", "nft", "conntrack", "modprobe", "sh"}
	for _, f := range []string{"iptables", "ip6tables"} {
		for _, v := range []string{"", "-nft", "-legacy"} {
			for _, s := range []string{"", "-save", "-restore"} {
				names = append(names, f+v+s)
			}
		}
	}
	for _, name := range names {
		real, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		script := fmt.Sprintf("#!/bin/sh\necho %s >> %s\nexec %s \"$@\"\n", name, log, real)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
			n.t.Fatal(err)
		}
	}
	n.path = dir
	return func() []string {
		b, err := os.ReadFile(log)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			n.t.Fatal(err)
		}
		if err := os.RemoveAll(log); err != nil {
			n.t.Fatal(err)
		}
		return strings.Fields(string(b))
	}
}

// holdLock takes the lock of the state directory as another podmark process would.
func (n *node) holdLock() (release func()) {
	n.t.Helper()
	if err := os.MkdirAll(n.dir, 0o700); err != nil {
		n.t.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(n.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		n.t.Fatal(err)
	}
	return func() { f.Close() }
}
