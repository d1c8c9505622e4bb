package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/podmark/podmark/pkg/agent"
	"github.com/podmark/podmark/pkg/dataplane/drift"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/node"
	"github.com/podmark/podmark/pkg/state"
)

// reporter tells what the keeper finds: in the log, the metrics, the status file, and
// as events.
type reporter struct {
	log     *slog.Logger
	metrics *metrics
	tell    func(agent.Reconciliation) // events
	store   state.Store
	// policies says how it goes with what is followed.
	policies func() agent.PolicyStatus

	mu     sync.Mutex
	status agent.Status
}

// reconciled reports a reconciliation.
func (r *reporter) reconciled(l agent.Reconciliation) {
	r.metrics.reconciled(l)
	r.tell(l)
	r.change(func(s agent.Status) agent.Status {
		logReconciliation(r.log, s, l)
		return s.After(l)
	})
}

// modeIs reports how services are done, which is looked at by itself.
func (r *reporter) modeIs(mode agent.Mode) {
	r.metrics.mode.Store(&mode)
	r.change(func(s agent.Status) agent.Status {
		if mode.IPVS != s.Mode.IPVS || mode.Proxy != s.Mode.Proxy || s.LastReconcile.IsZero() {
			r.log.Info("Detected the proxy mode", "mode", mode.String(), "services", mode.Services, "kubeProxy", mode.Proxy)
		}
		if mode.Leftover() && !s.Mode.Leftover() {
			r.log.Warn("IPVS has services, but kube-proxy does not use IPVS", "kubeProxy", mode.Proxy, "services", mode.Services)
		}
		s.Mode = mode
		return s
	})
}

// change changes the status, and writes it from the first reconciliation on.
func (r *reporter) change(f func(agent.Status) agent.Status) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.status = f(r.status)
	if r.status.LastReconcile.IsZero() {
		return
	}
	r.status.Policies = r.policies().After(r.status.Policies, time.Now())
	if err := r.status.Write(r.store); err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.log.Error("Failed to write the status", "error", err)
	}
}

// logReconciliation says what a reconciliation found that the one before did not.
func logReconciliation(log *slog.Logger, before agent.Status, l agent.Reconciliation) {
	log.Debug("Reconciled the node", "trigger", l.Trigger, "duration", l.Took)
	now := before.After(l)
	logHealth(log, before, now, l)
	logRepairs(log, before, now, l)
	logAttachments(log, l)
	logCollisions(log, before, l)
	logSurvey(log, l.Repaired)
	logSysctls(log, before.Sysctls, l.Sysctls)
	logPorts(log, before, l)
}

// logHealth says what podmarkd cannot do, and what is not installed as it should be.
func logHealth(log *slog.Logger, before, now agent.Status, l agent.Reconciliation) {
	switch err := l.Problem(); {
	case err != nil && err.Error() != before.Error:
		log.Error("Reconciliation failed", "error", err)
	case err == nil && before.Error != "":
		log.Info("Reconciliation succeeds again")
	}
	switch reason := now.NotInstalled; {
	case reason != "" && reason != before.NotInstalled:
		log.Error("podmark is not installed correctly", "reason", reason)
	case reason == "" && before.NotInstalled != "":
		log.Info("podmark is installed correctly again")
	}
}

// logRepairs says what was missing in the data plane or is, and where the endpoints have moved to.
func logRepairs(log *slog.Logger, before, now agent.Status, l agent.Reconciliation) {
	if l.Repaired.Drift != nil {
		log.Warn("Repaired the data plane", "drift", l.Repaired.Drift, "kind", string(drift.KindOf(l.Repaired.Drift)),
			"trigger", l.Trigger)
	}
	logDrift(log, before.Drift, now.Drift)
	if lacking := now.Alterable; lacking != "" && lacking != before.Alterable {
		log.Warn("Checksum protection is missing: a pod can have the kernel overwrite a port or an address after the verdict", "lacking", lacking)
	}
	if l.ChangedMask != 0 {
		log.Warn("Migrated the endpoints to another mask", "iptablesMarkMask", fmt.Sprintf("%#x", l.ChangedMask))
	}
}

// logAttachments says which attachments podmarkd took up, polices now, or took back.
func logAttachments(log *slog.Logger, l agent.Reconciliation) {
	if l.AdoptErr != nil {
		log.Warn("Failed to adopt a running pod", "error", l.AdoptErr)
	}
	for _, r := range l.Adopted {
		log.Info("Adopted a running pod", "attachment", r.Key.String(), "pod", r.Namespace+"/"+r.Pod, "id", r.ID)
	}
	for _, r := range l.Enforced {
		log.Info("Enforcing policy on a pod, as its network requests it now", "attachment", r.Key.String(), "pod", r.Namespace+"/"+r.Pod, "id", r.ID)
	}
	for _, r := range l.Collected.Attachments {
		log.Warn("Removed a stale attachment", "attachment", r.Key.String(), "pod", r.Namespace+"/"+r.Pod, "id", r.ID)
	}
	for _, name := range l.Collected.Files {
		log.Warn("Removed a file that a crash left", "file", name)
	}
}

// logCollisions says which other programs use bits of the mask, or are configured to.
func logCollisions(log *slog.Logger, before agent.Status, l agent.Reconciliation) {
	if l.FelixMask != nil && fmt.Sprintf("%#x", *l.FelixMask) != before.FelixMask {
		log.Warn("FelixConfiguration has another mask", "felix", fmt.Sprintf("%#x", *l.FelixMask), "podmark",
			fmt.Sprintf("%#x", l.Mask))
	}
	for _, c := range l.Collisions {
		if !slices.Contains(before.Collisions, c.String()) {
			log.Warn("Another program uses bits of the mask", "user", c.Name(), "harm", c.Harm.String(), "finding", c.String(), "hint", "podmarkctl doctor names a free mask; iptablesMarkMask auto moves to one")
		}
	}
	if len(l.Collisions) == 0 && len(before.Collisions) > 0 {
		log.Info("No other program uses bits of the mask any longer")
	}
	if l.ForeignErr != nil && l.ForeignErr.Error() != before.ForeignError {
		log.Warn("Failed to read some rules of other programs", "error", l.ForeignErr)
	}
}

// logSurvey says what has changed on the node that the data plane follows.
func logSurvey(log *slog.Logger, r node.Reconciled) {
	if t := r.Tunnels; t != nil {
		log.Info("Pods may not send packets of these tunnels", "udpPorts", t.UDPPorts, "protocols", fmt.Sprint(t.Protocols))
	}
	if u := r.Unfiltered; u != nil && *u != (desired.Unfiltered{}) {
		log.Warn("Bridged frames bypass the IP hooks: traffic between isolated pods on a bridge is dropped, allowed or not", "ipv4", u.IPv4, "ipv6", u.IPv6)
	} else if u != nil {
		log.Info("Bridged frames pass the IP hooks again")
	}
	for _, set := range r.Replaced {
		log.Info("Updated a set", "set", set)
	}
}

// logPorts says which ports count as NodePorts, where that has changed.
func logPorts(log *slog.Logger, before agent.Status, l agent.Reconciliation) {
	if l.Idle || fmt.Sprint(l.Ports) == fmt.Sprint(before.Ports) {
		return
	}
	log.Info("NodePort ranges changed", "source", l.Ports.Source, "mode", l.Ports.Mode, "ranges",
		fmt.Sprint(l.Ports.Ranges))
	if len(l.Ports.Outside) > 0 {
		log.Warn("NodePorts in use are outside the configured ranges", "ports", l.Ports.Outside, "ranges", fmt.Sprint(l.Ports.Configured))
	}
}

// logDrift says what others have done to links of endpoints since the one before, and
// what they have undone.
func logDrift(log *slog.Logger, before, now []node.EndpointDrift) {
	for _, d := range now {
		if !slices.Contains(before, d) {
			log.Warn("A link of an endpoint has drifted", "drift", d.String(), "change", string(d.Change), "attachment",
				d.Key.String())
		}
	}
	for _, d := range before {
		if !slices.Contains(now, d) {
			log.Info("A link of an endpoint no longer drifts", "drift", d.String(), "attachment", d.Key.String())
		}
	}
}

// logSysctls says what differs from the one before: what was set, and what is
// wrong and was not before, or is wrong in another way.
func logSysctls(log *slog.Logger, before, now []agent.Sysctl) {
	for _, s := range now {
		if s.Before != "" {
			log.Warn("Set a kernel parameter that podmark needs", "sysctl", s.Name, "before", s.Before, "now", s.Value)
			continue
		}
		same := func(old agent.Sysctl) bool { return old.Name == s.Name && old.Value == s.Value && old.Error == s.Error }
		if s.OK() || slices.ContainsFunc(before, same) {
			continue
		}
		log.Warn("A kernel parameter has not the value that podmark needs", "sysctl", s.Name, "value", s.Value, "want", s.Want, "fix", s.Fix(), "error", s.Error)
	}
}
