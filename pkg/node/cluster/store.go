package cluster

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/podmark/podmark/pkg/node/cluster/view"
	"github.com/podmark/podmark/pkg/node/source"
)

// watching is a watch under way: the store of its reflector, which keeps nothing but
// hands everything to the cluster.
type watching struct {
	view.Watch
	c    *Cluster
	stop context.CancelFunc
	// ended is set, under the cluster's lock, once the view has forgotten it.
	ended bool
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
func (c *Cluster) start(ctx context.Context, w view.Watch) *watching {
	ctx, stop := context.WithCancel(ctx)
	s := &watching{Watch: w, c: c, stop: stop}
	client, example := c.clients.core, runtime.Object(&corev1.Pod{})
	switch w.Kind {
	case view.Policies:
		client, example = c.clients.networking, &networkingv1.NetworkPolicy{}
	case view.Namespaces:
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
		return out, shortened(err)
	}
	lw.WatchFuncWithContext = func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
		out, err := open(ctx, o)
		if o.SendInitialEvents == nil || classOf(err) != view.TooMuch { // else it is listed
			s.tell(err)
		}
		return out, shortened(err)
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
	class := classOf(err)
	if err != nil {
		err = shortened(fmt.Errorf("watching %s: %w", s.Watch, err))
	}
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.ended {
		return
	}
	if s.c.view.Failed(s.Watch, err, class, time.Now()) {
		s.c.Log.Warn("the API server does not show what policies need", "error", err)
	}
	if err != nil {
		s.c.poke() // another watch may take its place
	}
}

// classOf is how the API has failed.
func classOf(err error) view.Class {
	var answer apierrors.APIStatus
	if !errors.As(err, &answer) {
		return view.ClassOf(0)
	}
	return view.ClassOf(int(answer.Status().Code))
}

// Transformer makes client-go's own stores keep as little as ours.
func (s *watching) Transformer() cache.TransformFunc {
	return func(v any) (any, error) {
		if p, ok := v.(*corev1.Pod); ok {
			return s.c.trim(p), nil
		}
		return v, nil
	}
}

// Add takes over a new object.
func (s *watching) Add(v any) error { return s.Update(v) }

// Update takes over an object.
func (s *watching) Update(v any) error {
	o, err := s.c.object(v)
	if err != nil {
		return err
	}
	s.c.change(s, func(now time.Time) { s.c.view.Seen(s.Watch, o, now) })
	return nil
}

// Delete takes over that an object is gone, or is no more what is watched.
func (s *watching) Delete(v any) error {
	if unknown, ok := v.(cache.DeletedFinalStateUnknown); ok {
		v = unknown.Obj
	}
	o, err := s.c.object(v)
	if err != nil {
		return err
	}
	s.c.change(s, func(time.Time) { s.c.view.Gone(s.Watch, o) })
	return nil
}

// Replace takes over all that there is.
func (s *watching) Replace(list []any, resourceVersion string) error {
	version, _ := strconv.ParseUint(resourceVersion, 10, 64) // of another form, none is higher than another
	objects := make([]view.Object, 0, len(list))
	for _, v := range list {
		o, err := s.c.object(v)
		if err != nil {
			return err
		}
		objects = append(objects, o)
	}
	s.c.change(s, func(now time.Time) { s.c.view.Listed(s.Watch, objects, version, now) })
	return nil
}

// Resync does nothing: what was said goes on to hold.
func (s *watching) Resync() error { return nil }

var _ cache.TransformingStore = (*watching)(nil)

// fetch asks for one pod. A watch may be behind what the kubelet knows.
func (c *Cluster) fetch(ctx context.Context, n view.Name) (*view.Pod, error) {
	var p corev1.Pod
	if err := c.clients.core.Get().Namespace(n.Namespace).Resource(string(view.Pods)).Name(n.Name).Do(ctx).Into(&p); err != nil {
		return nil, shortened(fmt.Errorf("asking for pod %s/%s: %w", n.Namespace, n.Name, err))
	}
	return c.trim(&p).Pod, nil
}

// spaceOf asks what a namespace is now.
func (c *Cluster) spaceOf(ctx context.Context, namespace string) (view.Space, error) {
	var n corev1.Namespace
	err := c.clients.core.Get().Resource(string(view.Namespaces)).Name(namespace).Do(ctx).Into(&n)
	switch {
	case apierrors.IsNotFound(err):
		return view.Space{}, nil
	case err != nil:
		return view.Space{}, fmt.Errorf("asking for namespace %s: %w", namespace, err)
	}
	return view.Space{UID: string(n.UID), Ending: n.DeletionTimestamp != nil || n.Status.Phase == corev1.NamespaceTerminating}, nil
}
