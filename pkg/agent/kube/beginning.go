package kube

import (
	"slices"
	"sync"

	"k8s.io/apimachinery/pkg/watch"

	"github.com/podmark/podmark/pkg/agent/kube/view"
)

// beginning is a watch of pods that begins with all there are, up to a bookmark. Those it
// keeps for itself: the reflector of client-go would have them in a store of its own until
// then, which takes half as much room again as they do. What follows it hands on.
type beginning struct {
	of   watch.Interface
	out  chan watch.Event
	once sync.Once
	done chan struct{}
	// known finds a pod that is there already as it is.
	known func(*view.Pod) *view.Pod
	// seen are the pods that there are. It is whoever's who has read the bookmark.
	seen []view.Object
}

func begin(of watch.Interface, known func(*view.Pod) *view.Pod) *beginning {
	b := &beginning{of: of, out: make(chan watch.Event), done: make(chan struct{}), known: known}
	go b.run()
	return b
}

// ResultChan implements [watch.Interface].
func (b *beginning) ResultChan() <-chan watch.Event { return b.out }

// Stop implements [watch.Interface].
func (b *beginning) Stop() {
	b.once.Do(func() { close(b.done) })
	b.of.Stop()
}

func (b *beginning) run() {
	defer close(b.out)
	all := false
	for e := range b.of.ResultChan() {
		p, ok := e.Object.(*pod)
		switch {
		case all || !ok:
		case e.Type == watch.Bookmark:
			all = p.end == "true"
		case e.Type == watch.Deleted: // while they were sent, which is rare
			b.seen = slices.DeleteFunc(b.seen, func(o view.Object) bool {
				other := o.(*view.Pod)
				return other.Namespace == p.kept.Namespace && other.Name == p.kept.Name
			})
			continue
		case e.Type == watch.Added || e.Type == watch.Modified: // the last one counts
			b.seen = append(b.seen, b.known(p.kept))
			continue
		}
		select {
		case b.out <- e:
		case <-b.done:
			return
		}
	}
}
