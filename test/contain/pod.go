package contain

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// Node is where a pod is run.
type Node struct {
	// Root stands for the node's root directory: what is mounted from /run is from Root/run.
	Root string
	// Image is every image: a file of this machine for each path in it.
	Image map[string]string
	// ConfigMaps are directories with their files, by name.
	ConfigMaps map[string]string
}

// Of is what a container of a pod gets. It knows the fields that podmark's manifests
// use, and is an error for volumes, rights and namespaces that it does not know: what
// it cannot give, it cannot prove.
func Of(pod corev1.PodSpec, name string, n Node) (Container, error) {
	i := slices.IndexFunc(pod.Containers, func(c corev1.Container) bool { return c.Name == name })
	from := pod.Containers
	if i < 0 {
		from = pod.InitContainers
		i = slices.IndexFunc(from, func(c corev1.Container) bool { return c.Name == name })
	}
	if i < 0 {
		return Container{}, fmt.Errorf("the pod has no container %q", name)
	}
	spec, rights := from[i], from[i].SecurityContext
	if !pod.HostNetwork || pod.HostPID || pod.HostIPC || pod.SecurityContext != nil || rights == nil ||
		rights.Privileged == nil || *rights.Privileged || rights.RunAsUser == nil || *rights.RunAsUser != 0 ||
		rights.Capabilities == nil || !slices.Equal(rights.Capabilities.Drop, []corev1.Capability{"ALL"}) {
		return Container{}, fmt.Errorf("container %q: want the node's network alone, no privilege, user 0 and all capabilities dropped, have %+v, %+v", name, pod.SecurityContext, rights)
	}
	c := Container{Image: n.Image, Args: append(slices.Clone(spec.Command), spec.Args...)}
	for _, v := range rights.Capabilities.Add {
		c.Capabilities = append(c.Capabilities, string(v))
	}
	c.ReadOnly = rights.ReadOnlyRootFilesystem != nil && *rights.ReadOnlyRootFilesystem
	c.NoNewPrivileges = rights.AllowPrivilegeEscalation != nil && !*rights.AllowPrivilegeEscalation
	for _, v := range spec.Env {
		if v.ValueFrom != nil && v.ValueFrom.FieldRef != nil && v.ValueFrom.FieldRef.FieldPath == "spec.nodeName" {
			v.Value = "node"
		}
		c.Env = append(c.Env, v.Name+"="+v.Value)
	}
	for _, m := range spec.VolumeMounts {
		j := slices.IndexFunc(pod.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name })
		if j < 0 {
			return Container{}, fmt.Errorf("container %q mounts volume %q, which the pod does not have", name, m.Name)
		}
		mount := Mount{To: m.MountPath, ReadOnly: m.ReadOnly, Slave: m.MountPropagation != nil && *m.MountPropagation == corev1.MountPropagationHostToContainer}
		switch v := pod.Volumes[j]; {
		case v.HostPath != nil:
			mount.From = filepath.Join(n.Root, v.HostPath.Path)
			if v.HostPath.Type != nil && *v.HostPath.Type == corev1.HostPathDirectoryOrCreate {
				if err := os.MkdirAll(mount.From, 0o755); err != nil {
					return Container{}, err
				}
			}
		case v.ConfigMap != nil && n.ConfigMaps[v.ConfigMap.Name] != "":
			mount.From = n.ConfigMaps[v.ConfigMap.Name]
		default:
			return Container{}, fmt.Errorf("volume %q is of a kind that is not known here, or no ConfigMap of the test", v.Name)
		}
		c.Mounts = append(c.Mounts, mount)
	}
	return c, nil
}
