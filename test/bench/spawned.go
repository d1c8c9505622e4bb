package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// counter is a directory with every command there is, each of which notes that it
// was started and then becomes the real one.
type counter struct{ dir, log string }

// newCounter makes the directory for the commands of a search path.
func newCounter(dir, path string) (counter, error) {
	c := counter{dir: dir, log: dir + ".log"}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return c, err
	}
	for _, directory := range filepath.SplitList(path) {
		entries, err := os.ReadDir(directory)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return c, err
		}
		for _, e := range entries {
			name := filepath.Join(dir, e.Name())
			if _, err := os.Lstat(name); err == nil {
				continue // an earlier directory has it
			}
			script := fmt.Sprintf("#!/bin/sh\necho >>'%s'\nexec '%s' \"$@\"\n", c.log, filepath.Join(directory, e.Name()))
			if err := os.WriteFile(name, []byte(script), 0o755); err != nil {
				return c, err
			}
		}
	}
	return c, nil
}

// count calls the plugin and returns how many processes it started.
func (c counter) count(p *plugin, verb string, a attached) (int, error) {
	if err := os.WriteFile(c.log, nil, 0o644); err != nil {
		return 0, err
	}
	if _, err := p.call(verb, a, "PATH="+c.dir); err != nil {
		return 0, err
	}
	log, err := os.ReadFile(c.log)
	return bytes.Count(log, []byte("\n")), err
}
