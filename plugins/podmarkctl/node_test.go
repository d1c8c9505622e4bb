package main_test

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/state"
	"github.com/podmark/podmark/test/netns"
	"github.com/podmark/podmark/test/saved"
	"github.com/podmark/podmark/test/share"
	"github.com/podmark/podmark/test/testnode"
)

func TestMain(m *testing.M) {
	os.Exit(testnode.Main(m))
}

// backend is what enforces on a test's node.
type backend struct {
	name    string // as node.json has it
	key     string // as the conflist has it
	variant string // of iptables, in which the kubelet has its chain
}

var (
	nftables       = backend{"nftables", "nftables", "nft"}
	iptablesNFT    = backend{"iptables-nft", "iptables", "nft"}
	iptablesLegacy = backend{"iptables-legacy", "iptables", "legacy"}
)

var (
	backends = []backend{nftables, iptablesNFT, iptablesLegacy}
	variants = []string{"nft", "legacy"}
)

// eachBackend runs test on a node of each backend.
func eachBackend(t *testing.T, test func(t *testing.T, n *node)) {
	t.Parallel()
	for _, b := range share.OneOf(t, backends) {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			test(t, newNode(t, b))
		})
	}
}

// node is the test's own network namespace and a state directory. What enforces is
// the backend from the first pod on.
type node struct {
	t       *testing.T
	backend backend
	dir     string
	pods    int
	spaces  []string // of the pods
	// mask of pods; the default when empty.
	mask string
	// keys of the entry that pods are added with, besides.
	keys map[string]any
	// ifName of pods; eth0 when empty.
	ifName string
	// vars are set for programs, besides.
	vars []string
}

func newNode(t *testing.T, b backend) *node {
	t.Helper()
	netns.Enter(t)
	n := &node{t: t, backend: b, dir: filepath.Join(t.TempDir(), "state")}
	n.iptables("-N", "KUBE-IPTABLES-HINT")
	return n
}

// output is what a program left.
type output struct {
	stdout, stderr string
	exit           int
}

func (n *node) start(stdin, name string, args ...string) output {
	n.t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.Env = append(append(os.Environ(), "LC_ALL=C"), n.vars...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		n.t.Fatal(err)
	}
	return output{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// exec runs a command that must succeed.
func (n *node) exec(stdin, name string, args ...string) string {
	n.t.Helper()
	o := n.start(stdin, name, args...)
	if o.exit != 0 {
		n.t.Fatalf("%s %q ended with %d: %s", name, args, o.exit, o.stderr)
	}
	return o.stdout
}

// iptables runs the node's variant, IPv4 and IPv6, on table mangle.
func (n *node) iptables(args ...string) {
	n.t.Helper()
	for _, f := range []string{"iptables", "ip6tables"} {
		n.exec("", f+"-"+n.backend.variant, append([]string{"-w", "30", "-t", "mangle"}, args...)...)
	}
}

// ctl runs podmarkctl.
func (n *node) ctl(args ...string) output { n.t.Helper(); return n.ctlIn("", args...) }

func (n *node) ctlIn(stdin string, args ...string) output {
	n.t.Helper()
	return n.start(stdin, filepath.Join(testnode.Programs(n.t), "podmarkctl"), append([]string{"--state-dir", n.dir}, args...)...)
}

// ok fails the test unless the program ended with 0 and was silent on stderr.
func (o output) ok(t *testing.T) output {
	t.Helper()
	if o.exit != 0 || o.stderr != "" {
		t.Fatalf("exit %d, stderr %q", o.exit, o.stderr)
	}
	return o
}

// fails fails the test unless the program ended with 2, said all of words on
// stderr and nothing on stdout.
func (o output) fails(t *testing.T, words ...string) {
	t.Helper()
	if o.exit != 2 || o.stdout != "" {
		t.Errorf("exit %d, want 2; stdout %q", o.exit, o.stdout)
	}
	for _, w := range append(words, "podmarkctl: ") {
		if !strings.Contains(o.stderr, w) {
			t.Errorf("stderr %q does not say %q", o.stderr, w)
		}
	}
}

// addPod adds a pod that has a routed veth and both kinds of address, and
// returns its container ID.
func (n *node) addPod(labels map[string]string) string {
	n.t.Helper()
	n.pods++
	id := fmt.Sprintf("container-%d", n.pods)
	path := n.space()
	n.spaces = append(n.spaces, path)
	ns, err := os.Open(path)
	if err != nil {
		n.t.Fatal(err)
	}
	defer ns.Close()
	ifName := cmp.Or(n.ifName, "eth0")
	veth := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: n.veth(n.pods)}, PeerName: ifName, PeerNamespace: netlink.NsFd(int(ns.Fd())),
	}
	if err := netlink.LinkAdd(veth); err != nil {
		n.t.Fatal(err)
	}
	entry := map[string]any{
		"cniVersion": "1.1.0", "name": "net", "type": "podmark", "stateDir": n.dir, "policy": "files", "backend": n.backend.key,
		"args": map[string]any{"cni": map[string]any{"labels": labels}},
		"prevResult": map[string]any{
			"cniVersion": "1.1.0",
			"ips":        []any{map[string]any{"address": fmt.Sprintf("10.1.0.%d/32", n.pods+1)}, map[string]any{"address": fmt.Sprintf("fd00:10::%x/128", n.pods+1)}},
		},
	}
	if n.mask != "" {
		entry["iptablesMarkMask"] = n.mask
	}
	maps.Copy(entry, n.keys)
	conf, err := json.Marshal(entry)
	if err != nil {
		n.t.Fatal(err)
	}
	n.exec(string(conf), "env", "CNI_COMMAND=ADD", "CNI_CONTAINERID="+id, "CNI_NETNS="+path, "CNI_IFNAME="+ifName,
		"CNI_PATH=/", "CNI_ARGS=K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-"+fmt.Sprint(n.pods), filepath.Join(testnode.Programs(n.t), "podmark"))
	return id
}

func (*node) veth(pod int) string { return fmt.Sprintf("veth%d", pod) }

// space makes a network namespace that lives as long as the test.
func (n *node) space() (path string) {
	n.t.Helper()
	ready, end := make(chan error), make(chan struct{})
	n.t.Cleanup(func() { close(end) })
	go func() {
		runtime.LockOSThread() // never unlocked: thread and namespace end together
		err := unix.Unshare(unix.CLONE_NEWNET)
		path = fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid())
		ready <- err
		<-end
	}()
	if err := <-ready; err != nil {
		n.t.Fatal(err)
	}
	return path
}

var (
	generation = regexp.MustCompile(`\b(podmark-[a-z]+[46])[ab]\b`)
	changing   = regexp.MustCompile(`\[\d+:\d+\]| (hashsize|bucketsize|initval) \S+| packets \d+ bytes \d+`)
)

// kernel is what is in the kernel that podmark could have put there: sets, rules
// of nft and of both variants of iptables, and links with their groups.
func (n *node) kernel() string {
	n.t.Helper()
	sets := slices.Sorted(strings.Lines(n.exec("", "ipset", "save")))
	out := strings.Join(sets, "")
	for _, v := range variants {
		for _, f := range []string{"iptables", "ip6tables"} {
			for line := range strings.Lines(saved.Rules(n.t, f+"-"+v)) {
				if !strings.HasPrefix(line, "#") {
					out += line
				}
			}
		}
	}
	// Of families ip and ip6 nft shows what iptables-nft shows itself, and what that
	// has is there from the first look at it on.
	out += n.exec("", "nft", "list", "ruleset", "inet") + n.exec("", "nft", "list", "ruleset", "bridge")
	return changing.ReplaceAllString(out+n.exec("", "ip", "-o", "link"), "")
}

// files are the state directory's files with their content, but for locks and sockets.
func (n *node) files() map[string]string {
	n.t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(n.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Type() == fs.ModeSocket || strings.HasSuffix(d.Name(), "lock") || d.Name() == state.SpoolFile {
			return err
		}
		b, err := os.ReadFile(path)
		if d.Type() == fs.ModeSymlink {
			var to string
			to, err = os.Readlink(path)
			b = []byte(to)
		}
		name, _ := filepath.Rel(n.dir, path)
		files[name] = string(b)
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		n.t.Fatal(err)
	}
	return files
}

// names lists what is in the directories of the state directory.
func (n *node) names() []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(n.files())), func(s string) bool { return !strings.Contains(s, "/") })
}

// manifests writes files into a new directory.
func manifests(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
