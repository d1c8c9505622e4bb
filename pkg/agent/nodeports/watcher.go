package nodeports

import (
	"cmp"
	"context"
	"log/slog"
	"reflect"
	"slices"
	"sync"
	"time"

	"k8s.io/client-go/rest"

	"github.com/podmark/podmark/pkg/agent"
	"github.com/podmark/podmark/pkg/desired"
)

// Watcher keeps what the sources say current. It must not be copied.
type Watcher struct {
	// Given and Mode are what flags say: nil and empty where they do not.
	Given []desired.PortRange
	Mode  agent.PortMode
	// ConfigFile is podmarkd's own; empty for none.
	ConfigFile string
	// ManifestDirs are where the kubelet looks for static pods.
	ManifestDirs []string
	// API is how the API server is asked; nil where it is not. NodeName is the node that it is
	// asked about; empty for what holds for all.
	API      *rest.Config
	NodeName string
	// Poll is how often files are read when nothing is notified: 30 s for 0.
	Poll time.Duration
	// Retry is the longest time until the API is asked again for what it does not show:
	// 5 minutes for 0.
	Retry time.Duration
	Log   *slog.Logger

	mu      sync.Mutex
	state   state
	changed func()
	// told is what was logged last about each source, so that it is logged once.
	told map[string]string
}

// The defaults.
const (
	defaultPoll  = 30 * time.Second
	defaultRetry = 5 * time.Minute
)

// Run watches the sources until ctx is done, and then returns nil. It calls changed
// after each change of what Current returns; changed may be called from several
// goroutines, and holds up the source that called it. It fails at once where the
// configuration file is wrong. One that becomes wrong later is logged, and what it
// said before goes on to count.
func (w *Watcher) Run(ctx context.Context, changed func()) error {
	w.mu.Lock()
	w.changed = changed
	w.told = map[string]string{}
	w.mu.Unlock()
	if err := w.readConfig(); err != nil {
		return err
	}
	var resources []resource
	if w.API != nil {
		var err error
		if resources, err = w.resources(); err != nil {
			return err
		}
	}
	w.readManifests()
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { w.watchFiles(ctx) })
	for _, r := range resources {
		running.Go(func() { w.follow(ctx, r) })
	}
	<-ctx.Done()
	return nil
}

// Current is what the sources say now. The caller does not change it.
func (w *Watcher) Current() Facts {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.facts()
}

func (w *Watcher) facts() Facts {
	f := w.state.facts(w.Given, w.Mode, w.ConfigFile)
	f.Services.Ports = slices.Clone(f.Services.Ports)
	return f
}

// update takes over what a source says.
func (w *Watcher) update(change func(*state)) {
	w.mu.Lock()
	before := w.facts()
	change(&w.state)
	same := reflect.DeepEqual(before, w.facts())
	w.mu.Unlock()
	if !same {
		w.changed()
	}
}

// tell logs what is wrong with a source, once for as long as it is; nil where nothing is.
func (w *Watcher) tell(level slog.Level, source string, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	w.mu.Lock()
	before := w.told[source]
	w.told[source] = text
	w.mu.Unlock()
	if text != "" && text != before {
		w.Log.Log(context.Background(), level, "Failed to read a source of NodePort ranges", "source", source, "error", text)
	}
}

func (w *Watcher) poll() time.Duration  { return cmp.Or(w.Poll, defaultPoll) }
func (w *Watcher) retry() time.Duration { return cmp.Or(w.Retry, defaultRetry) }
