package main_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"github.com/podmark/podmark/test/testnode"
)

// configure writes the node's conflist, as it is found by podmarkd.
func (n *node) configure(keys conf) (dir string) {
	n.t.Helper()
	entry := n.conf(keys)
	delete(entry, "name")
	delete(entry, "cniVersion")
	b, err := json.Marshal(conf{"cniVersion": "1.1.0", "name": "net", "plugins": []conf{{"type": "ptp"}, entry}})
	if err != nil {
		n.t.Fatal(err)
	}
	dir = filepath.Join(filepath.Dir(n.dir), "net.d")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		n.t.Fatal(err)
	}
	name := filepath.Join(dir, "10-net.conflist")
	if err := os.WriteFile(name+".tmp", b, 0o600); err != nil {
		n.t.Fatal(err)
	}
	if err := os.Rename(name+".tmp", name); err != nil {
		n.t.Fatal(err)
	}
	return dir
}

// keeper is podmarkd on the node.
type keeper struct {
	*exec.Cmd
	log  *output
	over chan struct{} // closed when it has ended
}

// keeper starts a podmarkd, which ends with the test or before.
func (n *node) keeper() *keeper { n.t.Helper(); return n.keeperOf(testnode.Programs(n.t)) }

// keeperOf starts one of a directory with programs.
func (n *node) keeperOf(programs string, env ...string) *keeper {
	n.t.Helper()
	root := filepath.Dir(n.dir)
	k := &keeper{log: &output{}, over: make(chan struct{}), Cmd: exec.Command(filepath.Join(programs, "podmarkd"), "--state-dir", n.dir, "--listen", "", "--interval", "300ms",
		"--cni-conf-dir", filepath.Join(root, "net.d"), "--cni-cache-dir", filepath.Join(root, "cache"))}
	k.Env = append(os.Environ(), env...)
	k.Stderr = k.log
	if err := k.Start(); err != nil {
		n.t.Fatal(err)
	}
	go func() {
		_ = k.Wait()
		close(k.over)
	}()
	t := n.t
	t.Cleanup(func() {
		k.end()
		if t.Failed() {
			t.Logf("podmarkd said:\n%s", k.said())
		}
	})
	return k
}

// end kills it, if it has not ended.
func (k *keeper) end() {
	_ = k.Process.Kill()
	<-k.over
}

// said is what it has written so far.
func (k *keeper) said() string {
	k.log.mu.Lock()
	defer k.log.mu.Unlock()
	return k.log.b.String()
}

// output collects what a process writes while it is read.
type output struct {
	mu sync.Mutex
	b  strings.Builder
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

// gone reports whether it has ended.
func (k *keeper) gone() bool {
	select {
	case <-k.over:
		return true
	default:
		return false
	}
}

// settledOn reports whether the node has that mask and is not on its way to it.
func (n *node) settledOn(mask uint32) bool {
	var file struct {
		Mask   uint32
		Moving any
		Synced bool
	}
	b, err := os.ReadFile(filepath.Join(n.dir, "node.json"))
	return err == nil && json.Unmarshal(b, &file) == nil && file.Mask == mask && file.Moving == nil && file.Synced
}

// begun reports whether the log of steps has one.
func begun(log, step string) bool {
	b, _ := os.ReadFile(log)
	return strings.Contains(string(b), " "+step+"\n")
}
