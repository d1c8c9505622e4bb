package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/podmark/podmark/pkg/apply"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/policy"
)

// ReadPolicies reads and compiles the manifests that paths name: files, folders, and "-"
// for stdin.
func ReadPolicies(paths []string, stdin io.Reader) (desired.Policies, error) {
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

// PolicyFolder keeps the manifests of a folder the node's policy. What it holds when
// something in it is wrong changes nothing, and is told.
type PolicyFolder struct {
	Dir  string
	Node apply.Node
	// Settings are for a node on which podmark has not run.
	Settings apply.Settings
	// Every is how often it is read without a notification.
	Every time.Duration
	Log   *slog.Logger
	// Done, if set, is told how each reading went.
	Done func(apply.Applied, error)
}

// settled is how long a folder is left alone after a notification: an editor writes,
// renames and removes.
const settled = 100 * time.Millisecond

// Run follows the folder until ctx is done.
func (f PolicyFolder) Run(ctx context.Context) {
	changed := make(chan struct{}, 1)
	go watchFolder(ctx, func() string { return f.Dir }, f.Every, func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	})
	said := ""
	for ctx.Err() == nil {
		policies, err := ReadPolicies([]string{f.Dir}, nil)
		var done apply.Applied
		if err == nil {
			done, err = f.Node.SetPolicies(ctx, f.Settings, policies)
		}
		if f.Done != nil && ctx.Err() == nil {
			f.Done(done, err)
		}
		switch {
		case err == nil:
			if said = ""; done.Changed {
				f.Log.Info("policies of the folder are in force", "folder", f.Dir, "policies", done.Policies, "endpoints", done.Endpoints, "narrowed", done.Narrowed)
			}
		case err.Error() != said && ctx.Err() == nil:
			said = err.Error()
			f.Log.Error("the policies of the folder are not in force, those of before are", "folder", f.Dir, "error", err)
		}
		select {
		case <-ctx.Done():
		case <-changed:
			wait(ctx, settled)
		case <-time.After(f.Every):
		}
	}
}
