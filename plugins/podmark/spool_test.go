package main_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/podmark/podmark/pkg/state"
)

// Each call leaves word of its verb and its error code, with how long it took; STATUS
// does not, nor a call whose configuration cannot be read.
func TestCallsAreNoted(t *testing.T) {
	n := newNode(t, nftables)
	n.status().OK(t)
	mask := conf{"iptablesMarkMask": "0x00030000"}
	a, b, c := n.addPod(), n.addPod(), n.addPod()
	a.Add(mask).OK(t)
	b.Add(mask).OK(t)
	c.Add(mask).Fails(t, 100)
	c.Add(mask, conf{"policy": "all"}).Fails(t, 7)
	c.Add(mask, conf{"prevResult": nil}).Fails(t, 7)
	a.Check(mask).OK(t)
	n.gc(mask, conf{"cni.dev/valid-attachments": []conf{}}).OK(t)
	a.Del(mask).OK(t)
	n.status(mask).OK(t)
	calls, damaged, full, err := state.At(n.Dir).TakeCalls()
	if damaged != 0 || full || err != nil {
		t.Fatalf("%d damaged, full %v, %v", damaged, full, err)
	}
	var got []string
	for _, call := range calls {
		got = append(got, fmt.Sprintf("%s %d", call.Verb, call.Code))
		if call.Took <= 0 {
			t.Errorf("%+v took no time", call)
		}
	}
	want := []string{"ADD 0", "ADD 0", "ADD 100", "ADD 7", "CHECK 0", "GC 0", "DEL 0"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("noted:\n%s", diff)
	}
}

// Where podmark has no state directory, a call leaves no trace of itself.
func TestNothingIsNotedWithoutState(t *testing.T) {
	n := newNode(t, nftables)
	n.addPod().Del().OK(t)
	if _, err := os.Stat(n.Dir); err == nil {
		t.Error("a DEL made the directory")
	}
	p := n.addPod()
	p.Add().OK(t)
	n.ctl("uninstall", "--yes")
	p.Del().OK(t)
	if _, err := os.Stat(filepath.Join(n.Dir, state.SpoolFile)); err == nil {
		t.Error("it is there after podmarkctl uninstall")
	}
}

// A spool that cannot be written is no reason to refuse a pod.
func TestSpoolUnwritable(t *testing.T) {
	n := newNode(t, nftables)
	if err := os.MkdirAll(filepath.Join(n.Dir, state.SpoolFile), 0o700); err != nil {
		t.Fatal(err)
	}
	r := n.addPod().Add().OK(t)
	if !strings.Contains(r.Stderr, "not counted") {
		t.Errorf("stderr is %q", r.Stderr)
	}
}
