package main_test

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/podmark/podmark/pkg/state"
	"github.com/podmark/podmark/test/testnode"
)

// What all tests of programs have, by the names that it has here.
type (
	conf    = testnode.Conf
	reply   = testnode.Reply
	backend = testnode.Backend
)

// node is a router with one host outside.
type node struct {
	*testnode.Node
	outside *host
	peer    *pod // see ensurePeer
}

// host is a machine beside the node that listens on ports 9001 and 9002.
type host struct {
	testnode.Space
	v4, v6    string
	forbidden *server // 9001
	allowed   *server // 9002
}

// newNode moves the test into a node of its own, on which nothing has run yet but
// the kubelet, if it has one.
func newNode(t *testing.T, b backend) *node {
	t.Helper()
	n := &node{Node: testnode.New(t, b)}
	n.Forward()
	return n
}

// withHost connects the host outside.
func (n *node) withHost() *node {
	n.T.Helper()
	h := &host{Space: testnode.NewSpace(n.T), v4: "192.168.50.2", v6: "fd00:50::2"}
	err := errors.Join(
		testnode.Veth("outside", h.Space, "eth0"), testnode.Up("outside"),
		testnode.Address("outside", "192.168.50.1/24"), testnode.Address("outside", "fd00:50::1/64"),
	)
	if err != nil {
		n.T.Fatal(err)
	}
	h.Do(n.T, func() error {
		return errors.Join(
			testnode.Up("eth0"), testnode.Address("eth0", h.v4+"/24"), testnode.Address("eth0", h.v6+"/64"),
			testnode.Route("eth0", "0.0.0.0/0", "192.168.50.1"), testnode.Route("eth0", "::/0", "fd00:50::1"),
		)
	})
	h.forbidden, h.allowed = serve(n.T, h.Space, 9001), serve(n.T, h.Space, 9002)
	n.outside = h
	return n
}

// ctl runs podmarkctl.
func (n *node) ctl(args ...string) string { n.T.Helper(); return n.Ctl("", args...) }

// settle has the node's own backend in force although no pod has come yet.
func (n *node) settle() {
	n.T.Helper()
	p := n.addPod()
	p.Labels = nil
	p.Add().OK(n.T)
	p.Del().OK(n.T)
	p.Unlink()
}

// status runs STATUS, gc GC with what the runtime says is valid.
func (n *node) status(more ...conf) reply { return n.Call("STATUS", n.Conf(more...)) }

func (n *node) gc(more ...conf) reply { return n.Call("GC", n.Conf(more...)) }

// files are the state directory's, but for the lock, the cursor and the spool, which are nobody's.
func (n *node) files() map[string]string {
	n.T.Helper()
	return n.Files("lock", "next", state.SpoolFile)
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
	n.T.Helper()
	dir := n.T.TempDir()
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
			n.T.Fatal(err)
		}
	}
	n.Path = dir
	return func() []string {
		b, err := os.ReadFile(log)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			n.T.Fatal(err)
		}
		if err := os.RemoveAll(log); err != nil {
			n.T.Fatal(err)
		}
		return strings.Fields(string(b))
	}
}
