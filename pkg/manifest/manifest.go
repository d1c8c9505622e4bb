// Package manifest reads NetworkPolicy manifests from files, folders and a pipe, wherever
// that is: it needs no node.
//
//	policies, err := manifest.Read([]string{"policies/"}, os.Stdin)
package manifest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/policy"
)

// Read reads and compiles the manifests that paths name: files, folders, and "-"
// for stdin.
func Read(paths []string, stdin io.Reader) (desired.Policies, error) {
	var sources []policy.Source
	for _, path := range paths {
		more, err := readSources(path, stdin)
		if err != nil {
			return desired.Policies{}, err
		}
		sources = append(sources, more...)
	}
	policies, err := policy.Compile(sources...)
	if errors.Is(err, policy.ErrEmpty) {
		err = fmt.Errorf("%w: %s", err, noPolicy)
	}
	return policies, err
}

// noPolicy is why nothing to read is not read as no policy: that opens every endpoint, and
// what writes to a pipe may have failed.
const noPolicy = "to remove the node's policy, say 'podmarkctl apply --delete'"

func readSources(path string, stdin io.Reader) ([]policy.Source, error) {
	if path == "-" {
		data, err := io.ReadAll(stdin)
		return []policy.Source{{Name: "stdin", Data: data}}, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	names := []string{path}
	if info.IsDir() {
		if names, err = manifests(path); err != nil {
			return nil, err
		}
	}
	var sources []policy.Source
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		sources = append(sources, policy.Source{Name: name, Data: data})
	}
	return sources, nil
}

// manifests lists a folder's manifests, not those of its subfolders. A folder
// without any is refused.
func manifests(dir string) ([]string, error) {
	var names []string
	for _, pattern := range []string{"*.yaml", "*.yml", "*.json"} {
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return nil, err
		}
		names = append(names, found...)
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("folder %q has no *.yaml, *.yml or *.json: %s", dir, noPolicy)
	}
	slices.Sort(names)
	return names, nil
}
