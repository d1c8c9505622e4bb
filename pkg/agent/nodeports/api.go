package nodeports

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/podmark/podmark/pkg/agent/runner"
)

// felixName is the FelixConfiguration of every node; felixNodePrefix stands before the name of the
// node in the name of one node's own.
const (
	felixName       = "default"
	felixNodePrefix = "node."
)

// resource is something that the API may or may not show.
type resource struct {
	name string
	// list asks for all objects that the field selector lets through.
	list func(fieldSelector string) *cache.ListWatch
	// fields is the field selector.
	fields  string
	example runtime.Object
	// trim drops of an object what is not needed.
	trim func(any) (any, error)
	// take takes over what is there: nil where it cannot be seen.
	take func(objects []any)
}

// resources are what is asked for.
func (w *Watcher) resources() ([]resource, error) {
	core, err := CoreClient(w.API)
	if err != nil {
		return nil, err
	}
	custom, err := dynamic.NewForConfig(w.API)
	if err != nil {
		return nil, fmt.Errorf("configuring the API client: %w", err)
	}
	out := []resource{
		{
			name: "Services",
			// Only these two types have node ports.
			fields: "spec.type!=ClusterIP,spec.type!=ExternalName",
			list: func(fields string) *cache.ListWatch {
				return cache.NewFilteredListWatchFromClient(core, "services", metav1.NamespaceAll,
					func(o *metav1.ListOptions) { o.FieldSelector = fields })
			},
			example: &corev1.Service{},
			trim:    trimService,
			take:    w.takeServices,
		},
		{
			name: string(Pod),
			list: func(string) *cache.ListWatch {
				return cache.NewFilteredListWatchFromClient(core, "pods", metav1.NamespaceSystem, func(o *metav1.ListOptions) { o.LabelSelector = "component=kube-apiserver" })
			},
			example: &corev1.Pod{},
			trim:    trimPod,
			take:    w.takePods,
		},
	}
	return append(out, w.felixConfigurations(custom)...), nil
}

// felixConfigurations are the objects that hold for every node, and for this one.
func (w *Watcher) felixConfigurations(custom dynamic.Interface) (out []resource) {
	felix := custom.Resource(schema.GroupVersionResource{
		Group: "crd.projectcalico.org", Version: "v1",
		Resource: "felixconfigurations",
	})
	names := []string{felixName}
	if w.NodeName != "" {
		names = append(names, felixNodePrefix+w.NodeName)
	}
	for _, name := range names {
		out = append(out, resource{
			name:   string(Felix) + " " + name,
			fields: "metadata.name=" + name,
			list: func(fields string) *cache.ListWatch {
				return &cache.ListWatch{
					ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
						o.FieldSelector = fields
						return felix.List(ctx, o)
					},
					WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
						o.FieldSelector = fields
						return felix.Watch(ctx, o)
					},
				}
			},
			example: &unstructured.Unstructured{},
			trim:    trimFelix,
			take:    w.takeFelix(name),
		})
	}
	return out
}

// CoreClient is a client for the core objects alone.
func CoreClient(base *rest.Config) (*rest.RESTClient, error) {
	return Client(base, "/api", corev1.SchemeGroupVersion, corev1.AddToScheme)
}

// CoreClientBy is a client for the core objects that reads them as decoding makes of
// client-go's own way.
func CoreClientBy(
	base *rest.Config,
	decoding func(runtime.NegotiatedSerializer) runtime.NegotiatedSerializer,
) (*rest.RESTClient, error) {
	return client(base, "/api", corev1.SchemeGroupVersion, corev1.AddToScheme, decoding)
}

// Client is a client for the objects of one group: client-go's own brings the types of
// every group along.
func Client(
	base *rest.Config,
	path string,
	group schema.GroupVersion,
	register func(*runtime.Scheme) error,
) (*rest.RESTClient, error) {
	return client(base, path, group, register,
		func(s runtime.NegotiatedSerializer) runtime.NegotiatedSerializer { return s })
}

func client(
	base *rest.Config,
	path string,
	group schema.GroupVersion,
	register func(*runtime.Scheme) error,
	decoding func(runtime.NegotiatedSerializer) runtime.NegotiatedSerializer,
) (*rest.RESTClient, error) {
	scheme := runtime.NewScheme()
	if err := register(scheme); err != nil {
		return nil, fmt.Errorf("registering the types of %s: %w", group, err)
	}
	c := rest.CopyConfig(base)
	c.APIPath, c.GroupVersion = path, &group
	c.NegotiatedSerializer = decoding(serializer.NewCodecFactory(scheme).WithoutConversion())
	c.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	client, err := rest.RESTClientFor(c)
	if err != nil {
		return nil, fmt.Errorf("configuring the API client: %w", err)
	}
	return client, nil
}

// firstRetry is when something that cannot be seen is asked for again first. After
// that it takes longer each time: an API server that starts forbids more than it will.
const firstRetry = 10 * time.Second

// follow keeps one resource current until ctx is done.
func (w *Watcher) follow(ctx context.Context, r resource) {
	delay := min(firstRetry, w.retry())
	runner.New().Run(ctx, func(bool) runner.Pause {
		seen, err := w.inform(ctx, r)
		if ctx.Err() != nil {
			return runner.Pause{}
		}
		if r.fields != "" && apierrors.IsBadRequest(err) {
			r.fields = "" // a server that does not know the fields
			return runner.Pause{}
		}
		r.take(nil)
		w.tell(slog.LevelInfo, r.name, fmt.Errorf("cannot be seen: %w", err))
		if seen {
			delay = min(firstRetry, w.retry())
		}
		pause := delay
		delay = min(2*delay, w.retry())
		return runner.Pause{Least: pause}
	})
}

// inform takes over every change of a resource, until it cannot be seen or ctx is
// done. seen is whether it could be seen at all.
func (w *Watcher) inform(ctx context.Context, r resource) (seen bool, err error) {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	tell := func(err error) {
		if ctx.Err() == nil {
			w.tell(slog.LevelWarn, r.name, err)
		}
	}
	informer := cache.NewSharedIndexInformerWithOptions(telling(r.list(r.fields), tell), r.example,
		cache.SharedIndexInformerOptions{})
	changes := afterChanges()
	_, handlerErr := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { changes.Notify() },
		UpdateFunc: func(any, any) { changes.Notify() },
		DeleteFunc: func(any) { changes.Notify() },
	})
	err = errors.Join(handlerErr, informer.SetTransform(r.trim),
		informer.SetWatchErrorHandlerWithContext(func(_ context.Context, _ *cache.Reflector, err error) {
			switch {
			case unseen(err):
				stop(err)
			case routine(err):
			default:
				tell(err)
			}
		}))
	if err != nil {
		return false, fmt.Errorf("setting up the informer: %w", err)
	}
	// It is not waited for: while the API server is away, it takes up to 30 s to notice
	// that it was ended (client-go 0.37).
	go informer.RunWithContext(ctx)
	if !cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
		return false, context.Cause(ctx)
	}
	changes.Run(ctx, func(bool) runner.Pause {
		w.tell(slog.LevelInfo, r.name, nil)
		// An empty list is not nil: what is not there has been seen.
		r.take(append([]any{}, informer.GetStore().List()...))
		return runner.Pause{Most: runner.Never}
	})
	return true, context.Cause(ctx)
}

// telling tells of an API server that does not answer a watch, and of one that does
// again: to an informer neither is worth a word.
func telling(lw *cache.ListWatch, tell func(error)) *cache.ListWatch {
	watchFunc := lw.WatchFuncWithContext
	lw.WatchFuncWithContext = func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
		started, err := watchFunc(ctx, o)
		if answer := apierrors.APIStatus(nil); !errors.As(err, &answer) {
			tell(err)
		}
		return started, err
	}
	return lw
}

// unseen is whether the API does not show a resource; anything else will pass.
func unseen(err error) bool {
	return apierrors.IsForbidden(err) || apierrors.IsNotFound(err) || apierrors.IsMethodNotSupported(err) ||
		apierrors.IsBadRequest(err)
}

// routine is whether a watch ended as watches do.
func routine(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || apierrors.IsResourceExpired(err) ||
		apierrors.IsGone(err)
}
