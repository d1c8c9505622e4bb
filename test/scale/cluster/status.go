package cluster

import corev1 "k8s.io/api/core/v1"

func conditionTypes() []corev1.PodConditionType {
	return []corev1.PodConditionType{corev1.PodReadyToStartContainers, corev1.PodInitialized, corev1.PodReady, corev1.ContainersReady, corev1.PodScheduled}
}

// status is what scheduler and kubelet have said.
func (p *pod) status(o *corev1.Pod) corev1.PodStatus {
	out := corev1.PodStatus{Phase: corev1.PodPending, QOSClass: corev1.PodQOSBurstable}
	if p.phase == pending {
		return out
	}
	when := at(p.serial + 1)
	for _, t := range conditionTypes() {
		c := corev1.PodCondition{Type: t, Status: corev1.ConditionTrue, LastTransitionTime: when}
		if ready := t == corev1.PodReady || t == corev1.ContainersReady; ready && p.phase != running && p.phase != terminating ||
			p.phase == scheduled && t == corev1.PodReadyToStartContainers {
			c.Status, c.Reason, c.Message = corev1.ConditionFalse, "ContainersNotReady", "containers with unready status"
		}
		out.Conditions = append(out.Conditions, c)
	}
	host := nodeAddresses(p.node)
	out.HostIP, out.StartTime = host[0].String(), &when
	for _, a := range host {
		out.HostIPs = append(out.HostIPs, corev1.HostIP{IP: a.String()})
	}
	if p.phase == scheduled {
		out.ContainerStatuses = p.containers(o)
		return out
	}
	out.Phase = corev1.PodRunning
	if p.phase == completed {
		out.Phase = corev1.PodSucceeded
	}
	addresses := p.addresses()
	out.PodIP = addresses[0].String()
	for _, a := range addresses {
		out.PodIPs = append(out.PodIPs, corev1.PodIP{IP: a.String()})
	}
	out.ContainerStatuses = p.containers(o)
	return out
}

func (p *pod) containers(o *corev1.Pod) []corev1.ContainerStatus {
	var out []corev1.ContainerStatus
	when := at(p.serial + 2)
	for i, c := range o.Spec.Containers {
		started := p.phase == running || p.phase == terminating
		s := corev1.ContainerStatus{Name: c.Name, Image: c.Image, Ready: started, Started: &started}
		id := "containerd://" + hash("container", p.serial*8+i)
		switch {
		case started:
			s.State.Running = &corev1.ContainerStateRunning{StartedAt: when}
		case p.phase == scheduled:
			s.State.Waiting = &corev1.ContainerStateWaiting{Reason: "ContainerCreating"}
		default:
			s.State.Terminated = &corev1.ContainerStateTerminated{Reason: "Completed", StartedAt: when, FinishedAt: when, ContainerID: id}
		}
		if p.phase != scheduled {
			s.ContainerID = id
			s.ImageID = "registry.example.org/" + c.Name + "@sha256:" + hash("image", len(c.Image))
		}
		out = append(out, s)
	}
	return out
}
