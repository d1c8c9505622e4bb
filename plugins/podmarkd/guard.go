package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/podmark/podmark/pkg/conflist"
	"github.com/podmark/podmark/pkg/runtimes"
)

const (
	// quiet is how long nothing must happen before the guard looks: somebody who
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
// when somebody rewrites the conflist, puts it into the conflist that becomes the
// active one, and waits for one where there is none. It never fights for long: see
// pace. Its own writes it knows by what they hold. The error is that of a node on
// which nothing can be watched.
func guard(ctx context.Context, o *installOptions, log *slog.Logger) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watching network configurations: %w", err)
	}
	defer w.Close()
	g := installKeeper{options: o, log: log}
	for ctx.Err() == nil {
		// Armed first: what happens while it looks is an event.
		place, err := g.locate(ctx)
		armed := err == nil && errors.Join(watch(w, place.Conf), watch(w, place.Bins[0])) == nil
		var pause time.Duration
		if err == nil {
			pause = g.install(ctx)
		}
		next := again
		if !armed || g.problem != "" {
			next = retry
		}
		g.wait(ctx, w, pause, max(next, pause))
	}
	return nil
}

// watch arms w for a directory, once: a directory that was removed has left w by itself.
func watch(w *fsnotify.Watcher, dir string) error {
	if slices.Contains(w.WatchList(), dir) {
		return nil
	}
	return w.Add(dir)
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
	pace      pace
	// place is what was said of where the runtime looks.
	place string
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
		g.log.Info("Found the directories of the container runtime", "configurations", place.Conf, "plugins", place.Bins, "how", place.How)
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
	pause := g.pace.repaired(time.Now())
	if pause > 0 {
		g.log.Warn("Another program keeps removing podmark from the conflist; pausing",
			"pause", pause, "hint", "let only one agent own the conflist; for Cilium set cni.exclusive=false")
	}
	return pause
}

// wait returns when something happened and it is quiet again, but not before pause
// is over, and at the latest after limit.
func (g *installKeeper) wait(ctx context.Context, w *fsnotify.Watcher, pause, limit time.Duration) {
	start := time.Now()
	var first time.Time
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
			return
		case err := <-w.Errors:
			// Events may be lost.
			g.log.Warn("Failed to watch network configurations", "error", err)
		case e := <-w.Events:
			if isTemporary(filepath.Base(e.Name)) {
				continue
			}
		}
		now := time.Now()
		if first.IsZero() {
			first = now
		}
		due := earliest(first.Add(patience), now.Add(quiet))
		if after := start.Add(pause); due.Before(after) {
			due = after
		}
		timer.Reset(time.Until(due))
	}
}

func earliest(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// pace bounds how often something is repaired: burst times a window without a
// pause. Beyond that each repair is followed by a pause, twice as long as the one
// before, until a window goes by without a repair.
type pace struct {
	last  []time.Time
	pause time.Duration
}

// repaired notes a repair and returns how long to pause after it.
func (p *pace) repaired(now time.Time) time.Duration {
	fighting := p.pause > 0 && len(p.last) > 0 && now.Sub(p.last[len(p.last)-1]) < p.pause+window
	p.last = slices.DeleteFunc(p.last, func(t time.Time) bool { return now.Sub(t) >= p.pause+window })
	p.last = append(p.last, now)
	if !fighting && len(p.last) <= burst {
		p.pause = 0
		return 0
	}
	p.pause = min(max(2*p.pause, minPause), maxPause)
	return p.pause
}
