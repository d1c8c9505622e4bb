package main_test

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	netlib "github.com/google/nftables"
)

// peerPolicy is webPolicy with a peer that the web pods themselves are.
const peerPolicy = webPolicy + `---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: peers, namespace: default}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]
`

// dbPolicy is webPolicy with another for pods labelled app=db, which allows what
// that forbids and the reverse.
const dbPolicy = webPolicy + `---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: default}
spec:
  podSelector: {matchLabels: {app: db}}
  policyTypes: [Ingress, Egress]
  ingress: [{ports: [{protocol: UDP, port: 8001}]}]
  egress: [{ports: [{protocol: UDP, port: 9001}]}]
`

// isDB is is(policed) for a pod that dbPolicy holds for.
func (p *pod) isDB(t *testing.T) {
	t.Helper()
	flows := p.flows(policed)
	for i := range flows {
		flows[i].pass = !flows[i].pass
	}
	if err := problem(t, flows...); err != nil {
		t.Error(err)
	}
}

var (
	elementList = regexp.MustCompile(`\t\telements = \{[^}]*\}\n`)
	setHeader   = regexp.MustCompile(`(?m)^\t(map|set) (\S+) \{`)
)

// elements lists the content of podmark's named sets of nft, each as "set: element".
func (n *node) elements() []string {
	n.T.Helper()
	var all []string
	for _, object := range n.tables() {
		name := setHeader.FindStringSubmatch(object)
		if name == nil {
			continue
		}
		_, list, _ := strings.Cut(elementList.FindString(object), "{")
		for e := range strings.SplitSeq(strings.TrimSuffix(list, "}\n"), ",") {
			if e = strings.TrimSpace(e); e != "" {
				all = append(all, name[2]+": "+e)
			}
		}
	}
	return all
}

// The ADD of a pod whose profiles exist adds elements: no set, chain or rule comes,
// goes or is written again. Nor does its DEL do more than take them back.
func TestElementsOnly(t *testing.T) {
	n := newNode(t, nftables)
	n.Apply(peerPolicy)
	p, sibling := n.addPod(), n.addPod()
	p.Add().OK(t)
	// With handles, by which one sees what was written again.
	frame := func() string { return elementList.ReplaceAllString(n.Exec("", "nft", "-a", "list", "ruleset"), "") }
	before, elements := frame(), n.elements()
	sibling.Add().OK(t)
	if diff := cmp.Diff(before, frame()); diff != "" {
		t.Errorf("ADD changed more than elements:\n%s", diff)
	}
	after := n.elements()
	for _, e := range elements {
		if !slices.Contains(after, e) {
			t.Errorf("ADD took %s away", e)
		}
	}
	added := slices.DeleteFunc(slices.Clone(after), func(e string) bool { return slices.Contains(elements, e) })
	for _, e := range added {
		of := []string{fmt.Sprintf("%q", sibling.Veth), " . " + sibling.mark() + " : ", sibling.V4, sibling.V6}
		if !slices.ContainsFunc(of, func(its string) bool { return strings.Contains(e, its) }) {
			t.Errorf("ADD added %s", e)
		}
	}
	for _, set := range []string{"senders4", "senders6", "veths", "self4", "self6", "sources4", "sources6", "egress", "ingress4", "ingress6", "p4-", "p6-"} {
		if !slices.ContainsFunc(added, func(e string) bool { return strings.HasPrefix(e, set) }) {
			t.Errorf("ADD added nothing to %s*: %q", set, added)
		}
	}
	sibling.Del().OK(t)
	if diff := cmp.Diff(before, frame()) + cmp.Diff(elements, n.elements()); diff != "" {
		t.Errorf("after DEL:\n%s", diff)
	}
}

var profileChain = regexp.MustCompile(`(?:chain |:PODMARK-)([eiEI])[46]?(-[0-9a-f]{16})`)

// profiles lists the profiles that there are rules of, sorted, e-<id> and i-<id>.
func (n *node) profiles() []string {
	n.T.Helper()
	var found []string
	for _, line := range append(n.tables(), n.Rules(n.Backend.Variant)...) {
		for _, m := range profileChain.FindAllStringSubmatch(line, -1) {
			found = append(found, strings.ToLower(m[1]+m[2]))
		}
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// A profile comes with its first endpoint and goes with its last, however that
// goes.
func TestProfilesComeAndGo(t *testing.T) {
	eachBackend(t, func(t *testing.T, n *node) {
		n.withHost().Apply(dbPolicy)
		n.settle()
		a, b, db := n.addPod(), n.addPod().listen(), n.addPod().listen()
		db.Labels = map[string]string{"app": "db"}
		a.Add().OK(t)
		web := n.profiles()
		db.Add().OK(t)
		both := n.profiles()
		if len(web) != 2 || len(both) != 4 {
			t.Fatalf("profiles %q, then %q", web, both)
		}
		others := slices.DeleteFunc(slices.Clone(both), func(p string) bool { return slices.Contains(web, p) })
		a.Del().OK(t)
		db.Del().OK(t)
		n.ctl("gc")
		none := n.elements()
		label := func(p *pod, app string, more ...conf) {
			p.Labels = map[string]string{"app": app}
			p.Add(more...).OK(t)
		}
		for _, step := range []struct {
			name string
			do   func()
			want []string
		}{
			{"nobody", func() {}, nil},
			{"first", func() { a.Add().OK(t) }, web},
			{"again", func() { a.Add().OK(t) }, web},
			{"second", func() { b.Add().OK(t) }, web},
			{"another's", func() { db.Add().OK(t); db.isDB(t); b.is(t, policed) }, both},
			{"first gone", func() { a.Del().OK(t); b.is(t, policed) }, both},
			{"last takes the other", func() { label(b, "db"); b.isDB(t) }, others},
			{"and its own", func() { label(b, "web"); b.is(t, policed); db.isDB(t) }, both},
			{"without policy", func() { label(db, "none") }, web},
			{"with one", func() { label(db, "db"); db.isDB(t) }, both},
			{"not policed", func() { label(db, "db", conf{"policy": "none"}) }, web},
			{"policed", func() { label(db, "db"); db.isDB(t); b.is(t, policed) }, both},
			{"collected", func() {
				n.gc(conf{"cni.dev/valid-attachments": []conf{{"containerID": db.ID, "ifname": "eth0"}}}).OK(t)
			}, others},
			{"all gone", func() { db.Del().OK(t) }, nil},
		} {
			step.do()
			if diff := cmp.Diff(step.want, n.profiles()); diff != "" {
				t.Fatalf("%s:\n%s", step.name, diff)
			}
		}
		if n.Backend != nftables {
			return
		}
		if diff := cmp.Diff(none, n.elements()); diff != "" {
			t.Errorf("elements of a node without pods:\n%s", diff)
		}
	})
}

// A profile's number that another program deleted is not given to another profile while
// endpoints still have it.
func TestLostNumber(t *testing.T) {
	n := newNode(t, nftables)
	n.withHost().Apply(dbPolicy)
	p, db := n.addPod().listen(), n.addPod().listen()
	db.Labels = map[string]string{"app": "db"}
	p.Add().OK(t)
	n.nft(fmt.Sprintf("delete element inet podmark egress-profiles { %s }; delete element inet podmark ingress-profiles { %s }", n.number("e4-"), n.number("i4-")))
	db.Add().OK(t)
	p.is(t, guarded)
	db.isDB(t)
	n.ctl("gc")
	p.is(t, policed)
	db.isDB(t)
}

// A rule may have more ipBlocks than a message to the kernel holds. None is lost,
// and no other address is let in by it.
func TestManyBlocks(t *testing.T) {
	eachKind(t, func(t *testing.T, n *node) {
		n.withHost()
		p := n.addPod().listen()
		p.Add().OK(t)
		for _, count := range []int{1639, 5000} {
			policy := &strings.Builder{}
			policy.WriteString(`{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "many", "namespace": "default"}, "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"], "egress": [{"ports": [{"protocol": "UDP", "port": 9002}]}], "ingress": [{"ports": [{"protocol": "UDP", "port": 8002}], "from": [`)
			for i := range count {
				// Half of a block, so that they cannot be joined.
				fmt.Fprintf(policy, `{"ipBlock": {"cidr": "10.%d.%d.0/25"}}, {"ipBlock": {"cidr": "fd00:0:%x::/64"}}, `, 8+i/250, i%250, 2*i)
			}
			last := policy.String()
			n.Apply(last + `{"ipBlock": {"cidr": "192.168.50.2/32"}}, {"ipBlock": {"cidr": "fd00:50::2/128"}}]}]}}`)
			p.is(t, policed)
			// The host is in none of them but follows them all.
			n.Apply(strings.TrimSuffix(last, ", ") + `]}]}}`)
			flows := p.flows(policed)
			for i := range flows {
				flows[i].pass = flows[i].pass && strings.HasSuffix(flows[i].name, "egress")
			}
			if err := problem(t, flows...); err != nil {
				t.Errorf("with %d blocks: %v", count, err)
			}
		}
	})
}

// Others change nf_tables all the time. podmark decides on what there is, and
// decides again when another program came in between; what is theirs it leaves alone.
func TestForeignChanges(t *testing.T) {
	on(t, inNFTables, func(t *testing.T, n *node) {
		n.Apply(webPolicy)
		n.settle()
		n.nft("add table inet mine; add set inet mine s { type ipv4_addr; elements = { 192.0.2.1 } ; }; add chain inet mine c { type filter hook forward priority -150; }; add rule inet mine c ip saddr @s drop")
		n.nft("add table bridge mine; add chain bridge mine c { type filter hook prerouting priority -200; }")
		mine := func() string {
			return n.Exec("", "nft", "-a", "list table inet mine") + n.Exec("", "nft", "-a", "list table bridge mine")
		}
		theirs := mine()
		var pods []*pod
		for i := range 20 {
			p := n.addPod()
			if i%2 == 0 {
				p.Labels = nil // its profile comes and goes with its neighbours
			}
			pods = append(pods, p)
		}
		n.ctl("gc")
		kernel := n.kernel()
		changes := n.meddle(t)
		for _, call := range []func(p *pod) reply{func(p *pod) reply { return p.Add() }, func(p *pod) reply { return p.Del() }} {
			n.each(pods, func(p *pod) {
				if r := call(p); r.Code() != 0 {
					t.Errorf("%s: %d: %s", p.ID, r.Code(), r.Text())
				}
			})
			n.Apply(webPolicy)
		}
		if count := changes(); count < 50 {
			t.Errorf("only %d changes came in between", count)
		} else {
			t.Logf("%d changes", count)
		}
		if diff := cmp.Diff(theirs, mine()); diff != "" {
			t.Errorf("what is not podmark's changed:\n%s", diff)
		}
		if diff := cmp.Diff(kernel, n.kernel()); diff != "" {
			t.Errorf("left behind:\n%s", diff)
		}
	})
}

// meddle changes nf_tables over and over, as nft add table and nft delete table
// do, until the func is called, which tells how often.
func (n *node) meddle(t *testing.T) (stop func() int) {
	t.Helper()
	end, done := make(chan struct{}), make(chan int, 1)
	go func() {
		if err := n.Enter(); err != nil {
			t.Errorf("entering the node's namespace: %v", err)
			done <- 0
			return
		}
		lib, err := netlib.New(netlib.AsLasting())
		if err != nil {
			t.Errorf("connecting to nf_tables: %v", err)
			done <- 0
			return
		}
		defer lib.CloseLasting() //nolint:errcheck // of a test's connection
		for count := 0; ; count += 2 {
			select {
			case <-end:
				done <- count
				return
			default:
			}
			other := lib.AddTable(&netlib.Table{Name: "other", Family: netlib.TableFamilyIPv4})
			err := lib.Flush()
			lib.DelTable(other)
			if err := errors.Join(err, lib.Flush()); err != nil {
				t.Errorf("changing a table of our own: %v", err)
				done <- count
				return
			}
		}
	}()
	stop = sync.OnceValue(func() int {
		close(end)
		return <-done
	})
	t.Cleanup(func() { stop() })
	return stop
}
