package containerd_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/podmark/podmark/test/wait"
)

const (
	without = "ptp portmap"
	with    = "ptp portmap podmark"
)

var errEntry = errors.New("the entry is there, or is not")

// While containerd watches its directory, podmark comes, is put back and goes; no moment
// passes in which the node would not be ready, and each pod that starts is known.
func TestInstall(t *testing.T) {
	n := newNode(t)
	n.loads(without)
	early := n.mustStart()
	ready := n.alwaysReady()
	n.must("install")
	n.loads(with)
	p := n.mustStart()
	if !p.marked() || early.marked() {
		t.Errorf("the pod after it is known: %t, the one before: %t", p.marked(), early.marked())
	}
	p.mustEnd()
	if p.marked() {
		t.Error("a pod that was deleted is known")
	}
	early.mustEnd() // a DEL of a pod that podmark never had

	// The daemon keeps it installed, whoever writes the conflist again.
	stop := n.daemon()
	for range 3 {
		n.write("10-net.conflist", n.conflist())
		n.eventually("the entry is back", func() error { return n.hasEntry(true) })
		n.loads(with)
	}
	q := n.mustStart()
	if !q.marked() {
		t.Error("a pod behind a repair is not known")
	}
	stop()

	// It goes while a pod lives that it made. containerd sends no DEL for that one to
	// podmark, because it deletes by the conflist of now.
	if out := n.must("uninstall"); !strings.Contains(out, "attachments that were made with podmark: 1") {
		t.Errorf("uninstall says %s", out)
	}
	n.loads(without)
	if r := n.mustStart(); r.marked() {
		t.Error("a pod is known that started after it")
	} else {
		r.mustEnd()
	}
	if _, err := os.Stat(filepath.Join(n.bin, "podmark")); err != nil || !q.marked() {
		t.Errorf("while a pod lives: the plugin: %v, its record: %t", err, q.marked())
	}
	ended := make(chan string)
	cmd := n.podmarkd("uninstall", "--wait", wait.Most.String())
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	start := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = cmd.Wait(); ended <- out.String() }()
	q.mustEnd()
	if said := <-ended; !strings.Contains(said, "podmark is removed from this node") || time.Since(start) > wait.Most/2 {
		t.Errorf("with its last pod gone, uninstall says after %v: %s", time.Since(start), said)
	}
	for _, path := range []string{filepath.Join(n.bin, "podmark"), n.state} {
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if rules := n.run("nft", "list", "ruleset"); strings.Contains(rules, "podmark") {
		t.Errorf("rules are left:\n%s", rules)
	}
	ready()
}

// Pods start and end all the time while the plugin is replaced: no ADD and no DEL fails.
func TestUpgrade(t *testing.T) {
	n := newNode(t)
	sources := []string{t.TempDir(), t.TempDir()}
	for i, dir := range sources {
		// Bytes behind the end of a program are of no use, and make it another one.
		n.copy(filepath.Join(root, "bin/podmark"), filepath.Join(dir, "podmark"), make([]byte, i)...)
	}
	n.must("install", "--source", sources[0])
	n.loads(with)
	ready := n.alwaysReady()
	const pods = 8
	failed := make(chan error, pods)
	go func() {
		for range pods {
			p, err := n.start()
			if err == nil && !p.marked() {
				t.Errorf("%s is not known", p.name)
			}
			if err == nil {
				err = p.end()
			}
			failed <- err
		}
	}()
	replaced := 0
	for i := 0; i < pods; {
		select {
		case err := <-failed:
			if err != nil {
				t.Error(err)
			}
			i++
		default:
			replaced++
			n.must("install", "--source", sources[replaced%2])
		}
	}
	ready()
	t.Logf("replaced %d times while %d pods started", replaced, pods)
	if replaced < pods {
		t.Error("too seldom to tell")
	}
}

// hasEntry says whether the conflist has podmark's entry, as wanted.
func (n *node) hasEntry(want bool) error {
	b, err := os.ReadFile(filepath.Join(n.conf, "10-net.conflist"))
	if err == nil && strings.Contains(string(b), `"podmark"`) != want {
		err = errEntry
	}
	return err
}
