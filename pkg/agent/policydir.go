package agent

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/podmark/podmark/pkg/agent/runner"
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
	due := runner.New()
	due.Quiet, due.Patience = settled, settled
	// Where nothing can be watched, the directory is read now and then anyway.
	watched, _ := runner.WatchDirectories(ctx, func(string, error) { due.Notify() })
	said := teller{PolicyDirectory: f}
	due.Run(ctx, func(bool) runner.Pause {
		_ = watched.Add(f.Dir) // what changes while it is read is read again
		done, notes, err := f.read(ctx)
		if ctx.Err() == nil {
			said.tell(done, notes, err)
		}
		return runner.Pause{Most: f.Every}
	})
}

// teller tells how each reading went, and logs what is new in that.
type teller struct {
	PolicyDirectory
	err   string
	notes []string
}

func (t *teller) tell(done node.Applied, notes []string, err error) {
	if t.Done != nil {
		t.Done(done, notes, err)
	}
	if err != nil {
		if err.Error() != t.err {
			t.err = err.Error()
			t.Log.Error("Policies in the directory are invalid; keeping the previous ones", "directory", t.Dir, "error", err)
		}
		return
	}
	if !slices.Equal(notes, t.notes) {
		t.notes = notes
		for _, note := range notes {
			t.Log.Warn("The policy directory has objects that are not applied as written", "directory", t.Dir, "note", note)
		}
	}
	if t.err = ""; done.Changed {
		t.Log.Info("Policies in the directory are in force", "directory", t.Dir, "policies", done.Policies, "restricted",
			done.Restricted)
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
