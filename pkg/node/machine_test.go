package node

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go4.org/netipx"
	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/dataplane"
	"github.com/podmark/podmark/pkg/dataplane/conntrack"
	"github.com/podmark/podmark/pkg/dataplane/counters"
	"github.com/podmark/podmark/pkg/dataplane/drift"
	"github.com/podmark/podmark/pkg/dataplane/hostport"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/foreign"
	"github.com/podmark/podmark/pkg/mark"
	"github.com/podmark/podmark/pkg/state"
)

// machine is a kernel in memory, with the state directory beside it. At each thing that is done
// to it, before and after, it looks whether an endpoint is open, and it can end the call there.
type machine struct {
	t     *testing.T
	store state.Store
	// has are the rules of each backend, and sets its peer and tuple sets; nil for nothing.
	has   map[config.Kind]*desired.State
	sets  map[config.Kind]*desired.State
	ports map[int]*hostPort
	// flows are the conntrack marks of the flows that addresses began.
	flows map[netip.Addr]uint32
	// busy is set where the kernel leaves flows to a flowtable.
	busy bool
	// unfilterable are families whose frames bridges keep to themselves.
	unfilterable map[bool]bool
	tunnelPorts  []uint16
	// policies are those that an endpoint may be judged by now.
	policies []desired.Policies
	// flushed is set while another program has taken the rules out.
	flushed bool

	events []string
	// written is what the state directory was like at each event.
	written []string
	// fault happens at the event of the number at, the first being 1.
	at    int
	fault fault
	// quiet is set where nobody calls.
	quiet bool
}

// hostPort is a host veth.
type hostPort struct {
	attachment.Endpoint
	owner attachment.Key
	// grouped is set in podmark's device group, and listening where a bridge port passes
	// nothing. guarded is set from the first of both on, until it is given back.
	grouped, listening, guarded bool
}

// fault is what happens to a call.
type fault string

const (
	fails fault = "fails"
	ends  fault = "ends"
	// What cannot be written any more, of the state directory.
	noNode      fault = "writes no node.json"
	noPolicies  fault = "writes no policies.json"
	noRecord    fault = "writes no record"
	noAddresses fault = "takes over no address"
)

var faults = []fault{fails, ends, noNode, noPolicies, noRecord, noAddresses}

var errFault = errors.New("as the test wants it")

// ended is what a process ends with.
type ended struct{}

func newMachine(t *testing.T) *machine {
	t.Helper()
	return &machine{
		t: t, store: state.At(filepath.Join(memory(t), "state")), has: map[config.Kind]*desired.State{}, sets: map[config.Kind]*desired.State{}, ports: map[int]*hostPort{},
		flows: map[netip.Addr]uint32{}, unfilterable: map[bool]bool{}, policies: []desired.Policies{{}}, quiet: true,
	}
}

// memory is a directory that costs no disk a write, where there is such a thing.
func memory(t *testing.T) string {
	t.Helper()
	const shm = "/dev/shm"
	if unix.Access(shm, unix.W_OK) != nil {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp(shm, "podmark")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// node is a process on the machine.
func (m *machine) node() Node {
	return Node{Store: m.store, LockTimeout: time.Minute, fake: m, Step: func(name string) { _ = m.event("step " + name) }}
}

// call runs a verb with a fault at an event; 0 is none.
func (m *machine) call(at int, what fault, verb func(n Node) error) (err error) {
	m.events, m.written, m.at, m.fault, m.quiet = nil, nil, at, what, false
	defer func() {
		m.quiet = true
		m.clearObstruction()
		if r := recover(); r != nil {
			if _, ok := r.(ended); !ok {
				panic(r)
			}
			err = errFault
		}
	}()
	return verb(m.node())
}

// event is what the caller does, or is about to do.
func (m *machine) event(name string) error {
	if m.quiet {
		return nil
	}
	m.events = append(m.events, name)
	m.written = append(m.written, m.stamp())
	m.look()
	if len(m.events) != m.at {
		return nil
	}
	switch m.fault {
	case fails:
		return fmt.Errorf("%s: %w", name, errFault)
	case ends:
		panic(ended{})
	default:
		m.obstruct()
	}
	return nil
}

// stamp tells one state of the directory from another.
func (m *machine) stamp() string {
	out := ""
	for _, name := range []string{state.NodeFile, state.PoliciesFile, "attachments", "addresses"} {
		s := stamp(m.store.Path(name))
		out += fmt.Sprint(s.inode, s.change)
	}
	return out
}

// writes reports whether the last call has written something behind an event.
func (m *machine) writes(i int) bool { return i+1 == len(m.written) || m.written[i] != m.written[i+1] }

// does is a change with what may happen before and after it.
func (m *machine) does(name string, change func()) error {
	if err := m.event(name); err != nil {
		return err
	}
	change()
	return m.event(name + ", done")
}

// blocked are the files that cannot be written any more.
func (m *machine) blocked() []string {
	switch m.fault {
	case noNode:
		return []string{state.NodeFile}
	case noPolicies:
		return []string{state.PoliciesFile}
	}
	var out []string
	for _, p := range m.ports {
		if m.fault == noRecord {
			out = append(out, filepath.Join("attachments", p.owner.Hash()))
		}
		for _, a := range p.Addresses {
			if m.fault == noAddresses {
				out = append(out, filepath.Join("addresses", a.String()))
			}
		}
	}
	return out
}

// obstruct puts a directory with something in it where a file would be written first.
func (m *machine) obstruct() {
	for _, name := range m.blocked() {
		if err := os.MkdirAll(m.store.Path(name)+".tmp/x", 0o700); err != nil && !errors.Is(err, fs.ErrNotExist) {
			m.t.Fatal(err)
		}
	}
}

func (m *machine) clearObstruction() {
	for _, name := range m.blocked() {
		if i, err := os.Lstat(m.store.Path(name) + ".tmp"); err == nil && i.IsDir() {
			if err := os.RemoveAll(m.store.Path(name) + ".tmp"); err != nil {
				m.t.Fatal(err)
			}
		}
	}
}

// look says what is open, or lost, at this moment.
func (m *machine) look() {
	m.t.Helper()
	complain := func(format string, args ...any) {
		m.t.Helper()
		m.t.Errorf("at %d, %q: %s", len(m.events), m.events[len(m.events)-1], fmt.Sprintf(format, args...))
	}
	f, err := m.node().decodeNodeFile()
	leaving := err != nil || f.Uninstalling
	for kind, s := range m.has {
		if s == nil {
			continue
		}
		if err != nil {
			complain("%s has rules, and node.json does not say so: %v", kind, err)
		}
		ids := map[mark.ID]attachment.Key{}
		for _, e := range s.Endpoints {
			if other, both := ids[e.ID]; both {
				complain("%s and %s have one ID", e.Key, other)
			}
			ids[e.ID] = e.Key
			// Whoever comes next takes out what has none first, where a change was not finished.
			if _, err := m.store.Get(e.Key); err != nil && !leaving && f.Synced && len(e.Addresses) > 0 {
				complain("%s is in the kernel, and has no record: %v", e.Key, err)
			}
			for _, d := range desired.Directions {
				if _, there := s.Profiles[e.Profiles[d]]; e.Profiles[d] != "" && !there {
					complain("%s has a profile without rules", e.Key)
				}
				if !slices.ContainsFunc(m.policies, func(p desired.Policies) bool {
					return desired.Build(desired.Node{}, p, []attachment.Record{e.Record}).Endpoints[0].Profiles[d] == e.Profiles[d]
				}) {
					complain("%s has profile %q for %s, of no policy", e.Key, e.Profiles[d], d)
				}
			}
		}
	}
	if m.flushed || leaving {
		return
	}
	for _, p := range m.ports {
		switch framed := m.framed(); {
		case !p.guarded || m.judged(p.owner):
		case p.Routed() && p.grouped && framed:
		case !p.Routed() && p.listening:
		default:
			complain("%s is open", p.owner)
		}
	}
}

// framed reports whether there are rules.
func (m *machine) framed() bool {
	for _, s := range m.has {
		if s != nil {
			return true
		}
	}
	return false
}

// judged reports whether the kernel knows an attachment by its addresses.
func (m *machine) judged(key attachment.Key) bool {
	for _, s := range m.has {
		if s != nil && slices.ContainsFunc(s.Endpoints, func(e desired.Endpoint) bool { return e.Key == key && len(e.Addresses) > 0 }) {
			return true
		}
	}
	return false
}

// plug makes the link of an attachment.
func (m *machine) plug(r attachment.Record) attachment.Record {
	m.ports[r.HostVethIndex] = &hostPort{Endpoint: r.Endpoint, owner: r.Key}
	return r
}

// flush takes the rules out, as another program may.
func (m *machine) flush() {
	clear(m.has)
	clear(m.sets)
	m.flushed = true
}

func (m *machine) choose(f *nodeFile, wanted config.Backend) error {
	kind := map[config.Backend]config.Kind{config.BackendAuto: config.NFTables, config.BackendNFTables: config.NFTables, config.BackendIPTables: config.IPTablesNFT, "": f.Backend}[wanted]
	if kind == f.Backend {
		return nil
	}
	if f.Backend == "" {
		f.Former = m.leftovers()
	} else {
		f.Former = append(f.Former, f.Backend)
	}
	f.Former = slices.DeleteFunc(f.Former, func(k config.Kind) bool { return k == kind })
	f.Backend, f.Bridge = kind, bridgeUnfiltered
	return nil
}

func (m *machine) ask(_ context.Context, f *nodeFile, _ time.Duration) error {
	f.Log = logByNFLOG
	return nil
}

func (m *machine) backend(n Node, f nodeFile) dataplane.Enforcer { return engine{m, f.Backend} }

func (m *machine) leftovers() (kinds []config.Kind) {
	for _, k := range []config.Kind{config.NFTables, config.IPTablesNFT} {
		if m.has[k] != nil {
			kinds = append(kinds, k)
		}
	}
	return kinds
}

func (m *machine) remove(_ context.Context, _ time.Duration, kinds []config.Kind) error {
	for _, k := range kinds {
		if err := m.does("remove "+string(k), func() { delete(m.has, k); delete(m.sets, k) }); err != nil {
			return err
		}
	}
	return nil
}

func (m *machine) removeChecksums() error { return m.does("unlook", func() {}) }

func (m *machine) others(context.Context) foreign.Report { return foreign.Report{} }

func (m *machine) links() ([]netlink.Link, error) {
	list := []netlink.Link{&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Index: bridgeIndex, Name: "cni0"}}}
	for _, i := range slices.Sorted(maps.Keys(m.ports)) {
		p := m.ports[i]
		a := netlink.LinkAttrs{Index: i, Name: p.HostVeth}
		if p.grouped {
			a.Group = hostport.Group
		}
		if !p.Routed() {
			a.MasterIndex = bridgeIndex
		}
		list = append(list, &netlink.Veth{LinkAttrs: a})
	}
	return list, m.event("links")
}

func (m *machine) tunnels([]netlink.Link) (desired.Tunnels, error) {
	return desired.Tunnels{UDPPorts: m.tunnelPorts}, m.event("tunnels")
}

func (m *machine) addresses() ([]netip.Addr, error) {
	return []netip.Addr{netip.MustParseAddr("192.0.2.1")}, m.event("addresses")
}

// at changes a port, if it is there.
func (m *machine) atPort(name string, e attachment.Endpoint, change func(*hostPort)) error {
	p := m.ports[e.HostVethIndex]
	if p == nil {
		return errors.Join(m.event(name), netlink.LinkNotFoundError{})
	}
	return m.does(name+" "+e.HostVeth, func() { change(p) })
}

func (m *machine) block(e attachment.Endpoint) error {
	return m.atPort("close", e, func(p *hostPort) { p.grouped, p.listening, p.guarded = e.Routed(), !e.Routed(), true })
}

func (m *machine) unblock(e attachment.Endpoint) error {
	if p := m.ports[e.HostVethIndex]; p != nil {
		if !m.judged(p.owner) || !p.guarded {
			m.t.Errorf("%s is opened, was closed: %t, and is known to the kernel: %t", p.owner, p.guarded, m.judged(p.owner))
		}
		m.unjudged(p.owner, e.Addresses)
	}
	return m.atPort("open", e, func(p *hostPort) { p.listening = false })
}

// unjudged complains about flows of a new endpoint's addresses that go on unjudged.
func (m *machine) unjudged(key attachment.Key, addrs []netip.Addr) {
	m.t.Helper()
	for _, a := range addrs {
		for _, s := range m.has {
			if s != nil && m.flows[a] == epochOf(*s).Value {
				m.t.Errorf("%s opens, and a flow of %s that was before it is not judged", key, a)
			}
		}
	}
}

func (m *machine) guard(e attachment.Endpoint) error {
	return m.atPort("hold", e, func(p *hostPort) { p.grouped, p.guarded = e.Routed(), true })
}

func (m *machine) blockForDelete(e attachment.Endpoint) error {
	if m.ports[e.HostVethIndex] == nil {
		return m.event("shut")
	}
	err := m.atPort("shut", e, func(p *hostPort) { p.listening = !e.Routed() })
	if p := m.ports[e.HostVethIndex]; err != nil && !p.listening {
		p.guarded = p.Routed() // a DEL goes on all the same, and says so
	}
	return err
}

func (m *machine) restore(e attachment.Endpoint) error {
	if m.ports[e.HostVethIndex] == nil {
		return m.event("release")
	}
	return m.atPort("release", e, func(p *hostPort) { p.grouped, p.listening, p.guarded = false, false, false })
}

func (m *machine) restoreLink(l netlink.Link) error {
	return m.does("release link "+l.Attrs().Name, func() {
		if p := m.ports[l.Attrs().Index]; p != nil {
			p.grouped = false
		}
	})
}

func (m *machine) setGroup(e attachment.Endpoint) error {
	return m.atPort("regroup", e, func(p *hostPort) { p.grouped = true })
}

func (m *machine) check(e attachment.Endpoint) error {
	links, _ := m.links()
	if d := hostport.Drifts(e, hostport.LinksOf(links).Find); len(d) > 0 {
		return errors.New(d[0].String())
	}
	return nil
}

func (m *machine) alive(e attachment.Endpoint) bool { return m.ports[e.HostVethIndex] != nil }

func (m *machine) filtered(ipv6 bool) error {
	if m.unfilterable[ipv6] {
		return errors.New("br_netfilter is off")
	}
	return nil
}

func (m *machine) resetVerdict(addrs []netip.Addr, mask uint32) error {
	return m.does("unjudge", func() {
		for _, a := range addrs {
			if _, any := m.flows[a]; any {
				m.flows[a] &^= mask
			}
		}
	})
}

func (m *machine) deleteFlows(addrs []netip.Addr) error {
	if m.busy {
		return fmt.Errorf("a flow of %v: %w", addrs, unix.EBUSY)
	}
	return m.does("forget", func() {
		for _, a := range addrs {
			delete(m.flows, a)
		}
	})
}

// strip takes bits off the flows for which is holds.
func (m *machine) strip(name string, mask uint32, is func(netip.Addr, uint32) bool) error {
	return m.does(name, func() {
		for a, mark := range m.flows {
			if is(a, mark) {
				m.flows[a] &^= mask
			}
		}
	})
}

func (m *machine) clearEpoch(k mark.Mark) error {
	return m.strip("clear", k.Mask, func(_ netip.Addr, is uint32) bool { return is&k.Mask == k.Value })
}

func (m *machine) clearOtherEpochs(k mark.Mark) error {
	return m.strip("clear others", k.Mask, func(_ netip.Addr, is uint32) bool { return is&k.Mask != k.Value })
}

func (m *machine) reevaluate(k mark.Mark, set *netipx.IPSet) error {
	return m.strip("rejudge", k.Mask, func(a netip.Addr, is uint32) bool { return is&k.Mask == k.Value && set.Contains(a) })
}

func (m *machine) reclaim(mark.Mark, *netipx.IPSet) (conntrack.Reclaimed, error) {
	return conntrack.Reclaimed{}, m.event("take back")
}

// engine is a backend of the machine's.
type engine struct {
	m    *machine
	kind config.Kind
}

func (e engine) is() *desired.State { return e.m.has[e.kind] }

func (e engine) Sync(_ context.Context, want desired.State) error {
	if err := want.Filled(); err != nil {
		return err
	}
	return e.m.does("sync", func() {
		there := e.populations()
		sets := want.WithoutMembers()
		for id := range sets.PeerSets { // who is there besides stays
			sets.PeerSets[id] = joined(want.PeerSets[id], there.PeerSets[id])
		}
		e.m.sets[e.kind] = &desired.State{PeerSets: sets.PeerSets}
		want.PeerSets, want.TupleSets = nil, nil
		e.m.has[e.kind], e.m.flushed = &want, false
	})
}

// populations are the peer sets that there are.
func (e engine) populations() *desired.State {
	if e.m.sets[e.kind] == nil {
		e.m.sets[e.kind] = &desired.State{PeerSets: map[desired.PeerSetID]desired.PeerSet{}}
	}
	return e.m.sets[e.kind]
}

// joined is a with who is in b besides.
func joined(a, b desired.PeerSet) desired.PeerSet {
	a.Addrs = slices.Concat(a.Addrs, b.Addrs)
	slices.SortFunc(a.Addrs, netip.Addr.Compare)
	a.Addrs = slices.Compact(a.Addrs)
	return a
}

func (e engine) FillSet(_ context.Context, want desired.Set) (int, error) {
	return 0, e.m.does("fill", func() { maps.Copy(e.populations().PeerSets, want.PeerSets) })
}

func (e engine) Holds(context.Context, desired.Set) (bool, error) { return true, nil }

// Update goes there in steps, of which each allows no more than from or to does.
func (e engine) Update(_ context.Context, before, after desired.Share) error {
	from, to := before.State, after.State
	if err := to.Filled(); err != nil {
		return err
	}
	is := e.is()
	if is == nil {
		return drift.Chain.Err()
	}
	if is.Profiles = maps.Clone(is.Profiles); is.Profiles == nil {
		is.Profiles = map[desired.ProfileID]desired.Profile{}
	}
	sets := e.populations().PeerSets
	without := func(list []desired.Endpoint, keys []desired.Endpoint) []desired.Endpoint {
		return slices.DeleteFunc(slices.Clone(list), func(e desired.Endpoint) bool {
			return slices.ContainsFunc(keys, func(k desired.Endpoint) bool { return k.Key == e.Key })
		})
	}
	for _, step := range []struct {
		name   string
		change func()
	}{
		{"populate", func() {
			for id, set := range to.PeerSets {
				gone := from.PeerSets[id].Addrs
				have := sets[id]
				have.Addrs = slices.DeleteFunc(slices.Clone(have.Addrs), func(a netip.Addr) bool { return slices.Contains(gone, a) })
				sets[id] = joined(set, have)
			}
			for id, p := range to.Profiles {
				if _, there := is.Profiles[id]; !there {
					is.Profiles[id] = p
				}
			}
		}},
		{"come", func() {
			for _, c := range to.Endpoints {
				if p := e.m.ports[c.HostVethIndex]; p != nil && p.guarded && c.Routed() && !e.m.judged(c.Key) {
					e.m.unjudged(c.Key, c.Addresses)
				}
			}
			is.Endpoints = append(without(is.Endpoints, to.Endpoints), to.Endpoints...)
			slices.SortFunc(is.Endpoints, func(a, b desired.Endpoint) int { return cmp.Compare(a.ID, b.ID) })
		}},
		{"leave", func() { is.Endpoints = without(is.Endpoints, without(from.Endpoints, to.Endpoints)) }},
		{"finish", func() {
			for id := range from.Profiles {
				next, both := to.Profiles[id]
				used := slices.ContainsFunc(is.Endpoints, func(e desired.Endpoint) bool { return slices.Contains(e.Profiles[:], id) })
				if both {
					is.Profiles[id] = next
				} else if !used {
					delete(is.Profiles, id)
				}
			}
			for id := range from.PeerSets {
				if _, both := to.PeerSets[id]; !both {
					delete(sets, id)
				}
			}
			is.Epoch = to.Epoch
		}},
	} {
		if err := e.m.does(step.name, step.change); err != nil {
			return err
		}
	}
	return nil
}

func (e engine) Check(_ context.Context, want desired.State, depth drift.Depth) error {
	is := e.is()
	switch {
	case is == nil:
		return drift.Chain.Err()
	case depth == drift.Base:
		return e.m.event("stands")
	case depth == drift.Deep:
		return e.verify(want)
	}
	for _, c := range want.Endpoints {
		if !slices.ContainsFunc(is.Endpoints, func(e desired.Endpoint) bool { return image(e) == image(c) }) {
			return fmt.Errorf("%w: %s", drift.Element.Err(), c.Key)
		}
	}
	return nil
}

func (e engine) verify(want desired.State) error {
	is := e.is()
	switch {
	case is == nil:
		return drift.Chain.Err()
	case is.Epoch != want.Epoch || is.Layout != want.Layout:
		return fmt.Errorf("%w: epoch %d of %#x, want %d of %#x", drift.Chain.Err(), is.Epoch, is.Layout.Mask(), want.Epoch, want.Layout.Mask())
	case image(is.Endpoints) != image(want.Endpoints):
		return fmt.Errorf("%w: endpoints\n%s\nwant\n%s", drift.Element.Err(), image(is.Endpoints), image(want.Endpoints))
	case image(is.Profiles) != image(want.Profiles):
		return fmt.Errorf("%w: profiles\n%s\nwant\n%s", drift.Chain.Err(), image(is.Profiles), image(want.Profiles))
	}
	for id, set := range want.PeerSets {
		for _, a := range set.Addrs {
			if !slices.Contains(e.populations().PeerSets[id].Addrs, a) {
				return fmt.Errorf("%w: %s in %s", drift.Element.Err(), a, id)
			}
		}
	}
	return nil
}

func (e engine) Refresh(_ context.Context, want desired.State) ([]string, error) {
	if err := e.m.event("keep"); err != nil {
		return nil, err
	}
	return nil, e.verify(want)
}

func (e engine) Counters(context.Context) ([]counters.Rule, error) { return nil, nil }

// image is what there is of v to compare.
func image(v any) string {
	if list, ok := v.([]desired.Endpoint); ok {
		if len(list) == 0 {
			return "[]"
		}
		list = slices.Clone(list)
		for i := range list {
			list[i].Committed = true // one that comes is not yet
		}
		v = list
	}
	if one, ok := v.(desired.Endpoint); ok {
		one.Committed = true
		v = one
	}
	b, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// left is what there is on the machine: what the kernel has, and the state directory. Which
// epoch it is does not count, nor which ID is to be tried next.
func (m *machine) left() map[string]string {
	m.t.Helper()
	out := map[string]string{}
	for kind, s := range m.has {
		out["rules "+string(kind)] = fmt.Sprintf("%#x %s %s %s", s.Layout.Mask(), image(s.Tunnels), image(s.Endpoints), image(s.Profiles))
	}
	for kind, s := range m.sets {
		if len(s.PeerSets) == 0 {
			continue
		}
		out["sets "+string(kind)] = image(s.PeerSets)
	}
	_, err := m.node().decodeNodeFile()
	for i, p := range m.ports { // one that is nobody's any more stays shut
		if r, errRecord := m.store.Get(p.owner); errRecord == nil || err != nil {
			out[fmt.Sprint("port ", i)] = fmt.Sprint(r.ID, p.grouped, p.listening)
		}
	}
	err = filepath.WalkDir(m.store.Dir(), func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || err == nil && d.IsDir() {
			return nil
		}
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(path, m.store.Dir())
		switch {
		case name == "/next" || name == "/lock":
		case name == "/"+state.NodeFile:
			f, err := m.node().decodeNodeFile()
			f.Epoch, f.FormerHash = 0, ""
			out[name] = image(f)
			return err
		case d.Type() == fs.ModeSymlink:
			out[name], err = os.Readlink(path)
		default:
			var b []byte
			b, err = os.ReadFile(path)
			out[name] = string(b)
		}
		return err
	})
	if err != nil {
		m.t.Fatal(err)
	}
	return out
}

// judgedFlows are the addresses whose flows the rules in force have judged.
func (m *machine) judgedFlows() map[netip.Addr]bool {
	out := map[netip.Addr]bool{}
	for _, s := range m.has {
		for a, is := range m.flows {
			if k := epochOf(*s); is&k.Mask == k.Value {
				out[a] = true
			}
		}
	}
	return out
}

const bridgeIndex = 5

// routed is a policed attachment of a pod of namespace shop, behind a veth of its own.
func routed(name string, number byte) attachment.Record {
	veth := fmt.Sprint("veth", number)
	return attachment.Record{
		Key: attachment.Key{Network: "net", ContainerID: name, IfName: "eth0"}, Policed: true,
		Endpoint: attachment.Endpoint{
			Namespace: "shop", Pod: name, Labels: map[string]string{"app": name}, L3Interface: veth, HostVeth: veth, MAC: fmt.Sprintf("02:00:00:00:00:%02x", number),
			L3InterfaceIndex: 100 + int(number), HostVethIndex: 100 + int(number),
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, number}), netip.MustParseAddr(fmt.Sprintf("fd00::%x", number))},
		},
	}
}

// bridged is one behind a port of bridge cni0.
func bridged(name string, number byte) attachment.Record {
	r := routed(name, number)
	r.L3Interface, r.L3InterfaceIndex = "cni0", bridgeIndex
	return r
}
