package nodeports

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/tools/cache"
)

// What is kept of an object is what is read of it, and what names it. It is kept
// again when it is trimmed again, and what is no object is left alone.
func TestTrim(t *testing.T) {
	long := metav1.ObjectMeta{
		Namespace: "a", Name: "b", UID: "c", ResourceVersion: "1",
		Labels: map[string]string{"x": "y"}, Annotations: map[string]string{"x": "y"}, ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "z"}},
	}
	short := metav1.ObjectMeta{Namespace: "a", Name: "b", UID: "c", ResourceVersion: "1"}
	for name, tt := range map[string]struct {
		trim     func(any) (any, error)
		in, want any
	}{
		"service": {
			trim: trimService,
			in: &corev1.Service{ObjectMeta: long, Spec: corev1.ServiceSpec{
				ClusterIP: "10.96.0.1", Selector: map[string]string{"x": "y"},
				Ports: []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolUDP, Port: 80, NodePort: 30080}, {Port: 81}},
			}},
			want: &corev1.Service{ObjectMeta: short, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Protocol: corev1.ProtocolUDP, NodePort: 30080}}}},
		},
		"pod": {
			trim: trimPod,
			in: &corev1.Pod{
				ObjectMeta: long,
				Spec:       corev1.PodSpec{NodeName: "n", Containers: []corev1.Container{{Name: "s", Image: "i", Command: []string{"c"}, Args: []string{"a"}, Env: []corev1.EnvVar{{Name: "e"}}}}},
				Status:     corev1.PodStatus{Phase: corev1.PodRunning, HostIP: "192.0.2.1"},
			},
			want: &corev1.Pod{
				ObjectMeta: short,
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "s", Command: []string{"c"}, Args: []string{"a"}}}},
				Status:     corev1.PodStatus{Phase: corev1.PodRunning},
			},
		},
		"FelixConfiguration": {
			trim: trimFelix,
			in: &unstructured.Unstructured{Object: map[string]any{
				"apiVersion": "g/v1", "kind": "F", "metadata": map[string]any{"name": "b", "uid": "c", "resourceVersion": "1", "labels": map[string]any{"x": "y"}},
				"spec": map[string]any{"iptablesMarkMask": int64(1), "nftablesMarkMask": int64(2), "nftablesMode": "Auto", "kubeNodePortRanges": []any{"1:2"}, "logSeverityScreen": "Info"},
			}},
			want: &unstructured.Unstructured{Object: map[string]any{
				"apiVersion": "g/v1", "kind": "F", "metadata": map[string]any{"name": "b", "uid": "c", "resourceVersion": "1"},
				"spec": map[string]any{"iptablesMarkMask": int64(1), "nftablesMarkMask": int64(2), "nftablesMode": "Auto", "kubeNodePortRanges": []any{"1:2"}},
			}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			once, err := tt.trim(tt.in)
			if diff := cmp.Diff(tt.want, once); diff != "" || err != nil {
				t.Fatalf("%v (-want +got):\n%s", err, diff)
			}
			twice, err := tt.trim(once)
			if diff := cmp.Diff(tt.want, twice); diff != "" || err != nil {
				t.Errorf("trimmed twice: %v (-want +got):\n%s", err, diff)
			}
			gone := cache.DeletedFinalStateUnknown{Key: "a/b"}
			if got, err := tt.trim(gone); err != nil || got != any(gone) {
				t.Errorf("a deletion that was missed: got %v, %v", got, err)
			}
		})
	}
}
