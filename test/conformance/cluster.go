package conformance

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/mattfenwick/cyclonus/pkg/kube"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/podmark/podmark/pkg/policy"
	"github.com/podmark/podmark/test/lab"
)

// Options are what clusters differ in.
type Options struct {
	Backend lab.Backend
	// Family is that of the addresses that pods and services are spoken to by. Pods have
	// one of the other family, too.
	Family lab.Family
	// IPVS has services in the kernel. Without, they are in the API only.
	IPVS bool
	// Silence is how long no answer may come to any pod before those that wait for one are
	// taken for blocked.
	Silence time.Duration
}

// Cluster is a cluster of one node. What it does not do itself, cyclonus' own client asks
// the API for.
type Cluster struct {
	kube.Kubernetes
	Options

	t        testing.TB
	node     *lab.Kubernetes
	names    map[string]netip.Addr // of services, as the cluster's DNS knows them
	services map[string][]lab.Service
	pods     map[string]*pod
	made     uint16 // how many services there were

	lastHeard atomic.Int64 // when, in nanoseconds; see heard
	slowest   atomic.Int64 // of the answers of late, in nanoseconds

	mu        sync.Mutex
	unsettled bool
	problem   error // why it did not settle
}

// pod is a pod that runs.
type pod struct {
	*lab.Pod
	servers []*lab.Server
}

var _ kube.IKubernetes = (*Cluster)(nil)

// New makes a cluster without pods. It is gone when the test ends.
func New(t testing.TB, o Options) *Cluster {
	t.Helper()
	c := &Cluster{
		Options: o, t: t, node: lab.NewNode(t, lab.Options{Backend: o.Backend, Plain: !o.IPVS}).Kubernetes(nil),
		names: map[string]netip.Addr{}, services: map[string][]lab.Service{}, pods: map[string]*pod{},
	}
	server := httptest.NewServer(c.node.API)
	t.Cleanup(server.CloseClientConnections)
	client, err := kubernetes.NewForConfig(&rest.Config{
		Host: server.URL, QPS: -1, ContentConfig: rest.ContentConfig{ContentType: "application/json"},
	})
	if err != nil {
		t.Fatal(err)
	}
	c.ClientSet = client
	return c
}

// The API server stores policies with their defaults, and namespaces with their names.

// CreateNetworkPolicy implements [kube.IKubernetes].
func (c *Cluster) CreateNetworkPolicy(p *networkingv1.NetworkPolicy) (*networkingv1.NetworkPolicy, error) {
	defer c.changed()
	return c.Kubernetes.CreateNetworkPolicy(defaulted(p))
}

// UpdateNetworkPolicy implements [kube.IKubernetes].
func (c *Cluster) UpdateNetworkPolicy(p *networkingv1.NetworkPolicy) (*networkingv1.NetworkPolicy, error) {
	defer c.changed()
	return c.Kubernetes.UpdateNetworkPolicy(defaulted(p))
}

// DeleteNetworkPolicy implements [kube.IKubernetes].
func (c *Cluster) DeleteNetworkPolicy(namespace, name string) error {
	defer c.changed()
	return c.Kubernetes.DeleteNetworkPolicy(namespace, name)
}

// DeleteAllNetworkPoliciesInNamespace implements [kube.IKubernetes].
func (c *Cluster) DeleteAllNetworkPoliciesInNamespace(namespace string) error {
	defer c.changed()
	return c.Kubernetes.DeleteAllNetworkPoliciesInNamespace(namespace)
}

func defaulted(p *networkingv1.NetworkPolicy) *networkingv1.NetworkPolicy {
	p = p.DeepCopy()
	policy.Default(p)
	return p
}

// CreateNamespace implements [kube.IKubernetes].
func (c *Cluster) CreateNamespace(n *corev1.Namespace) (*corev1.Namespace, error) {
	defer c.changed()
	n = n.DeepCopy()
	n.Labels = named(n.Labels, n.Name)
	return c.Kubernetes.CreateNamespace(n)
}

// SetNamespaceLabels implements [kube.IKubernetes].
func (c *Cluster) SetNamespaceLabels(namespace string, labels map[string]string) (*corev1.Namespace, error) {
	defer c.changed()
	return c.Kubernetes.SetNamespaceLabels(namespace, named(labels, namespace))
}

func named(labels map[string]string, namespace string) map[string]string {
	with := map[string]string{corev1.LabelMetadataName: namespace}
	maps.Copy(with, labels)
	return with
}

// DeleteNamespace implements [kube.IKubernetes]: with all that is in it.
func (c *Cluster) DeleteNamespace(namespace string) error {
	defer c.changed()
	services, errServices := c.GetServicesInNamespace(namespace)
	pods, errPods := c.GetPodsInNamespace(namespace)
	errs := []error{errServices, errPods}
	for _, s := range services {
		errs = append(errs, c.DeleteService(namespace, s.Name))
	}
	for _, p := range pods {
		errs = append(errs, c.DeletePod(namespace, p.Name))
	}
	errs = append(errs, c.Kubernetes.DeleteAllNetworkPoliciesInNamespace(namespace), c.Kubernetes.DeleteNamespace(namespace))
	return errors.Join(errs...)
}

// SetPodLabels implements [kube.IKubernetes].
func (c *Cluster) SetPodLabels(namespace, name string, labels map[string]string) (*corev1.Pod, error) {
	defer c.changed()
	return c.Kubernetes.SetPodLabels(namespace, name, labels)
}

// CreatePod implements [kube.IKubernetes]: it binds the pod to the node and runs it.
func (c *Cluster) CreatePod(p *corev1.Pod) (*corev1.Pod, error) {
	defer c.changed()
	p = p.DeepCopy()
	p.Spec.NodeName = lab.NodeName
	p.Status.Phase = corev1.PodPending
	p, err := c.Kubernetes.CreatePod(p)
	if err != nil {
		return nil, err
	}
	attached, err := c.attach(p)
	if err != nil {
		return nil, fmt.Errorf("attaching pod %s/%s: %w", p.Namespace, p.Name, err)
	}
	running := &pod{Pod: attached}
	for _, container := range p.Spec.Containers {
		for _, port := range container.Ports {
			running.servers = append(running.servers, attached.Listen(protocols[port.Protocol], uint16(port.ContainerPort)))
		}
	}
	c.pods[p.Namespace+"/"+p.Name] = running
	p.Status.Phase = corev1.PodRunning
	p.Status.PodIP = attached.Addr(c.Family).String()
	p.Status.PodIPs = []corev1.PodIP{{IP: p.Status.PodIP}}
	for _, a := range attached.Addresses {
		if a.String() != p.Status.PodIP {
			p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: a.String()})
		}
	}
	return c.ClientSet.CoreV1().Pods(p.Namespace).Update(context.Background(), p, metav1.UpdateOptions{})
}

// attach has the plugins attach a pod. Where they ask for it they are called again, as the
// kubelet has it: in an emulator that others keep from its processor, podmarkd may take
// longer to begin than the plugin waits for it.
func (c *Cluster) attach(p *corev1.Pod) (*lab.Pod, error) {
	const attempts = 10
	attached := c.node.NewPod(lab.PodSpec{Namespace: p.Namespace, Name: p.Name, Network: c.node.Network})
	for try := 1; ; try++ {
		err := attached.Add()
		if code := (*types.Error)(nil); !errors.As(err, &code) || code.Code != types.ErrTryAgainLater || try == attempts {
			return attached, err
		}
		if err := attached.Del(); err != nil {
			return attached, err
		}
	}
}

var protocols = map[corev1.Protocol]lab.Protocol{
	corev1.ProtocolTCP: lab.TCP, corev1.ProtocolUDP: lab.UDP, corev1.ProtocolSCTP: lab.SCTP,
}

// DeletePod implements [kube.IKubernetes]: it ends as the kubelet has it.
func (c *Cluster) DeletePod(namespace, name string) error {
	defer c.changed()
	running := c.pods[namespace+"/"+name]
	if running == nil {
		return fmt.Errorf("pod %s/%s does not run", namespace, name)
	}
	for _, s := range running.servers {
		s.Close()
	}
	delete(c.pods, namespace+"/"+name)
	return errors.Join(running.Del(), c.Kubernetes.DeletePod(namespace, name))
}

// CreateService implements [kube.IKubernetes]: it gives the service an address, and has
// kube-proxy send what comes there to the pods that are selected now.
func (c *Cluster) CreateService(s *corev1.Service) (*corev1.Service, error) {
	pods, err := c.GetPodsInNamespace(s.Namespace)
	if err != nil {
		return nil, err
	}
	pods = slices.DeleteFunc(pods, func(p corev1.Pod) bool {
		return !labels.SelectorFromSet(s.Spec.Selector).Matches(labels.Set(p.Labels))
	})
	s = s.DeepCopy()
	c.made++
	address := c.serviceAddress(c.made)
	s.Spec.ClusterIP = address.String()
	c.names[kube.QualifiedServiceAddress(s.Name, s.Namespace)] = address
	if c.IPVS {
		var services []lab.Service
		for _, port := range s.Spec.Ports {
			service := lab.Service{Kind: lab.ClusterIP, Protocol: protocols[port.Protocol], Address: address, Port: uint16(port.Port)}
			for _, p := range pods {
				service.Backends = append(service.Backends, netip.AddrPortFrom(netip.MustParseAddr(p.Status.PodIP), service.Port))
			}
			services = append(services, service)
		}
		c.services[s.Namespace+"/"+s.Name] = services
		c.node.AddServices(services...)
	}
	return c.Kubernetes.CreateService(s)
}

// serviceAddress is that of the service with a number.
func (c *Cluster) serviceAddress(number uint16) netip.Addr {
	if c.Family == lab.V4 {
		return netip.AddrFrom4([4]byte{10, 96, byte(number >> 8), byte(number)})
	}
	return netip.MustParseAddr(fmt.Sprintf("fd00:10:96::%x", number))
}

// DeleteService implements [kube.IKubernetes].
func (c *Cluster) DeleteService(namespace, name string) error {
	c.node.RemoveServices(c.services[namespace+"/"+name]...)
	delete(c.services, namespace+"/"+name)
	delete(c.names, kube.QualifiedServiceAddress(name, namespace))
	return c.Kubernetes.DeleteService(namespace, name)
}

// Tidy removes the namespaces that a case has left behind: the interpreter makes the
// others afresh, and does not look for more.
func (c *Cluster) Tidy(except ...string) error {
	all, err := c.GetAllNamespaces()
	if err != nil {
		return err
	}
	var errs []error
	for _, n := range all.Items {
		if !slices.Contains(except, n.Name) {
			errs = append(errs, c.DeleteNamespace(n.Name))
		}
	}
	return errors.Join(errs...)
}

// resolve is what a resolver of the cluster says.
func (c *Cluster) resolve(host string) (netip.Addr, error) {
	if a, known := c.names[strings.TrimSuffix(host, ".")]; known {
		return a, nil
	}
	a, err := netip.ParseAddr(host)
	if err != nil {
		return a, fmt.Errorf("host %q is no service's, and no address", host)
	}
	return a, nil
}
