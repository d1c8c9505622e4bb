package config

import "fmt"

// DefaultNodePorts is the range of a kube-apiserver without --service-node-port-range.
var DefaultNodePorts = PortRange{First: 30000, Last: 32767}

// PortRange is an inclusive range of ports, 0 to 65535; those of NodePorts begin with 1.
type PortRange struct {
	First uint16 `json:"first"`
	Last  uint16 `json:"last"`
}

// Contains reports whether port lies in the range.
func (r PortRange) Contains(port uint16) bool { return r.First <= port && port <= r.Last }

// String renders "80" or "80:90", the form of the key "kubeNodePortRanges".
func (r PortRange) String() string {
	if r.First == r.Last {
		return fmt.Sprint(r.First)
	}
	return fmt.Sprintf("%d:%d", r.First, r.Last)
}
