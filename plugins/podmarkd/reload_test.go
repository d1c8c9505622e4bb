package main

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// A directory of a network whose time is in the future has the conflist written once, not at each
// look of the guard.
func TestReloadOnce(t *testing.T) {
	dir := t.TempDir()
	at := func(names ...string) string { return filepath.Join(append([]string{dir}, names...)...) }
	err := os.MkdirAll(at("net.d", "net"), 0o755)
	for _, name := range []string{"bin", "source"} {
		err = errors.Join(err, os.Mkdir(at(name), 0o755))
	}
	err = errors.Join(err, os.WriteFile(at("bin", "ptp"), nil, 0o755), os.WriteFile(at("bin", "host-local"), nil, 0o755),
		os.WriteFile(at("source", "podmark"), []byte("podmark"), 0o755),
		os.WriteFile(at("net.d", "10-a.conflist"), []byte(`{"name": "net", "cniVersion": "1.0.0", "plugins": [{"type": "ptp", "ipam": {"type": "host-local"}}]}`), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	o := &installOptions{
		options: &options{stateDir: at("state"), lockTimeout: time.Minute}, confDir: at("net.d"), binDir: at("bin"), source: at("source"), policy: "none",
	}
	if _, err := o.locate(t.Context()); err != nil {
		t.Fatal(err)
	}
	installs := func(want ...string) {
		t.Helper()
		done, err := o.install(t.Context(), nil, nil, false)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, c := range done.Changes {
			got = append(got, c.Verb)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	}
	modified := func(at string, when time.Time) {
		t.Helper()
		if err := os.Chtimes(at, when, when); err != nil {
			t.Fatal(err)
		}
	}
	modified(at("net.d", "net"), time.Now().Add(time.Hour))
	installs("write", "write") // the plugin and the conflist
	installs()
	modified(at("net.d", "net"), time.Now().Add(2*time.Hour)) // another program changes something in it
	installs("reload")
	installs()
	installs()
}
