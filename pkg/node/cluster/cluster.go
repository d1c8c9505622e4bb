// Package cluster follows the Kubernetes API as far as the policies of this node's pods
// need it, and has package apply enforce what it says.
//
// It watches the pods of the node, the policies of their namespaces, and of other pods
// only those that one of these policies can mean. All events go into one view (view.go),
// which knows what has changed since it was last enforced; rounds (rounds.go) carry that
// out, many events at once. The plugin asks for pods that start (ask.go).
//
// It writes nothing to the API. While the API server does not answer, what was known last
// goes on being enforced.
package cluster

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"k8s.io/client-go/rest"

	"github.com/podmark/podmark/pkg/apply"
	"github.com/podmark/podmark/pkg/desired"
)

// Cluster is what a node sees of its cluster. It must not be copied.
type Cluster struct {
	// Node is enforced on. Its Complete is the cluster's.
	Node apply.Node
	// Name is that of the Node in the API.
	Name string
	API  *rest.Config
	Log  *slog.Logger
	// Follows tells whether a network takes its policies from here, for attachments that
	// are older than that; nil for those only that say so themselves.
	Follows func(network string) bool
	// Done, if set, is told of each round, after it.
	Done func(Round)

	clients clients
	words   *words
	poked   chan struct{}

	mu sync.Mutex
	view
	watches map[Watch]*watching
	wanted  map[Watch]bool
	// settings are those of a node on which podmark has not run yet, as the plugin says.
	settings apply.Settings
	coming   map[name]*coming
	// round counts the rounds that have begun to decide, and done is the last of them that
	// is in the kernel. news is closed, and made anew, whenever something changes.
	round, done uint64
	news        chan struct{}
	failed      error
	active      bool
	ctx         context.Context // that of Run, for the watches it starts
}

// coming is a pod that the plugin has asked for, and that has no attachment yet.
type coming struct {
	until time.Time
	uid   string
}

// New makes a cluster that is not followed yet.
func New(node apply.Node, nodeName string, api *rest.Config, log *slog.Logger) (*Cluster, error) {
	clients, err := newClients(api)
	if err != nil {
		return nil, err
	}
	c := &Cluster{
		Name: nodeName, API: api, Log: log, clients: clients, poked: make(chan struct{}, 1),
		words: newWords(), view: newView(), watches: map[Watch]*watching{}, coming: map[name]*coming{}, news: make(chan struct{}),
	}
	c.Node = node
	c.Node.Complete = c.Complete
	return c, nil
}

// Complete adds to the sets of a state the pods elsewhere that are in the kernel's; known
// is false before the first round, which finds out.
func (c *Cluster) Complete(s desired.State) (complete desired.State, known bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.begun {
		return s, false
	}
	return c.index.Complete(s), true
}

// Activate begins to follow the cluster, if that has not begun.
func (c *Cluster) Activate() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.active {
		c.active = true
		c.poke()
	}
}

// change lets the event of a watch into the view.
func (c *Cluster) change(s *watching, f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.ended {
		return
	}
	f()
	c.poke()
	c.announce()
}

// poke makes a round due.
func (c *Cluster) poke() {
	select {
	case c.poked <- struct{}{}:
	default:
	}
}

// announce wakes those who wait for something to change.
func (c *Cluster) announce() {
	close(c.news)
	c.news = make(chan struct{})
}
