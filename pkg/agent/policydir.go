package agent

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/podmark/podmark/pkg/manifest"
	"github.com/podmark/podmark/pkg/node"
	"github.com/podmark/podmark/pkg/policy"
)

// PolicyDirectory keeps the manifests of a directory the node's policy. What it holds when
// something in it is wrong changes nothing, and is told.
type PolicyDirectory struct {
	Dir  string
	Node node.Node
	// Settings are for a node on which podmark has not run.
	Settings node.Settings
	// Every is how often it is read without a notification.
	Every time.Duration
	Log   *slog.Logger
	// Done, if set, is told how each reading went, with the notes of what was read.
	Done func(node.Applied, []string, error)
}

// settled is how long a directory is left alone after a notification: an editor writes,
// renames and removes.
const settled = 100 * time.Millisecond

// Run follows the directory until ctx is done.
func (f PolicyDirectory) Run(ctx context.Context) {
	changed := make(chan struct{}, 1)
	go watchDirectory(ctx, func() string { return f.Dir }, f.Every, func() {
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
				f.Log.Warn("The policy directory has objects that are not applied as written", "directory", f.Dir, "note", note)
			}
		}
		switch {
		case err == nil:
			if said = ""; done.Changed {
				f.Log.Info("Policies in the directory are in force", "directory", f.Dir, "policies", done.Policies, "restricted", done.Restricted)
			}
		case err.Error() != said && ctx.Err() == nil:
			said = err.Error()
			f.Log.Error("Policies in the directory are invalid; keeping the previous ones", "directory", f.Dir, "error", err)
		}
		select {
		case <-ctx.Done():
		case <-changed:
			wait(ctx, settled)
		case <-time.After(f.Every):
		}
	}
}

// read makes what the directory holds now the node's policy.
func (f PolicyDirectory) read(ctx context.Context) (node.Applied, []string, error) {
	sources, err := manifest.Read([]string{f.Dir}, false, nil)
	if err != nil {
		return node.Applied{}, nil, err
	}
	policies, notes, err := manifest.Compile(policy.Options{Whole: true}, sources...)
	if err != nil {
		return node.Applied{}, nil, err
	}
	done, err := f.Node.SetPolicies(ctx, f.Settings, policies)
	return done, notes, err
}
