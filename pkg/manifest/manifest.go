// Package manifest reads NetworkPolicy manifests from files, directories and a pipe, wherever
// that is: it needs no node.
//
//	sources, err := manifest.Read([]string{"policies/"}, false, os.Stdin)
//	policies, notes, err := manifest.Compile(policy.Options{}, sources...)
package manifest

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/policy"
)

// Compile compiles manifests, with notes of what counts otherwise than it is written.
func Compile(o policy.Options, sources ...policy.Source) (desired.Policies, []string, error) {
	policies, notes, err := o.Compile(sources...)
	if errors.Is(err, policy.ErrEmpty) || errors.Is(err, policy.ErrNoPolicy) {
		err = fmt.Errorf("%w: %s", err, noPolicy)
	}
	return policies, notes, err
}

// noPolicy is why nothing to read is not read as no policy: that opens every endpoint, and
// what writes to a pipe may have failed.
const noPolicy = "to remove the node's policy, say 'podmarkctl apply --delete', or give a NetworkPolicyList with 'items: []'"

// Read reads the manifests that paths name: files, directories, and "-" for stdin. What
// is in subdirectories is read where recursive says so.
func Read(paths []string, recursive bool, stdin io.Reader) ([]policy.Source, error) {
	var sources []policy.Source
	for _, path := range paths {
		more, err := readSources(path, recursive, stdin)
		if err != nil {
			return nil, err
		}
		sources = append(sources, more...)
	}
	return sources, nil
}

func readSources(path string, recursive bool, stdin io.Reader) ([]policy.Source, error) {
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
		if names, err = manifests(path, recursive); err != nil {
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

// manifests lists a directory's manifests. A directory without any is refused.
//
// Hidden subdirectories are not read: the kubelet keeps what a ConfigMap says in one, and links to it.
func manifests(dir string, recursive bool) ([]string, error) {
	var names []string
	err := fs.WalkDir(os.DirFS(dir), ".", func(path string, d fs.DirEntry, err error) error {
		name := filepath.Join(dir, path)
		switch {
		case err != nil:
			return fmt.Errorf("reading directory %q: %w", dir, err)
		case path == ".":
		case d.IsDir() && (!recursive || strings.HasPrefix(d.Name(), ".")):
			return fs.SkipDir
		case slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(path)) && !d.IsDir():
			names = append(names, name)
		case recursive && d.Type() == fs.ModeSymlink && !strings.HasPrefix(d.Name(), "."):
			if to, err := os.Stat(name); err == nil && to.IsDir() {
				return fmt.Errorf("%q is a link to a directory, and such are not followed: name what it leads to, or remove it", name)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("directory %q has no *.yaml, *.yml or *.json: %s", dir, noPolicy)
	}
	return names, nil
}
