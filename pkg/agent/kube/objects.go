package kube

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/podmark/podmark/pkg/agent/kube/view"
	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/policy"
)

// pod is what is kept of a Pod, in the form in which client-go hands it on.
type pod struct {
	kept *view.Pod
	// version is the API's, and end the annotation metav1.InitialEventsAnnotationKey, which
	// says how far a bookmark is.
	version, end string
}

// pods is a list of them.
type pods struct {
	metav1.ListMeta
	Items []*pod
}

var _, _ runtime.Object = &pod{}, &pods{}

// GetObjectMeta is what client-go reads of a pod. Most pods it only hands on.
func (p *pod) GetObjectMeta() metav1.Object {
	meta := &metav1.ObjectMeta{Namespace: p.kept.Namespace, Name: p.kept.Name, ResourceVersion: p.version}
	if p.end != "" {
		meta.Annotations = map[string]string{metav1.InitialEventsAnnotationKey: p.end}
	}
	return meta
}

// GetObjectKind implements [runtime.Object]: a pod knows its kind by its type.
func (p *pod) GetObjectKind() schema.ObjectKind { return schema.EmptyObjectKind }

// DeepCopyObject implements [runtime.Object]. What is kept is not changed by client-go.
func (p *pod) DeepCopyObject() runtime.Object {
	out := *p
	return &out
}

// GetObjectKind implements [runtime.Object].
func (p *pods) GetObjectKind() schema.ObjectKind { return schema.EmptyObjectKind }

// DeepCopyObject implements [runtime.Object].
func (p *pods) DeepCopyObject() runtime.Object {
	out := &pods{Items: slices.Clone(p.Items)}
	p.ListMeta.DeepCopyInto(&out.ListMeta)
	return out
}

// object is an object of the API as the view takes it.
func (c *Cluster) object(v any) (view.Object, error) {
	switch v := v.(type) {
	case *pod:
		return v.kept, nil
	case *corev1.Namespace:
		labels := map[string]string{}
		maps.Copy(labels, v.Labels)
		labels[desired.MetadataName] = v.Name
		return &view.Namespace{Name: v.Name, Labels: labels}, nil
	case *networkingv1.NetworkPolicy:
		compiled, unclear := policy.Object(v)
		return &view.Policy{Policy: compiled, UID: view.UIDOf(string(v.UID)), APIUID: string(v.UID), Unclear: unclear}, nil
	}
	return nil, fmt.Errorf("a %T is none of the objects that are watched", v)
}

const configHash = "kubernetes.io/config.hash" // kubelet's annotation of mirror pods

// facts is what is read of a Pod, in memory of the message that it came in.
type facts struct {
	namespace, name, uid, version []byte
	labels                        []desired.Label
	created                       int64 // in seconds since 1970
	// going is set while it is being deleted, which its node should have done at until.
	going bool
	until int64
	// hash, sources and end are the annotations configHash, config.SourcesAnnotation and
	// metav1.InitialEventsAnnotationKey.
	hash, sources, end []byte
	node, phase        []byte
	hostNetwork        bool
	ports              []corev1.ContainerPort
	ip                 []byte
	ips                [][]byte
	// named and addresses are what is made of ports, and of ip and ips.
	named     []attachment.NamedPort
	addresses []netip.Addr
}

// factsOf reads a whole Pod.
func factsOf(p *corev1.Pod) *facts {
	f := &facts{
		namespace: []byte(p.Namespace), name: []byte(p.Name), uid: []byte(p.UID), version: []byte(p.ResourceVersion),
		created: p.CreationTimestamp.Unix(), going: p.DeletionTimestamp != nil,
		hash: []byte(p.Annotations[configHash]), sources: []byte(p.Annotations[config.SourcesAnnotation]),
		end:  []byte(p.Annotations[metav1.InitialEventsAnnotationKey]),
		node: []byte(p.Spec.NodeName), hostNetwork: p.Spec.HostNetwork,
		phase: []byte(p.Status.Phase), ip: []byte(p.Status.PodIP),
	}
	if f.going {
		f.until = p.DeletionTimestamp.Unix()
	}
	for k, v := range p.Labels {
		f.labels = append(f.labels, desired.Label{Key: []byte(k), Value: []byte(v)})
	}
	for _, containers := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for _, c := range containers {
			f.ports = append(f.ports, c.Ports...)
		}
	}
	for _, ip := range p.Status.PodIPs {
		f.ips = append(f.ips, []byte(ip.IP))
	}
	return f
}

// keep is what is kept of a Pod on the node of that name, in memory of its own.
func (w *interner) keep(f *facts, node string) *pod {
	f.named = policy.AppendNamed(f.named[:0], f.ports)
	f.readAddresses()
	version, _ := strconv.ParseUint(string(f.version), 10, 64)
	t := &view.Pod{
		IndexedPod: desired.IndexedPod{
			Template: w.template(w.word(f.namespace), w.labels(f.labels), w.ports(f.named)),
			Name:     string(f.name), Rank: uint64(max(0, f.created)),
		},
		UID:     view.UIDOf(f.uid),
		Version: version,
	}
	if string(f.node) == node {
		t.Own = &view.Own{Identity: view.Identity{
			UID: string(f.uid), Hash: string(f.hash), Sources: w.word([]byte(config.ShortSources(string(f.sources)))),
		}}
		if t.Labels != nil {
			t.Own.Labels = maps.Collect(t.Labels.All())
		}
	}
	if f.going {
		t.Until = uint32(min(max(1, f.until), math.MaxUint32))
	} else {
		t.Rank += 1 << 62
	}
	if string(f.phase) == string(corev1.PodRunning) {
		t.Rank += 1 << 61
	}
	// The node's addresses are not a pod's, and a pod that has ended has given its own back.
	if ended := string(f.phase) == string(corev1.PodSucceeded) ||
		string(f.phase) == string(corev1.PodFailed); !f.hostNetwork && !ended {
		t.Addresses, t.Peer = desired.AddressesOf(f.addresses...), len(f.addresses) > 0
	}
	return &pod{kept: t, version: string(f.version), end: string(f.end)}
}

// readAddresses reads those of ip and ips, each once. One with a zone is none that others
// could send to.
func (f *facts) readAddresses() {
	f.addresses = f.addresses[:0]
	for i := -1; i < len(f.ips); i++ {
		text := f.ip
		if i >= 0 {
			text = f.ips[i]
		}
		if a, err := netip.ParseAddr(string(text)); err == nil && a.Zone() == "" && !slices.Contains(f.addresses, a.Unmap()) {
			f.addresses = append(f.addresses, a.Unmap())
		}
	}
}

// interner keeps one copy of each word, of each set of labels and of each list of ports, and of
// what a template makes of them.
type interner struct {
	mu        sync.Mutex
	single    map[string]string
	lists     map[string][]attachment.NamedPort // by what is in them
	sets      *desired.LabelSets
	templates map[*desired.LabelSet]*desired.Template
}

// maxInterned bounds what is remembered of pods that are gone.
const maxInterned = 1 << 16

func newInterner() *interner {
	return &interner{
		single: map[string]string{}, lists: map[string][]attachment.NamedPort{}, sets: desired.NewLabelSets(),
		templates: map[*desired.LabelSet]*desired.Template{},
	}
}

func (w *interner) word(b []byte) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if known, ok := w.single[string(b)]; ok {
		return known
	}
	if len(w.single) > maxInterned {
		clear(w.single)
	}
	s := string(b)
	w.single[s] = s
	return s
}

func (w *interner) labels(labels []desired.Label) *desired.LabelSet {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.sets.Of(labels)
}

// template is that of pods of the namespace with such labels and ports. Pods with the same
// labels are of one, as a rule.
func (w *interner) template(
	namespace string,
	labels *desired.LabelSet,
	ports []attachment.NamedPort,
) *desired.Template {
	w.mu.Lock()
	defer w.mu.Unlock()
	if known := w.templates[labels]; known != nil && known.Namespace == namespace && slices.Equal(known.Ports, ports) {
		return known
	}
	if len(w.templates) > maxInterned {
		clear(w.templates)
	}
	t := &desired.Template{Namespace: namespace, Labels: labels, Ports: ports}
	w.templates[labels] = t
	return t
}

func (w *interner) ports(list []attachment.NamedPort) []attachment.NamedPort {
	if len(list) == 0 {
		return nil
	}
	var key []byte
	for _, p := range list {
		key = binary.AppendUvarint(key, uint64(len(p.Name)))
		key = append(key, p.Name...)
		key = append(key, p.Protocol, byte(p.Number>>8), byte(p.Number))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if known, ok := w.lists[string(key)]; ok {
		return known
	}
	if len(w.lists) > maxInterned {
		clear(w.lists)
	}
	own := slices.Clip(slices.Clone(list))
	for i, p := range own {
		own[i].Name = strings.Clone(p.Name)
	}
	w.lists[string(key)] = own
	return own
}
