package runner

import (
	"slices"
	"time"
)

// Backoff bounds how often something is put back that others undo: Burst times a Window without a
// pause. Beyond that a pause follows each time, from Least on twice as long as the one before, up to
// Most, until a Window goes by after a pause in which nothing had to be put back.
type Backoff struct {
	Burst               int
	Window, Least, Most time.Duration

	last  []time.Time
	pause time.Duration
}

// Next notes that it was put back now, and returns how long to leave it alone.
func (b *Backoff) Next(now time.Time) time.Duration {
	recent := func(t time.Time) bool { return now.Sub(t) < b.pause+b.Window }
	contested := b.pause > 0 && len(b.last) > 0 && recent(b.last[len(b.last)-1])
	b.last = slices.DeleteFunc(b.last, func(t time.Time) bool { return !recent(t) })
	b.last = append(b.last, now)
	if !contested && len(b.last) <= b.Burst {
		b.pause = 0
		return 0
	}
	if !contested {
		b.pause = 0
	}
	b.pause = min(max(2*b.pause, b.Least), b.Most)
	return b.pause
}

// Waiting reports whether the pause after the last time is not over.
func (b *Backoff) Waiting(now time.Time) bool {
	return len(b.last) > 0 && now.Sub(b.last[len(b.last)-1]) < b.pause
}
