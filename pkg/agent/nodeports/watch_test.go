package nodeports_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/podmark/podmark/pkg/agent"
	"github.com/podmark/podmark/pkg/agent/nodeports"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/test/wait"
)

// records is a log that can be waited on.
type records struct {
	slog.Handler
	mu    sync.Mutex
	lines []string
}

func (r *records) Enabled(context.Context, slog.Level) bool { return true }

func (r *records) Handle(_ context.Context, rec slog.Record) error {
	line := rec.Level.String() + " " + rec.Message
	rec.Attrs(func(a slog.Attr) bool {
		line += fmt.Sprintf(" %s=%v", a.Key, a.Value)
		return true
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, line)
	return nil
}

// with counts the lines that have text.
func (r *records) with(text string) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, line := range r.lines {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

// running is a Watcher that runs until the test ends.
type running struct {
	*nodeports.Watcher
	log     *records
	changed chan struct{}
	// changes counts the calls of changed.
	changes atomic.Int32
	stop    func() error
}

func start(t *testing.T, w *nodeports.Watcher) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{Watcher: w, log: &records{}, changed: make(chan struct{}, 1)}
	w.Log = slog.New(r.log)
	ended := make(chan error, 1)
	go func() {
		ended <- w.Run(ctx, func() {
			r.changes.Add(1)
			select {
			case r.changed <- struct{}{}:
			default:
			}
		})
	}()
	r.stop = sync.OnceValue(func() error {
		cancel()
		select {
		case err := <-ended:
			return err
		case <-time.After(wait.Still):
			return fmt.Errorf("the watcher did not end")
		}
	})
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(strings.Join(r.log.lines, "\n"))
		}
	})
	return r
}

// becomes waits for Current to be as wanted, and wakes only when told of a change.
func (r *running) becomes(t *testing.T, want nodeports.Facts) {
	t.Helper()
	for {
		diff := cmp.Diff(want, r.Current())
		if diff == "" {
			return
		}
		select {
		case <-r.changed:
		case <-time.After(wait.Still):
			t.Fatalf("(-want +got):\n%s", diff)
		}
	}
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// replace writes a file as an editor does.
func replace(t *testing.T, name, text string) {
	t.Helper()
	write(t, name+".new", text)
	if err := os.Rename(name+".new", name); err != nil {
		t.Fatal(err)
	}
}

func stated(s nodeports.Source, detail string, ports ...uint16) nodeports.Stated {
	return nodeports.Stated{Source: s, Detail: detail, Ranges: ranges(ports...)}
}

func TestConfigFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "podmarkd.yaml")
	fromFile := func(ports ...uint16) nodeports.Facts {
		return nodeports.Facts{Ranges: []nodeports.Stated{stated(nodeports.File, name, ports...)}}
	}
	write(t, name, "nodePortRanges: [20000-20010]\n")
	// Nothing here comes from a poll.
	w := start(t, &nodeports.Watcher{ConfigFile: name, Poll: time.Hour})
	w.becomes(t, fromFile(20000, 20010))

	replace(t, name, "nodePortRanges: [5-6, 1, 2]\n")
	w.becomes(t, fromFile(1, 2, 5, 6))

	write(t, name, "nodePortRanges: [7]\nnodePortMode: range\n")
	want := fromFile(7, 7)
	want.Mode = agent.PortsRange
	w.becomes(t, want)

	replace(t, name, "nodePortRanges: [70000]\n")
	wait.For(t, "a wrong file is logged", func() bool { return w.log.with("nodePortRanges[0]") == 1 })
	w.becomes(t, want)

	replace(t, name, "nodePortRanges: []\n")
	w.becomes(t, fromFile())

	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	w.becomes(t, nodeports.Facts{})

	replace(t, name, "nodePortRanges: [8]\n")
	w.becomes(t, fromFile(8, 8))
}

// A directory that is not there cannot be watched, nor what a link leads to.
func TestPolled(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "later", "podmarkd.yaml")
	w := start(t, &nodeports.Watcher{ConfigFile: name, Poll: 10 * time.Millisecond})
	w.becomes(t, nodeports.Facts{})
	elsewhere := filepath.Join(dir, "elsewhere")
	write(t, elsewhere, "nodePortRanges: [1]\n")
	if err := os.Mkdir(filepath.Dir(name), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(elsewhere, name); err != nil {
		t.Fatal(err)
	}
	w.becomes(t, nodeports.Facts{Ranges: []nodeports.Stated{stated(nodeports.File, name, 1, 1)}})
	replace(t, elsewhere, "nodePortRanges: [2]\n")
	w.becomes(t, nodeports.Facts{Ranges: []nodeports.Stated{stated(nodeports.File, name, 2, 2)}})

	// A poll that finds nothing new is no change.
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	if n := w.changes.Load(); n != 2 {
		t.Errorf("told of %d changes, want 2", n)
	}
}

// A daemon that starts with a wrong file would do what nobody asked for.
func TestWrongConfigFileAtStart(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "podmarkd.yaml")
	for text, data := range map[string]string{
		"nodePortMode": "nodePortMode: all\n",
		"more than":    "#" + strings.Repeat(" ", 1<<20),
	} {
		write(t, name, data)
		w := nodeports.Watcher{ConfigFile: name, Log: slog.New(slog.DiscardHandler)}
		if err := w.Run(t.Context(), func() {}); err == nil || !strings.Contains(err.Error(), text) || !strings.Contains(err.Error(), name) {
			t.Errorf("got %v, want an error with %q and the file's name", err, text)
		}
	}
	w := nodeports.Watcher{ConfigFile: dir, Log: slog.New(slog.DiscardHandler)}
	if err := w.Run(t.Context(), func() {}); err == nil {
		t.Error("a directory is taken for a file")
	}
}

func TestManifests(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "kube-apiserver.yaml")
	says := func(detail string, ports ...uint16) nodeports.Facts {
		return nodeports.Facts{Ranges: []nodeports.Stated{stated(nodeports.Manifest, detail, ports...)}}
	}
	write(t, filepath.Join(dir, "etcd.yaml"), "kind: Pod\nspec: {containers: [{command: [etcd]}]}\n")
	write(t, name, kubeadm)
	w := start(t, &nodeports.Watcher{ManifestDirs: []string{filepath.Join(dir, "none"), dir}, Poll: time.Hour})
	w.becomes(t, says(name+" (by default)", 30000, 32767))

	replace(t, name, withFlag("20000-22767"))
	w.becomes(t, says(name, 20000, 22767))

	// The kubelet, too, goes on with what it had.
	replace(t, name, withFlag("5-4"))
	wait.For(t, "a wrong manifest is logged", func() bool { return w.log.with(name) == 1 })
	w.becomes(t, says(name, 20000, 22767))

	// It ignores hidden files, and it reads the others whatever their name is.
	write(t, filepath.Join(dir, ".kube-apiserver.swp"), withFlag("1-2"))
	replace(t, filepath.Join(dir, "more"), withFlag("22768-22769"))
	w.becomes(t, says(name+", "+filepath.Join(dir, "more"), 20000, 22769))

	for _, gone := range []string{name, filepath.Join(dir, "more")} {
		if err := os.Remove(gone); err != nil {
			t.Fatal(err)
		}
	}
	w.becomes(t, nodeports.Facts{})
}

// A pipe in the directory would be waited on for ever.
func TestManifestsThatAreNoFiles(t *testing.T) {
	dir := t.TempDir()
	pipe(t, filepath.Join(dir, "a"))
	if err := os.Mkdir(filepath.Join(dir, "b"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("nowhere", filepath.Join(dir, "c")); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "d"), withFlag("1-2"))
	w := start(t, &nodeports.Watcher{ManifestDirs: []string{dir}})
	w.becomes(t, nodeports.Facts{Ranges: []nodeports.Stated{stated(nodeports.Manifest, filepath.Join(dir, "d"), 1, 2)}})
}

func TestPrecedence(t *testing.T) {
	dir := t.TempDir()
	name, manifests := filepath.Join(dir, "podmarkd.yaml"), filepath.Join(dir, "manifests")
	if err := os.Mkdir(manifests, 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, name, "nodePortRanges: [2]\nnodePortMode: exact\n")
	write(t, filepath.Join(manifests, "a"), withFlag("3"))
	w := start(t, &nodeports.Watcher{
		Given: []desired.PortRange{{First: 1, Last: 1}}, Mode: agent.PortsRange,
		ConfigFile: name, ManifestDirs: []string{manifests}, Poll: time.Hour,
	})
	w.becomes(t, nodeports.Facts{Mode: agent.PortsRange, Ranges: []nodeports.Stated{
		stated(nodeports.Flag, "", 1, 1),
		stated(nodeports.File, name, 2, 2),
		stated(nodeports.Manifest, filepath.Join(manifests, "a"), 3, 3),
	}})
}

// What flags say is known before anything is looked at.
func TestCurrentBeforeRun(t *testing.T) {
	w := nodeports.Watcher{Given: ranges(5, 6, 1, 4)}
	if diff := cmp.Diff(nodeports.Facts{Ranges: []nodeports.Stated{stated(nodeports.Flag, "", 1, 6)}}, w.Current()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
