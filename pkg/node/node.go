// Package node carries a node from one desired state to the next: it decides
// what changes, in an order in which a crash leaves a pod closed and never open,
// and lets a backend do it.
//
// It is where the plugin, podmarkctl and the daemon meet: each calls the methods
// of [Node], and each of those holds the node's lock while it changes anything.
package node

import (
	"errors"
	"time"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/mark"
	"github.com/podmark/podmark/pkg/state"
)

// Errors that callers branch on.
var (
	// ErrBackend: nothing on this node can enforce.
	ErrBackend = errors.New("backend unusable")
	// ErrLayout: the mask differs from the one that live endpoints were given.
	ErrLayout = errors.New("iptablesMarkMask is not that of the node's endpoints")
	// ErrNotFound: there is no such attachment, or its ADD never came to an end.
	ErrNotFound = errors.New("attachment is not known")
	// ErrTaken: bits of the mask belong to another program on the node, or no bits are free.
	ErrTaken = errors.New("bits of iptablesMarkMask are another program's")
)

// Node is one node's state directory with the means to change what it enforces.
type Node struct {
	Store       state.Store
	LockTimeout time.Duration
	// RemoteMembers, if set, adds to a peer or tuple set the pods elsewhere of
	// which [Node.UpdatePolicies] was told; known is false where they are not known yet. Where
	// nobody knows, those who are in the kernel's sets stay there.
	RemoteMembers func(desired.Set) (complete desired.Set, known bool)
	// Cache, if set, keeps what was read of the state directory.
	Cache *Cache
	// Programs is set in a process that may attach BPF programs: the plugin and podmarkctl.
	// podmarkd sees whether they are there, and does without the rights.
	Programs bool
	// Step, if set, is called after each step of a change with its name: tests
	// end the process there.
	Step func(string)
	// Warn, if set, is told what a mask that begins has in common with others, and need not
	// be refused.
	Warn func(string)
	// deferred are attachments whose pods are gone, and which cannot be removed now.
	deferred map[attachment.Key]bool
	// fake, if set, stands in for the kernel, in tests.
	fake kernel
}

// Settings are the part of a network configuration that is the node's.
//
// Layout is zero where the node is to choose one. A zero Backend is that of no settings.
type Settings struct {
	Layout        mark.Layout
	MarkCollision config.MarkCollision
	NodePorts     []desired.PortRange
	Backend       config.Backend
	// AllowTunnels lets endpoints send what the node's tunnels unwrap.
	AllowTunnels bool
}

// SettingsOf takes the node's part out of a network configuration.
func SettingsOf(c config.Config) Settings {
	return Settings{
		Layout: c.Layout, MarkCollision: c.MarkCollision, NodePorts: c.NodePorts, Backend: c.Backend,
		AllowTunnels: c.AllowTunnels,
	}
}

func (n Node) step(name string) {
	if n.Step != nil {
		n.Step(name)
	}
}
