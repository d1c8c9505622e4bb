package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/podmark/podmark/pkg/agent/runner"
	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/dataplane/hostport"
)

// Needs is what on the node asks for kernel parameters.
type Needs struct {
	// IPVS is set where services are done by it; see [Mode].
	IPVS bool
	// Policed4 is set where a policed endpoint has an IPv4 address, or is about to.
	Policed4 bool
	// Bridge4 and Bridge6 are set where policed endpoints of that family sit on a
	// bridge, or are about to.
	Bridge4, Bridge6 bool
}

// NeedsOf tells the needs of a node that does its services like mode and has these
// attachments. policed says that a network polices its pods, and bridged that it makes
// their links ports of a bridge: what they need has to be there before the first of them.
func NeedsOf(mode Mode, records []attachment.Record, policed, bridged bool) Needs {
	n := Needs{IPVS: mode.IPVS, Policed4: policed, Bridge4: policed && bridged, Bridge6: policed && bridged}
	for _, r := range records {
		if !r.Policed {
			continue
		}
		for _, a := range r.Addresses {
			n.Policed4 = n.Policed4 || a.Is4()
			n.Bridge4 = n.Bridge4 || a.Is4() && !r.Routed()
			n.Bridge6 = n.Bridge6 || a.Is6() && !r.Routed()
		}
	}
	return n
}

// OnBridge reports whether the main plugin of that type makes bridge ports: those
// of containernetworking/plugins, and flannel's, which calls bridge.
func OnBridge(mainPlugin string) bool {
	return slices.Contains([]string{"bridge", "flannel"}, mainPlugin)
}

// Sysctl is a kernel parameter that the node needs, and what it is.
type Sysctl struct {
	// Name is as sysctl(8) writes it, with dots.
	Name string `json:"name"`
	Want string `json:"want"`
	// Value is empty where the kernel does not have it: then Module is not loaded, if it
	// belongs to one.
	Value  string `json:"value"`
	Module string `json:"module"`
	// Before is what it was until the daemon set it, in this reconciliation.
	Before string `json:"before,omitempty"`
	// Error says why it could not be read or set.
	Error string `json:"error,omitempty"`
}

// OK reports whether it is what it should be.
func (s Sysctl) OK() bool { return s.Value == s.Want }

// Fix is the command that makes it so.
func (s Sysctl) Fix() string {
	set := fmt.Sprintf("sysctl -w %s=%s", s.Name, s.Want)
	if s.Value == "" {
		return "modprobe " + s.Module + " && " + set
	}
	return set
}

// Sysctls lists what must be set for these needs, with no value yet. Whoever sets
// anything asks here.
//
//   - net.ipv4.vs.conntrack: without it IPVS takes its packets out of conntrack
//     (ip_vs_conn_drop_conntrack and IP_VS_CONN_F_NFCT in net/netfilter/ipvs), so no
//     reply behind a service is known as one. kube-proxy sets it when it starts.
//   - net.bridge.bridge-nf-call-*: without it frames between two ports of a bridge
//     pass none of the hooks in which either backend judges.
//   - net.ipv4.conf.all.accept_source_route: with it the node sends a packet on to the
//     next address of its source route, which takes the place of the destination behind
//     the hooks of FORWARD (ip_forward_options in net/ipv4/ip_options.c).
func (n Needs) Sysctls() []Sysctl {
	var out []Sysctl
	add := func(needed bool, name, want, module string) {
		if needed {
			out = append(out, Sysctl{Name: name, Want: want, Module: module})
		}
	}
	add(n.IPVS, "net.ipv4.vs.conntrack", "1", "ip_vs")
	add(n.Bridge4, hostport.BridgeSysctl(false), "1", "br_netfilter")
	add(n.Bridge6, hostport.BridgeSysctl(true), "1", "br_netfilter")
	add(n.Policed4, "net.ipv4.conf.all.accept_source_route", "0", "")
	return out
}

// ReadSysctls is what is needed, each with its value in the network namespace of
// the process.
func ReadSysctls(n Needs) []Sysctl {
	list := n.Sysctls()
	for i := range list {
		b, err := os.ReadFile(list[i].path())
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			list[i].Error = err.Error()
		}
		list[i].Value = strings.TrimSpace(string(b))
	}
	return list
}

func (s Sysctl) path() string {
	return filepath.Join("/proc/sys", strings.ReplaceAll(s.Name, ".", "/"))
}

// set writes the value that is wanted.
func (s Sysctl) set() Sysctl {
	if err := os.WriteFile(s.path(), []byte(s.Want), 0); err != nil {
		s.Error = err.Error()
		return s
	}
	s.Before, s.Value = s.Value, s.Want
	return s
}

// sysctls keeps what the node needs, over many reconciliations.
type sysctls struct {
	// set is whether anything may be changed at all.
	set bool
	// backoffs are by the names of parameters.
	backoffs map[string]*runner.Backoff
}

// look reads what is needed, and sets what is wrong and there, if it may.
func (k sysctls) look(n Needs, now time.Time) []Sysctl {
	list := ReadSysctls(n)
	for i, s := range list {
		if k.set && s.Value != "" && s.Error == "" && k.may(s, now) {
			list[i] = s.set()
		}
	}
	return list
}

// Each time that a value was changed it is set once. Who keeps changing it is answered less and
// less often, and as at first once it has stayed for the longest of the pauses.
const (
	minPause = 10 * time.Second
	maxPause = time.Hour
)

// may tells whether to set a parameter now, and counts on that.
func (k sysctls) may(s Sysctl, now time.Time) bool {
	b := k.backoffs[s.Name]
	if b == nil {
		b = &runner.Backoff{Window: maxPause, Least: minPause, Most: maxPause}
		k.backoffs[s.Name] = b
	}
	if s.OK() || b.Waiting(now) {
		return false
	}
	b.Next(now)
	return true
}
