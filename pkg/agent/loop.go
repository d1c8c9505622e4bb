// Package agent keeps a node's data plane current while the daemon runs. It listens
// to the kernel, reconciles the node whenever something may have changed, and has
// package node put right what is not as it should be.
//
// It decides nothing about packets, and owns nothing that the plugin needs: when
// the daemon is gone, what is in the kernel stays as it is.
package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"time"

	"github.com/podmark/podmark/pkg/agent/runner"
	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/foreign"
	"github.com/podmark/podmark/pkg/mark"
	"github.com/podmark/podmark/pkg/node"
)

// Agent keeps one node current.
type Agent struct {
	Node node.Node
	// Ports are what others say about NodePorts. Changed tells that they may say
	// something else; nil where they never do.
	Ports   func() PortOptions
	Changed <-chan struct{}
	// ConfDir is the runtime's directory of network configurations, and Cache libcni's:
	// from them a changed mask is known, and pods that were there before podmark.
	// Without them, nil or empty, that is not done.
	ConfDir func() string
	Cache   string
	// Policies, if set, is told at each reconciliation where each network takes its policies from,
	// and says what is wrong with that.
	Policies func(networks map[string]config.Policy) error
	// Present, if set, says at each reconciliation why the next pod would start without podmark, or without
	// what was asked for, or not at all.
	Present func() error
	// FelixMask is the iptablesMarkMask that Calico was told; nil where nobody says.
	FelixMask func() *uint32
	// CollectAfter is how long a pod must have been gone until what its DEL should
	// have taken back is collected; 0 for never.
	CollectAfter time.Duration
	// SetSysctls lets kernel parameters be set that the node needs; else they are
	// only looked at.
	SetSysctls bool
	// Interval is how long the node is left alone when nothing is notified.
	Interval time.Duration
	Log      *slog.Logger
	// Reconciled, if set, is told of each reconciliation, after it.
	Reconciled func(Reconciliation)
	// ModeIs is told how services are done: before the first reconciliation, and whenever it has
	// changed, by another goroutine than Looked.
	ModeIs func(Mode)
	// Proxy is where kube-proxy on the node serves its metrics; empty for nowhere.
	Proxy string
}

// Reconciliation is what was found and done when the node was reconciled.
type Reconciliation struct {
	Time    time.Time
	Trigger Trigger
	// Idle is set where podmark has never run: nothing is there to be kept.
	Idle  bool
	Ports Decision
	// ChangedMask is the mask that the endpoints were moved to; 0 when they were not.
	ChangedMask uint32
	// Adopted are the pods from before podmark that have an ID now, and Unadopted is
	// why others have none, told once for each.
	Adopted  []attachment.Record
	AdoptErr error
	// Blind is why pods that started without podmark cannot be known.
	Blind error
	// Enforced are pods whose network asks for the policies of files now, and did not when they
	// were added.
	Enforced []attachment.Record
	// Coverage is who of the node's pods is policed, those without podmark among them.
	Coverage desired.Coverage
	// Unmarked are those without podmark, "namespace/name" by containers, as of the last time
	// that the runtime's cache was read; nil before.
	Unmarked map[string]string
	// PolicyWanted is whether a network asks for policy, and Absent is what Present said.
	PolicyWanted bool
	NotInstalled error
	// FelixMask is Calico's mask where it is not the node's, whose mask is Mask.
	FelixMask *uint32
	Mask      uint32
	// Collisions are those who write bits of the mask, or of the one that would be taken,
	// as of the last time that the rules were read; Unseen is why some were not.
	Collisions []foreign.Collision
	ForeignErr error
	Repaired   node.Reconciled
	// Applied is how long it took to make the kernel agree, with the wait for the
	// node's lock, and ApplyErr why it does not; both zero where that was not tried.
	Applied  time.Duration
	ApplyErr error
	// Collected is what pods had left that no DEL came for.
	Collected node.Collected
	// Sysctls are what the node needs of kernel parameters.
	Sysctls []Sysctl
	Took    time.Duration
	Err     error
	// mode is how services are done, where it could be read.
	mode Mode
	read bool
}

// Problem is what went wrong, or is not known; nil where nothing is.
func (l Reconciliation) Problem() error { return errors.Join(l.Err, l.Blind) }

// Unready is why the node is not as its configuration asks; nil where it is.
func (l Reconciliation) Unready() error {
	err := errors.Join(l.Problem(), l.NotInstalled)
	if l.PolicyWanted && l.Coverage.Open() > 0 {
		err = errors.Join(err, errors.New(l.Coverage.String()))
	}
	return err
}

// Between two reconciliations a pause leaves room for others: notifications come in bursts,
// and a reconciliation holds the node's lock, for which plugins wait.
const (
	leastPause = 100 * time.Millisecond
	pauseRatio = 9 // of the time that the reconciliation before took
	// mostRest is the longest pause: what took a minute on a busy node must not leave it alone
	// for ten.
	mostRest = 30 * time.Second
	// follow is when to reconcile again after something was notified. What kube-proxy
	// does to IPVS is not: it comes right after an address that is.
	follow = 500 * time.Millisecond
)

// Run reconciles the node until ctx is done. It leaves the data plane as it is.
func (k Agent) Run(ctx context.Context) error {
	l := &loop{
		Agent: k, due: runner.New(), told: make(chan Trigger, 1),
		adopter: adopter{cache: k.Cache, every: k.Interval}, collector: collector{after: k.CollectAfter},
		sysctls: sysctls{set: k.SetSysctls, backoffs: map[string]*runner.Backoff{}},
	}
	mode := modeWatch{every: k.Interval, proxy: k.Proxy, tell: k.ModeIs, due: runner.New()}
	tell := func(t Trigger) {
		l.tell(t)
		mode.due.Notify()
	}
	if err := watch(ctx, k.Log, tell); err != nil {
		return err
	}
	if k.ConfDir != nil {
		// Where nothing can be watched, the directory is read now and then anyway.
		l.confDir, _ = runner.WatchDirectories(ctx, func(string, error) { tell(OnConfiguration) })
	}
	mode.read()
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { mode.run(ctx) })
	running.Go(func() { l.followPorts(ctx, k.Changed) })
	l.due.Run(ctx, func(notified bool) runner.Pause { return l.pause(ctx, l.turn(ctx, notified)) })
	return nil
}

// loop is what is remembered from one reconciliation to the next.
type loop struct {
	Agent
	due *runner.Runner
	// told has why the next reconciliation is due, and trigger what was taken from it last; empty
	// before the first.
	told    chan Trigger
	trigger Trigger
	confDir *runner.Directories

	adopter   adopter
	collector collector
	sysctls   sysctls
	others    others
	newcomers newcomers
}

// tell makes a reconciliation due.
func (l *loop) tell(t Trigger) {
	select {
	case l.told <- t:
	default: // it is due for another reason
	}
	l.due.Notify()
}

// followPorts makes a reconciliation due whenever others say something else about NodePorts.
func (l *loop) followPorts(ctx context.Context, changed <-chan struct{}) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
			l.tell(OnNodePorts)
		}
	}
}

// take takes over why the next reconciliation is due, where that was told.
func (l *loop) take() {
	select {
	case l.trigger = <-l.told:
	default:
	}
}

// turn reconciles the node once.
func (l *loop) turn(ctx context.Context, notified bool) Reconciliation {
	switch {
	case l.trigger == "":
		l.trigger = OnStart
	case notified:
		l.take()
	default:
		l.trigger = OnInterval
	}
	done := l.reconcile(ctx, l.trigger)
	if l.CollectAfter > 0 && done.Err == nil && !done.Idle {
		done.Collected, done.Err = l.collector.collect(ctx, l.Node, time.Now())
	}
	done.Took = time.Since(done.Time)
	if !done.Idle && done.ApplyErr == nil {
		done.Err = errors.Join(done.Err, l.newcomers.welcome(l.Node)) // without the lock: nobody waits for it
	}
	if l.Reconciled != nil && ctx.Err() == nil {
		l.Reconciled(done)
	}
	return done
}

// pause leaves the node alone for a while, so that others get its lock. It ends early when what was
// notified is that the rules were taken away.
func (l *loop) pause(ctx context.Context, done Reconciliation) runner.Pause {
	p := runner.Pause{
		Least: max(leastPause, min(pauseRatio*done.Took, mostRest)), UrgentEvery: leastPause,
		Urgent: func() bool {
			l.take()
			return !l.Node.Intact(ctx)
		},
	}
	next := l.Interval
	if done.Trigger != OnInterval {
		next = min(next, follow)
	}
	p.Most = p.Least + next
	if len(l.adopter.seen) > 0 {
		p.Most = min(p.Most, time.Until(l.adopter.next))
	}
	return p
}

// needs are those of a node with its services in that mode. Damaged records are
// reported by whoever keeps the rules.
func (k Agent) needs(mode Mode, networks map[string]network) Needs {
	records, _ := k.Node.Records()
	policed, bridged := false, false
	for _, n := range networks {
		if n.Policy != config.PolicyNone {
			policed, bridged = true, bridged || n.onBridge
		}
	}
	return NeedsOf(mode, records, policed, bridged)
}

// reconcile finds out what is so, and has what follows from it carried out.
func (k *loop) reconcile(ctx context.Context, reason Trigger) (l Reconciliation) {
	l = Reconciliation{Time: time.Now(), Trigger: reason}
	dir := ""
	if k.ConfDir != nil {
		dir = k.ConfDir()
		_ = k.confDir.Add(dir) // ahead of reading it: what changes from now on makes a reconciliation due
	}
	networks, unread := networks(dir, k.Node.Store.Dir())
	if k.Policies != nil {
		from := map[string]config.Policy{}
		for name, n := range networks {
			from[name] = n.Policy
		}
		unread = errors.Join(unread, k.Policies(from))
	}
	report := k.others.look(ctx, l.Time)
	l.ForeignErr = report.Error()
	l.Err = errors.Join(unread, k.reconcileNode(ctx, &l, networks, report))
	l.Adopted, l.AdoptErr = k.adopter.adopt(ctx, k.Node, networks, l.Time)
	l.Unmarked, l.Blind = k.adopter.unmarked, k.adopter.blind
	files := map[string]bool{}
	for name, n := range networks {
		files[name] = n.Policy == config.PolicyFiles
	}
	var err error
	if l.Enforced, err = k.Node.EnforceRequested(ctx, files); err != nil && !errors.Is(err, fs.ErrNotExist) {
		l.Err = errors.Join(l.Err, fmt.Errorf("policing the pods of networks that ask for it now: %w", err))
	}
	l.Coverage, err = k.Node.Coverage(l.Unmarked)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		l.Err = errors.Join(l.Err, fmt.Errorf("who is policed is not known: %w", err))
	}
	if k.Present != nil {
		l.NotInstalled = k.Present()
	}
	for _, n := range networks {
		l.PolicyWanted = l.PolicyWanted || n.Policy != config.PolicyNone
	}
	return l
}

// changeMask moves the endpoints to the mask that the networks want, or, where each has the node
// choose, from bits that others use to free ones. It returns the mask moved to; 0 for none.
func (k Agent) changeMask(
	ctx context.Context,
	networks map[string]network,
	report foreign.Report,
	b config.Backend,
	now mark.Layout,
) (uint32, error) {
	layout, err := layoutOf(networks)
	if err != nil {
		return 0, err
	}
	if len(networks) > 0 && layout.Mask() == 0 {
		layout = k.evade(report, b, now)
	}
	if layout.Mask() == 0 {
		return 0, nil
	}
	moved, err := k.Node.ChangeMask(ctx, layout)
	if !moved {
		return 0, err
	}
	return layout.Mask(), err
}

// reconcileNode moves the endpoints to the mask that the networks want, and has missing
// things put back.
func (k *loop) reconcileNode(
	ctx context.Context,
	l *Reconciliation,
	networks map[string]network,
	report foreign.Report,
) error {
	facts, unread := readFacts()
	l.mode, l.read = facts.mode(), unread == nil
	configured, err := k.Node.Configured()
	if errors.Is(err, fs.ErrNotExist) {
		l.Idle = true
		l.Collisions = awaited(k.Node, networks, report)
		if l.read && len(networks) > 0 { // ahead of the first pod
			l.Sysctls = k.sysctls.look(k.needs(l.mode, networks), time.Now())
		}
		return nil
	}
	if err != nil {
		return err
	}
	if l.read { // ahead of the rules, which may say what is dropped without them
		l.Sysctls = k.sysctls.look(k.needs(l.mode, networks), time.Now())
	}
	kind, err := k.Node.Kind()
	if err != nil {
		return err
	}
	var errMask error
	l.ChangedMask, errMask = k.changeMask(ctx, networks, report, kind.Backend(), configured.Layout)
	l.Mask = cmp.Or(l.ChangedMask, configured.Layout.Mask())
	// What cannot be read does not keep from repairing: the NodePorts stay as they are.
	var ports *node.Ports
	if unread == nil {
		l.Ports = k.Ports().decide(configured.NodePorts, facts)
		ports = &node.Ports{Ranges: l.Ports.Ranges, SCTP: l.Ports.SCTP, Source: l.Ports.Source}
	}
	l.Collisions = report.Collisions(kind.Backend(), l.Mask)
	if felix := k.FelixMask(); felix != nil && *felix != l.Mask {
		l.FelixMask = felix
	}
	start := time.Now()
	l.Repaired, l.ApplyErr = k.Node.Reconcile(ctx, ports)
	l.Applied = time.Since(start)
	return errors.Join(unread, errMask, l.ApplyErr)
}
