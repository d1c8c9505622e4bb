package policy_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/policy"
)

func TestNamedPorts(t *testing.T) {
	container := func(ports ...corev1.ContainerPort) corev1.Container { return corev1.Container{Ports: ports} }
	port := func(name string, protocol corev1.Protocol, number int32) corev1.ContainerPort {
		return corev1.ContainerPort{Name: name, Protocol: protocol, ContainerPort: number}
	}
	sidecar := container(port("metrics", "TCP", 9090))
	sidecar.RestartPolicy = new(corev1.ContainerRestartPolicyAlways)
	spec := &corev1.PodSpec{
		InitContainers: []corev1.Container{sidecar, container(port("setup", "TCP", 7000))},
		Containers: []corev1.Container{
			container(port("web", "", 8080), port("dns", "UDP", 53), port("dns", "TCP", 53), port("", "TCP", 1234), port("bulk", "SCTP", 65535)),
			container(port("web", "TCP", 8081), port("web", "TCP", 8080), port("odd", "ICMP", 1), port("zero", "TCP", 0), port("high", "TCP", 65536)),
		},
	}
	want := []attachment.NamedPort{
		{Name: "bulk", Protocol: 132, Number: 65535},
		{Name: "dns", Protocol: 6, Number: 53},
		{Name: "dns", Protocol: 17, Number: 53},
		{Name: "metrics", Protocol: 6, Number: 9090},
		{Name: "setup", Protocol: 6, Number: 7000},
		{Name: "web", Protocol: 6, Number: 8080},
		{Name: "web", Protocol: 6, Number: 8081},
	}
	if diff := cmp.Diff(want, policy.NamedPorts(spec)); diff != "" {
		t.Errorf("named ports (-want +got):\n%s", diff)
	}
	if got := policy.NamedPorts(&corev1.PodSpec{}); got != nil {
		t.Errorf("a pod without ports has %v", got)
	}
}
