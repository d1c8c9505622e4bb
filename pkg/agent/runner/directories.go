package runner

import (
	"context"

	"github.com/fsnotify/fsnotify"
)

// Directories have notifications of what changes in them. A directory may come and go, and its path
// may become another's: whoever reads it adds it each time, and reads it now and then without a
// notification. Files are not watched, because editors and the kubelet replace them.
type Directories struct{ watcher *fsnotify.Watcher }

// WatchDirectories calls changed with the path of each file that changes in a directory that was
// added, or with an error where notifications were lost, until ctx is done.
func WatchDirectories(ctx context.Context, changed func(path string, err error)) (*Directories, error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, err
	}
	go func() {
		defer w.Close()
		for {
			select {
			case <-ctx.Done():
				return
			case err := <-w.Errors:
				changed("", err)
			case e := <-w.Events:
				changed(e.Name, nil)
			}
		}
	}()
	return &Directories{w}, nil
}

// Add has a directory watched from now on. It does nothing for nil, where nothing can be watched.
func (d *Directories) Add(path string) error {
	if d == nil {
		return nil
	}
	return d.watcher.Add(path)
}
