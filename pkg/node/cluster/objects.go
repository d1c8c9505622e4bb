package cluster

import (
	"fmt"
	"hash/maphash"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/node/cluster/view"
	"github.com/podmark/podmark/pkg/policy"
)

// pod is what is kept of a Pod, as client-go's own stores keep it on the way to the view.
type pod struct{ *view.Pod }

// GetObjectMeta lets client-go's stores name the pod.
func (p pod) GetObjectMeta() metav1.Object {
	return &metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name}
}

// object is an object of the API as the view takes it.
func (c *Cluster) object(v any) (view.Object, error) {
	switch v := v.(type) {
	case pod:
		return v.Pod, nil
	case *corev1.Pod:
		return c.trim(v).Pod, nil
	case *corev1.Namespace:
		labels := map[string]string{}
		maps.Copy(labels, v.Labels)
		labels[desired.MetadataName] = v.Name
		return &view.Namespace{Name: v.Name, Labels: c.words.labels(labels)}, nil
	case *networkingv1.NetworkPolicy:
		compiled, unclear := policy.Object(v)
		return &view.Policy{Policy: compiled, UID: view.UIDOf(string(v.UID)), APIUID: string(v.UID), Unclear: unclear}, nil
	}
	return nil, fmt.Errorf("a %T is none of the objects that are watched", v)
}

const configHash = "kubernetes.io/config.hash" // kubelet's annotation of mirror pods

// trim keeps what is needed of a Pod, in memory of its own.
func (c *Cluster) trim(p *corev1.Pod) pod {
	version, _ := strconv.ParseUint(p.ResourceVersion, 10, 64)
	t := &view.Pod{
		Pod:     desired.Pod{Namespace: c.words.word(p.Namespace), Name: strings.Clone(p.Name), Labels: c.words.labels(p.Labels)},
		UID:     view.UIDOf(string(p.UID)),
		Version: version,
		Rank:    uint64(max(0, p.CreationTimestamp.Unix())),
	}
	if p.Spec.NodeName == c.Name {
		t.Own = &view.Identity{
			UID: strings.Clone(string(p.UID)), Hash: strings.Clone(p.Annotations[configHash]),
			Sources: c.words.word(config.ShortSources(p.Annotations[config.SourcesAnnotation])),
		}
	}
	if p.DeletionTimestamp == nil {
		t.Rank += 1 << 62
	}
	if p.Status.Phase == corev1.PodRunning {
		t.Rank += 1 << 61
	}
	// The node's addresses are not a pod's, and a pod that has ended has given its own back.
	if ended := p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed; !p.Spec.HostNetwork && !ended {
		t.Addresses = addresses(p.Status)
	}
	t.Peer = len(t.Addresses) > 0
	if t.Ports = policy.NamedPorts(&p.Spec); t.Ports != nil {
		for i, port := range t.Ports {
			t.Ports[i].Name = c.words.word(port.Name)
		}
	}
	return pod{t}
}

func addresses(s corev1.PodStatus) []netip.Addr {
	var out []netip.Addr
	add := func(text string) {
		if a, err := netip.ParseAddr(text); err == nil && !slices.Contains(out, a.Unmap()) {
			out = append(out, a.Unmap())
		}
	}
	add(s.PodIP)
	for _, ip := range s.PodIPs {
		add(ip.IP)
	}
	return slices.Clip(out)
}

// words keeps one copy of each word and of each set of labels: pods of one template have
// them in common.
type words struct {
	mu     sync.Mutex
	single map[string]string
	sets   map[uint64]map[string]string // by hash
	seed   maphash.Seed
}

// mostWords bounds what is remembered of pods that are gone.
const mostWords = 1 << 16

func newWords() *words {
	return &words{single: map[string]string{}, sets: map[uint64]map[string]string{}, seed: maphash.MakeSeed()}
}

func (w *words) word(s string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.one(s)
}

func (w *words) one(s string) string {
	if known, ok := w.single[s]; ok {
		return known
	}
	if len(w.single) > mostWords {
		clear(w.single)
	}
	s = strings.Clone(s)
	w.single[s] = s
	return s
}

func (w *words) labels(labels map[string]string) map[string]string {
	if len(labels) == 0 {
		return nil
	}
	hash := uint64(0)
	for k, v := range labels { // in any order
		hash += maphash.Comparable(w.seed, [2]string{k, v})
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if known := w.sets[hash]; maps.Equal(known, labels) {
		return known
	}
	if len(w.sets) > mostWords {
		clear(w.sets)
	}
	own := make(map[string]string, len(labels))
	for k, v := range labels {
		own[w.one(k)] = w.one(v)
	}
	w.sets[hash] = own
	return own
}
