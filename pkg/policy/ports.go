package policy

import (
	"cmp"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/podmark/podmark/pkg/attachment"
)

// NamedPorts lists what a pod calls its ports, sorted and each once, of containers and of
// init containers: sidecars serve while the pod runs, and others until it does.
//
// Two containers may give one name to different ports, and then it stands for all of
// them. A Service takes the first such port, because it must send somewhere; a policy lets
// through what its author named, and kube-network-policies and cyclonus read it so too.
func NamedPorts(spec *corev1.PodSpec) []attachment.NamedPort {
	var ports []corev1.ContainerPort
	for _, containers := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
		for _, c := range containers {
			ports = append(ports, c.Ports...)
		}
	}
	return AppendNamed(nil, ports)
}

// AppendNamed appends to an empty list what [NamedPorts] lists of a pod whose containers and
// init containers have these ports.
func AppendNamed(ports []attachment.NamedPort, of []corev1.ContainerPort) []attachment.NamedPort {
	for _, p := range of {
		// The API server fills in TCP where no protocol is given.
		number, known := protocol(cmp.Or(p.Protocol, corev1.ProtocolTCP))
		if p.Name == "" || !known || p.ContainerPort < 1 || p.ContainerPort > 65535 {
			continue
		}
		ports = append(ports, attachment.NamedPort{Name: p.Name, Protocol: uint8(number), Number: uint16(p.ContainerPort)})
	}
	slices.SortFunc(ports, func(a, b attachment.NamedPort) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Number, b.Number))
	})
	return slices.Compact(ports)
}
