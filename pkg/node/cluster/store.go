package cluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/podmark/podmark/pkg/node/source"
)

// watching is a watch under way: the store of its reflector, which keeps nothing but
// hands everything to the cluster.
type watching struct {
	Watch
	c    *Cluster
	stop context.CancelFunc
	// What follows is under the cluster's lock. synced is set once all has been seen
	// that there was, err is why that takes long.
	synced bool
	ended  bool
	err    error
	// begun is when it began, and idle since when it is not needed; zero while it is.
	begun, idle time.Time
}

// clients ask the API server.
type clients struct{ core, networking *rest.RESTClient }

// Requests a second, and at once: a node watches some hundred things from its start on.
const (
	queries = 100
	burst   = 200
)

func newClients(base *rest.Config) (c clients, err error) {
	base = rest.CopyConfig(base)
	base.QPS, base.Burst = queries, burst
	core, errCore := source.CoreClient(base)
	networking, errNetworking := source.Client(base, "/apis", networkingv1.SchemeGroupVersion, networkingv1.AddToScheme)
	return clients{core, networking}, errors.Join(errCore, errNetworking)
}

// start begins to watch. The reflector of client-go lists, watches, and lists again when
// it has to.
func (c *Cluster) start(ctx context.Context, w Watch) *watching {
	ctx, stop := context.WithCancel(ctx)
	s := &watching{Watch: w, c: c, stop: stop, begun: time.Now()}
	client, example := c.clients.core, runtime.Object(&corev1.Pod{})
	switch w.Kind {
	case Policies:
		client, example = c.clients.networking, &networkingv1.NetworkPolicy{}
	case Namespaces:
		example = &corev1.Namespace{}
	}
	lw := cache.NewFilteredListWatchFromClient(client, string(w.Kind), w.Namespace, func(o *metav1.ListOptions) {
		o.LabelSelector = w.Labels
		if w.Node != "" {
			o.FieldSelector = "spec.nodeName=" + w.Node
		}
	})
	list, open := lw.ListWithContextFunc, lw.WatchFuncWithContext
	lw.ListWithContextFunc = func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
		out, err := list(ctx, o)
		s.tell(err)
		return out, err
	}
	lw.WatchFuncWithContext = func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
		out, err := open(ctx, o)
		s.tell(err)
		return out, err
	}
	r := cache.NewReflectorWithOptions(lw, example, s, cache.ReflectorOptions{Name: w.String()})
	go r.RunWithContext(ctx)
	return s
}

// tell notes whether the API shows what is watched. One that is behind is asked again by
// the reflector, which is no fault.
func (s *watching) tell(err error) {
	if apierrors.IsResourceExpired(err) || apierrors.IsGone(err) || errors.Is(err, context.Canceled) {
		return
	}
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if err != nil {
		err = fmt.Errorf("watching %s: %w", s.Watch, err)
	}
	if err != nil && (s.err == nil || s.err.Error() != err.Error()) {
		s.c.Log.Warn("the API server does not show what policies need", "error", err)
	}
	s.err = err
}

// Transformer makes client-go's own stores keep as little as ours.
func (s *watching) Transformer() cache.TransformFunc { return s.c.trim }

// Add takes over a new object.
func (s *watching) Add(v any) error { return s.Update(v) }

// Update takes over an object.
func (s *watching) Update(v any) error {
	v, err := s.c.trim(v)
	if err != nil {
		return err
	}
	s.c.change(s, func() { s.c.take(s, v) })
	return nil
}

// Delete takes over that an object is gone, or is no more what is watched.
func (s *watching) Delete(v any) error {
	if unknown, ok := v.(cache.DeletedFinalStateUnknown); ok {
		v = unknown.Obj
	}
	o, ok := v.(metav1.Object)
	if accessor, is := v.(metav1.ObjectMetaAccessor); !ok && is {
		o, ok = accessor.GetObjectMeta(), true
	}
	if !ok {
		return fmt.Errorf("deleting a %T: it has no name", v)
	}
	s.c.change(s, func() { s.c.drop(s, name{o.GetNamespace(), o.GetName()}) })
	return nil
}

// Replace takes over all that there is.
func (s *watching) Replace(list []any, _ string) error {
	trimmed := make([]any, 0, len(list))
	for _, v := range list {
		t, err := s.c.trim(v)
		if err != nil {
			return err
		}
		trimmed = append(trimmed, t)
	}
	s.c.change(s, func() {
		gone := s.c.seenBy(s)
		for _, v := range trimmed {
			delete(gone, s.c.take(s, v))
		}
		for n := range maps.Keys(gone) {
			s.c.drop(s, n)
		}
		s.synced, s.err = true, nil
	})
	return nil
}

// Resync does nothing: what was said goes on to hold.
func (s *watching) Resync() error { return nil }

var _ cache.TransformingStore = (*watching)(nil)

// pod asks for one pod. A watch may be behind what the kubelet knows.
func (c *Cluster) fetch(ctx context.Context, n name) (*pod, error) {
	var p corev1.Pod
	if err := c.clients.core.Get().Namespace(n.namespace).Resource(string(Pods)).Name(n.name).Do(ctx).Into(&p); err != nil {
		return nil, fmt.Errorf("asking for pod %s/%s: %w", n.namespace, n.name, err)
	}
	t, err := c.trim(&p)
	if err != nil {
		return nil, err
	}
	return t.(*pod), nil
}

// ending reports whether a namespace is being deleted, or is gone.
func (c *Cluster) ending(ctx context.Context, namespace string) (bool, error) {
	var n corev1.Namespace
	err := c.clients.core.Get().Resource(string(Namespaces)).Name(namespace).Do(ctx).Into(&n)
	switch {
	case apierrors.IsNotFound(err):
		return true, nil
	case err != nil:
		return false, fmt.Errorf("asking for namespace %s: %w", namespace, err)
	}
	return n.DeletionTimestamp != nil || n.Status.Phase == corev1.NamespaceTerminating, nil
}

// name is that of an object; namespace is empty for one that is in none.
type name struct{ namespace, name string }
