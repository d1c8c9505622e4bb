//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/podmark/podmark/pkg/agent"
	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/desired"
)

// status is what 'status -o json' shows.
type status struct {
	// Backend is empty where podmark has never run.
	Backend   config.Kind `json:"backend"`
	Mask      string      `json:"mask"`
	Epoch     uint32      `json:"epoch"`
	Endpoints int         `json:"endpoints"`
	Capacity  int         `json:"capacity"`
	// Coverage is who of the node's pods is policed.
	Coverage desired.Coverage `json:"coverage"`
	// Tunnels are what pods may not wrap packets in.
	Tunnels desired.Tunnels `json:"tunnels"`
	// Flowtables are those of the node, by nft's names, and Unjudged is how many flows they
	// carry past the hooks that the policy in force has not judged.
	Flowtables []string `json:"flowtables,omitempty"`
	Unjudged   int      `json:"bypassing,omitempty"`
	// Daemon is null where none has ever run; Running tells whether it still does.
	Running bool          `json:"running"`
	Daemon  *agent.Status `json:"daemon"`
}

func newStatus(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show what the node enforces with, and what podmarkd found last",
		Example: `  podmarkctl status
  podmarkctl status -o json | jq .daemon.ports`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := readStatus(o)
			if err != nil {
				return err
			}
			return o.print(cmd.OutOrStdout(), s, func(w io.Writer) error { return s.table(w) })
		},
	}
}

func readStatus(o *options) (status, error) {
	var s status
	state, err := o.node().State()
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return s, err
	default:
		s.Mask, s.Epoch = fmt.Sprintf("%#x", state.Layout.Mask()), uint32(state.Epoch)
		s.Tunnels = state.Tunnels
		s.Endpoints, s.Capacity = len(state.Endpoints), state.Layout.Capacity()
		if s.Backend, err = o.node().Kind(); err != nil {
			return s, err
		}
		tables, unjudged, err := o.node().Offloaded()
		if err != nil {
			return s, err
		}
		s.Unjudged = unjudged
		for _, t := range tables {
			s.Flowtables = append(s.Flowtables, t.String())
		}
	}
	if s.Coverage, err = o.coverage(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return s, err
	}
	d, err := agent.ReadStatus(o.node().Store)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return s, err
	default:
		s.Daemon = &d
		if s.Running, err = o.node().Store.DaemonLives(); err != nil {
			return s, err
		}
	}
	return s, nil
}

// coverage is who of the node's pods is policed, those without podmark among them.
func (o *options) coverage() (desired.Coverage, error) {
	unmarked, unseen := o.unmarked()
	c, err := o.node().Coverage(unmarked)
	c.Unseen = unseen
	return c, err
}

// unmarked are the pods that started without podmark, by containers: podmarkd alone sees them.
// Where it does not, unseen says why.
func (o *options) unmarked() (pods map[string]string, unseen string) {
	store := o.node().Store
	lives, err := store.DaemonLives()
	if err == nil && !lives {
		return nil, "podmarkd does not run"
	}
	d, errRead := agent.ReadStatus(store)
	switch err = errors.Join(err, errRead); {
	case errors.Is(err, fs.ErrNotExist):
		return nil, "podmarkd has not looked yet"
	case err != nil:
		return nil, err.Error()
	case d.Stale(time.Now()):
		return nil, "podmarkd has not looked since " + d.LastReconcile.Format(time.RFC3339)
	case d.Unmarked == nil:
		return nil, "podmarkd has not read the runtime's cache"
	}
	return d.Unmarked, ""
}

// tunnels says what pods may not send.
func (s status) tunnels() string {
	if len(s.Tunnels.UDPPorts)+len(s.Tunnels.Protocols) == 0 {
		return "allowed: pods may send what a tunnel of the node unwraps"
	}
	return fmt.Sprintf("not from pods: UDP ports %v, IP protocols %v", s.Tunnels.UDPPorts, s.Tunnels.Protocols)
}

// rows add what is known to a table, one fact in a row.
type rows func(name, format string, args ...any)

func (s status) table(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := rows(func(name, format string, args ...any) {
		fmt.Fprintf(tw, "%s\t%s\n", name, fmt.Sprintf(format, args...))
	})
	row.node(s)
	row.daemon(s)
	return tw.Flush()
}

// node shows what the node enforces, and on whom.
func (row rows) node(s status) {
	if s.Backend == "" {
		row("backend", "none: podmark has not run on this node")
	} else {
		row("backend", "%s", s.Backend)
		row("mask", "%s, epoch %d", s.Mask, s.Epoch)
		row("endpoints", "%d of %d", s.Endpoints, s.Capacity)
		row("tunnels", "%s", s.tunnels())
		if len(s.Flowtables) > 0 {
			row("flowtables", "%s: %d live connections there are not judged by the policy in force", strings.Join(s.Flowtables, ", "), s.Unjudged)
		}
	}
	row("policed", "%s", s.Coverage)
	for _, idle := range s.Coverage.Idle {
		row("idle", "%s", idle)
	}
}

// daemon shows whether podmarkd runs, and what it said last.
func (row rows) daemon(s status) {
	d := s.Daemon
	if d == nil {
		row("podmarkd", "has not run on this node")
		return
	}
	if s.Running {
		row("podmarkd", "runs since %s", d.Started.Format(time.RFC3339))
	} else {
		row("podmarkd", "does not run; what follows is what it said last")
	}
	row("reconciled", "%s, triggered by: %s", d.LastReconcile.Format(time.RFC3339), d.Trigger)
	if d.Error != "" {
		row("error", "%s", d.Error)
	}
	if d.NotInstalled != "" {
		row("installed", "no: %s", d.NotInstalled)
	}
	row.proxy(d)
	row.findings(d)
	row.policies(d.Policies)
	row("repairs", "%d", d.Repairs)
	if d.LastRepair != nil {
		row("last repair", "%s, %s: %s", d.LastRepair.Time.Format(time.RFC3339), d.LastRepair.Kind, d.LastRepair.Drift)
	}
}

// proxy shows the mode of kube-proxy, and where NodePorts are.
func (row rows) proxy(d *agent.Status) {
	says := ""
	if d.Mode.Proxy != "" {
		says = ", kube-proxy says " + d.Mode.Proxy
	}
	if d.Mode.Leftover() {
		says += ": what IPVS has was left over, and takes packets all the same"
	}
	row("proxy mode", "%s, %d services in IPVS%s", map[bool]string{true: "IPVS", false: "other"}[d.Mode.IPVS],
		d.Mode.Services, says)
	if !d.Idle {
		row("NodePorts", "%s %v, of %v by %s", d.Ports.Mode, d.Ports.Ranges, d.Ports.Configured, d.Ports.Source)
	}
	if len(d.Ports.Outside) > 0 {
		row("outside", "%v are in use and in no configured range", d.Ports.Outside)
	}
}

// findings show what other programs do to podmark, and what is not as it should be.
func (row rows) findings(d *agent.Status) {
	if d.FelixMask != "" {
		row("Felix mask", "%s in FelixConfiguration, which is not the mask above", d.FelixMask)
	}
	for _, c := range d.Collisions {
		row("mark bits", "%s", c)
	}
	for _, p := range d.Sysctls {
		if !p.OK() {
			row("sysctl", "%s is not %s: %s", p.Name, p.Want, p.Fix())
		}
	}
	for _, drift := range d.Drift {
		row("drift", "%s", drift)
	}
}

// policies shows how it goes with the policies that podmarkd follows.
func (row rows) policies(p agent.PolicyStatus) {
	from, ok := map[agent.PolicySource]string{
		agent.FromDirectory:  "the directory",
		agent.FromKubernetes: "the Kubernetes API",
	}[p.Source]
	if !ok {
		return
	}
	how := "as it says"
	if !p.Synced {
		how = "not as it says"
	} else if p.UnsyncedPolicies > 0 {
		how = fmt.Sprintf("as it says but for %d policies", p.UnsyncedPolicies)
	}
	seen := ""
	if p.Source == agent.FromKubernetes {
		seen = fmt.Sprintf("; %d watches show %d pods", p.Watches, p.Pods)
	}
	row("policies", "from %s, %d in force, %s since %s%s", from, p.Policies, how, p.Since.Format(time.RFC3339), seen)
	if p.Error != "" {
		row("trouble", "%s", p.Error)
	}
	for _, note := range p.Notes {
		row("note", "%s", note)
	}
	if more := p.Noted - len(p.Notes); more > 0 {
		row("note", "and %d more, which are in podmarkd's log", more)
	}
	for _, t := range p.Troubles {
		row("policy", "%s: %s since %s: %s", t.Of(), t.Reason, t.Since.Format(time.RFC3339), t.Text)
	}
	if more := p.UnsyncedPolicies - len(p.Troubles); more > 0 {
		row("policy", "and %d more that are not in force as the API has them", more)
	}
}
