package node

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/mark"
	"github.com/podmark/podmark/pkg/state"
)

// on is a machine on which the calls have been made.
func on(t *testing.T, calls ...func(Node) error) *machine {
	t.Helper()
	m := newMachine(t)
	m.policies = append(m.policies, webPolicy, otherPolicy)
	for _, r := range []attachment.Record{web, other, late} {
		m.plug(r)
	}
	for i, call := range calls {
		if err := m.call(0, "", call); err != nil {
			t.Fatalf("call %d: %v", i, err)
		}
	}
	return m
}

// judge has every flow carry what the rules in force write.
func (m *machine) judge() {
	for _, p := range m.ports {
		for _, a := range p.Addresses {
			m.flows[a] = m.epoch().Value
		}
	}
}

// What takes something away begins an epoch, and nothing else does.
func TestEpochs(t *testing.T) {
	for _, tt := range []struct {
		name   string
		before []func(Node) error
		change func(Node) error
		begins bool
	}{
		{"a policy comes", []func(Node) error{adds(web)}, sets(webPolicy), true},
		{"a policy goes", []func(Node) error{adds(web), sets(webPolicy)}, sets(desired.Policies{}), false},
		{"a peer goes", []func(Node) error{adds(web), sets(isolates("web", "other", "late"))}, sets(webPolicy), true},
		{"a peer comes", []func(Node) error{adds(web), sets(webPolicy)}, sets(isolates("web", "other", "late")), false},
		{"a policy of nobody comes", []func(Node) error{adds(other)}, sets(webPolicy), false},
		{"nothing changes", []func(Node) error{adds(web), sets(webPolicy)}, sets(webPolicy), false},
		{"a change that was not finished", []func(Node) error{adds(web), sets(webPolicy), unfinished}, sets(otherPolicy), true},
		{"a pod elsewhere goes", []func(Node) error{adds(web), follows(webPolicy, desired.Members{})}, func(n Node) error {
			_, err := n.UpdatePolicies(context.Background(), Settings{}, func([]attachment.Record) PolicyUpdate {
				return PolicyUpdate{Removed: peersOf(webPolicy, elsewhere)}
			})
			return err
		}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := on(t, tt.before...)
			m.judge()
			before := m.epoch()
			if err := m.call(0, "", tt.change); err != nil {
				t.Fatal(err)
			}
			if begins := m.epoch() != before; begins != tt.begins {
				t.Errorf("it begins an epoch: %t", begins)
			}
			if judged := m.judgedFlows()[web.Addresses[0]]; judged == tt.begins {
				t.Errorf("the flow of web counts as judged: %t", judged)
			}
		})
	}
}

func unfinished(n Node) error {
	f, err := n.load()
	f.Synced = false
	return errors.Join(err, n.save(f))
}

// A number that is given out again is on no flow, and those who keep silent for as many
// changes as there are numbers are judged all the same.
func TestEpochsComeAgain(t *testing.T) {
	narrow := settingsOf(config.BackendNFTables, 0x00070000)
	m := on(t, func(n Node) error {
		_, err := n.Add(context.Background(), narrow, web, nil, sent)
		return err
	})
	marks := map[mark.Mark]bool{}
	for i := range 30 {
		// Some flow has been judged under each of the numbers that there were, the last of all too.
		silent := netip.AddrFrom4([4]byte{10, 1, 0, byte(i)})
		m.flows[silent] = m.epoch().Value
		policies := []desired.Policies{webPolicy, {}}[i%2]
		before := m.epoch()
		n := m.node()
		n.Step = func(name string) {
			if name == "saved" { // the former rules are in force still
				m.flows[netip.AddrFrom4([4]byte{10, 2, 0, byte(i)})] = before.Value
			}
		}
		if err := sets(policies)(n); err != nil {
			t.Fatal(err)
		}
		marks[m.epoch()] = true
		if i%2 == 0 && m.epoch() == before {
			t.Fatalf("change %d narrows, and begins no epoch", i)
		}
		for a := range m.judgedFlows() {
			if m.epoch() != before {
				t.Errorf("change %d: the flow of %s counts as judged under %v", i, a, m.epoch())
			}
		}
	}
	if len(marks) != 7 {
		t.Errorf("%d epochs, want 7", len(marks))
	}
}

// An endpoint that goes leaves no flow, and one that comes has its own judged.
func TestFlows(t *testing.T) {
	m := on(t, adds(web), adds(other))
	m.judge()
	if err := m.call(0, "", deletes(web)); err != nil {
		t.Fatal(err)
	}
	for _, a := range web.Addresses {
		if _, there := m.flows[a]; there {
			t.Errorf("a flow of %s is left", a)
		}
		if _, there := m.flows[other.Addresses[0]]; !there {
			t.Error("another's flow is gone")
		}
		m.flows[a] = m.epoch().Value // of a peer outside
	}
	if err := m.call(0, "", adds(web)); err != nil {
		t.Fatal(err)
	}
	if m.judgedFlows()[web.Addresses[0]] {
		t.Error("what was before the endpoint counts as judged")
	}
}

// A kernel that leaves a flow to its flowtable keeps no ID: neither a DEL nor a collection ends
// for it, and both tell.
func TestFlowsOfAFlowtable(t *testing.T) {
	for name, call := range map[string]func(n Node) (left, err error){
		"DEL": func(n Node) (left, err error) { return n.Delete(context.Background(), web.Key) },
		"collection": func(n Node) (left, err error) {
			c, err := n.CollectGarbage(context.Background(), func(r attachment.Record) bool { return r.Key == web.Key }, false)
			return c.Left, err
		},
	} {
		m := on(t, adds(web), adds(other))
		m.judge()
		m.busy = true
		if left, err := call(m.node()); err != nil || !errors.Is(left, unix.EBUSY) {
			t.Errorf("%s: left %v, error %v", name, left, err)
		}
		if records, err := m.store.List(); err != nil || len(records) != 1 || records[0].Key != other.Key {
			t.Errorf("%s leaves records %v, %v", name, records, err)
		}
	}
}

// What an ADD is refused for changes nothing.
func TestRefusals(t *testing.T) {
	again := func(r attachment.Record, change func(*attachment.Record)) attachment.Record { change(&r); return r }
	sources := []netip.Prefix{netip.MustParsePrefix("172.30.0.0/16")}
	withSources := func(r *attachment.Record) { r.AllowedSources = sources }
	behindWeb := again(late, func(r *attachment.Record) {
		r.AllowedSources, r.L3Interface, r.HostVeth, r.L3InterfaceIndex, r.HostVethIndex = sources, web.L3Interface, web.HostVeth, web.L3InterfaceIndex, web.HostVethIndex
	})
	elsewhere := again(late, func(r *attachment.Record) { r.Network, r.Addresses = "another", web.Addresses })
	promised := [2]desired.ProfileID{"0123456789abcdef", ""}
	narrow := settingsOf(config.BackendNFTables, 0x00ff0000)
	add := func(s Settings, r attachment.Record, promised *[2]desired.ProfileID) func(Node) error {
		return func(n Node) error {
			_, err := n.Add(context.Background(), s, r, promised, sent)
			return err
		}
	}
	for _, tt := range []struct {
		name   string
		before []func(Node) error
		gone   bool
		call   func(Node) error
		want   error
	}{
		{"an address of another network", []func(Node) error{adds(web)}, false, adds(elsewhere), ErrContended},
		{"an address of another network whose pod is gone", []func(Node) error{adds(web)}, true, adds(elsewhere), nil},
		{"a prefix of another's", []func(Node) error{adds(again(web, withSources))}, false, adds(behindWeb), ErrContended},
		{"a prefix of another's behind another veth", []func(Node) error{adds(again(web, withSources))}, false, adds(again(late, withSources)), nil},
		{"other profiles than were promised", []func(Node) error{sets(webPolicy)}, false, add(onNFTables, web, &promised), ErrPromise},
		{"files where the API rules", []func(Node) error{adds(other), follows(webPolicy, desired.Members{})}, false, adds(web), ErrSource},
		{"another mask", []func(Node) error{adds(other)}, false, add(narrow, web, nil), ErrLayout},
		{"another mask of nobody's", []func(Node) error{adds(other), deletes(other)}, false, add(narrow, web, nil), nil},
		{"policies of files where the API rules", []func(Node) error{adds(other), follows(webPolicy, desired.Members{})}, false, sets(webPolicy), ErrSource},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := on(t, tt.before...)
			if tt.gone {
				delete(m.ports, web.HostVethIndex)
				m.plug(elsewhere)
			}
			left := m.left()
			err := m.call(0, "", tt.call)
			if !errors.Is(err, tt.want) {
				t.Fatalf("%v, want %v", err, tt.want)
			}
			if now := m.left(); err != nil && now["/"+state.NodeFile] != left["/"+state.NodeFile] {
				t.Errorf("it has changed\n%s\nto\n%s", left["/"+state.NodeFile], now["/"+state.NodeFile])
			}
		})
	}
}

// A STATUS says what an ADD would.
func TestStatusExhausted(t *testing.T) {
	tiny := settingsOf(config.BackendNFTables, 0x00030000)
	m := on(t)
	for i, r := range []attachment.Record{web, other, late} {
		n := m.node()
		full := n.Status(context.Background(), tiny)
		err := m.call(0, "", func(n Node) error {
			_, err := n.Add(context.Background(), tiny, r, nil, sent)
			return err
		})
		if last := i == 2; errors.Is(full, state.ErrExhausted) != last || errors.Is(err, state.ErrExhausted) != last {
			t.Errorf("%d: STATUS is %v, and ADD %v", i, full, err)
		}
	}
}

// One that is added again while its DEL is under way stays.
func TestAddedBetween(t *testing.T) {
	m := on(t, adds(web))
	n := m.node()
	n.Step = func(name string) {
		if name == "forgotten" {
			if err := adds(web)(m.node()); err != nil {
				t.Error(err)
			}
		}
	}
	if err := deletes(web)(n); err != nil {
		t.Fatal(err)
	}
	if r, err := m.store.Get(web.Key); err != nil || !r.Committed || !m.judged(web.Key) {
		t.Errorf("it is %+v, %v, and in the kernel: %t", r, err, m.judged(web.Key))
	}
	m.whole()
}

// Half a change may be in the kernel when it fails: the next one writes everything.
func TestFailedUpdate(t *testing.T) {
	m := on(t, adds(web))
	if err := m.call(0, "", adds(other)); err != nil {
		t.Fatal(err)
	}
	events := m.events
	m = on(t, adds(web))
	if err := m.call(slices.Index(events, "leave")+1, fails, adds(other)); err == nil {
		t.Fatal("no error")
	}
	if f, err := m.node().load(); err != nil || f.Synced {
		t.Errorf("synced is %t, %v", f.Synced, err)
	}
}

// What another program did is put back, and named.
func TestKeep(t *testing.T) {
	keep := func(m *machine) (kept Reconciled) {
		t.Helper()
		err := m.call(0, "", func(n Node) (err error) {
			kept, err = n.Reconcile(context.Background(), nil)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return kept
	}
	m := on(t, adds(web), sets(webPolicy))
	if kept := keep(m); kept.Drift != nil || kept.EndpointDrift != nil || len(kept.Policies) == 0 {
		t.Errorf("of nothing, Keep has found %+v", kept)
	}
	m.ports[web.HostVethIndex].grouped = false
	if kept := keep(m); kept.Drift == nil || !m.ports[web.HostVethIndex].grouped {
		t.Errorf("the group is back: %t, %v", m.ports[web.HostVethIndex].grouped, kept.Drift)
	}
	m.flush()
	if kept := keep(m); kept.Drift == nil || !m.judged(web.Key) {
		t.Errorf("the rules are back: %t, %v", m.judged(web.Key), kept.Drift)
	}
	before := m.epoch()
	m.tunnelPorts = []uint16{4789}
	if kept := keep(m); kept.Tunnels == nil || !slices.Equal(m.has[config.NFTables].Tunnels.UDPPorts, m.tunnelPorts) || m.epoch() == before {
		t.Errorf("a tunnel came: %+v, the kernel has %v, and the epoch is %v", kept.Tunnels, m.has[config.NFTables].Tunnels, m.epoch())
	}
	before, m.tunnelPorts = m.epoch(), nil
	if kept := keep(m); kept.Tunnels == nil || m.epoch() != before {
		t.Errorf("a tunnel went: %+v, and the epoch is %v", kept.Tunnels, m.epoch())
	}
	delete(m.ports, web.HostVethIndex)
	if kept := keep(m); len(kept.EndpointDrift) != 1 || kept.EndpointDrift[0].Pod != "shop/web" {
		t.Errorf("the veth is gone: %v", kept.EndpointDrift)
	}
}

// With iptables the ports of SCTP are in a rule, so everything is written when they change.
func TestKeepPorts(t *testing.T) {
	for b, writes := range map[config.Backend]bool{config.BackendIPTables: true, config.BackendNFTables: false} {
		m := on(t, func(n Node) error {
			_, err := n.Add(context.Background(), settingsOf(b, 0xffff0000), web, nil, sent)
			return err
		})
		if err := m.call(0, "", keeps); err != nil {
			t.Fatal(err)
		}
		if slices.Contains(m.events, "sync") != writes {
			t.Errorf("%s: %q", b, m.events)
		}
		f, err := m.node().load()
		if err != nil || !f.Synced || f.Ports == nil || f.Ports.Source != "kube-proxy" {
			t.Errorf("%s: %+v, %v", b, f.Ports, err)
		}
	}
}

// Nobody shares an ID, nobody's mark is another's in the other layout, and none is "outside".
func TestReassign(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	masks := []uint32{0x00070000, 0x001e0000, 0x000f0000, 0x00ff0000, 0x0ff00000, 0x03c30000, 0x70070000}
	for range 2000 {
		former, to := layoutOf(masks[random.IntN(len(masks))]), layoutOf(masks[random.IntN(len(masks))])
		var records []attachment.Record
		for _, i := range random.Perm(former.Capacity())[:random.IntN(min(former.Capacity(), 10)+1)] {
			r := routed("pod", byte(i))
			r.ContainerID, r.ID = r.HostVeth, mark.First+mark.ID(i)
			records = append(records, r)
		}
		// On the way to a layout, endpoints first leave what is to mean "outside" there.
		outside := to.ID(mark.Outside)
		if random.IntN(2) == 0 {
			to = former
		}
		ids, err := reassign(records, former, to, outside)
		if errors.Is(err, state.ErrExhausted) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		taken := map[mark.ID]bool{}
		for _, r := range records {
			id := ids[r.Hash()]
			if id.From != r.ID || id.To < mark.First || uint32(id.To) > to.Max() || taken[id.To] {
				t.Fatalf("%#x to %#x: %d becomes %d", former.Mask(), to.Mask(), id.From, id.To)
			}
			taken[id.To] = true
			is := to.ID(id.To).Value
			if is == former.ID(mark.Outside).Value || is == outside.Value {
				t.Fatalf("%#x to %#x: %d is outside", former.Mask(), to.Mask(), id.To)
			}
			for _, other := range records {
				if other.Key != r.Key && former.ID(other.ID).Value == is {
					t.Fatalf("%#x to %#x: %d is %d before", former.Mask(), to.Mask(), id.To, other.ID)
				}
			}
		}
	}
}

// A file counts as the one that was read only where the clock of files tells.
func TestFileStamp(t *testing.T) {
	read := time.Unix(1000, 0)
	old := fileStamp{inode: 7, size: 3, change: unix.Timespec{Sec: 900}, recognised: read}
	for name, tt := range map[string]struct {
		change func(was, now *fileStamp)
		same   bool
	}{
		"the same":             {func(_, _ *fileStamp) {}, true},
		"another inode":        {func(_, now *fileStamp) { now.inode++ }, false},
		"another size":         {func(_, now *fileStamp) { now.size++ }, false},
		"another time":         {func(_, now *fileStamp) { now.change.Nsec++ }, false},
		"it was not there":     {func(was, now *fileStamp) { was.inode, now.inode = 0, 0 }, false},
		"it had just changed":  {func(was, now *fileStamp) { was.change.Sec, now.change.Sec = 1000, 1000 }, false},
		"it changed long then": {func(was, now *fileStamp) { was.change.Sec, now.change.Sec = 999, 999 }, true},
	} {
		was, now := old, old
		if tt.change(&was, &now); was.same(now) != tt.same {
			t.Errorf("%s: same is %t", name, was.same(now))
		}
	}
}

// Wherever a move to another mask ends, and goes on later, no flow has bits afterwards that a
// later epoch could mean.
func TestMoveLeavesNoMarks(t *testing.T) {
	v := verbs[slices.IndexFunc(verbs, func(v verb) bool { return v.name == "another mask" })]
	silent := netip.MustParseAddr("192.0.2.1")
	to := layoutOf(0x00ff0000)
	begin := func() (*machine, uint32) {
		m := v.machine(t)
		f, err := m.node().load()
		if err != nil {
			t.Fatal(err)
		}
		m.flows[silent] = layoutOf(f.Mask).Mark(f.Epoch + 5).Value
		return m, to.Over(layoutOf(f.Mask)).Mark(f.Epoch).Mask
	}
	m, _ := begin()
	if err := m.call(0, "", v.call); err != nil {
		t.Fatal(err)
	}
	for i := range m.events {
		m, over := begin()
		_ = m.call(i+1, ends, v.call)
		for _, call := range []func(Node) error{keeps, v.call} {
			if err := m.call(0, "", call); err != nil {
				t.Fatal(err)
			}
		}
		if is := m.flows[silent] & over; is != 0 {
			t.Errorf("it ends at %d: a silent flow has %#x", i+1, is)
		}
	}
}
