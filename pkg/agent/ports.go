package agent

import (
	"slices"

	"github.com/podmark/podmark/pkg/desired"
)

// PortMode says what the kernel is told of NodePorts.
type PortMode string

// The modes.
const (
	// PortsExact are the ports in use: a process of the node on another port of the
	// range is policed as one.
	PortsExact PortMode = "exact"
	// PortsRange are the configured ranges, and what is in use outside of them.
	PortsRange PortMode = "range"
)

// PortOptions are what the operator says about NodePorts.
type PortOptions struct {
	Mode PortMode
	// Ranges are nil where the operator does not say.
	Ranges []desired.PortRange
	// Source names where Ranges come from.
	Source string
	// Services are the NodePorts of Services, where these may be listed. kube-proxy is
	// about to tell IPVS of those that it has not yet.
	Services []desired.Port
}

// Decision is which ports of the node's own addresses IPVS may take.
type Decision struct {
	// Ranges are in force: sorted, and none touches another.
	Ranges []desired.PortRange `json:"ranges"`
	// SCTP are those of SCTP among them.
	SCTP []desired.PortRange `json:"sctp"`
	Mode PortMode            `json:"mode"`
	// Source says whose ranges Configured are.
	Source     string              `json:"source"`
	Configured []desired.PortRange `json:"configured"`
	// Outside are ports in use that no configured range has.
	Outside []uint16 `json:"outside"`
}

// decide joins what is configured with what is there. plugin are the ranges of the
// plugin's configuration, which count where nobody else has any.
func (o PortOptions) decide(plugin []desired.PortRange, f facts) Decision {
	d := Decision{Configured: o.Ranges, Source: o.Source, Mode: o.Mode}
	if o.Ranges == nil {
		d.Configured, d.Source = plugin, "kubeNodePortRanges of the conflist"
	}
	d.Configured = desired.MergeRanges(d.Configured)
	used, sctp := o.inUse(f), o.inUse(f, desired.SCTP)
	for _, p := range used {
		if !slices.ContainsFunc(d.Configured, func(r desired.PortRange) bool { return r.Contains(p) }) {
			d.Outside = append(d.Outside, p)
		}
	}
	d.Ranges, d.SCTP = single(used), single(sctp)
	if d.Mode == PortsRange {
		d.Ranges, d.SCTP = append(d.Ranges, d.Configured...), append(d.SCTP, d.Configured...)
	}
	d.Ranges, d.SCTP = desired.MergeRanges(d.Ranges), desired.MergeRanges(d.SCTP)
	return d
}

// inUse lists the ports of Services and those that IPVS answers on, by one of these
// protocols if any are named, sorted.
func (o PortOptions) inUse(f facts, protocols ...desired.Protocol) []uint16 {
	ports := f.inUse(protocols...)
	for _, s := range o.Services {
		if len(protocols) > 0 && !slices.Contains(protocols, s.Protocol) {
			continue
		}
		for p := int(s.First); p <= int(s.Last); p++ {
			ports = append(ports, uint16(p))
		}
	}
	slices.Sort(ports)
	return slices.Compact(ports)
}

func single(ports []uint16) []desired.PortRange {
	out := make([]desired.PortRange, len(ports))
	for i, p := range ports {
		out[i] = desired.PortRange{First: p, Last: p}
	}
	return out
}
