package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/podmark/podmark/pkg/agent/runner"
	"github.com/podmark/podmark/pkg/conflist"
	"github.com/podmark/podmark/pkg/runtimes"
)

const (
	// quiet is how long nothing must happen before the guard looks: a program that
	// writes a file in place is in the middle of it. It looks after patience all the same.
	quiet    = 50 * time.Millisecond
	patience = 500 * time.Millisecond
	// again is when it looks without an event, and retry when something failed.
	again = time.Minute
	retry = time.Second
	// burst repairs within the window are no fight.
	burst    = 5
	window   = time.Minute
	minPause = 2 * time.Second
	maxPause = 5 * time.Minute
)

// guard keeps plugin and entry installed until ctx is done. It puts the entry back
// when another program rewrites the conflist, puts it into the conflist that becomes the
// active one, and waits for one where there is none. It never fights for long: see
// [runner.Backoff]. Its own writes it knows by what they hold. The error is that of a node on
// which nothing can be watched.
func guard(ctx context.Context, o *installOptions, log *slog.Logger) error {
	due := runner.New()
	due.Quiet, due.Patience = quiet, patience
	watched, err := runner.WatchDirectories(ctx, func(path string, err error) {
		switch {
		case err != nil: // notifications may be lost
			log.Warn("Failed to watch network configurations", "error", err)
		case isTemporary(filepath.Base(path)):
			return
		}
		due.Notify()
	})
	if err != nil {
		return fmt.Errorf("watching network configurations: %w", err)
	}
	g := installKeeper{
		options: o, log: log, watched: watched,
		backoff: runner.Backoff{Burst: burst, Window: window, Least: minPause, Most: maxPause},
	}
	due.Run(ctx, func(bool) runner.Pause { return g.keep(ctx) })
	return nil
}

// installKeeper is what the guard remembers.
type installKeeper struct {
	options *installOptions
	log     *slog.Logger
	// entry is the last that was seen, for a conflist that was written without it.
	entry []byte
	// installed is whether it ever was: what comes then is a repair.
	installed bool
	problem   string
	backoff   runner.Backoff
	watched   *runner.Directories
	// place is what was said of where the runtime looks.
	place string
}

// keep installs what is missing, and says when to do it again.
func (g *installKeeper) keep(ctx context.Context) runner.Pause {
	// Watched first: what happens while it looks is notified.
	place, err := g.locate(ctx)
	watched := err == nil && errors.Join(g.watched.Add(place.Conf), g.watched.Add(place.Bins[0])) == nil
	p := runner.Pause{Most: again}
	if err == nil {
		p.Least = g.install(ctx)
	}
	if !watched || g.problem != "" {
		p.Most = retry
	}
	return p
}

// locate finds where to install, and says when that is another place.
func (g *installKeeper) locate(ctx context.Context) (runtimes.Place, error) {
	place, err := g.options.locate(ctx)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		g.failed(ctx, err)
	case g.place != place.String():
		g.place = place.String()
		g.log.Info("Found the directories of the container runtime", "configurations", place.Conf, "plugins", place.Bins,
			"how", place.How)
	}
	return place, err
}

// failed says why nothing can be installed, once.
func (g *installKeeper) failed(ctx context.Context, err error) {
	if err.Error() != g.problem {
		level := slog.LevelError
		if errors.Is(err, conflist.ErrNone) {
			level = slog.LevelInfo
		}
		g.log.Log(ctx, level, "Cannot install podmark yet", "error", err)
	}
	g.problem = err.Error()
}

// install installs what is missing and returns how long to leave the node alone.
func (g *installKeeper) install(ctx context.Context) time.Duration {
	done, err := g.options.install(ctx, g.entry, nil, false)
	switch {
	case ctx.Err() != nil:
		return 0
	case err != nil:
		g.failed(ctx, err)
		if errors.Is(err, errChanged) {
			return g.repaired()
		}
		return 0
	}
	g.problem, g.entry = "", done.Entry
	if len(done.Changes) == 0 {
		g.installed = true
		return 0
	}
	message := "Installed"
	if g.installed {
		message = "Installed again"
	}
	for _, c := range done.Changes {
		g.log.Info(message, "verb", c.Verb, "path", c.Path, "why", c.Why)
	}
	for _, n := range done.Notes {
		g.log.Warn(n)
	}
	g.installed = true
	return g.repaired()
}

func (g *installKeeper) repaired() time.Duration {
	pause := g.backoff.Next(time.Now())
	if pause > 0 {
		g.log.Warn("Another program keeps removing podmark from the conflist; pausing",
			"pause", pause, "hint", "let only one agent own the conflist; for Cilium set cni.exclusive=false")
	}
	return pause
}
