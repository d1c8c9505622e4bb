package cluster

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// at is a time for whatever has this number.
func at(n int) metav1.Time {
	return metav1.NewTime(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(n) * time.Second))
}

func hash(kind string, n int) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %d", kind, n))
	return hex.EncodeToString(sum[:])
}

func uid(kind string, n int) types.UID {
	h := hash(kind, n)
	return types.UID(strings.Join([]string{h[:8], h[8:12], h[12:16], h[16:20], h[20:32]}, "-"))
}

// fields is a part of a field set as managedFields has it.
func fields(name string, inner ...string) string {
	return fmt.Sprintf("%q:{%s}", name, strings.Join(inner, ","))
}

func fieldSet(inner ...string) *metav1.FieldsV1 {
	return metav1.NewFieldsV1("{" + strings.Join(inner, ",") + "}")
}

func managed(manager, subresource string, when metav1.Time, set *metav1.FieldsV1) metav1.ManagedFieldsEntry {
	return metav1.ManagedFieldsEntry{
		Manager: manager, Operation: metav1.ManagedFieldsOperationUpdate, APIVersion: "v1", Time: &when,
		FieldsType: "FieldsV1", FieldsV1: set, Subresource: subresource,
	}
}

// object is the pod as the API server stores it.
func (c *Cluster) object(p *pod) *corev1.Pod {
	w := &c.workloads[p.workload]
	set := hash("set", w.number)[:10]
	controller := true
	out := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: w.name + "-" + set + "-" + p.suffix, GenerateName: w.name + "-" + set + "-",
			Namespace: namespaceName(w.namespace), UID: uid("pod", p.serial), CreationTimestamp: at(p.serial),
			Labels: map[string]string{
				"app": w.name, "role": roles()[p.role], "pod-template-hash": set,
				"app.kubernetes.io/name": w.name, "app.kubernetes.io/instance": w.name + "-production",
				"app.kubernetes.io/part-of": namespaceName(w.namespace), "app.kubernetes.io/managed-by": "Helm",
				"app.kubernetes.io/version": fmt.Sprintf("1.%d.0", w.number%30),
			},
			Annotations: map[string]string{
				"checksum/config": hash("config", w.number), "prometheus.io/scrape": "true", "prometheus.io/port": "9090",
				"kubectl.kubernetes.io/restartedAt": at(w.number).Format(time.RFC3339),
			},
			OwnerReferences: []metav1.OwnerReference{{
				APIVersion: "apps/v1", Kind: "ReplicaSet", Name: w.name + "-" + set, UID: uid("set", w.number), Controller: &controller, BlockOwnerDeletion: &controller,
			}},
		},
	}
	if w.template == nil {
		out.Spec = w.spec()
		w.template = &template{out.Spec, metadataFields(out), statusFields()}
	}
	out.Spec = w.template.spec
	out.ManagedFields = []metav1.ManagedFieldsEntry{
		managed("kube-controller-manager", "", out.CreationTimestamp, w.template.fields),
		managed("kubelet", "status", out.CreationTimestamp, w.template.status),
	}
	if p.node >= 0 {
		out.Spec.NodeName = Node(p.node)
	}
	if p.phase == terminating || p.phase == stopped {
		when, grace := at(p.serial+1000), int64(30)
		out.DeletionTimestamp, out.DeletionGracePeriodSeconds = &when, &grace
	}
	out.Status = p.status(out)
	return out
}

// spec is the template of the workload; one in six has a sidecar.
func (w *workload) spec() corev1.PodSpec {
	name, _, _ := strings.Cut(w.name, "-")
	containers := []corev1.Container{container(name, "http", int32(8000+w.number%7*10), w.number)}
	if w.number%6 == 0 {
		containers = append(containers, container("proxy", "metrics", 9090, w.number))
	} else {
		containers[0].Ports = append(containers[0].Ports, corev1.ContainerPort{Name: "metrics", ContainerPort: 9090, Protocol: corev1.ProtocolTCP})
	}
	grace, enable, seconds, priority, mode := int64(30), true, int64(300), int32(0), int32(420)
	preempt, expiration := corev1.PreemptLowerPriority, int64(3607)
	return corev1.PodSpec{
		HostNetwork: w.daemon,
		Volumes: []corev1.Volume{
			{Name: "config", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: w.name}, DefaultMode: &mode}}},
			{Name: "kube-api-access-" + hash("token", w.number)[:5], VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{DefaultMode: &mode, Sources: []corev1.VolumeProjection{
				{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{ExpirationSeconds: &expiration, Path: "token"}},
				{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "kube-root-ca.crt"}, Items: []corev1.KeyToPath{{Key: "ca.crt", Path: "ca.crt"}}}},
				{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{{Path: "namespace", FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: "metadata.namespace"}}}}},
			}}}},
		},
		Containers: containers, RestartPolicy: corev1.RestartPolicyAlways, TerminationGracePeriodSeconds: &grace,
		DNSPolicy: corev1.DNSClusterFirst, ServiceAccountName: w.name, DeprecatedServiceAccount: w.name,
		SecurityContext: &corev1.PodSecurityContext{RunAsNonRoot: &enable}, SchedulerName: corev1.DefaultSchedulerName,
		Tolerations: []corev1.Toleration{
			{Key: "node.kubernetes.io/not-ready", Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: &seconds},
			{Key: "node.kubernetes.io/unreachable", Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: &seconds},
		},
		Priority: &priority, EnableServiceLinks: &enable, PreemptionPolicy: &preempt,
	}
}

func container(name, portName string, number int32, seed int) corev1.Container {
	probe := func(path string) *corev1.Probe {
		return &corev1.Probe{
			ProbeHandler:   corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: intstr.FromString(portName), Scheme: corev1.URISchemeHTTP}},
			TimeoutSeconds: 1, PeriodSeconds: 10, SuccessThreshold: 1, FailureThreshold: 3,
		}
	}
	amounts := func(cpu, memory string) corev1.ResourceList {
		return corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory)}
	}
	no := false
	out := corev1.Container{
		Name: name, Image: fmt.Sprintf("registry.example.org/team-%02d/%s:1.%d.0", seed%teams, name, seed%30),
		Ports: []corev1.ContainerPort{{Name: portName, ContainerPort: number, Protocol: corev1.ProtocolTCP}},
		Env: []corev1.EnvVar{
			{Name: "POD_NAME", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: "metadata.name"}}},
			{Name: "POD_IP", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: "status.podIP"}}},
		},
		Resources: corev1.ResourceRequirements{Requests: amounts("100m", "128Mi"), Limits: amounts("1", "512Mi")},
		VolumeMounts: []corev1.VolumeMount{
			{Name: "config", MountPath: "/etc/" + name, ReadOnly: true},
			{Name: "kube-api-access-" + hash("token", seed)[:5], MountPath: "/var/run/secrets/kubernetes.io/serviceaccount", ReadOnly: true},
		},
		LivenessProbe: probe("/livez"), ReadinessProbe: probe("/readyz"),
		TerminationMessagePath: corev1.TerminationMessagePathDefault, TerminationMessagePolicy: corev1.TerminationMessageReadFile,
		ImagePullPolicy: corev1.PullIfNotPresent, SecurityContext: &corev1.SecurityContext{AllowPrivilegeEscalation: &no},
	}
	for i := range 1 + seed%4 {
		out.Env = append(out.Env, corev1.EnvVar{Name: fmt.Sprintf("SETTING_%d", i), Value: "https://" + hash("setting", seed+i)[:20] + ".example.org"})
	}
	return out
}

// template is what the pods of a workload share.
type template struct {
	spec           corev1.PodSpec
	fields, status *metav1.FieldsV1
}

func leaves(names ...string) []string {
	var out []string
	for _, n := range names {
		out = append(out, fields(n))
	}
	return out
}

// metadataFields are those that kube-controller-manager owns.
func metadataFields(p *corev1.Pod) *metav1.FieldsV1 {
	keys := func(m map[string]string) []string {
		out := leaves(".")
		for _, k := range slices.Sorted(maps.Keys(m)) {
			out = append(out, fields("f:"+k))
		}
		return out
	}
	var containers []string
	for _, c := range p.Spec.Containers {
		env, ports := leaves("."), leaves(".")
		for _, e := range c.Env {
			env = append(env, fields(fmt.Sprintf(`k:{"name":%q}`, e.Name), leaves(".", "f:name", "f:value")...))
		}
		for _, q := range c.Ports {
			ports = append(ports, fields(fmt.Sprintf(`k:{"containerPort":%d,"protocol":"TCP"}`, q.ContainerPort), leaves(".", "f:containerPort", "f:name", "f:protocol")...))
		}
		containers = append(containers, fields(fmt.Sprintf(`k:{"name":%q}`, c.Name), append(
			leaves(".", "f:image", "f:imagePullPolicy", "f:name", "f:livenessProbe", "f:readinessProbe", "f:resources", "f:securityContext", "f:terminationMessagePath", "f:terminationMessagePolicy", "f:volumeMounts"),
			fields("f:env", env...), fields("f:ports", ports...))...))
	}
	return fieldSet(
		fields("f:metadata", append(leaves("f:generateName", "f:ownerReferences"), fields("f:annotations", keys(p.Annotations)...), fields("f:labels", keys(p.Labels)...))...),
		fields("f:spec", append(leaves("f:dnsPolicy", "f:enableServiceLinks", "f:restartPolicy", "f:schedulerName", "f:securityContext", "f:serviceAccount", "f:serviceAccountName", "f:terminationGracePeriodSeconds", "f:volumes"),
			fields("f:containers", containers...))...))
}

// statusFields are those that kubelet owns.
func statusFields() *metav1.FieldsV1 {
	var conditions []string
	for _, t := range conditionTypes() {
		conditions = append(conditions, fields(fmt.Sprintf(`k:{"type":%q}`, t), leaves(".", "f:lastProbeTime", "f:lastTransitionTime", "f:status", "f:type")...))
	}
	return fieldSet(fields("f:status", append(leaves("f:containerStatuses", "f:hostIP", "f:hostIPs", "f:phase", "f:podIP", "f:podIPs", "f:startTime"), fields("f:conditions", conditions...))...))
}
