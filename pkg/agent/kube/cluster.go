// Package kube follows the Kubernetes API as far as the policies of this node's pods
// need it, and has package node enforce what it says.
//
// It watches the pods of the node, the policies of their namespaces, and of other pods
// only those that one of these policies can mean. All events go into one view (package
// view), which knows what has changed since it was last enforced; rounds (rounds.go) carry
// that out, many events at once. The plugin asks for pods that start (ask.go).
//
// It writes nothing to the API; the events about policies are podmarkd's. While the API server does
// not answer, what was known last goes on being enforced.
package kube

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"k8s.io/client-go/rest"

	"github.com/podmark/podmark/pkg/agent/kube/view"
	"github.com/podmark/podmark/pkg/agent/runner"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/node"
)

// Cluster is what a node sees of its cluster. It must not be copied.
type Cluster struct {
	// Node is enforced on. Its RemoteMembers are the cluster's.
	Node node.Node
	// Name is that of the Node in the API.
	Name string
	API  *rest.Config
	Log  *slog.Logger
	// Follows tells whether a network takes its policies from here, for attachments that
	// are older than that; nil for those only that say so themselves.
	Follows func(network string) bool
	// Done, if set, is told of each round, after it.
	Done func(SyncResult)

	clients clients
	rounds  *runner.Runner
	asking  chan struct{} // has an entry for each question that is under way

	mu      sync.Mutex
	view    *view.View
	watches map[view.Watch]*reflectorStore
	// settings are those of a node on which podmark has not run yet, as the plugin says.
	settings node.Settings
	// sync counts the rounds that have begun to decide, and done is the last of them that
	// is in the kernel. news is closed, and made again, whenever something changes.
	sync, done uint64
	news       chan struct{}
	failed     error
	active     bool
	// unanswered counts, by namespace, questions in a row that the API has not answered.
	unanswered map[string]int
	ctx        context.Context // that of Run, for the watches it starts
}

// New makes a cluster that is not followed yet.
func New(node node.Node, nodeName string, api *rest.Config, log *slog.Logger) (*Cluster, error) {
	words := newInterner()
	clients, err := newClients(api, words, nodeName)
	if err != nil {
		return nil, err
	}
	c := &Cluster{
		Name: nodeName, API: api, Log: log, clients: clients, rounds: runner.New(), asking: make(chan struct{}, questions),
		watches: map[view.Watch]*reflectorStore{}, news: make(chan struct{}), unanswered: map[string]int{},
	}
	c.view = view.New(nodeName, func(network string) bool { return c.Follows != nil && c.Follows(network) })
	c.Node = node
	c.Node.RemoteMembers = c.RemoteMembers
	return c, nil
}

// RemoteMembers adds to a set the pods elsewhere that are in the kernel's; known
// is false before the first round, which finds out.
func (c *Cluster) RemoteMembers(set desired.Set) (complete desired.Set, known bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	complete.State, known = c.view.Complete(set.State)
	return complete, known
}

// Activate begins to follow the cluster, if that has not begun.
func (c *Cluster) Activate() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.active {
		c.active = true
		c.rounds.Notify()
	}
}

// change lets the event of a watch into the view.
func (c *Cluster) change(s *reflectorStore, f func(now time.Time)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.ended {
		return
	}
	f(time.Now())
	c.rounds.Notify()
	c.announce()
}

// announce wakes those who wait for something to change.
func (c *Cluster) announce() {
	close(c.news)
	c.news = make(chan struct{})
}

// log logs what the view has to say.
func (c *Cluster) log() {
	for _, n := range c.view.Notes() {
		if n.Trouble {
			c.Log.Warn(n.Text, n.Args...)
		} else {
			c.Log.Info(n.Text, n.Args...)
		}
	}
}

// Status is how much of the cluster is known, and in force.
type Status struct {
	view.Size
	// Err is why what is in force may not be what the API says.
	Err error
}

// Status tells it as it is now.
func (c *Cluster) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	return Status{c.view.Size(), errors.Join(c.failed, c.view.Err(time.Now()))}
}

// Troubles are the policies that are not in force as the API has them, by namespace.
func (c *Cluster) Troubles() []view.Trouble {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.view.Troubles(time.Now())
}
