package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/podmark/podmark/pkg/apply"
	"github.com/podmark/podmark/pkg/apply/missing"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/ident"
	"github.com/podmark/podmark/pkg/node"
)

// reporter tells what the keeper finds: in the log, the metrics, the status file, and
// as events.
type reporter struct {
	log     *slog.Logger
	metrics *metrics
	tell    func(node.Reconciliation) // events
	store   ident.Store
	// policies says how it goes with what is followed.
	policies func() node.PolicyStatus

	mu     sync.Mutex
	status node.Status
}

// reconciled reports a look.
func (r *reporter) reconciled(l node.Reconciliation) {
	r.metrics.reconciled(l)
	r.tell(l)
	r.change(func(s node.Status) node.Status {
		logReconciliation(r.log, s, l)
		return s.After(l)
	})
}

// modeIs reports how services are done, which is looked at by itself.
func (r *reporter) modeIs(mode node.Mode) {
	r.metrics.mode.Store(&mode)
	r.change(func(s node.Status) node.Status {
		if mode.IPVS != s.Mode.IPVS || mode.Proxy != s.Mode.Proxy || s.LastReconcile.IsZero() {
			r.log.Info("proxy mode", "mode", mode.String(), "services", mode.Services, "kube-proxy", mode.Proxy)
		}
		if mode.Leftover() && !s.Mode.Leftover() {
			r.log.Warn("IPVS has services although kube-proxy does not use it", "kube-proxy", mode.Proxy, "services", mode.Services)
		}
		s.Mode = mode
		return s
	})
}

// change changes the status, and writes it from the first look on.
func (r *reporter) change(f func(node.Status) node.Status) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.status = f(r.status)
	if r.status.LastReconcile.IsZero() {
		return
	}
	r.status.Policies = r.policies().After(r.status.Policies, time.Now())
	if err := r.status.Write(r.store); err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.log.Error("writing the status", "error", err)
	}
}

// logReconciliation says what a look found that the one before did not.
func logReconciliation(log *slog.Logger, before node.Status, l node.Reconciliation) {
	log.Debug("looked", "reason", l.Trigger, "took", l.Took)
	switch {
	case l.Err != nil && l.Err.Error() != before.Error:
		log.Error("the node cannot be kept current", "error", l.Err)
	case l.Err == nil && before.Error != "":
		log.Info("the node can be kept current again")
	}
	switch now := before.After(l).NotInstalled; {
	case now != "" && now != before.NotInstalled:
		log.Error("podmark is not installed as it should be", "reason", now)
	case now == "" && before.NotInstalled != "":
		log.Info("podmark is installed as it should be again")
	}
	if l.Repaired.Drift != nil {
		log.Warn("repaired", "missing", l.Repaired.Drift, "kind", string(missing.KindOf(l.Repaired.Drift)), "reason", l.Trigger)
	}
	logDrift(log, before.Drift, before.After(l).Drift)
	if now := before.After(l).Alterable; now != "" && now != before.Alterable {
		log.Warn("a pod may have the kernel write a checksum over a port or an address that was judged", "lacking", now)
	}
	if l.ChangedMask != 0 {
		log.Warn("moved the endpoints to another mask", "iptablesMarkMask", fmt.Sprintf("%#x", l.ChangedMask))
	}
	if l.AdoptErr != nil {
		log.Warn("a pod from before podmark has no ID", "error", l.AdoptErr)
	}
	for _, r := range l.Adopted {
		log.Info("adopted", "attachment", r.Key.String(), "pod", r.Namespace+"/"+r.Pod, "id", r.ID)
	}
	for _, r := range l.Enforced {
		log.Info("policed, as its network asks for it now", "attachment", r.Key.String(), "pod", r.Namespace+"/"+r.Pod, "id", r.ID)
	}
	for _, r := range l.Collected.Attachments {
		log.Warn("collected", "attachment", r.Key.String(), "pod", r.Namespace+"/"+r.Pod, "id", r.ID)
	}
	for _, name := range l.Collected.Files {
		log.Warn("removed a file that a crash left", "file", name)
	}
	if l.FelixMask != nil && fmt.Sprintf("%#x", *l.FelixMask) != before.FelixMask {
		log.Warn("the mask of FelixConfiguration is another", "felix", fmt.Sprintf("%#x", *l.FelixMask), "podmark", fmt.Sprintf("%#x", l.Mask))
	}
	if t := l.Repaired.Tunnels; t != nil {
		log.Info("tunnels that pods may not send", "udpPorts", t.UDPPorts, "protocols", fmt.Sprint(t.Protocols))
	}
	if u := l.Repaired.Unfiltered; u != nil && *u != (desired.Unfiltered{}) {
		log.Warn("frames between ports of a bridge are not handed to IP: what isolated pods send each other there is dropped, allowed or not", "ipv4", u.IPv4, "ipv6", u.IPv6)
	} else if u != nil {
		log.Info("frames between ports of a bridge are handed to IP again")
	}
	for _, c := range l.Collisions {
		if !slices.Contains(before.Collisions, c.String()) {
			log.Warn("bits of the mask are another program's", "user", c.Name(), "harm", c.Harm.String(), "finding", c.String(), "hint", "podmarkctl doctor names a free mask; iptablesMarkMask auto moves to one")
		}
	}
	if len(l.Collisions) == 0 && len(before.Collisions) > 0 {
		log.Info("nobody else uses bits of the mask any more")
	}
	if l.ForeignErr != nil && l.ForeignErr.Error() != before.ForeignError {
		log.Warn("some rules of others cannot be read", "error", l.ForeignErr)
	}
	for _, set := range l.Repaired.Replaced {
		log.Info("brought up to date", "set", set)
	}
	logSysctls(log, before.Sysctls, l.Sysctls)
	if fmt.Sprint(l.Ports) != fmt.Sprint(before.Ports) && !l.Idle {
		log.Info("NodePorts", "source", l.Ports.Source, "mode", l.Ports.Mode, "ranges", fmt.Sprint(l.Ports.Ranges))
		if len(l.Ports.Outside) > 0 {
			log.Warn("NodePorts in use that are in no configured range", "ports", l.Ports.Outside, "ranges", fmt.Sprint(l.Ports.Configured))
		}
	}
}

// logDrift says what others have done to links of endpoints since the look before, and
// what they have undone.
func logDrift(log *slog.Logger, before, now []apply.EndpointDrift) {
	for _, d := range now {
		if !slices.Contains(before, d) {
			log.Warn("a link of an endpoint has drifted", "drift", d.String(), "change", string(d.Change), "attachment", d.Key.String())
		}
	}
	for _, d := range before {
		if !slices.Contains(now, d) {
			log.Info("a link of an endpoint drifts no more", "drift", d.String(), "attachment", d.Key.String())
		}
	}
}

// logSysctls says what differs from the look before: what was set, and what is
// wrong and was not before, or is wrong in another way.
func logSysctls(log *slog.Logger, before, now []node.Sysctl) {
	for _, s := range now {
		if s.Before != "" {
			log.Warn("set a kernel parameter that podmark needs", "sysctl", s.Name, "before", s.Before, "now", s.Value)
			continue
		}
		same := func(old node.Sysctl) bool { return old.Name == s.Name && old.Value == s.Value && old.Error == s.Error }
		if s.OK() || slices.ContainsFunc(before, same) {
			continue
		}
		log.Warn("a kernel parameter is not what podmark needs", "sysctl", s.Name, "value", s.Value, "want", s.Want, "mend", s.Fix(), "error", s.Error)
	}
}
