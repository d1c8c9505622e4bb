package node

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/mark"
	"github.com/podmark/podmark/test/needs"
)

func layoutOf(mask uint32) mark.Layout {
	l, err := mark.NewLayout(mask)
	if err != nil {
		panic(err)
	}
	return l
}

func settingsOf(b config.Backend, mask uint32) Settings {
	return Settings{Layout: layoutOf(mask), Backend: b, NodePorts: []desired.PortRange{{First: 30000, Last: 32767}}}
}

var onNFTables = settingsOf(config.BackendNFTables, 0xffff0000)

// isolates is a policy of namespace shop that lets pods of labels reach the pods of another.
func isolates(app string, peers ...string) desired.Policies {
	selector := func(app string) desired.Selector {
		return desired.Selector{{Key: "app", Op: desired.In, Values: []string{app}}}
	}
	p := desired.Policy{Namespace: "shop", Name: app, Pods: selector(app), Ingress: &desired.Isolation{}, Egress: &desired.Isolation{}}
	for _, peer := range peers {
		p.Ingress.Rules = append(p.Ingress.Rules, desired.Rule{Peers: []desired.Peer{{Namespace: "shop", Pods: selector(peer)}}})
	}
	return desired.Policies{Policies: []desired.Policy{p}}
}

func sent() (bool, error) { return true, nil }

func adds(r attachment.Record) func(Node) error {
	return func(n Node) error {
		_, err := n.Add(context.Background(), onNFTables, r, nil, sent)
		return err
	}
}

func deletes(r attachment.Record) func(Node) error {
	return func(n Node) error {
		left, err := n.Delete(context.Background(), r.Key)
		return errors.Join(left, err)
	}
}

// and are two calls. What a DEL could not remove is for the next change to do.
func and(one, two func(Node) error) func(Node) error {
	return func(n Node) error {
		if err := one(n); err != nil {
			return err
		}
		return two(n)
	}
}

func collects(keys ...attachment.Key) func(Node) error {
	return func(n Node) error {
		_, err := n.CollectGarbage(context.Background(), func(r attachment.Record) bool { return !r.Committed || slices.Contains(keys, r.Key) }, false)
		return err
	}
}

func sets(p desired.Policies) func(Node) error {
	return func(n Node) error {
		_, err := n.SetPolicies(context.Background(), onNFTables, p)
		return err
	}
}

func uninstalls(n Node) error { return n.Uninstall(context.Background()) }

var (
	web, other  = routed("web", 1), routed("other", 2)
	bridgedWeb  = bridged("web", 1)
	elsewhere   = netip.MustParseAddr("10.9.0.1")
	late        = routed("late", 4)
	toBeWeb     = func() attachment.Record { r := routed("later", 3); r.Addresses = web.Addresses[:1]; return r }()
	relabelled  = func() attachment.Record { r := web; r.Labels = map[string]string{"app": "other"}; return r }()
	webPolicy   = isolates("web", "other")
	otherPolicy = isolates("other", "web")
)

// verb is a call that is harmed at each of its events.
type verb struct {
	name string
	// before brings a new machine to where the call is made.
	before []func(Node) error
	// bridged is set where the first pod is on a bridge.
	bridged bool
	// prepare, if set, is done to the machine then.
	prepare func(*machine)
	call    func(Node) error
	// pod is what the call is about; nil for the whole node.
	pod *attachment.Record
	// then is what may come next besides.
	then map[string]func(Node) error
	// policies are those before and after the call.
	policies []desired.Policies
}

// follows is a round of podmarkd's, in which these pods elsewhere come, and attachments get
// other labels.
func follows(p desired.Policies, come desired.Members, changed ...attachment.Record) func(Node) error {
	return func(n Node) error {
		n.RemoteMembers = func(s desired.State) (desired.State, bool) { return s.WithMembers(come), true }
		_, err := n.UpdatePolicies(context.Background(), onNFTables, func(records []attachment.Record) PolicyUpdate {
			r := PolicyUpdate{Policies: &p, Added: come}
			for _, is := range records {
				for _, c := range changed {
					if is.Key == c.Key {
						is.Labels = c.Labels
						r.Records = append(r.Records, is)
					}
				}
			}
			return r
		})
		return err
	}
}

// peersOf are the members of the policies' only set of peers.
func peersOf(p desired.Policies, addrs ...netip.Addr) desired.Members {
	m := desired.Members{Peers: map[desired.PeerSetID][]netip.Addr{}}
	for _, id := range desired.Build(desired.Node{}, p, nil).PeerSetIDs() {
		m.Peers[id] = addrs
	}
	return m
}

var verbs = []verb{
	{name: "first ADD", call: adds(web), pod: &web},
	{name: "ADD with a profile", before: []func(Node) error{sets(webPolicy)}, call: adds(web), pod: &web, policies: []desired.Policies{webPolicy}},
	{name: "ADD beside another", before: []func(Node) error{sets(webPolicy), adds(other)}, call: adds(web), pod: &web, policies: []desired.Policies{webPolicy}},
	{name: "ADD on a bridge", before: []func(Node) error{sets(webPolicy)}, call: adds(bridgedWeb), pod: &bridgedWeb, bridged: true, policies: []desired.Policies{webPolicy}},
	{name: "ADD again", before: []func(Node) error{sets(webPolicy), adds(web)}, call: adds(web), pod: &web, policies: []desired.Policies{webPolicy}},
	{
		name: "ADD on a flushed node", before: []func(Node) error{sets(webPolicy), adds(other)}, prepare: (*machine).flush,
		call: adds(web), pod: &web, policies: []desired.Policies{webPolicy},
	},
	{
		name: "ADD that takes an address", before: []func(Node) error{sets(webPolicy), adds(web)},
		call: adds(toBeWeb), pod: &toBeWeb, policies: []desired.Policies{webPolicy},
	},
	{
		name: "ADD that leaves iptables", before: []func(Node) error{func(n Node) error {
			_, err := n.Add(context.Background(), settingsOf(config.BackendIPTables, 0xffff0000), other, nil, sent)
			return err
		}},
		call: adds(web), pod: &web,
	},
	{
		name: "adoption", before: []func(Node) error{sets(webPolicy)}, policies: []desired.Policies{webPolicy},
		call: func(n Node) error {
			_, _, err := n.Adopt(context.Background(), onNFTables, web)
			return err
		},
	},
	{name: "DEL of the last", before: []func(Node) error{sets(webPolicy), adds(web)}, call: deletes(web), pod: &web, policies: []desired.Policies{webPolicy}},
	{name: "DEL of one of two", before: []func(Node) error{adds(other), adds(web)}, call: deletes(web), pod: &web},
	{name: "DEL on a bridge", before: []func(Node) error{sets(webPolicy), adds(bridgedWeb)}, call: deletes(bridgedWeb), pod: &bridgedWeb, bridged: true, policies: []desired.Policies{webPolicy}},
	{name: "DEL on a flushed node", before: []func(Node) error{adds(web), adds(other)}, prepare: (*machine).flush, call: deletes(web), pod: &web},
	{
		name: "gc", before: []func(Node) error{sets(webPolicy), adds(web), adds(other)}, policies: []desired.Policies{webPolicy},
		prepare: func(m *machine) { delete(m.ports, web.HostVethIndex) }, call: collects(web.Key),
		then: map[string]func(Node) error{"another's ADD": adds(late)},
	},
	{name: "policies that narrow", before: []func(Node) error{adds(web), adds(other)}, call: sets(webPolicy), policies: []desired.Policies{webPolicy}},
	{name: "policies that widen", before: []func(Node) error{adds(web), adds(other), sets(webPolicy)}, call: sets(desired.Policies{}), policies: []desired.Policies{webPolicy}},
	{name: "other policies", before: []func(Node) error{adds(web), adds(other), sets(webPolicy)}, call: sets(otherPolicy), policies: []desired.Policies{webPolicy, otherPolicy}},
	{
		name: "policies on a flushed node", before: []func(Node) error{adds(web), adds(other), sets(webPolicy)}, prepare: (*machine).flush,
		call: sets(otherPolicy), policies: []desired.Policies{webPolicy, otherPolicy},
	},
	{
		name: "the first round of podmarkd", before: []func(Node) error{adds(web), adds(other), sets(otherPolicy)}, policies: []desired.Policies{webPolicy, otherPolicy},
		call: follows(webPolicy, peersOf(webPolicy, elsewhere)),
	},
	{
		name: "a round that relabels", policies: []desired.Policies{webPolicy},
		before: []func(Node) error{adds(web), adds(other), follows(webPolicy, desired.Members{})},
		call:   follows(webPolicy, desired.Members{}, relabelled),
	},
	{
		name: "a round of other policies and pods", policies: []desired.Policies{webPolicy, otherPolicy},
		before: []func(Node) error{adds(web), adds(other), follows(webPolicy, desired.Members{})},
		call:   follows(otherPolicy, peersOf(otherPolicy, elsewhere)),
	},
	{
		name: "another mask", before: []func(Node) error{sets(webPolicy), adds(web), adds(other)}, policies: []desired.Policies{webPolicy},
		call: func(n Node) error {
			_, err := n.ChangeMask(context.Background(), layoutOf(0x00ff0000))
			return err
		},
		then: map[string]func(Node) error{"the same": keeps},
	},
	{
		name: "repair", before: []func(Node) error{sets(webPolicy), adds(web), adds(other)}, prepare: (*machine).flush, policies: []desired.Policies{webPolicy},
		call: keeps,
	},
	{
		name: "a new tunnel", before: []func(Node) error{sets(webPolicy), adds(web)}, policies: []desired.Policies{webPolicy},
		prepare: func(m *machine) { m.tunnelPorts = []uint16{4789} }, call: keeps,
	},
	{
		name: "br_netfilter is turned off", bridged: true, before: []func(Node) error{sets(webPolicy), adds(bridgedWeb)}, policies: []desired.Policies{webPolicy},
		prepare: func(m *machine) { m.unfilterable[false] = true }, call: keeps,
	},
	{
		name: "a link that somebody regrouped", before: []func(Node) error{sets(webPolicy), adds(web)}, policies: []desired.Policies{webPolicy},
		prepare: func(m *machine) { m.ports[web.HostVethIndex].grouped = false }, call: keeps,
	},
	{name: "uninstall", before: []func(Node) error{sets(webPolicy), adds(web), adds(other)}, call: uninstalls, policies: []desired.Policies{webPolicy}},
}

func keeps(n Node) error {
	_, err := n.Reconcile(context.Background(), &Ports{Ranges: []desired.PortRange{{First: 80, Last: 90}}, SCTP: []desired.PortRange{}, Source: "kube-proxy"})
	return err
}

// machine is one on which the call is about to be made.
func (v verb) machine(t *testing.T) *machine {
	t.Helper()
	m := newMachine(t)
	m.policies = append(m.policies, v.policies...)
	pods := []attachment.Record{web, other, toBeWeb, late}
	if v.bridged {
		pods[0] = bridgedWeb
	}
	for _, r := range pods {
		m.plug(r)
	}
	for i, do := range v.before {
		if err := m.call(0, "", do); err != nil {
			t.Fatalf("%s: before it, call %d: %v", v.name, i, err)
		}
	}
	for _, r := range pods { // these have been judged under the epoch of now
		for _, a := range r.Addresses {
			m.flows[a] = m.epoch().Value
		}
	}
	if v.prepare != nil {
		v.prepare(m)
	}
	return m
}

// epoch is what the rules in force write into flows.
func (m *machine) epoch() mark.Mark {
	for _, s := range m.has {
		return epochOf(*s)
	}
	return layoutOf(0xffff0000).Mark(1)
}

// whole complains where the kernel does not have what the state directory says.
func (m *machine) whole() {
	m.t.Helper()
	missing, err := m.node().Diff(context.Background())
	if missing != nil || err != nil {
		m.t.Errorf("at last the kernel lacks %v: %v", missing, err)
	}
	if f, err := m.node().load(); err == nil {
		for kind := range m.has {
			if kind != f.Backend {
				m.t.Errorf("at last %s has rules, and %s is the backend", kind, f.Backend)
			}
		}
	}
}

// A call that ends, or fails, anywhere on the way opens nobody. Whatever comes behind it ends
// as if it had not.
func TestFaults(t *testing.T) {
	needs.All(t, needs.Time)
	for _, v := range verbs {
		t.Run(v.name, func(t *testing.T) {
			next := map[string]func(Node) error{"the same": v.call, "uninstall": uninstalls}
			if v.pod != nil {
				next["DEL"], next["gc"] = and(deletes(*v.pod), collects()), collects(v.pod.Key)
				next["ADD"] = adds(*v.pod)
			}
			maps.Copy(next, v.then)
			if strings.HasPrefix(v.name, "DEL") {
				next["the same"] = next["DEL"]
				delete(next, "uninstall")
			}
			// What comes next ends as if the call had come to its end, or had not begun.
			want, judged := map[string][]map[string]string{}, map[string]map[netip.Addr]bool{}
			var events []string
			var unharmed *machine
			for name, call := range next {
				judged[name] = map[netip.Addr]bool{}
				for _, begun := range []bool{true, false} {
					m := v.machine(t)
					if begun {
						if err := m.call(0, "", v.call); err != nil {
							t.Fatal(err)
						}
						events, unharmed = m.events, &machine{written: m.written}
					}
					if err := m.call(0, "", call); err != nil {
						t.Fatalf("then %s: %v", name, err)
					}
					want[name] = append(want[name], m.left())
					maps.Copy(judged[name], m.judgedFlows())
					if _, err := m.node().State(); begun && err == nil {
						m.whole()
					}
				}
			}
			if len(events) < 5 {
				t.Fatalf("it has %d events: %q", len(events), events)
			}
			for i := range events {
				for _, f := range faults {
					if f != fails && f != ends && !unharmed.writes(i) {
						continue
					}
					// Each is followed by itself, and every other one by something else.
					turn := i + slices.Index(faults, f)
					then := []string{"the same"}
					if name := slices.Sorted(maps.Keys(next))[turn%len(next)]; turn%2 == 0 && name != "the same" {
						then = append(then, name)
					}
					for _, name := range then {
						m := v.machine(t)
						err := m.call(i+1, f, v.call)
						if t.Failed() {
							t.Fatalf("it %s at %d, %q", f, i+1, events[i])
						}
						if again := m.call(0, "", next[name]); again != nil {
							t.Fatalf("it %s at %d, %q: %v; then %s: %v", f, i+1, events[i], err, name, again)
						}
						left := m.left()
						if diff := cmp.Diff(want[name][0], left); diff != "" && !maps.Equal(want[name][1], left) {
							t.Errorf("it %s at %d, %q: %v; then %s leaves\n%s", f, i+1, events[i], err, name, diff)
						}
						for a := range m.judgedFlows() {
							if !judged[name][a] {
								t.Errorf("it %s at %d, %q: %v; then %s: the flow of %s goes on unjudged", f, i+1, events[i], err, name, a)
							}
						}
						if t.Failed() {
							t.FailNow()
						}
					}
				}
			}
			t.Logf("%d events, each with %d faults", len(events), len(faults))
		})
	}
}
