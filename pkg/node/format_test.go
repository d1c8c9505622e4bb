package node

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/state"
	"github.com/podmark/podmark/test/needs"
)

func named(name string) desired.Policies {
	return desired.Policies{Policies: []desired.Policy{{Namespace: "default", Name: name}}}
}

// notes has a change write f and its policies down.
func notes(n Node, f nodeFile) (nodeFile, error) {
	t := tx{Node: n}
	err := t.notePolicies(policyPlan{file: f, policies: true})
	return t.file, err
}

// settled is a node that has come to rest with a policy of that name.
func settled(t *testing.T, name string) (Node, nodeFile) {
	t.Helper()
	n := Node{Store: state.At(filepath.Join(t.TempDir(), "state"))}
	if err := n.Store.Init(); err != nil {
		t.Fatal(err)
	}
	f := nodeFile{Mask: 0xffff0000, Epoch: 1, Backend: config.NFTables, Indexed: true, PoliciesHash: noFile, Policies: named(name)}
	f, err := notes(n, f)
	f.Synced = true
	if err := errors.Join(err, n.save(f)); err != nil {
		t.Fatal(err)
	}
	return n, f
}

// Who reads without the lock gets the policies before a change or those after it, and never
// takes them for lost.
func TestReadDuringChanges(t *testing.T) {
	needs.All(t, needs.Time)
	n, f := settled(t, "0")
	const changes = 300
	var wait sync.WaitGroup
	done := make(chan struct{})
	for _, cache := range []*Cache{nil, {}} {
		reader := n
		reader.Cache = cache
		wait.Go(func() {
			last := 0
			for {
				select {
				case <-done:
					return
				default:
				}
				f, err := reader.load()
				if err != nil {
					t.Errorf("after %d: %v", last, err)
					return
				}
				now, err := strconv.Atoi(f.Policies.Policies[0].Name)
				if err != nil || now < last {
					t.Errorf("read %q after %d", f.Policies.Policies[0].Name, last)
				}
				last = now
			}
		})
	}
	for i := range changes {
		f.Policies = named(strconv.Itoa(i))
		var err error
		if f, err = notes(n, f); err != nil {
			t.Error(err)
			break
		}
	}
	close(done)
	wait.Wait()
}

// Policies count only where they are those that node.json names, and they are never taken for
// none where they are lost.
func TestStateIsWhole(t *testing.T) {
	write := func(content string) func(string) error {
		return func(path string) error { return os.WriteFile(path, []byte(content), 0o600) }
	}
	for name, lose := range map[string]func(path string) error{
		"gone":      os.Remove,
		"empty":     write(""),
		"none":      write("{}"),
		"another":   write(`{"policies":[{"namespace":"default","name":"another"}]}`),
		"truncated": func(path string) error { return os.Truncate(path, 20) },
		"pipe":      func(path string) error { return errors.Join(os.Remove(path), unix.Mkfifo(path, 0o600)) },
		"later":     write(`{"format":99}`),
	} {
		for _, cache := range []*Cache{nil, {}} {
			n, _ := settled(t, "web")
			n.Cache = cache
			f, err := n.load()
			if diff := cmp.Diff(named("web"), f.Policies); err != nil || diff != "" || !f.Synced {
				t.Fatalf("%v, synced is %t, policies:\n%s", err, f.Synced, diff)
			}
			if err := lose(n.Store.Path(state.PoliciesFile)); err != nil {
				t.Fatal(err)
			}
			if _, err := n.load(); !errors.Is(err, state.ErrDamaged) {
				t.Errorf("policies.json is %s: load = %v, want damaged", name, err)
			}
			if _, err := n.State(); !errors.Is(err, state.ErrDamaged) {
				t.Errorf("policies.json is %s: State = %v, want damaged", name, err)
			}
			f, err = n.loadWithoutPolicies()
			if err != nil || f.policiesLost == nil || f.Synced || f.Policies.Policies != nil || f.Mask != 0xffff0000 {
				t.Errorf("policies.json is %s: loadLost = %+v, %v", name, f, err)
			}
			if _, _, err := n.EnforcedPolicies(); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("policies.json is %s: Remembered = %v", name, err)
			}
			// A change that knows them all writes them again.
			f.Policies = named("web")
			if _, err := notes(n, f); err != nil && name != "pipe" {
				t.Error(err)
			}
			if f, err := n.load(); err != nil || f.Synced || len(f.Policies.Policies) != 1 {
				t.Errorf("after another change: %+v, %v", f, err)
			}
		}
	}
}

// A change that ends between its two files has not begun, but for what is in the kernel.
func TestChangeEndsBetweenFiles(t *testing.T) {
	for _, before := range []string{"", "old"} {
		n, f := settled(t, "old")
		if before == "" {
			f.Policies, f.PoliciesHash = desired.Policies{}, noFile
			if err := n.save(f); err != nil { // a stale file stays
				t.Fatal(err)
			}
		}
		n.Step = func(name string) {
			if name == "noted" {
				panic(name)
			}
		}
		f.Policies = named("new")
		func() {
			defer func() { _ = recover() }()
			_, err := notes(n, f)
			t.Errorf("note = %v, and has not been interrupted", err)
		}()
		got, err := n.load()
		want := desired.Policies{}
		if before != "" {
			want = named(before)
		}
		if diff := cmp.Diff(want, got.Policies); err != nil || got.Synced || diff != "" {
			t.Errorf("%v, synced is %t, policies:\n%s", err, got.Synced, diff)
		}
	}
}

// What no node.json names is of an earlier life; an older podmark's names nothing.
func TestPoliciesOfAnotherLife(t *testing.T) {
	n, f := settled(t, "web")
	f.PoliciesHash = noFile
	if err := n.save(f); err != nil {
		t.Fatal(err)
	}
	if got, err := n.load(); err != nil || got.Policies.Policies != nil {
		t.Errorf("the policies of an earlier life count: %+v, %v", got.Policies, err)
	}
	f.PoliciesHash = ""
	b, err := json.Marshal(f)
	if err == nil {
		err = n.Store.Write(state.NodeFile, b) // without a format
	}
	if err != nil {
		t.Fatal(err)
	}
	got, err := n.load()
	if diff := cmp.Diff(named("web"), got.Policies); err != nil || diff != "" || got.PoliciesHash == "" {
		t.Errorf("%v, those of an older podmark:\n%s", err, diff)
	}
	f.Uninstalling = true
	if err := n.save(f); err != nil {
		t.Fatal(err)
	}
	if _, err := n.load(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("while it is uninstalled, load = %v", err)
	}
}

// What a newer podmark has written is neither read, nor changed, nor swept away.
func TestNewer(t *testing.T) {
	const newer = `{"format":99,"reads":99,"mask":"two of them"}`
	n, _ := settled(t, "web")
	files := map[string]string{state.NodeFile: newer, "attachments/0123456789abcdef0123456789abcdef": `{"version":99}`}
	for name, content := range files {
		if err := n.Store.Write(name, []byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	for name, call := range map[string]func() error{
		"load":        func() error { _, err := n.load(); return err },
		"State":       func() error { _, err := n.State(); return err },
		"Add":         func() error { _, err := n.Add(t.Context(), Settings{}, attachment.Record{}, nil, nil); return err },
		"Close":       func() error { return n.Close(t.Context(), Settings{}, attachment.Record{}, nil) },
		"SetPolicies": func() error { _, err := n.SetPolicies(t.Context(), Settings{}, named("a")); return err },
		"Keep":        func() error { _, err := n.Reconcile(t.Context(), nil); return err },
		"Collect":     func() error { _, err := n.CollectGarbage(t.Context(), HostVethGone, false); return err },
		"Uninstall":   func() error { return n.Uninstall(t.Context()) },
		"Status":      func() error { return n.Status(t.Context(), Settings{}) },
	} {
		if err := call(); !errors.Is(err, ErrNewer) || !strings.Contains(err.Error(), "format 99") || !strings.Contains(err.Error(), n.Store.Path(state.NodeFile)) {
			t.Errorf("%s = %v, want ErrNewer, with format and file", name, err)
		}
		for file, content := range files {
			if b, err := os.ReadFile(n.Store.Path(file)); err != nil || string(b) != content {
				t.Errorf("after %s, %s has %q, %v", name, file, b, err)
			}
		}
	}
	// An older podmark may go on where the newer one says so.
	f := nodeFile{header: header{Format: 99, Reads: format}, Mask: 0xff0000, Epoch: 1, Backend: config.NFTables, PoliciesHash: noFile}
	b, err := json.Marshal(f)
	if err == nil {
		err = n.Store.Write(state.NodeFile, b)
	}
	if err != nil {
		t.Fatal(err)
	}
	if got, err := n.load(); err != nil || got.Mask != f.Mask {
		t.Errorf("%+v, %v", got, err)
	}
}
