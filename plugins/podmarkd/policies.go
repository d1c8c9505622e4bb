package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"

	"k8s.io/client-go/rest"

	"github.com/podmark/podmark/pkg/agent"
	"github.com/podmark/podmark/pkg/agent/kube"
	"github.com/podmark/podmark/pkg/agent/kube/view"
	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/node"
	"github.com/podmark/podmark/pkg/podapi"
)

// policies are where those of the node come from: a directory, the Kubernetes API for
// networks that say so, or neither, where podmarkctl applies them.
type policies struct {
	cluster   *kube.Cluster // nil where the API server is not asked
	directory *agent.PolicyDirectory
	socket    string
	log       *slog.Logger
	metrics   *metrics

	mu       sync.Mutex
	networks map[string]config.Policy
	// wrong is what is wrong with these, and read how the directory was read last.
	wrong error
	read  agent.PolicyStatus
}

// newPolicies sets up what flags and networks ask for; api is nil where there is none.
func (o *daemonOptions) newPolicies(n node.Node, api *rest.Config, log *slog.Logger, m *metrics) (*policies, error) {
	p := &policies{socket: o.socket, log: log, metrics: m}
	m.follow(p.status)
	if api != nil {
		name, err := o.nodeNamed()
		if err != nil {
			return nil, err
		}
		if p.cluster, err = kube.New(n, name, api, log); err != nil {
			return nil, err
		}
		p.cluster.Follows = func(network string) bool { return p.of(network) == config.PolicyKubernetes }
		p.cluster.Done = func(r kube.SyncResult) {
			m.round(r)
			p.reclaimed(r.Applied.Reclaimed)
		}
		p.cluster.Node.Cache = &node.Cache{}
	}
	m.following(p.cluster)
	m.registry.MustRegister(troubled{p.troubles})
	if o.policyDir != "" {
		defaults, err := config.ParseEntry([]byte(`{"iptablesMarkMask": "auto"}`), "none", "1.0.0")
		if err != nil {
			return nil, err
		}
		p.directory = &agent.PolicyDirectory{
			Dir: o.policyDir, Node: n, Settings: node.SettingsOf(defaults),
			Every: o.interval, Log: log, Done: p.directoryRead,
		}
	}
	return p, nil
}

// members has n know who of other nodes is in the sets.
func (p *policies) members(n node.Node) node.Node {
	if p.cluster != nil {
		n.RemoteMembers = p.cluster.RemoteMembers
	}
	return n
}

// of is where a network takes its policies from.
func (p *policies) of(network string) config.Policy {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.networks[network]
}

// seen takes over where the networks take their policies from.
func (p *policies) seen(networks map[string]config.Policy) error {
	err := p.judge(networks)
	p.mu.Lock()
	p.networks, p.wrong = networks, err
	p.mu.Unlock()
	if err == nil && follow(networks) {
		p.cluster.Activate()
	}
	return err
}

// follow reports whether a network takes its policies from the Kubernetes API.
func follow(networks map[string]config.Policy) bool {
	return slices.Contains(slices.Collect(maps.Values(networks)), config.PolicyKubernetes)
}

// judge says what is wrong with where networks take their policies from.
func (p *policies) judge(networks map[string]config.Policy) error {
	by := map[config.Policy]string{}
	for _, name := range slices.Sorted(maps.Keys(networks)) {
		by[networks[name]] = name
	}
	following, files := by[config.PolicyKubernetes], by[config.PolicyFiles]
	switch {
	case following == "":
		return nil
	case files != "":
		return fmt.Errorf("network %q takes its policies from the Kubernetes API, and network %q from files: a node has them from one place", following, files)
	case p.cluster == nil:
		return fmt.Errorf("network %q takes its policies from the Kubernetes API: %w", following, errNoAPI)
	}
	return nil
}

// reclaimed counts and logs what a change did about flows in flowtables.
func (p *policies) reclaimed(r node.Reclaimed) {
	p.metrics.takenBack.Add(float64(r.Flows))
	if trouble := r.Trouble(); trouble != "" {
		p.log.Warn("Policy is not enforced on some live connections; run 'podmarkctl doctor'", "reason", trouble)
	}
	if r.Flows > 0 {
		p.log.Info("Removed live connections from flowtables; they are evaluated again", "connections", r.Flows)
	}
}

// troubles are the policies of the Kubernetes API that are not in force as they are there.
func (p *policies) troubles() []view.Trouble {
	if p.cluster == nil {
		return nil
	}
	return p.cluster.Troubles()
}

// mostNotes is how many notes the status has.
const mostNotes = 10

// directoryRead takes over how the directory was read.
func (p *policies) directoryRead(done node.Applied, notes []string, err error) {
	p.reclaimed(done.Reclaimed)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.read.Error = ""; err != nil {
		p.read.Error = err.Error()
		return
	}
	p.read.Policies = done.Policies
	p.read.Noted, p.read.Notes = len(notes), notes[:min(len(notes), mostNotes)]
}

// status is how it goes with what is followed; since when is for others to say.
func (p *policies) status() agent.PolicyStatus {
	p.mu.Lock()
	s, wrong := p.read, p.wrong
	following := follow(p.networks)
	p.mu.Unlock()
	switch {
	case following && p.cluster != nil:
		c := p.cluster.Status()
		s = agent.PolicyStatus{Source: agent.FromKubernetes, Policies: c.Policies, Watches: c.Watches, Pods: c.Pods}
		troubles := p.cluster.Troubles()
		s.UnsyncedPolicies = len(troubles)
		for _, t := range view.Foremost(troubles) {
			s.Troubles = append(s.Troubles, agent.PolicyTrouble{
				Namespace: t.Namespace, Policy: t.Policy,
				Reason: string(t.Reason), Since: t.Since, Text: kube.Line(t.Text),
			})
		}
		if wrong == nil {
			wrong = c.Err
		}
	case following:
		s = agent.PolicyStatus{Source: agent.FromKubernetes}
	case p.directory != nil:
		s.Source = agent.FromDirectory
	default:
		s.Source = agent.FromNobody
	}
	if wrong != nil {
		s.Error = kube.Line(wrong.Error())
	}
	s.Socket = p.socket
	return s
}

var errNoAPI = errors.New("podmarkd has no API server to ask: give --kubeconfig")

// run answers the plugin, and follows the sources, until ctx is done.
func (p *policies) run(ctx context.Context) error {
	l, err := podapi.Listen(p.socket)
	if err != nil {
		return err
	}
	answer := func(context.Context, podapi.Request) (podapi.Response, error) { return podapi.Response{}, errNoAPI }
	if p.cluster != nil {
		answer = p.cluster.Answer
	}
	var running sync.WaitGroup
	running.Go(func() { podapi.Serve(ctx, l, answer) })
	if p.directory != nil {
		running.Go(func() { p.directory.Run(ctx) })
	}
	if p.cluster != nil {
		running.Go(func() { p.cluster.Run(ctx) })
	}
	running.Wait()
	return nil
}
