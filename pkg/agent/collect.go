package agent

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"time"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/dataplane/hostport"
	"github.com/podmark/podmark/pkg/node"
)

// collector takes back what pods left that no DEL came for: containerd never calls
// GC, and a DEL is lost with the runtime's state.
type collector struct {
	// after is how long a pod must have been gone: its DEL may be on the way.
	after time.Duration
	// gone is since when.
	gone map[attachment.Key]time.Time
	next time.Time
	// swept is when files were looked for last that crashes left.
	swept time.Time
}

// collect removes attachments whose interface and network namespace have both been
// gone for long enough, and the files that crashes left. It looks a few times
// within that, and touches nothing where there is nothing to be removed.
func (c *collector) collect(ctx context.Context, n node.Node, now time.Time) (node.Collected, error) {
	if now.Before(c.next) {
		return node.Collected{}, nil
	}
	c.next = now.Add(c.after / 4)
	records, _ := n.Records() // damaged ones are for who can say what to do
	seen := map[attachment.Key]time.Time{}
	due := false
	for _, r := range records {
		if !PodGone(r) {
			continue
		}
		seen[r.Key] = now
		if since, ok := c.gone[r.Key]; ok {
			seen[r.Key] = since
		}
		due = due || now.Sub(seen[r.Key]) >= c.after
	}
	c.gone = seen
	if !due && now.Sub(c.swept) < c.after {
		return node.Collected{}, nil
	}
	c.swept = now
	if !due {
		files, err := n.RemoveOrphans(ctx)
		return node.Collected{Files: files}, err
	}
	return n.CollectGarbage(ctx, func(r attachment.Record) bool {
		since, ok := seen[r.Key]
		return ok && now.Sub(since) >= c.after && PodGone(r)
	}, false)
}

// PodGone holds for a pod of which nothing is left on the node, neither its interface
// nor its network namespace.
func PodGone(r attachment.Record) bool {
	if r.Netns == "" || hostport.Alive(r.Endpoint) {
		return false
	}
	_, err := os.Stat(r.Netns)
	return errors.Is(err, fs.ErrNotExist)
}
