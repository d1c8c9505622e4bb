package view

import (
	"cmp"
	"crypto/sha256"

	"github.com/podmark/podmark/pkg/desired"
)

// Name is that of an object; Namespace is empty for one that is in none.
type Name struct{ Namespace, Name string }

// Object is a *[Pod], a *[Namespace] or a *[Policy]. Whoever hands it over leaves it alone
// from then on.
type Object interface {
	name() Name
	uid() UID
}

// UID tells an object from others that have had its name: a digest of the API's, zero for
// none.
type UID [16]byte

// UIDOf is that of an object with this UID in the API.
func UIDOf(s string) (u UID) {
	if s != "" {
		sum := sha256.Sum256([]byte(s))
		copy(u[:], sum[:])
	}
	return u
}

// Pod is what is kept of a Pod: hundreds of bytes, of which the API has thousands.
type Pod struct {
	desired.Pod
	UID UID
	// Own is who a pod is that is bound to this node; nil for one of another.
	Own     *Identity
	Version uint64
	// Rank tells whose an address is that several pods have: the one that came last, of
	// those that do not go.
	Rank uint64
	// Peer is whether it can be somebody's peer by its addresses: it has some of its own,
	// and has not ended.
	Peer bool
	// seen are the watches that see it, and served is whether it had an attachment on
	// this node.
	seen   []*sight
	served bool
	// by has told what it is, after the versions had gone back so often.
	by      *sight
	history uint64
	// place is whose pod one of this node is.
	place place
}

// Identity is by what a runtime may know a pod: a static one has the UID of its manifest,
// which is the hash that the kubelet notes on the mirror pod.
type Identity struct {
	UID, Hash string
	// Sources is the pod's [config.SourcesAnnotation].
	Sources string
}

// Namespace is a namespace with its labels, the one with its name among them.
type Namespace struct {
	Name   string
	Labels map[string]string
}

// Policy is a NetworkPolicy. Unclear is what of it is not understood, and allows nothing.
// APIUID is its UID as the API has it.
type Policy struct {
	desired.Policy
	UID     UID
	APIUID  string
	Unclear error
}

func (p *Pod) name() Name       { return Name{p.Namespace, p.Pod.Name} }
func (n *Namespace) name() Name { return Name{Name: n.Name} }
func (p *Policy) name() Name    { return Name{p.Namespace, p.Name} }

func (p *Pod) uid() UID       { return p.UID }
func (n *Namespace) uid() UID { return UID{} }
func (p *Policy) uid() UID    { return p.UID }

// Is reports whether the pod is bound to this node, and the runtime's UID is the pod's.
func (p *Pod) Is(uid string) bool {
	return p != nil && p.Own != nil && (uid == "" || uid == p.Own.UID || uid == p.Own.Hash)
}

// ID is the UID by which a runtime knows the pod.
func (i *Identity) ID() string { return cmp.Or(i.Hash, i.UID) }
