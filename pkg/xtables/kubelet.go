package xtables

// KubeletHints are the chains in mangle by which the kubelet tells which variant of iptables it uses
// (kubernetes/kubernetes#109059).
func KubeletHints() []string { return []string{"KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"} }
