// Package rules has rules of other programs that tests load beside podmark's.
package rules

// KubeRouter is what kube-router's network policies have for packets to the node, between
// podmark's mark in INPUT and IPVS; for iptables-restore --noflush.
const KubeRouter = `*filter
:KUBE-ROUTER-INPUT - [0:0]
:KUBE-POD-FW-AAAA - [0:0]
-A INPUT -j KUBE-ROUTER-INPUT
-A KUBE-ROUTER-INPUT -j KUBE-POD-FW-AAAA
-A KUBE-POD-FW-AAAA -j MARK --set-xmark 0x0/0x10000
-A KUBE-POD-FW-AAAA -j MARK --set-xmark 0x20000/0x20000
COMMIT
`
