package main

import (
	"log/slog"
	"slices"

	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/node"
)

// bridged reports whether the conflist that the node uses makes bridge ports, and
// has podmark police them. What cannot be read says nothing.
func (o daemonOptions) bridged() bool {
	s := o.install.site()
	f, err := s.read()
	if err != nil {
		return false
	}
	active, n, _, err := f.active(s.conf)
	if err != nil || len(n.Types) == 0 || !node.OnBridge(n.Types[0]) {
		return false
	}
	entry, err := f.entry(active, n, nil, nil)
	if err != nil || entry == nil {
		return false
	}
	c, err := config.ParseEntry(entry, n.Name, n.CNIVersion)
	return err == nil && c.Policy != config.PolicyNone
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
		log.Warn("a kernel parameter is not what podmark needs", "sysctl", s.Name, "value", s.Value, "want", s.Want, "mend", s.Mend(), "error", s.Error)
	}
}
