package main_test

import (
	"cmp"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/podmark/podmark/pkg/state"
	"github.com/podmark/podmark/test/testnode"
)

func TestMain(m *testing.M) {
	os.Exit(testnode.Main(m))
}

type backend = testnode.Backend

var (
	nftables       = testnode.NFTables
	iptablesNFT    = testnode.IPTablesNFT
	iptablesLegacy = testnode.IPTablesLegacy
	backends       = testnode.Backends
)

// eachBackend runs test on a node of each backend.
func eachBackend(t *testing.T, test func(t *testing.T, n *node)) {
	testnode.Each(t, backends, newNode, test)
}

// node is one on which podmarkctl is run.
type node struct {
	*testnode.Node
	// ifName of pods; eth0 when empty.
	ifName string
}

func newNode(t *testing.T, b backend) *node { t.Helper(); return &node{Node: testnode.New(t, b)} }

// output is what podmarkctl left.
type output struct{ testnode.Output }

// ctl runs podmarkctl.
func (n *node) ctl(args ...string) output { n.T.Helper(); return n.ctlIn("", args...) }

func (n *node) ctlIn(stdin string, args ...string) output {
	n.T.Helper()
	return output{n.TryCtl(stdin, args...)}
}

// ok fails the test unless the program ended with 0 and was silent on stderr.
func (o output) ok(t *testing.T) output {
	t.Helper()
	if o.Exit() != 0 || o.Stderr != "" {
		t.Fatalf("exit %d, stderr %q", o.Exit(), o.Stderr)
	}
	return o
}

// fails fails the test unless the program ended with 2, said all of words on
// stderr and nothing on stdout.
func (o output) fails(t *testing.T, words ...string) {
	t.Helper()
	if o.Exit() != 2 || o.Stdout != "" {
		t.Errorf("exit %d, want 2; stdout %q", o.Exit(), o.Stdout)
	}
	for _, w := range append(words, "podmarkctl: ") {
		if !strings.Contains(o.Stderr, w) {
			t.Errorf("stderr %q does not say %q", o.Stderr, w)
		}
	}
}

// addPod adds a pod that has a routed veth and both kinds of address, and
// returns its container ID.
func (n *node) addPod(labels map[string]string) string {
	n.T.Helper()
	p := n.NewPodAs(testnode.NewSpace(n.T), cmp.Or(n.ifName, "eth0"))
	p.Labels = labels
	p.Add().OK(n.T)
	return p.ID
}

func (n *node) veth(pod int) string { return n.Pods[pod-1].Veth }

var changing = regexp.MustCompile(`\[\d+:\d+\]| (hashsize|bucketsize|initval) \S+| packets \d+ bytes \d+`)

// kernel is what is in the kernel that podmark could have put there: sets, rules
// of nft and of both variants of iptables, and links with their groups.
func (n *node) kernel() string {
	n.T.Helper()
	lines := slices.Sorted(strings.Lines(n.Exec("", "ipset", "save")))
	for _, v := range testnode.Variants {
		lines = append(lines, n.Rules(v)...)
	}
	// Of families ip and ip6 nft shows what iptables-nft shows itself, and what that
	// has is there from when it is read first.
	lines = append(lines, n.Exec("", "nft", "list", "ruleset", "inet"), n.Exec("", "nft", "list", "ruleset", "bridge"), n.Exec("", "ip", "-o", "link"))
	return changing.ReplaceAllString(strings.Join(lines, ""), "")
}

// files are the state directory's, but for locks and the spool.
func (n *node) files() map[string]string {
	n.T.Helper()
	return n.Files("lock", state.DaemonLock, state.SpoolFile)
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
