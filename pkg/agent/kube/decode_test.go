package kube

import (
	"bytes"
	"encoding/json"
	"math"
	"math/rand"
	"net/netip"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/apitesting/fuzzer"
	metafuzzer "k8s.io/apimachinery/pkg/apis/meta/fuzzer"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/randfill"

	"github.com/podmark/podmark/pkg/agent/kube/view"
	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/policy"
)

const here = "node-1"

// forms are how an API server writes objects.
type forms struct {
	codecs  serializer.CodecFactory
	words   *interner
	decoder map[string]decoder // by media type
}

func newForms(t testing.TB) forms {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	f := forms{serializer.NewCodecFactory(scheme), newInterner(), map[string]decoder{}}
	for _, info := range (podSerializer{f.codecs.WithoutConversion(), f.words, here}).SupportedMediaTypes() {
		f.decoder[info.MediaType] = info.Serializer.(decoder)
	}
	return f
}

// write is the object as the API server writes it.
func (f forms) write(t testing.TB, media string, o runtime.Object) []byte {
	t.Helper()
	info, ok := runtime.SerializerInfoForMediaType(f.codecs.SupportedMediaTypes(), media)
	if !ok {
		t.Fatalf("client-go does not know %s", media)
	}
	b, err := runtime.Encode(f.codecs.EncoderForVersion(info.Serializer, corev1.SchemeGroupVersion), o)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// whole is the object that a message is, all of it.
func (f forms) whole(media string, b []byte) (runtime.Object, error) {
	info, _ := runtime.SerializerInfoForMediaType(f.codecs.SupportedMediaTypes(), media)
	return runtime.Decode(f.codecs.DecoderToVersion(info.Serializer, corev1.SchemeGroupVersion), b)
}

// trimmed is what is to be kept of a whole Pod, worked out in the plainest way.
func trimmed(p *corev1.Pod) *view.Pod {
	out := &view.Pod{UID: view.UIDOf(string(p.UID))}
	out.Template, out.Name = &desired.Template{Namespace: p.Namespace}, p.Name
	out.Version, _ = strconv.ParseUint(p.ResourceVersion, 10, 64)
	out.Rank = uint64(max(0, p.CreationTimestamp.Unix()))
	if p.DeletionTimestamp == nil {
		out.Rank += 1 << 62
	} else {
		out.Until = uint32(min(max(1, p.DeletionTimestamp.Unix()), math.MaxUint32))
	}
	if p.Status.Phase == corev1.PodRunning {
		out.Rank += 1 << 61
	}
	if p.Spec.NodeName == here {
		out.Own = &view.Own{Labels: p.Labels, Identity: view.Identity{UID: string(p.UID), Hash: p.Annotations[configHash], Sources: config.ShortSources(p.Annotations[config.SourcesAnnotation])}}
	}
	if !p.Spec.HostNetwork && p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed {
		var list []netip.Addr
		for _, ip := range append([]corev1.PodIP{{IP: p.Status.PodIP}}, p.Status.PodIPs...) {
			if a, err := netip.ParseAddr(ip.IP); err == nil && a.Zone() == "" && !slices.Contains(list, a.Unmap()) {
				list = append(list, a.Unmap())
			}
		}
		out.Addresses, out.Peer = desired.AddressesOf(list...), len(list) > 0
	}
	out.Ports = policy.NamedPorts(&p.Spec)
	return out
}

// differs says where what was kept of a Pod is not what is to be kept of it.
func differs(got *pod, whole *corev1.Pod) string {
	labels := map[string]string{}
	for k, v := range got.kept.Labels.All() {
		labels[k] = v
	}
	is, template := *got.kept, *got.kept.Template
	is.Template, template.Labels = &template, nil
	meta := got.GetObjectMeta()
	return cmp.Diff(trimmed(whole), &is, cmpopts.EquateComparable(netip.Addr{}), cmpopts.EquateEmpty(), cmpopts.IgnoreUnexported(view.Pod{}, view.Own{})) +
		cmp.Diff(whole.Labels, labels, cmpopts.EquateEmpty()) +
		cmp.Diff([]string{whole.Namespace, whole.Name, whole.ResourceVersion}, []string{meta.GetNamespace(), meta.GetName(), meta.GetResourceVersion()}) +
		cmp.Diff(whole.Annotations[metav1.InitialEventsAnnotationKey], meta.GetAnnotations()[metav1.InitialEventsAnnotationKey])
}

// filler makes Pods of all fields that there are, with those that matter often as they matter.
func filler(seed int64) *randfill.Filler {
	codecs := serializer.NewCodecFactory(runtime.NewScheme())
	some := func(c randfill.Continue, list ...string) string { return list[c.Intn(len(list))] }
	return fuzzer.FuzzerFor(fuzzer.MergeFuzzerFuncs(metafuzzer.Funcs, func(serializer.CodecFactory) []any {
		return []any{
			func(p *corev1.Pod, c randfill.Continue) {
				c.FillNoCustom(p)
				p.TypeMeta = metav1.TypeMeta{}
				p.ResourceVersion = some(c, p.ResourceVersion, strconv.Itoa(c.Intn(1000)), "")
				for _, key := range []string{configHash, config.SourcesAnnotation, metav1.InitialEventsAnnotationKey} {
					if c.Intn(3) == 0 {
						metav1.SetMetaDataAnnotation(&p.ObjectMeta, key, some(c, c.String(8), "", "10.0.0.0/8", "true"))
					}
				}
				if c.Intn(3) == 0 {
					p.DeletionTimestamp = &metav1.Time{Time: time.Unix(c.Int63n(1<<33)-1<<20, 0)}
				}
				p.Spec.NodeName = some(c, here, "", p.Spec.NodeName)
				p.Spec.HostNetwork = c.Intn(4) == 0
				p.Status.Phase = corev1.PodPhase(some(c, "Pending", "Running", "Running", "Succeeded", "Failed", ""))
				p.Status.PodIP = some(c, "10.1.2.3", "fd00::1", "", p.Status.PodIP, "fe80::1%eth0")
			},
			func(ip *corev1.PodIP, c randfill.Continue) {
				ip.IP = some(c, "10.1.2.3", "::ffff:10.1.2.3", "10.1.2.4", "fd00::1", "", "10.1")
			},
			func(p *corev1.ContainerPort, c randfill.Continue) {
				c.FillNoCustom(p)
				p.Name, p.ContainerPort = some(c, "http", "dns", "", p.Name), int32(c.Intn(70000)-1000)
				p.Protocol = corev1.Protocol(some(c, "TCP", "UDP", "SCTP", "", "ICMP"))
			},
		}
	}), rand.NewSource(seed), codecs)
}

// What is kept of a Pod is the same whether all of it is decoded first or only what is kept,
// in every form in which an API server writes it, alone and in a list.
func TestKeptOfPods(t *testing.T) {
	seed := rand.Int63()
	t.Logf("seed %d", seed)
	fill, f := filler(seed), newForms(t)
	for _, media := range []string{runtime.ContentTypeProtobuf, runtime.ContentTypeJSON} {
		for range 10 {
			list := &corev1.PodList{ListMeta: metav1.ListMeta{ResourceVersion: "17", Continue: "there is more"}}
			for range 30 {
				var p corev1.Pod
				fill.Fill(&p)
				list.Items = append(list.Items, p)
				b := f.write(t, media, &p)
				whole, err := f.whole(media, b)
				if err != nil {
					t.Fatal(err)
				}
				got, _, err := f.decoder[media].Decode(b, nil, nil)
				if err != nil {
					t.Fatal(err)
				}
				if diff := differs(got.(*pod), whole.(*corev1.Pod)); diff != "" {
					t.Fatalf("%s, of %+v:\n%s", media, whole, diff)
				}
			}
			b := f.write(t, media, list)
			whole, err := f.whole(media, b)
			if err != nil {
				t.Fatal(err)
			}
			out, err := f.decoder[runtime.ContentTypeJSON].list(bytes.NewReader(b))
			if err != nil {
				t.Fatal(err)
			}
			got := out.(*pods)
			if got.ResourceVersion != "17" || got.Continue != "there is more" || len(got.Items) != len(list.Items) {
				t.Fatalf("%s: %d Pods, %+v", media, len(got.Items), got.ListMeta)
			}
			for i, p := range got.Items {
				if diff := differs(p, &whole.(*corev1.PodList).Items[i]); diff != "" {
					t.Fatalf("%s, in a list:\n%s", media, diff)
				}
			}
		}
	}
}

// What is no Pod is what client-go makes of it.
func TestOtherObjects(t *testing.T) {
	f := newForms(t)
	for media, d := range f.decoder {
		b := f.write(t, media, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}})
		o, kind, err := d.Decode(b, nil, nil)
		if n, ok := o.(*corev1.Namespace); err != nil || !ok || n.Name != "shop" || kind.Kind != "Namespace" {
			t.Errorf("%s: %v, %v, %v", media, o, kind, err)
		}
	}
}

// The events of a watch are those of client-go.
func TestEvents(t *testing.T) {
	f := newForms(t)
	p := f.write(t, runtime.ContentTypeProtobuf, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web"}})
	for _, kind := range []string{string(watch.Added), string(watch.Bookmark), "ODD"} {
		want := metav1.WatchEvent{Type: kind, Object: runtime.RawExtension{Raw: p}}
		b, err := want.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		got := metav1.WatchEvent{Type: "former"}
		if o, _, err := (events{}).Decode(b, nil, &got); err != nil || o != runtime.Object(&got) || got.Type != kind || !bytes.Equal(got.Object.Raw, p) {
			t.Errorf("%s becomes %+v: %v", kind, got, err)
		}
	}
}

// A message that ends early is an error, and one that is damaged is never more than that.
func TestDamagedPods(t *testing.T) {
	seed := rand.Int63()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewSource(seed))
	fill, f := filler(seed), newForms(t)
	var p corev1.Pod
	fill.Fill(&p)
	one := f.write(t, runtime.ContentTypeProtobuf, &p)
	list := f.write(t, runtime.ContentTypeProtobuf, &corev1.PodList{Items: []corev1.Pod{p, p}})
	d := f.decoder[runtime.ContentTypeProtobuf]
	for range 3000 {
		cut := one[:r.Intn(len(one))]
		_, wholeErr := f.whole(runtime.ContentTypeProtobuf, cut)
		if _, _, err := d.Decode(cut, nil, nil); err == nil && wholeErr != nil {
			t.Fatalf("%d bytes of %d are a Pod", len(cut), len(one))
		}
		cut = list[:r.Intn(len(list))]
		_, wholeErr = f.whole(runtime.ContentTypeProtobuf, cut)
		if _, err := d.list(bytes.NewReader(cut)); err == nil && wholeErr != nil {
			t.Fatalf("%d bytes of %d are a list", len(cut), len(list))
		}
		f.damaged(t, one, r)
		f.damaged(t, list, r)
	}
}

// damaged has something of a message changed, and read.
func (f forms) damaged(t testing.TB, b []byte, r *rand.Rand) {
	b = bytes.Clone(b)
	for range 1 + r.Intn(4) {
		b[r.Intn(len(b))] = byte(r.Intn(256))
	}
	f.read(t, b)
}

// read reads a message in every way. Where client-go takes it for a Pod too, it is the same.
func (f forms) read(t testing.TB, b []byte) {
	t.Helper()
	whole, wholeErr := f.whole(runtime.ContentTypeProtobuf, b)
	o, _, err := f.decoder[runtime.ContentTypeProtobuf].Decode(b, nil, nil)
	got, ok := o.(*pod)
	if want, both := whole.(*corev1.Pod); err == nil && wholeErr == nil && ok && both {
		if diff := differs(got, want); diff != "" {
			t.Fatalf("%q:\n%s", b, diff)
		}
	}
	_, _ = f.decoder[runtime.ContentTypeJSON].list(bytes.NewReader(b)) // it must end
	_, _, _ = (events{}).Decode(b, nil, &metav1.WatchEvent{})
}

// Whatever is sent is read as client-go reads it, or is an error.
func FuzzPod(f *testing.F) {
	forms := newForms(f)
	fill := filler(1)
	for range 4 {
		var p corev1.Pod
		fill.Fill(&p)
		f.Add(forms.write(f, runtime.ContentTypeProtobuf, &p))
		f.Add(forms.write(f, runtime.ContentTypeProtobuf, &corev1.PodList{Items: []corev1.Pod{p}}))
	}
	small := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", Labels: map[string]string{"app": "web"}}, Status: corev1.PodStatus{PodIP: "10.1.2.3"}}
	f.Add(forms.write(f, runtime.ContentTypeProtobuf, &small))
	text, err := json.Marshal(small)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, b []byte) { forms.read(t, b) })
}
