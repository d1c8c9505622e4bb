package doctor

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/podmark/podmark/pkg/agent"
	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/dataplane/hostport"
	"github.com/podmark/podmark/pkg/dataplane/nftables"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/foreign"
	"github.com/podmark/podmark/pkg/foreign/fwmark"
	"github.com/podmark/podmark/pkg/node"
	"github.com/podmark/podmark/pkg/runtimes"
	"github.com/podmark/podmark/pkg/state"
)

// Options say which node is looked at: the one of the process's network namespace.
type Options struct {
	Node node.Node
	// Given are the runtime's directories as far as they are not to be found, and Endpoint says
	// which runtime is asked for them: see cri.Said.
	Given    runtimes.Directories
	Endpoint string
	// ConfName is the file of the conflist; empty for the one that runtimes take.
	ConfName string
}

// Gather reads the node, and changes nothing but that it waits for the node's lock.
// What cannot be read is in Unread.
func Gather(ctx context.Context, o Options) Facts {
	f := Facts{Now: time.Now(), StateDir: o.Node.Store.Dir(), Given: o.Given, Endpoint: o.Endpoint, ConfName: o.ConfName}
	again := ctl(f, "doctor --cni-conf-dir DIR --cni-bin-dir DIR --runtime-endpoint ''") + "  # the runtime's directories; or --runtime-endpoint SOCKET"
	f.note(PartRuntime, f.locate(ctx), again)
	if f.PlaceErr == nil {
		f.note(PartConflists, f.readCNI(), again)
	}
	f.readState(ctx, o.Node)
	f.readDaemon(o.Node)
	f.readSockets(ctx)
	var err error
	f.Mode, f.PortsInUse, err = agent.Observe()
	f.note(PartServices, err, "modprobe ip_vs")
	f.Sysctls = agent.ReadSysctls(f.needs())
	for _, s := range f.Sysctls {
		if s.Error != "" {
			f.note(PartSysctls, errors.New(s.Error), asRoot)
		}
	}
	f.Reflects, err = readReflects()
	f.note(PartSysctls, err, asRoot)
	f.Report = foreign.Read(ctx).With(fwmark.Services())
	f.Reserved = f.reserved()
	for _, p := range foreign.Parts() {
		fix := asRoot
		if p == foreign.PartLegacy {
			fix = withIPTables
		}
		f.note(Part(p), f.Report.Unread[p], fix)
	}
	f.note(PartConntrack, f.readConntrack(), asRoot)
	if f.State.Ran {
		f.Flowtables, f.Unjudged, err = o.Node.Offloaded()
		f.note(PartOffload, err, asRoot)
	}
	return f
}

const (
	// asRoot is what fixes most that cannot be read.
	asRoot = "sudo podmarkctl doctor"
	// withCapabilities is that for what root itself is not allowed to do.
	withCapabilities = "# root lacks a capability here: run podmarkctl doctor on the node, outside of a container"
	// withIPTables is that for what needs its programs.
	withIPTables = "# install iptables with both variants: package iptables of Debian, iptables-nft and iptables-legacy of Fedora and its like"
)

func (f *Facts) note(p Part, err error, fix string) {
	if errors.Is(err, fs.ErrPermission) {
		fix = asRoot
		if os.Geteuid() == 0 {
			fix = withCapabilities
		}
	}
	if err != nil {
		f.Unread = append(f.Unread, Unread{p, err, fix})
	}
}

// needs are the node's, as podmarkd sees them.
func (f *Facts) needs() agent.Needs {
	n, ok := f.active()
	policed := ok && n.Err == nil && n.Config.Policy != config.PolicyNone
	return agent.NeedsOf(f.Mode, f.State.Records, policed, policed && len(n.Types) > 0 && agent.OnBridge(n.Types[0]))
}

func (f *Facts) readState(ctx context.Context, n node.Node) {
	s := &f.State
	settings, err := n.Configured()
	s.Layout, s.NodePorts = settings.Layout, settings.NodePorts
	switch {
	case errors.Is(err, fs.ErrNotExist):
		f.readUsable(ctx, n)
		return
	case errors.Is(err, state.ErrDamaged):
		s.NodeDamaged = err
		return
	case err != nil:
		f.note(PartState, err, asRoot)
		return
	}
	s.Ran = true
	_, _, err = n.EnforcedPolicies()
	if s.Kubernetes = err == nil; !errors.Is(err, fs.ErrNotExist) {
		f.note(PartState, err, asRoot)
	}
	covers, err := n.Coverage(nil)
	s.Unapplied = covers.Of(desired.Unapplied) > 0
	if s.Idle = covers.Idle; !errors.Is(err, state.ErrDamaged) { // that is said of what is damaged
		f.note(PartState, err, asRoot)
	}
	s.Kind, err = n.Kind()
	f.note(PartState, err, asRoot)
	if s.Kind.Backend() == config.BackendIPTables {
		s.NFTables = nftables.Probe()
	}
	s.Unlogged, err = n.Unlogged()
	f.note(PartState, err, asRoot)
	s.Alterable, err = n.Alterable()
	f.note(PartState, err, asRoot)
	s.IDs, _, err = n.IDs()
	f.note(PartState, err, asRoot)
	if s.Records, err = n.Records(); errors.Is(err, state.ErrDamaged) {
		s.Damaged = err
	} else {
		f.note(PartState, err, asRoot)
	}
	locked := "fuser -v " + quote(f.StateDir+"/lock") + "  # who holds the lock"
	s.Leaked, err = n.CollectGarbage(ctx, gone, true)
	f.note(PartLeaked, err, locked)
	if s.Damaged != nil {
		return // what should be in the kernel is not known
	}
	s.Drifts, err = n.EndpointDrifts()
	f.note(PartLinks, err, asRoot)
	switch s.Missing, err = n.Diff(ctx); {
	case errors.Is(err, node.ErrBackend):
		s.Backend = err
	case err != nil:
		f.note(PartKernel, err, locked)
	default:
		f.readUsable(ctx, n)
	}
}

// gone holds for an attachment of which nothing is left but its record: one whose
// ADD or DEL is under way still has its namespace.
func gone(r attachment.Record) bool {
	if hostport.Alive(r.Endpoint) {
		return false
	}
	_, err := os.Stat(r.Netns)
	return r.Committed || errors.Is(err, fs.ErrNotExist)
}

// readUsable asks whether the next ADD would have something to enforce with.
func (f *Facts) readUsable(ctx context.Context, n node.Node) {
	active, ok := f.active()
	if !ok || active.Err != nil {
		return
	}
	settings := node.SettingsOf(active.Config)
	// What else keeps an ADD from succeeding other checks find.
	if err := n.Status(ctx, settings); errors.Is(err, node.ErrBackend) {
		f.State.Backend = err
	}
}

func (f *Facts) readDaemon(n node.Node) {
	d, err := agent.ReadStatus(n.Store)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err != nil {
		f.note(PartDaemon, err, asRoot)
		return
	}
	f.Daemon = &d
	f.DaemonRuns, err = n.Store.DaemonLives()
	f.note(PartDaemon, err, asRoot)
}

// readSockets goes to where the plugin would ask podmarkd, and asks nothing.
func (f *Facts) readSockets(ctx context.Context) {
	f.Sockets = map[string]error{}
	for _, n := range f.following() {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", n.Config.DaemonSocket)
		switch {
		case err == nil:
			conn.Close()
		case errors.Is(err, fs.ErrPermission):
			f.note(PartDaemon, err, asRoot)
			continue
		}
		f.Sockets[n.Config.DaemonSocket] = err
	}
}

// readReflects lists which of the parameters are on that checkReflects knows.
func readReflects() (on []string, err error) {
	for _, name := range []string{fwmarkReflect4, fwmarkReflect6, tcpFwmarkAccept} {
		b, errRead := os.ReadFile("/proc/sys/" + strings.ReplaceAll(name, ".", "/"))
		switch {
		case errors.Is(errRead, fs.ErrNotExist): // IPv6 may be off
		case errRead != nil:
			err = errors.Join(err, errRead)
		case strings.TrimSpace(string(b)) != "0":
			on = append(on, name)
		}
	}
	return on, err
}

// readConntrack reads how full conntrack is; a kernel without it has nothing.
func (f *Facts) readConntrack() error {
	for name, value := range map[string]*uint64{"count": &f.Tracked, "max": &f.Tracks} {
		b, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_" + name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			*value, err = strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
