package runner_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/podmark/podmark/pkg/agent/runner"
)

// A directory that was removed and made again has notifications once it is added again.
func TestDirectories(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	changed := make(chan string, 100)
	d, err := runner.WatchDirectories(ctx, func(path string, err error) {
		if err != nil {
			t.Error(err)
		}
		changed <- path
	})
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "conf")
	file := filepath.Join(dir, "a.conflist")
	if d.Add(dir) == nil {
		t.Error("a directory that is not there can be added")
	}
	for range 2 {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := d.Add(dir); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		for <-changed != file {
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		for <-changed != dir {
		}
	}
}

// Where nothing can be watched, adding does nothing.
func TestNoDirectories(t *testing.T) {
	var d *runner.Directories
	if err := d.Add(t.TempDir()); err != nil {
		t.Error(err)
	}
}
