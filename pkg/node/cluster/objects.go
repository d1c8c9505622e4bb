package cluster

import (
	"hash/maphash"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/policy"
)

// pod is what is kept of a Pod: hundreds of bytes, of which the API has thousands.
type pod struct {
	desired.Pod
	// own is who a pod is that is bound to this node; nil for one of another.
	own     *identity
	version uint64
	// rank tells whose an address is that several pods have: the one that came last, of
	// those that do not go.
	rank uint64
	// seen are the watches that see it.
	seen []*watching
	// peer is whether it can be somebody's peer by its addresses: it has some of its own,
	// and has not ended.
	peer bool
	// served is whether it had an attachment on this node.
	served bool
}

// identity is by what a runtime may know a pod: a static one has the UID of its manifest,
// which is the hash that the kubelet notes on the mirror pod.
type identity struct {
	uid, hash string
	// sources is the pod's [config.SourcesAnnotation].
	sources string
}

// GetObjectMeta lets client-go's stores name the pod.
func (p *pod) GetObjectMeta() metav1.Object {
	return &metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name}
}

// known reports whether it is bound to this node, and the runtime's UID is the pod's.
func (p *pod) known(uid string) bool {
	return p != nil && p.own != nil && (uid == "" || uid == p.own.uid || uid == p.own.hash)
}

// uid is that of a pod of this node, and empty for one of another.
func (p *pod) uid() string {
	if p.own == nil {
		return ""
	}
	return p.own.uid
}

const configHash = "kubernetes.io/config.hash" // kubelet's annotation of mirror pods

// trim keeps what is needed of an object of the API, in memory of its own.
func (c *Cluster) trim(v any) (any, error) {
	p, ok := v.(*corev1.Pod)
	if !ok {
		return v, nil
	}
	version, _ := strconv.ParseUint(p.ResourceVersion, 10, 64)
	t := &pod{
		Pod:     desired.Pod{Namespace: c.words.word(p.Namespace), Name: strings.Clone(p.Name), Labels: c.words.labels(p.Labels)},
		version: version,
		rank:    uint64(max(0, p.CreationTimestamp.Unix())),
	}
	if p.Spec.NodeName == c.Name {
		t.own = &identity{strings.Clone(string(p.UID)), strings.Clone(p.Annotations[configHash]), c.words.word(config.ShortSources(p.Annotations[config.SourcesAnnotation]))}
	}
	if p.DeletionTimestamp == nil {
		t.rank += 1 << 62
	}
	if p.Status.Phase == corev1.PodRunning {
		t.rank += 1 << 61
	}
	// The node's addresses are not a pod's, and a pod that has ended has given its own back.
	if ended := p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed; !p.Spec.HostNetwork && !ended {
		t.Addresses = addresses(p.Status)
	}
	t.peer = len(t.Addresses) > 0
	if t.Ports = policy.NamedPorts(&p.Spec); t.Ports != nil {
		for i, port := range t.Ports {
			t.Ports[i].Name = c.words.word(port.Name)
		}
	}
	return t, nil
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
