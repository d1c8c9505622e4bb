package kube

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/podmark/podmark/pkg/agent/kube/view"
	"github.com/podmark/podmark/pkg/agent/nodeports"
)

// reflectorStore is a watch under way: the store of its reflector, which keeps nothing but
// hands everything to the cluster.
type reflectorStore struct {
	view.Watch
	c    *Cluster
	stop context.CancelFunc
	// ended is set, under the cluster's lock, once the view has forgotten it.
	ended bool
	// begun is what a stream has brought up to now that begins with all there is; nil for
	// another. Only the reflector uses it.
	begun *beginning
}

// clients ask the API server.
type clients struct {
	core, networking, pods *rest.RESTClient
	decoder                decoder // of pods
}

// Requests a second, and at once: a node watches some hundred things from its start on.
const (
	queries = 100
	burst   = 200
)

func newClients(base *rest.Config, words *interner, node string) (c clients, err error) {
	base = rest.CopyConfig(base)
	base.QPS, base.Burst = queries, burst
	core, errCore := nodeports.CoreClient(base)
	networking, errNetworking := nodeports.Client(base, "/apis", networkingv1.SchemeGroupVersion, networkingv1.AddToScheme)
	base.Wrap(func(rt http.RoundTripper) http.RoundTripper { return inPieces{rt} })
	pods, errPods := nodeports.CoreClientBy(base, func(s runtime.NegotiatedSerializer) runtime.NegotiatedSerializer {
		c.decoder = decoder{jsonOf(s), words, node}
		return podSerializer{s, words, node}
	})
	c.core, c.networking, c.pods = core, networking, pods
	return c, errors.Join(errCore, errNetworking, errPods)
}

// piece is how many bytes are read at once of an answer about the pods of all namespaces.
const piece = 64 << 10

// inPieces has such answers read in pieces: with whatever is read of a stream of HTTP/2, the
// sender is told in a message of its own that it may send as much again. A Pod has 5 KB.
type inPieces struct{ http.RoundTripper }

// RoundTrip implements [http.RoundTripper].
func (t inPieces) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := t.RoundTripper.RoundTrip(r)
	if err == nil && strings.HasSuffix(r.URL.Path, "/v1/"+string(view.Pods)) {
		answer.Body = struct {
			io.Reader
			io.Closer
		}{bufio.NewReaderSize(answer.Body, piece), answer.Body}
	}
	return answer, err
}

// jsonOf is a serializer's for what is in JSON.
func jsonOf(s runtime.NegotiatedSerializer) runtime.Serializer {
	info, _ := runtime.SerializerInfoForMediaType(s.SupportedMediaTypes(), runtime.ContentTypeJSON) // client-go has it
	return info.Serializer
}

// start begins to watch. The reflector of client-go lists, watches, and lists again when
// it has to.
func (c *Cluster) start(ctx context.Context, w view.Watch) *reflectorStore {
	ctx, stop := context.WithCancel(ctx)
	s := &reflectorStore{Watch: w, c: c, stop: stop}
	client, example := c.clients.pods, runtime.Object(&pod{})
	switch w.Kind {
	case view.Policies:
		client, example = c.clients.networking, &networkingv1.NetworkPolicy{}
	case view.Namespaces:
		client, example = c.clients.core, &corev1.Namespace{}
	}
	narrow := func(o *metav1.ListOptions) {
		o.LabelSelector = w.Labels
		if w.Node != "" {
			o.FieldSelector = "spec.nodeName=" + w.Node
		}
	}
	lw := cache.NewFilteredListWatchFromClient(client, string(w.Kind), w.Namespace, narrow)
	list, open := lw.ListWithContextFunc, lw.WatchFuncWithContext
	if w.Kind == view.Pods {
		list = func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			narrow(&o)
			body, err := client.Get().Namespace(w.Namespace).Resource(string(w.Kind)).
				VersionedParams(&o, metav1.ParameterCodec).Stream(ctx)
			if err != nil {
				return nil, err
			}
			defer body.Close()
			return c.clients.decoder.list(body)
		}
	}
	lw.ListWithContextFunc = func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
		s.begun = nil
		out, err := list(ctx, o)
		s.tell(err)
		return out, shortened(err)
	}
	lw.WatchFuncWithContext = func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
		out, err := open(ctx, o)
		if o.SendInitialEvents == nil || classOf(err) != view.TooMuch { // else it is listed
			s.tell(err)
		}
		if err != nil || w.Kind != view.Pods || o.SendInitialEvents == nil || !*o.SendInitialEvents {
			return out, shortened(err)
		}
		s.begun = begin(out, s.known)
		return s.begun, nil
	}
	r := cache.NewReflectorWithOptions(lw, example, s, cache.ReflectorOptions{Name: w.String()})
	go r.RunWithContext(ctx)
	return s
}

// tell notes whether the API shows what is watched. One that is behind is asked again by
// the reflector, which is no fault.
func (s *reflectorStore) tell(err error) {
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
		s.c.Log.Warn("The API server does not serve what policies need", "error", err)
	}
	if err != nil {
		s.c.rounds.Notify() // another watch may take its place
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

// known is the pod that the view has, where that is the same.
func (s *reflectorStore) known(p *view.Pod) *view.Pod {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.c.view.Known(s.Watch, p)
}

// Add takes over a new object.
func (s *reflectorStore) Add(v any) error { return s.Update(v) }

// Update takes over an object.
func (s *reflectorStore) Update(v any) error {
	o, err := s.c.object(v)
	if err != nil {
		return err
	}
	s.c.change(s, func(now time.Time) { s.c.view.Seen(s.Watch, o, now) })
	return nil
}

// Delete takes over that an object is gone, or is no more what is watched.
func (s *reflectorStore) Delete(v any) error {
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
func (s *reflectorStore) Replace(list []any, resourceVersion string) error {
	version, _ := strconv.ParseUint(resourceVersion, 10, 64) // of another form, none is higher than another
	var objects []view.Object
	if s.begun != nil {
		objects, s.begun.seen = s.begun.seen, nil
	}
	objects = slices.Grow(objects, len(list))
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
func (s *reflectorStore) Resync() error { return nil }

var _ cache.ReflectorStore = (*reflectorStore)(nil)

// fetch asks for one pod. A watch may be behind what the kubelet knows.
func (c *Cluster) fetch(ctx context.Context, n view.Name) (*view.Pod, error) {
	o, err := c.clients.pods.Get().Namespace(n.Namespace).Resource(string(view.Pods)).Name(n.Name).Do(ctx).Get()
	if p, ok := o.(*pod); ok && err == nil {
		return p.kept, nil
	}
	if err == nil {
		err = fmt.Errorf("the API server answers with a %T", o)
	}
	return nil, shortened(fmt.Errorf("asking for pod %s/%s: %w", n.Namespace, n.Name, err))
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
	return view.Space{
		UID:    string(n.UID),
		Ending: n.DeletionTimestamp != nil || n.Status.Phase == corev1.NamespaceTerminating,
	}, nil
}
