package main_test

import (
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/podmark/podmark/test/testnode"
)

// says reports whether node.json has that value under a key. What it holds is the
// state directory's own business: tests look at it where nothing else tells.
func (n *node) says(t *testing.T, key, value string) bool {
	t.Helper()
	return strings.Contains(n.files()["node.json"], fmt.Sprintf("%q:%q", key, value))
}

// rewrite makes node.json say something else about what was decided.
func (n *node) rewrite(t *testing.T, old, replacement string) {
	t.Helper()
	file := n.files()["node.json"]
	if !strings.Contains(file, old) {
		t.Fatalf("node.json does not say %s: %s", old, file)
	}
	n.write(t, "node.json", strings.Replace(file, old, replacement, 1))
}

// What enforces is what the conflist says.
func TestBackend(t *testing.T) {
	tests := []struct {
		key  any // nil for none
		hint backend
		want backend
		auto bool // is a decision to be remembered
	}{
		{nil, undecided, nftables, true},
		{nil, iptablesLegacy, nftables, true},
		{"auto", undecided, nftables, true},
		{"auto", iptablesNFT, nftables, true},
		{"nftables", undecided, nftables, false},
		{"nftables", iptablesLegacy, nftables, false},
		{"iptables", iptablesNFT, iptablesNFT, false},
		{"iptables", iptablesLegacy, iptablesLegacy, false},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprintf("%v, kubelet has %q", tt.key, tt.hint.Variant), func(t *testing.T) {
			n := newNode(t, tt.hint)
			keys := conf{"backend": tt.key}
			n.status(keys).OK(t)
			p := n.addPod()
			p.Add(keys).OK(t)
			p.Check(keys).OK(t)
			n.status(keys).OK(t)
			if got := n.present(); got != alone(tt.want) {
				t.Errorf("there is %q, want %q", got, alone(tt.want))
			}
			if !n.says(t, "backend", tt.want.Name) {
				t.Errorf("node.json does not say %q: %s", tt.want.Name, n.files()["node.json"])
			}
			if got := n.says(t, "auto", tt.want.Name); got != tt.auto {
				t.Errorf("that it was decided is noted is %t: %s", got, n.files()["node.json"])
			}
			p.Del(keys).OK(t)
			n.ctl("uninstall", "--yes")
			if got := n.present(); got != "" {
				t.Errorf("%s is left after uninstall", got)
			}
		})
	}
}

// What auto found out is not asked again: it holds where it was written down,
// whatever the kernel could do, and is written down whenever it was asked.
func TestAutoIsRemembered(t *testing.T) {
	auto := conf{"backend": "auto"}
	t.Run("iptables", func(t *testing.T) {
		on(t, inIPTables, func(t *testing.T, n *node) {
			p := n.addPod()
			p.Add().OK(t)
			n.rewrite(t, `"backend":"`+n.Backend.Name+`"`, fmt.Sprintf(`"backend":%q,"auto":%q`, n.Backend.Name, n.Backend.Name))
			for _, call := range []func() reply{
				func() reply { return n.status(auto) },
				func() reply { return p.Add(auto) },
				func() reply { return n.addPod().Add(auto) },
				func() reply { return p.Del(auto) },
			} {
				call().OK(t)
				if got := n.present(); got != alone(n.Backend) {
					t.Errorf("there is %q, want %q", got, alone(n.Backend))
				}
			}
			// Asked for by name it comes, and auto is still what it was.
			p.Add(conf{"backend": "nftables"}).OK(t)
			if got := n.present(); got != alone(nftables) {
				t.Errorf("there is %q, want %q", got, alone(nftables))
			}
			p.Add(auto).OK(t)
			if got := n.present(); got != alone(n.Backend) {
				t.Errorf("there is %q, want %q", got, alone(n.Backend))
			}
			// STATUS of what is remembered asks for what that needs.
			n.Path = "/nowhere"
			n.status(auto).Fails(t, 50, "install iptables")
		})
	})
	for name, first := range map[string]conf{"first ADD": auto, "after nftables": {"backend": "nftables"}, "after iptables": {"backend": "iptables"}} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, nftables)
			p := n.addPod()
			p.Add(first).OK(t)
			p.Add(auto).OK(t)
			if got := n.present(); got != alone(nftables) {
				t.Errorf("there is %q, want %q", got, alone(nftables))
			}
			if !n.says(t, "auto", "nftables") {
				t.Errorf("what auto means is not noted: %s", n.files()["node.json"])
			}
		})
	}
}

// A node whose kubelet has changed its variant, or whose state directory was lost, has
// rules of what enforced before: they go.
func TestFormerBackend(t *testing.T) {
	lose := func(t *testing.T, n *node) { n.lose(t) }
	for _, tt := range []struct {
		name     string
		from, to backend
		between  func(t *testing.T, n *node)
	}{
		{"state lost", nftables, iptablesNFT, lose},
		{"state lost", nftables, iptablesLegacy, lose},
		{"state lost", iptablesNFT, nftables, lose},
		{"state lost", iptablesLegacy, nftables, lose},
		{"state lost", iptablesNFT, iptablesLegacy, lose},
		{"state lost", iptablesLegacy, iptablesNFT, lose},
		// As where auto is asked for the first time on a kernel that cannot do nftables
		// and the kubelet's variant is not what it was when iptables was asked for.
		{"auto is the other variant", iptablesNFT, iptablesLegacy, func(t *testing.T, n *node) {
			n.rewrite(t, `"backend":"iptables-nft"`, `"backend":"iptables-nft","auto":"iptables-legacy"`)
		}},
		// As where a switch to nftables was interrupted and is taken back after the
		// kubelet has changed its variant.
		{"interrupted", iptablesNFT, iptablesLegacy, func(t *testing.T, n *node) {
			n.rewrite(t, `"backend":"iptables-nft"`, `"backend":"nftables","former":["iptables-nft"]`)
			n.rewrite(t, `"synced":true`, `"synced":false`)
		}},
	} {
		t.Run(fmt.Sprintf("%s, %s to %s", tt.name, tt.from.Name, tt.to.Name), func(t *testing.T) {
			t.Parallel()
			n := newNode(t, tt.from)
			p := n.addPod()
			p.Add().OK(t)
			if got := n.present(); got != alone(tt.from) {
				t.Fatalf("there is %q, want %q", got, alone(tt.from))
			}
			tt.between(t, n)
			n.move(tt.to)
			if tt.name == "auto is the other variant" {
				n.Backend.Key = "auto"
			}
			p.Add().OK(t)
			p.Check().OK(t)
			if got := n.present(); got != alone(tt.to) {
				t.Errorf("there is %q, want %q", got, alone(tt.to))
			}
		})
	}
}

// lose deletes the state directory.
func (n *node) lose(t *testing.T) {
	t.Helper()
	if err := os.RemoveAll(n.Dir); err != nil {
		t.Fatal(err)
	}
}

// An image with one variant of iptables has its commands by their plain names only.
// They are as good as the others to remove what a lost state directory has forgotten.
func TestPlainCommands(t *testing.T) {
	ends := map[string]func(t *testing.T, n *node, p *pod) (left string){
		"uninstall": func(_ *testing.T, n *node, _ *pod) string {
			n.ctl("uninstall", "--yes")
			return ""
		},
		"ADD": func(t *testing.T, n *node, p *pod) string {
			p.Add(conf{"backend": "nftables"}).OK(t)
			return alone(nftables)
		},
	}
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			on(t, inIPTables, func(t *testing.T, n *node) {
				p := n.addPod()
				p.Add().OK(t)
				n.lose(t)
				n.command(n.Backend.Variant)
				n.Path, _, _ = strings.Cut(n.Path, ":") // without those of the machine
				want := end(t, n, p)
				if got := n.present(); got != want {
					t.Errorf("there is %q, want %q", got, want)
				}
			})
		})
	}
}

// move changes the conflist of the node, and the variant of its kubelet.
func (n *node) move(to backend) {
	n.T.Helper()
	n.Iptables("-X", "KUBE-IPTABLES-HINT")
	n.Backend = to
	n.Hint()
}

// switchPolicy allows what webPolicy does and TCP from and to the host outside.
const switchPolicy = webPolicy + `---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: long-lived, namespace: default}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress, Egress]
  ingress: [{from: [{ipBlock: {cidr: 192.168.50.0/24}}, {ipBlock: {cidr: "fd00:50::/64"}}], ports: [{protocol: TCP, port: 8002}]}]
  egress: [{to: [{ipBlock: {cidr: 192.168.50.0/24}}, {ipBlock: {cidr: "fd00:50::/64"}}], ports: [{protocol: TCP, port: 9002}]}]
`

// An ADD whose conflist names another backend moves the whole node. Nothing of the
// old one is left, nothing forbidden gets through on the way, and what is allowed
// goes on.
func TestSwitch(t *testing.T) {
	n := newNode(t, iptablesNFT)
	n.withHost()
	n.Apply(switchPolicy)
	p, q := n.addPod().listen(), n.addPod().listen()
	plain := n.addPod()
	plain.Labels = nil
	for _, pod := range []*pod{p, q, plain} {
		pod.Add().OK(t)
	}
	node := listen(t, 9001) // a process of the node's that pods may not reach
	lines := n.allowedLines(t, p)
	tries := newTrials(t)
	for _, pod := range []*pod{p, q} {
		tries.from(pod.Space, n.outside.v4, 9001)
		tries.from(pod.Space, n.outside.v6, 9001)
		tries.from(pod.Space, "10.1.0.1", 9001)
		tries.from(pod.Space, "fd00:10::1", 9001)
		tries.from(n.outside.Space, pod.V4, 8001)
		tries.from(n.outside.Space, pod.V6, 8001)
		tries.from(plain.Space, pod.V4, 8001)
		tries.from(plain.Space, pod.V6, 8001)
	}
	forbidden := map[string]*server{"the node": node, "the host outside": n.outside.forbidden, "pod p": p.forbidden, "pod q": q.forbidden}
	endpoints := n.endpoints()
	for i, to := range []backend{nftables, iptablesNFT, nftables, iptablesLegacy, nftables} {
		n.Run(t, fmt.Sprintf("%d %s to %s", i, n.Backend.Name, to.Name), func(t *testing.T) {
			n.move(to)
			before := tries.count()
			[]*pod{p, q, plain}[i%3].Add().OK(t)
			if tries.count() == before {
				t.Error("nobody tried anything meanwhile")
			}
			if got := n.present(); got != alone(to) {
				t.Errorf("there is %q, want %q", got, alone(to))
			}
			if !n.says(t, "backend", to.Name) || strings.Contains(n.files()["node.json"], `"former"`) {
				t.Errorf("node.json says %s", n.files()["node.json"])
			}
			if diff := cmp.Diff(endpoints, n.endpoints()); diff != "" {
				t.Errorf("endpoint elements:\n%s", diff)
			}
			for _, pod := range []*pod{p, q, plain} {
				pod.Check().OK(t)
			}
			alive(t, lines)
			silent(t, forbidden)
			p.is(t, policed)
			q.is(t, policed)
		})
	}
	tries.stop()
	t.Logf("%d datagrams were sent that are forbidden", tries.count())
	for _, l := range lines {
		l.close(t)
	}
	silent(t, forbidden)
}

// allowedLines opens the connections that switchPolicy allows, from p to the host
// outside and back.
func (n *node) allowedLines(t *testing.T, p *pod) (lines []*line) {
	t.Helper()
	echo(t, n.outside.Space, 9002)
	echo(t, p.Space, 8002)
	for _, host := range []string{n.outside.v4, n.outside.v6} {
		lines = append(lines, dial(t, p.Space, net.JoinHostPort(host, "9002")))
	}
	for _, pod := range []string{p.V4, p.V6} {
		lines = append(lines, dial(t, n.outside.Space, net.JoinHostPort(pod, "8002")))
	}
	return lines
}

// alive uses connections that are allowed.
func alive(t *testing.T, lines []*line) {
	t.Helper()
	for _, l := range lines {
		if err := l.ping(); err != nil {
			t.Errorf("a connection that is allowed broke: %v", err)
		}
	}
}

// silent wants that nothing has reached these servers, by who they are.
func silent(t *testing.T, forbidden map[string]*server) {
	t.Helper()
	for who, s := range forbidden {
		if got := s.count(); got > 0 {
			t.Fatalf("%d forbidden datagrams reached %s", got, who)
		}
	}
}

// Two networks of a node that do not agree move it to and fro, and every pod of
// both is policed all the same.
func TestNetworksDisagree(t *testing.T) {
	n := newNode(t, iptablesLegacy)
	n.withHost().Apply(webPolicy)
	p, q := n.addPod().listen(), n.addPod().listen()
	for range 2 {
		p.Add(conf{"backend": "nftables"}).OK(t)
		q.Add(conf{"name": "other", "backend": "iptables"}).OK(t)
		p.is(t, policed)
		q.is(t, policed)
		p.Check(conf{"backend": "nftables"}).OK(t)
		q.Check(conf{"name": "other", "backend": "iptables"}).OK(t)
	}
	// All at once.
	var pods []*pod
	for range 6 {
		pods = append(pods, n.addPod())
	}
	n.each(pods, func(p *pod) {
		keys := conf{"backend": "nftables"}
		if slices.Index(pods, p)%2 == 0 {
			keys["backend"] = "iptables"
		}
		for _, r := range []reply{p.Add(keys), p.Del(keys)} {
			if r.Code() != 0 {
				t.Errorf("%s: %d: %s", p.ID, r.Code(), r.Text())
			}
		}
	})
	p.is(t, policed)
	q.is(t, policed)
	q.Del(conf{"name": "other"}).OK(t)
	p.Add(conf{"backend": "nftables"}).OK(t)
	p.Del().OK(t)
	if got := n.present(); got != alone(nftables) {
		t.Errorf("there is %q", got)
	}
	if left := n.attachments(); left != nil {
		t.Errorf("left behind: %v", left)
	}
}

// One pod with two interfaces, in two networks: each is an endpoint of its own.
func TestTwoNetworks(t *testing.T) {
	eachKind(t, func(t *testing.T, n *node) {
		n.withHost().Apply(webPolicy)
		n.settle()
		first, second := n.addPod().listen(), n.addPod().listen()
		second.ID = first.ID
		n.ctl("gc")
		kernel := n.kernel()
		other := conf{"name": "other"}
		first.Add().OK(t)
		second.Add(other).OK(t)
		first.is(t, policed)
		second.is(t, policed)
		first.Check().OK(t)
		second.Check(other).OK(t)
		if elements := n.endpoints(); len(elements) != 4 {
			t.Errorf("endpoint elements %q, want two of each", elements)
		}
		first.Del().OK(t)
		first.is(t, closed)
		second.is(t, policed)
		second.Check(other).OK(t)
		second.Del(other).OK(t)
		if left := n.attachments(); left != nil {
			t.Errorf("left behind: %v", left)
		}
		if diff := cmp.Diff(kernel, n.kernel()); diff != "" {
			t.Errorf("left in the kernel:\n%s", diff)
		}
	})
}

// trials are clients that try what is forbidden, each time by a new flow, as fast
// as they can.
type trials struct {
	t    *testing.T
	end  chan struct{}
	all  sync.WaitGroup
	mu   sync.Mutex
	sent int
}

func newTrials(t *testing.T) *trials {
	a := &trials{t: t, end: make(chan struct{})}
	t.Cleanup(a.stop)
	return a
}

func (a *trials) from(s testnode.Space, address string, port int) {
	a.all.Go(func() {
		for {
			select {
			case <-a.end:
				return
			case <-time.After(time.Millisecond): // leaves the machine to others
			}
			s.Do(a.t, func() error {
				c, err := net.Dial("udp", net.JoinHostPort(address, fmt.Sprint(port)))
				if err != nil {
					return nil
				}
				defer c.Close()
				c.Write([]byte(address)) //nolint:errcheck // a refusal is what is wanted
				return nil
			})
			a.mu.Lock()
			a.sent++
			a.mu.Unlock()
		}
	})
}

func (a *trials) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.sent
}

func (a *trials) stop() {
	select {
	case <-a.end:
	default:
		close(a.end)
	}
	a.all.Wait()
}

// echo starts a TCP server that sends back what it gets.
func echo(t *testing.T, s testnode.Space, port int) {
	t.Helper()
	var server net.Listener
	s.Do(t, func() (err error) {
		server, err = net.Listen("tcp", fmt.Sprint(":", port))
		return err
	})
	t.Cleanup(func() { server.Close() })
	go func() {
		for {
			c, err := server.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.Copy(c, c) //nolint:errcheck // it ends when the other side does
			}()
		}
	}()
}

// line is a connection that lives long, and is used all the while.
type line struct {
	net.Conn
	name    string
	answers atomic.Int64
	mu      sync.Mutex
	end     chan struct{}
	done    chan error
}

func dial(t *testing.T, s testnode.Space, address string) *line {
	t.Helper()
	l := &line{name: address, end: make(chan struct{}), done: make(chan error, 1)}
	s.Do(t, func() (err error) {
		l.Conn, err = net.DialTimeout("tcp", address, arrival)
		return err
	})
	t.Cleanup(func() { l.Conn.Close() })
	go func() {
		for {
			select {
			case <-l.end:
				l.done <- nil
				return
			case <-time.After(5 * time.Millisecond):
			}
			if err := l.ping(); err != nil {
				l.done <- err
				return
			}
		}
	}()
	return l
}

// ping sends something and waits for it to come back.
func (l *line) ping() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := []byte("ping")
	if err := l.SetDeadline(time.Now().Add(arrival)); err != nil {
		return err
	}
	if _, err := l.Write(b); err != nil {
		return fmt.Errorf("to %s: %w", l.name, err)
	}
	for got := 0; got < len(b); {
		n, err := l.Read(b[got:])
		if err != nil {
			return fmt.Errorf("from %s: %w", l.name, err)
		}
		got += n
	}
	l.answers.Add(1)
	return nil
}

// close fails the test if the line broke at any time.
func (l *line) close(t *testing.T) {
	t.Helper()
	close(l.end)
	if err := <-l.done; err != nil {
		t.Errorf("a connection that is allowed broke: %v", err)
	}
}
