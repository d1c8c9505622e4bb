package testnode

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/test/netns"
	"github.com/podmark/podmark/test/saved"
)

// Node is the test's own network namespace and a state directory. What enforces is the backend,
// from the first pod on.
type Node struct {
	// T is the test, or the subtest that is on the node now.
	T       *testing.T
	Backend Backend
	// Dir is the state directory.
	Dir string
	// Path is PATH of podmark and podmarkctl.
	Path string
	// Programs is the directory of the podmark and the podmarkd that are run.
	Programs string
	// Keys are of podmark's entry, besides.
	Keys Conf
	// Pods are those that were made.
	Pods []*Pod

	netns string
}

// New moves the test into a node of its own, on which nothing has run yet but the kubelet, if it
// has one.
func New(t *testing.T, b Backend) *Node {
	t.Helper()
	netns.Enter(t)
	n := &Node{
		T: t, Backend: b, netns: here(),
		Dir:      filepath.Join(t.TempDir(), "state"),
		Path:     os.Getenv("PATH"),
		Programs: Programs(t),
	}
	if err := Up("lo"); err != nil {
		t.Fatal(err)
	}
	if b.Variant != "" {
		n.Hint()
	}
	return n
}

// Forward has the node be a router, as nodes are.
func (n *Node) Forward() {
	n.T.Helper()
	err := errors.Join(
		Sysctl("net/ipv4/ip_forward", "1"),
		Sysctl("net/ipv6/conf/all/forwarding", "1"),
		Sysctl("net/ipv6/conf/default/accept_dad", "0"),
	)
	if err != nil {
		n.T.Fatal(err)
	}
}

// Faulty has the node run a podmark and a podmarkd that can be told to end after a step, until back.
func (n *Node) Faulty() (back func()) {
	n.T.Helper()
	n.Programs = Faulty(n.T)
	return func() { n.Programs = Programs(n.T) }
}

// Enter moves the calling goroutine into the node's namespace: a subtest, or one that a test
// started, is not in it by itself.
func (n *Node) Enter() error {
	runtime.LockOSThread() // never unlocked: the runtime ends the thread
	return enter(n.netns)
}

// Run is a subtest on the node.
func (n *Node) Run(t *testing.T, name string, test func(t *testing.T)) bool {
	return t.Run(name, func(t *testing.T) {
		if err := n.Enter(); err != nil {
			t.Fatalf("entering the node's namespace: %v", err)
		}
		defer func(outer *testing.T) { n.T = outer }(n.T)
		n.T = t
		test(t)
	})
}

// Output is what a command left.
type Output struct {
	Stdout, Stderr string
	State          *os.ProcessState
}

// Exit is its exit status; -1 where a signal ended it.
func (o Output) Exit() int { return o.State.ExitCode() }

// Killed reports whether a signal ended it.
func (o Output) Killed() bool {
	status, ok := o.State.Sys().(interface{ Signaled() bool })
	return ok && status.Signaled()
}

// Output runs a command on the calling thread.
func (n *Node) Output(stdin, name string, args ...string) Output {
	n.T.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	o, err := output(cmd, stdin)
	if err != nil {
		n.T.Fatal(err)
	}
	return o
}

// output runs a command. It is no error if the command fails.
func output(cmd *exec.Cmd, stdin string) (Output, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		return Output{}, fmt.Errorf("running %q: %w", cmd.Args, err)
	}
	return Output{stdout.String(), stderr.String(), cmd.ProcessState}, nil
}

// Try runs a command and returns what it prints.
func (n *Node) Try(stdin, name string, args ...string) (string, error) {
	n.T.Helper()
	o := n.Output(stdin, name, args...)
	if !o.State.Success() {
		return o.Stdout, fmt.Errorf("running %q: %v: %s", append([]string{name}, args...), o.State, o.Stderr)
	}
	return o.Stdout, nil
}

// Exec is [Node.Try] for a command that must succeed.
func (n *Node) Exec(stdin, name string, args ...string) string {
	n.T.Helper()
	out, err := n.Try(stdin, name, args...)
	if err != nil {
		n.T.Fatal(err)
	}
	return out
}

// TryCtl runs podmarkctl.
func (n *Node) TryCtl(stdin string, args ...string) Output {
	n.T.Helper()
	return n.Output(stdin, "env", append([]string{"PATH=" + n.Path, Program(n.T, "podmarkctl"), "--state-dir", n.Dir}, args...)...)
}

// Ctl is [Node.TryCtl] for what must succeed, however many wait for the lock.
func (n *Node) Ctl(stdin string, args ...string) string {
	n.T.Helper()
	o := n.TryCtl(stdin, append([]string{"--lock-timeout", LockTimeout.String()}, args...)...)
	if o.Exit() != 0 {
		n.T.Fatalf("podmarkctl %q ended with %v: %s", args, o.State, o.Stderr)
	}
	return o.Stdout
}

// Apply makes manifests the node's policy. On a new node that is podmarkctl's choice of
// backend, until the first ADD says which it is.
func (n *Node) Apply(manifests string) { n.T.Helper(); n.Ctl(manifests, "apply", "-f", "-") }

// Hint makes the chain by which a kubelet tells which variant it uses.
func (n *Node) Hint() { n.T.Helper(); n.Iptables("-N", "KUBE-IPTABLES-HINT") }

// Iptables runs the node's variant, IPv4 and IPv6, on table mangle.
func (n *Node) Iptables(args ...string) {
	n.T.Helper()
	for _, f := range []string{"iptables", "ip6tables"} {
		n.Exec("", f+"-"+n.Backend.Variant, append([]string{"-w", "30", "-t", "mangle"}, args...)...)
	}
}

var (
	counters   = regexp.MustCompile(`\[\d+:\d+\]`)
	generation = regexp.MustCompile(`\b(podmark-[a-z]+[46])[ab]\b`)
)

// Rules lists tables mangle and security of a variant of iptables, both families, without counters.
func (n *Node) Rules(variant string) []string {
	n.T.Helper()
	var lines []string
	for _, f := range []string{"iptables", "ip6tables"} {
		for line := range strings.Lines(saved.Rules(n.T, f+"-"+variant)) {
			if !strings.HasPrefix(line, "#") {
				lines = append(lines, f+" "+counters.ReplaceAllString(line, ""))
			}
		}
	}
	return lines
}

// AnyGeneration is text about ipsets whichever generation of them is used.
func AnyGeneration(text string) string { return generation.ReplaceAllString(text, "$1*") }

// Files are the state directory's files with their content, but for sockets and some files by name.
func (n *Node) Files(but ...string) map[string]string {
	n.T.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(n.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Type() == fs.ModeSocket {
			return err
		}
		b, err := os.ReadFile(path)
		if d.Type() == fs.ModeSymlink {
			var to string
			to, err = os.Readlink(path)
			b = []byte(to)
		}
		name, _ := filepath.Rel(n.Dir, path)
		files[name] = string(b)
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		n.T.Fatal(err)
	}
	for _, name := range but {
		delete(files, name)
	}
	return files
}

// HoldLock takes the lock of the state directory as another podmark process would.
func (n *Node) HoldLock() (release func()) {
	n.T.Helper()
	if err := os.MkdirAll(n.Dir, 0o700); err != nil {
		n.T.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(n.Dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		n.T.Fatal(err)
	}
	return func() { f.Close() }
}
