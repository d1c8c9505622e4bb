package main_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"

	"github.com/podmark/podmark/test/testnode"
)

// configure writes the node's conflist, as it is found by podmarkd.
func (n *node) configure(keys conf) (dir string) {
	n.T.Helper()
	entry := n.Conf(keys)
	delete(entry, "name")
	delete(entry, "cniVersion")
	b, err := json.Marshal(conf{"cniVersion": "1.1.0", "name": "net", "plugins": []conf{{"type": "ptp"}, entry}})
	if err != nil {
		n.T.Fatal(err)
	}
	dir = filepath.Join(filepath.Dir(n.Dir), "net.d")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		n.T.Fatal(err)
	}
	name := filepath.Join(dir, "10-net.conflist")
	if err := os.WriteFile(name+".tmp", b, 0o600); err != nil {
		n.T.Fatal(err)
	}
	if err := os.Rename(name+".tmp", name); err != nil {
		n.T.Fatal(err)
	}
	return dir
}

// keeper starts a podmarkd, which ends with the test or before.
func (n *node) keeper(env ...string) *testnode.Daemon {
	n.T.Helper()
	root := filepath.Dir(n.Dir)
	return n.Podmarkd(env, "--listen", "", "--interval", "300ms", "--cni-conf-dir", filepath.Join(root, "net.d"), "--cni-cache-dir", filepath.Join(root, "cache"))
}

// faultyKeeper starts one that ends where it is told to.
func (n *node) faultyKeeper(env ...string) *testnode.Daemon {
	n.T.Helper()
	defer n.Faulty()()
	return n.keeper(env...)
}

// settledOn reports whether the node has that mask and is not on its way to it.
func (n *node) settledOn(mask uint32) bool {
	var file struct {
		Mask   uint32
		Moving any
		Synced bool
	}
	b, err := os.ReadFile(filepath.Join(n.Dir, "node.json"))
	return err == nil && json.Unmarshal(b, &file) == nil && file.Mask == mask && file.Moving == nil && file.Synced
}

// begun reports whether the log of steps has one.
func begun(log, step string) bool {
	b, _ := os.ReadFile(log)
	return strings.Contains(string(b), " "+step+"\n")
}
