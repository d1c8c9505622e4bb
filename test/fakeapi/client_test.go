package fakeapi_test

import (
	"context"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
)

// typed is client-go's REST client with the calls of a clientset for one resource. The
// clientset itself would bring modules that nothing else needs.
type typed[T, L any, PT interface {
	*T
	runtime.Object
	metav1.Object
}, PL interface {
	*L
	runtime.Object
}] struct {
	rest     rest.Interface
	resource string
}

type (
	podClient    = typed[corev1.Pod, corev1.PodList, *corev1.Pod, *corev1.PodList]
	policyClient = typed[networkingv1.NetworkPolicy, networkingv1.NetworkPolicyList, *networkingv1.NetworkPolicy, *networkingv1.NetworkPolicyList]
)

func restClient(t *testing.T, config rest.Config, path string, version schema.GroupVersion) rest.Interface {
	t.Helper()
	config.QPS = -1 // no limit
	config.APIPath, config.GroupVersion, config.NegotiatedSerializer = path, &version, scheme.Codecs.WithoutConversion()
	client, err := rest.RESTClientFor(&config)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func podsAt(t *testing.T, config rest.Config) podClient {
	return podClient{restClient(t, config, "/api", corev1.SchemeGroupVersion), "pods"}
}

func policiesAt(t *testing.T, config rest.Config) policyClient {
	return policyClient{restClient(t, config, "/apis", networkingv1.SchemeGroupVersion), "networkpolicies"}
}

func (c typed[T, L, PT, PL]) get(ctx context.Context, namespace, name string) (PT, error) {
	out := PT(new(T))
	return out, c.rest.Get().Resource(c.resource).Namespace(namespace).Name(name).Do(ctx).Into(out)
}

func (c typed[T, L, PT, PL]) create(ctx context.Context, namespace string, o PT) (PT, error) {
	out := PT(new(T))
	return out, c.rest.Post().Resource(c.resource).Namespace(namespace).Body(o).Do(ctx).Into(out)
}

func (c typed[T, L, PT, PL]) update(ctx context.Context, o PT) error {
	return c.rest.Put().Resource(c.resource).Namespace(o.GetNamespace()).Name(o.GetName()).Body(o).Do(ctx).Error()
}

func (c typed[T, L, PT, PL]) remove(ctx context.Context, namespace, name string) error {
	return c.rest.Delete().Resource(c.resource).Namespace(namespace).Name(name).Do(ctx).Error()
}

func (c typed[T, L, PT, PL]) list(ctx context.Context, namespace string, o metav1.ListOptions) (PL, error) {
	out := PL(new(L))
	return out, c.rest.Get().Resource(c.resource).NamespaceIfScoped(namespace, namespace != "").VersionedParams(&o, scheme.ParameterCodec).Do(ctx).Into(out)
}

func (c typed[T, L, PT, PL]) watch(t *testing.T, o metav1.ListOptions) watch.Interface {
	t.Helper()
	o.Watch = true
	w, err := c.rest.Get().Resource(c.resource).VersionedParams(&o, scheme.ParameterCodec).Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Stop)
	return w
}

// streamed asks for what is there and a bookmark behind it.
func streamed() metav1.ListOptions {
	yes := true
	return metav1.ListOptions{SendInitialEvents: &yes, ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan, AllowWatchBookmarks: true}
}
