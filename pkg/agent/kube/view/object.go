package view

import (
	"cmp"
	"crypto/sha256"
	"iter"
	"maps"

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
func UIDOf[S string | []byte](s S) (u UID) {
	if len(s) > 0 {
		sum := sha256.Sum256([]byte(s))
		copy(u[:], sum[:])
	}
	return u
}

// Pod is what is kept of a Pod: hundreds of bytes, of which the API has thousands. There may
// be hundreds of thousands of them.
type Pod struct {
	// Rank tells besides whose an address is that several pods have: whose pod came last, of
	// those that do not go.
	desired.IndexedPod
	UID UID
	// Own is what is kept besides of a pod that is bound to this node; nil for one of another.
	Own     *Own
	Version uint64
	// told is who tells of it; nil for nobody.
	told *telling
	// Until is when its node should have ended it, in seconds since 1970; 0 where nobody
	// deletes it.
	Until uint32
	// Peer is whether it can be a peer by its addresses: it has some of its own,
	// and has not ended.
	Peer bool
	// served is whether it had an attachment on this node, and late whether it should be gone.
	served, late bool
}

// telling is who tells of a pod. Pods share it, and it is never changed.
type telling struct {
	// seen are the watches that see it.
	seen []*watchState
	// by has told what it is, after the versions had gone back so often; nil where that sees
	// it no more.
	by      *watchState
	history uint32
}

// Own is what is kept of a pod of this node.
type Own struct {
	Identity
	Labels map[string]string
	// place is whose pod it is.
	place place
}

// Identity is by what a runtime may know a pod: a static one has the UID of its manifest,
// which is the hash that the kubelet notes on the mirror pod.
type Identity struct {
	UID, Hash string
	// Sources is the pod's [config.SourcesAnnotation].
	Sources string
}

// telling is who tells of the pod, also of none.
func (p *Pod) telling() telling {
	if p == nil || p.told == nil {
		return telling{}
	}
	return *p.told
}

// pods are pods by namespace and name: that takes less room than by both at once.
type pods map[string]map[string]*Pod

func (p pods) get(n Name) *Pod { return p[n.Namespace][n.Name] }

func (p pods) put(one *Pod) {
	if p[one.Namespace] == nil {
		p[one.Namespace] = map[string]*Pod{}
	}
	p[one.Namespace][one.Name] = one
}

func (p pods) remove(n Name) {
	if delete(p[n.Namespace], n.Name); len(p[n.Namespace]) == 0 {
		delete(p, n.Namespace)
	}
}

// of yields those of a namespace; for "" all, one namespace after the other.
func (p pods) of(namespace string) iter.Seq[*Pod] {
	if namespace != "" {
		return maps.Values(p[namespace])
	}
	return func(yield func(*Pod) bool) {
		for _, named := range p {
			for _, one := range named {
				if !yield(one) {
					return
				}
			}
		}
	}
}

func (p pods) count() (n int) {
	for _, named := range p {
		n += len(named)
	}
	return n
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

func (p *Pod) name() Name       { return Name{p.Namespace, p.Name} }
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
