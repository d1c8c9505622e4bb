package nodeports

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/podmark/podmark/pkg/agent/runner"
)

// largest is how many bytes a file may have: as many as an object of the API, about.
const largest = 1 << 20

// settle is how long after a notification a source is read: an editor writes, renames and removes,
// and in between a file may be empty or missing; and changes of the API come in bursts.
const settle = 100 * time.Millisecond

// afterChanges runs what it is given once a source has settled.
func afterChanges() *runner.Runner {
	r := runner.New()
	r.Quiet, r.Patience = settle, settle
	return r
}

// watchFiles reads the files again when something in their directories changes.
// Notifications may be missed (a link to another directory, a directory made later, no more
// inotify instances for this user), so files are read now and then without one.
func (w *Watcher) watchFiles(ctx context.Context) {
	directories := slices.Clone(w.ManifestDirs)
	if w.ConfigFile != "" {
		directories = append(directories, filepath.Dir(w.ConfigFile))
	}
	if len(directories) == 0 {
		return
	}
	changes := afterChanges()
	watched, err := runner.WatchDirectories(ctx, func(string, error) { changes.Notify() })
	if err != nil {
		w.tell(slog.LevelWarn, "notifications of files", err)
	}
	changes.Run(ctx, func(bool) runner.Pause {
		for _, dir := range directories {
			_ = watched.Add(dir) // one that is not there, or not yet, is read all the same
		}
		w.readFiles()
		return runner.Pause{Most: w.poll()}
	})
}

func (w *Watcher) readFiles() {
	w.tell(slog.LevelWarn, string(File), w.readConfig())
	w.readManifests()
}

// readConfig takes over the configuration file. One that is not there says nothing;
// one that cannot be read, or is wrong, leaves things as they are.
func (w *Watcher) readConfig() error {
	if w.ConfigFile == "" {
		return nil
	}
	c, err := ReadConfig(w.ConfigFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	w.update(func(s *state) { s.config = c })
	return nil
}

// ReadConfig reads a configuration file: what is wrong with it, or fs.ErrNotExist.
func ReadConfig(name string) (Config, error) {
	data, err := readFile(name)
	if err != nil {
		return Config{}, err
	}
	c, err := ParseConfig(data)
	if err != nil {
		return Config{}, fmt.Errorf("configuration file %q: %w", name, err)
	}
	return c, nil
}

// readManifests takes over the static pods. A manifest that is wrong goes on to say
// what it did before: the kubelet, too, lets that pod run.
func (w *Watcher) readManifests() {
	w.mu.Lock()
	before := w.state.manifests
	w.mu.Unlock()
	found := map[string]APIServer{}
	var errs []error
	for _, dir := range w.ManifestDirs {
		files, err := manifests(dir)
		errs = append(errs, err)
		for _, name := range files {
			server, err := readManifest(name)
			if old, ok := before[name]; ok && err != nil {
				server = &old
			}
			if server != nil {
				found[name] = *server
			}
			errs = append(errs, err)
		}
	}
	w.tell(slog.LevelWarn, string(Manifest), errors.Join(errs...))
	w.update(func(s *state) { s.manifests = found })
}

// manifests lists what the kubelet takes for manifests: every file that is not hidden.
func manifests(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading directory %q: %w", dir, err)
	}
	var names []string
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		if info, err := os.Stat(name); err == nil && info.Mode().IsRegular() {
			names = append(names, name)
		}
	}
	return names, nil
}

func readManifest(name string) (*APIServer, error) {
	data, err := readFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // removed since it was listed
	}
	if err != nil {
		return nil, err
	}
	server, err := ParseManifest(data)
	if err != nil {
		return nil, fmt.Errorf("manifest %q: %w", name, err)
	}
	return server, nil
}

func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("opening %q: %w", name, err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, largest+1))
	if err != nil {
		return nil, fmt.Errorf("reading %q: %w", name, err)
	}
	if len(data) > largest {
		return nil, fmt.Errorf("reading %q: more than %d bytes", name, largest)
	}
	return data, nil
}
