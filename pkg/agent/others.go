package agent

import (
	"context"
	"time"

	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/foreign"
	"github.com/podmark/podmark/pkg/foreign/fwmark"
	"github.com/podmark/podmark/pkg/mark"
	"github.com/podmark/podmark/pkg/node"
)

// others reads what others do to marks. It is a list of all rules of the node, so the pause
// until the next time is a multiple of what it took.
type others struct {
	report foreign.Report
	next   time.Time
}

// othersRatio bounds the share of time that is spent on it, to 2 %.
const othersRatio = 49

// look is what was read last.
func (o *others) look(ctx context.Context, now time.Time) foreign.Report {
	if now.Before(o.next) {
		return o.report
	}
	start := time.Now()
	report := foreign.Read(ctx).With(fwmark.Services())
	if ctx.Err() == nil {
		o.report = report
	}
	o.next = time.Now().Add(max(leastPause, othersRatio*time.Since(start)))
	return o.report
}

// awaited are those who write bits that the first endpoint would have, on a node that has
// none yet.
func awaited(n node.Node, networks map[string]network, report foreign.Report) []foreign.Collision {
	layout, err := layoutOf(networks)
	if err != nil || layout.Mask() == 0 {
		return nil
	}
	backend := config.BackendAuto
	for _, c := range networks {
		backend = c.Backend
	}
	if backend == config.BackendAuto && len(report.Collisions(config.BackendIPTables, layout.Mask())) > 0 {
		backend = n.WillEnforce(backend)
	}
	return report.Collisions(backend, layout.Mask())
}

// evade is the layout to move to from one that the node has chosen: none while nobody else
// uses its bits, or where fewer are free than the node needs.
func (k Agent) evade(report foreign.Report, b config.Backend, now mark.Layout) mark.Layout {
	for _, c := range report.Collisions(b, now.Mask()) {
		if c.Whole { // other bits would not help
			continue
		}
		free, ok := report.Free()
		used, _, err := k.Node.IDs()
		if !ok || err != nil || used > free.Capacity() {
			return mark.Layout{}
		}
		return free
	}
	return mark.Layout{}
}
