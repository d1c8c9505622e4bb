package nodeports

import (
	"errors"
	"fmt"
	"log/slog"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/podmark/podmark/pkg/desired"
)

// A trim function makes a new object: one that shares memory with the old would keep
// all of it. It may be called with what it returned before, and with things that are no
// objects, which it leaves alone.

func trimMeta(m metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: m.Namespace, Name: m.Name, UID: m.UID, ResourceVersion: m.ResourceVersion}
}

func trimService(v any) (any, error) {
	s, ok := v.(*corev1.Service)
	if !ok {
		return v, nil
	}
	out := &corev1.Service{ObjectMeta: trimMeta(s.ObjectMeta)}
	for _, p := range s.Spec.Ports {
		if p.NodePort != 0 {
			out.Spec.Ports = append(out.Spec.Ports, corev1.ServicePort{Protocol: p.Protocol, NodePort: p.NodePort})
		}
	}
	return out, nil
}

func trimPod(v any) (any, error) {
	p, ok := v.(*corev1.Pod)
	if !ok {
		return v, nil
	}
	out := &corev1.Pod{ObjectMeta: trimMeta(p.ObjectMeta), Status: corev1.PodStatus{Phase: p.Status.Phase}}
	for _, c := range p.Spec.Containers {
		out.Spec.Containers = append(out.Spec.Containers, corev1.Container{Name: c.Name, Command: c.Command, Args: c.Args})
	}
	return out, nil
}

func trimFelix(v any) (any, error) {
	u, ok := v.(*unstructured.Unstructured)
	if !ok {
		return v, nil
	}
	out := &unstructured.Unstructured{Object: map[string]any{}}
	out.SetAPIVersion(u.GetAPIVersion())
	out.SetKind(u.GetKind())
	out.SetName(u.GetName())
	out.SetUID(u.GetUID())
	out.SetResourceVersion(u.GetResourceVersion())
	spec := map[string]any{}
	for _, key := range felixKeys {
		if value, found, err := unstructured.NestedFieldNoCopy(u.Object, "spec", key); err == nil && found {
			spec[key] = value
		}
	}
	out.Object["spec"] = spec
	return out, nil
}

// takeServices leaves out healthCheckNodePort: kube-proxy itself listens on that, as a
// process of the node.
func (w *Watcher) takeServices(objects []any) {
	found := Services{Listed: objects != nil}
	for _, o := range objects {
		s, ok := o.(*corev1.Service)
		if !ok {
			continue
		}
		for _, p := range s.Spec.Ports {
			if port := uint16(p.NodePort); port != 0 && int32(port) == p.NodePort {
				found.Ports = append(found.Ports, desired.Port{
					Protocol:  protocol(p.Protocol),
					PortRange: desired.PortRange{First: port, Last: port},
				})
			}
		}
	}
	found.Ports = desired.MergePorts(found.Ports)
	w.update(func(s *state) { s.services = found })
}

// protocol takes an empty one for TCP, as the API does.
func protocol(p corev1.Protocol) desired.Protocol {
	switch p {
	case corev1.ProtocolUDP:
		return desired.UDP
	case corev1.ProtocolSCTP:
		return desired.SCTP
	default:
		return desired.TCP
	}
}

// takeFelix takes the FelixConfiguration of that name.
func (w *Watcher) takeFelix(name string) func(objects []any) {
	return func(objects []any) {
		var found *unstructured.Unstructured
		for _, o := range objects {
			// A server may not have heeded the field selector.
			if u, ok := o.(*unstructured.Unstructured); ok && u.GetName() == name {
				found = u
			}
		}
		var err error
		w.update(func(s *state) {
			if name == felixName {
				s.felixDefault = found
			} else {
				s.felixOfNode = found
			}
			s.felix, err = ParseFelix(s.felixDefault, s.felixOfNode)
		})
		w.tell(slog.LevelWarn, string(Felix), err)
	}
}

func (w *Watcher) takePods(objects []any) {
	found := map[string]APIServer{}
	var errs []error
	for _, o := range objects {
		pod, ok := o.(*corev1.Pod)
		if !ok {
			continue
		}
		server, err := ParsePod(pod)
		if err != nil {
			errs = append(errs, fmt.Errorf("pod %q: %w", pod.Name, err))
		}
		if server != nil {
			found[pod.Name] = *server
		}
	}
	w.tell(slog.LevelWarn, "arguments of "+string(Pod), errors.Join(errs...))
	w.update(func(s *state) { s.pods = found })
}
