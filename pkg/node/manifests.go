package node

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

	"github.com/podmark/podmark/pkg/apply"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/policy"
)

// CompilePolicies compiles manifests, with notes of what counts otherwise than it is written.
func CompilePolicies(o policy.Options, sources ...policy.Source) (desired.Policies, []string, error) {
	policies, notes, err := o.Compile(sources...)
	if errors.Is(err, policy.ErrEmpty) {
		err = fmt.Errorf("%w: %s", err, noPolicy)
	}
	return policies, notes, err
}

// noPolicy is why nothing to read is not read as no policy: that opens every endpoint, and
// what writes to a pipe may have failed.
const noPolicy = "to remove the node's policy, say 'podmarkctl apply --delete'"

// ReadManifests reads the manifests that paths name: files, folders, and "-" for stdin. What
// is in subfolders is read where recursive says so.
func ReadManifests(paths []string, recursive bool, stdin io.Reader) ([]policy.Source, error) {
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

// manifests lists a folder's manifests. A folder without any is refused.
//
// Hidden subfolders are not read: the kubelet keeps what a ConfigMap says in one, and links to it.
func manifests(dir string, recursive bool) ([]string, error) {
	var names []string
	err := fs.WalkDir(os.DirFS(dir), ".", func(path string, d fs.DirEntry, err error) error {
		name := filepath.Join(dir, path)
		switch {
		case err != nil:
			return fmt.Errorf("reading folder %q: %w", dir, err)
		case path == ".":
		case d.IsDir() && (!recursive || strings.HasPrefix(d.Name(), ".")):
			return fs.SkipDir
		case slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(path)) && !d.IsDir():
			names = append(names, name)
		case recursive && d.Type() == fs.ModeSymlink && !strings.HasPrefix(d.Name(), "."):
			if to, err := os.Stat(name); err == nil && to.IsDir() {
				return fmt.Errorf("%q is a link to a folder, and such are not followed: name what it leads to, or remove it", name)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("folder %q has no *.yaml, *.yml or *.json: %s", dir, noPolicy)
	}
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
	// Done, if set, is told how each reading went, with the notes of what was read.
	Done func(apply.Applied, []string, error)
}

// settled is how long a folder is left alone after a notification: an editor writes,
// renames and removes.
const settled = 100 * time.Millisecond

// Run follows the folder until ctx is done.
func (f PolicyFolder) Run(ctx context.Context) {
	changed := make(chan struct{}, 1)
	go watchFolder(ctx, f.Dir, f.Every, func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	})
	said := ""
	var noted []string
	for ctx.Err() == nil {
		done, notes, err := f.read(ctx)
		if f.Done != nil && ctx.Err() == nil {
			f.Done(done, notes, err)
		}
		if err == nil && !slices.Equal(notes, noted) {
			noted = notes
			for _, note := range notes {
				f.Log.Warn("not all in the folder counts as it is written", "folder", f.Dir, "note", note)
			}
		}
		switch {
		case err == nil:
			if said = ""; done.Changed {
				f.Log.Info("policies of the folder are in force", "folder", f.Dir, "policies", done.Policies, "narrowed", done.Narrowed)
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

// read makes what the folder holds now the node's policy.
func (f PolicyFolder) read(ctx context.Context) (apply.Applied, []string, error) {
	sources, err := ReadManifests([]string{f.Dir}, false, nil)
	if err != nil {
		return apply.Applied{}, nil, err
	}
	policies, notes, err := CompilePolicies(policy.Options{}, sources...)
	if err != nil {
		return apply.Applied{}, nil, err
	}
	done, err := f.Node.SetPolicies(ctx, f.Settings, policies)
	return done, notes, err
}
