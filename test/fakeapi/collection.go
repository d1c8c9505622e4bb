package fakeapi

import (
	"maps"
	"slices"
	"sync"

	"k8s.io/apimachinery/pkg/watch"
)

// collection is what there is of a resource, what has changed, and who watches it.
// The server's lock guards it.
type collection struct {
	objects map[string]map[string]*object // by namespace and name
	// history is every change since version oldest.
	history []*change
	oldest  int
	watches map[topic]map[*watcher]struct{}
}

// topic narrows down whom a change concerns, before any selector is asked. An empty
// part stands for all.
type topic struct{ namespace, node string }

// change is one write.
type change struct {
	// before is nil for a new object, after for one that was deleted.
	before, after *object
	version       int

	once sync.Once
	was  *object
}

func newCollection(version int) *collection {
	return &collection{
		objects: map[string]map[string]*object{}, watches: map[topic]map[*watcher]struct{}{},
		oldest: version,
	}
}

func (c *collection) get(namespace, name string) *object { return c.objects[namespace][name] }

func (c *collection) set(o *object) {
	if c.objects[o.namespace] == nil {
		c.objects[o.namespace] = map[string]*object{}
	}
	c.objects[o.namespace][o.name] = o
}

func (c *collection) drop(o *object) {
	delete(c.objects[o.namespace], o.name)
	if len(c.objects[o.namespace]) == 0 {
		delete(c.objects, o.namespace)
	}
}

// selected are the objects that a selector picks, sorted by namespace and name.
func (c *collection) selected(s selector) []*object {
	namespaces := []string{s.namespace}
	if s.namespace == "" {
		namespaces = slices.Sorted(maps.Keys(c.objects))
	}
	var out []*object
	for _, namespace := range namespaces {
		first := len(out)
		for _, o := range c.objects[namespace] {
			if s.picks(o) {
				out = append(out, o)
			}
		}
		slices.SortFunc(out[first:], func(a, b *object) int { return a.compare(b.namespace, b.name) })
	}
	return out
}

// remember appends to the history, and forgets so that between limit and twice as many
// changes are there.
func (c *collection) remember(n *change, limit int) {
	c.history = append(c.history, n)
	if drop := len(c.history) - limit; drop > limit {
		c.oldest = c.history[drop-1].version
		c.history = slices.Clone(c.history[drop:])
	}
}

// since are the changes after a version.
func (c *collection) since(version int) []*change {
	i, _ := slices.BinarySearchFunc(c.history, version+1, func(n *change, v int) int { return n.version - v })
	return slices.Clone(c.history[i:])
}

// offer hands a change to the watches that it may concern.
func (c *collection) offer(n *change, limit int) {
	var topics []topic
	for _, o := range []*object{n.before, n.after} {
		if o == nil {
			continue
		}
		node := o.fields[nodeField]
		for _, t := range []topic{{}, {o.namespace, ""}, {"", node}, {o.namespace, node}} {
			if !slices.Contains(topics, t) {
				topics = append(topics, t)
			}
		}
	}
	for _, t := range topics {
		for w := range c.watches[t] {
			w.push(n, limit)
		}
	}
}

func (c *collection) add(w *watcher) {
	t := w.selector.topic()
	if c.watches[t] == nil {
		c.watches[t] = map[*watcher]struct{}{}
	}
	c.watches[t][w] = struct{}{}
}

func (c *collection) leave(w *watcher) {
	t := w.selector.topic()
	delete(c.watches[t], w)
	if len(c.watches[t]) == 0 {
		delete(c.watches, t)
	}
}

// seen is what the change is to a watch with this selector; ok is false for nothing.
func (n *change) seen(s selector) (kind watch.EventType, o *object, ok bool) {
	switch was, is := s.picks(n.before), s.picks(n.after); {
	case is && was:
		return watch.Modified, n.after, true
	case is:
		return watch.Added, n.after, true
	case was:
		return watch.Deleted, n.gone(), true
	}
	return "", nil, false
}

// gone is the object as it was, at the version at which it went.
func (n *change) gone() *object {
	n.once.Do(func() { n.was = n.before.at(n.version) })
	return n.was
}
