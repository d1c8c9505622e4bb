package chaos_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/podmark/podmark/test/lab"
	"github.com/podmark/podmark/test/testnode"
	"github.com/podmark/podmark/test/wait"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m, "podmark", "podmarkd", "podmarkctl")) }

const (
	// workers have a pod each at any time, some of them two.
	workers = 20
	// Every pod listens on port, and may be asked there unless it is closed; on shut none may
	// but an open one.
	port, shut = 8080, 8081
	// silence is how long an answer may take that must not come.
	silence = 50 * time.Millisecond
)

// The pods: open has no policy, served is asked on one port only, closed neither asks nor is
// asked.
const (
	open   = "open"
	served = "served"
	closed = "closed"
)

const policies = `
{apiVersion: v1, kind: Namespace, metadata: {name: default}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: closed, namespace: default}, spec: {podSelector: {matchLabels: {app: closed}}, policyTypes: [Ingress, Egress]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: served, namespace: default}, spec: {podSelector: {matchLabels: {app: served}}, policyTypes: [Ingress], ingress: [{from: [{ipBlock: {cidr: 192.168.50.0/24}}, {ipBlock: {cidr: "fd00:50::/64"}}], ports: [{port: 8080, protocol: UDP}]}]}}
`

// Nodes are harmed in all ways at once: two of them, or with PODMARK_CHAOS one for each backend,
// source of policies, and number of families.
func TestChaos(t *testing.T) {
	seed := rand.Uint64()
	if s := os.Getenv("PODMARK_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("PODMARK_SEED=%d", seed)
	length, all := time.Minute, false
	if s := os.Getenv("PODMARK_CHAOS"); s != "" {
		var err error
		if length, err = time.ParseDuration(s); err != nil {
			t.Fatalf("PODMARK_CHAOS: %v", err)
		}
		all = true
	}
	both := []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("fd00:10:1::/64")}
	for _, b := range testnode.Backends {
		for _, source := range []string{"kubernetes", "files"} {
			for _, ranges := range [][]netip.Prefix{both, both[:1]} {
				share := b == lab.NFTables && source == "kubernetes" && len(ranges) == 2 || b == lab.IPTablesLegacy && source == "files" && len(ranges) == 1
				if !all && !share {
					continue
				}
				t.Run(fmt.Sprintf("%s/%s/%d", b, source, len(ranges)), func(t *testing.T) {
					t.Parallel()
					begin(t, b, source, ranges, seed).chaos(length)
				})
			}
		}
	}
}

// node is one that is harmed.
type node struct {
	*lab.Kubernetes
	t        *testing.T
	seed     uint64
	files    bool
	families []lab.Family
	outside  *lab.Host

	// whole is held for writing while another program has flushed the rules, and podmarkd has not put
	// them back, and attaching while the runtime tells which pods there are.
	whole, attaching sync.RWMutex
	mu               sync.Mutex
	pods             map[*lab.Pod]bool
	// What happened.
	adds, failed, killed, dels, killedDels, flushes, restarts, collected, asked atomic.Int64
}

func begin(t *testing.T, b lab.Backend, source string, ranges []netip.Prefix, seed uint64) *node {
	n := &node{t: t, seed: seed, files: source == "files", families: lab.Families[:len(ranges)], pods: map[*lab.Pod]bool{}}
	inner := lab.NewNode(t, lab.Options{Backend: b, Plain: true, PodCIDRs: ranges})
	n.outside = inner.AddHost("outside", "192.168.50.1/24", "fd00:50::1/64")
	n.Kubernetes = inner.Kubernetes(lab.Plugin{"policy": source})
	n.outside.Listen(lab.UDP, port)
	if !n.files {
		n.Apply(policies)
		return n
	}
	// Policies are applied to a node on which podmark has run.
	first := n.AddPod(lab.PodSpec{Name: "first", Network: n.Network})
	file := filepath.Join(n.Dir, "policies.yaml")
	if err := os.WriteFile(file, []byte(policies), 0o600); err != nil {
		t.Fatal(err)
	}
	n.Run(filepath.Join(lab.Programs, "podmarkctl"), "--state-dir", n.StateDir, "--lock-timeout", lab.LockTimeout, "apply", "-f", file)
	if err := first.Del(); err != nil {
		t.Fatal(err)
	}
	return n
}

// chaos goes on for so long, and then has all pods go.
func (n *node) chaos(length time.Duration) {
	var stop atomic.Bool
	var running sync.WaitGroup
	for i := range workers {
		running.Go(func() {
			r := rand.New(rand.NewPCG(n.seed, uint64(i)))
			for number := 0; !stop.Load() && !n.t.Failed(); number++ {
				n.life(r, fmt.Sprintf("pod%d", i), number)
			}
		})
	}
	running.Go(func() {
		r := rand.New(rand.NewPCG(n.seed, workers))
		for !stop.Load() && !n.t.Failed() {
			n.disturb(r)
		}
	})
	for began := time.Now(); time.Since(began) < length && !n.t.Failed(); {
		time.Sleep(100 * time.Millisecond)
	}
	stop.Store(true)
	running.Wait()
	n.t.Logf("%d ADDs, %d failed, %d of them killed; %d DELs, %d killed; %d flushes, %d podmarkd killed, %d GCs; %d forbidden questions",
		n.adds.Load(), n.failed.Load(), n.killed.Load(), n.dels.Load(), n.killedDels.Load(), n.flushes.Load(), n.restarts.Load(), n.collected.Load(), n.asked.Load())
	if n.adds.Load() == n.failed.Load() || n.asked.Load() == 0 {
		n.t.Error("no pod has started, which proves nothing")
	}
	n.empty()
}

// life is that of a pod, or of two with one name.
func (n *node) life(r *rand.Rand, name string, number int) {
	pod, app, ok := n.start(r, name, number)
	defer n.end(r, pod)
	if !ok {
		return
	}
	n.judge(pod, app)
	if r.IntN(3) == 0 {
		n.check(pod)
	}
	if n.files || r.IntN(3) > 0 {
		return
	}
	// The API forgets it, and has another of the name; the node has both.
	second, of, ok := n.start(r, name, number+1_000_000)
	defer n.end(r, second)
	if ok {
		n.judge(second, of)
	}
	n.judge(pod, app)
}

// start attaches a pod, unless that is killed.
func (n *node) start(r *rand.Rand, name string, number int) (pod *lab.Pod, app string, ok bool) {
	app = []string{open, served, closed, closed}[r.IntN(4)]
	labels := map[string]string{"app": app}
	m := lab.Manifest{Name: name, UID: fmt.Sprintf("%s-%d", name, number), Labels: labels, NodeName: lab.NodeName}
	spec := lab.PodSpec{Name: name, Network: n.Network}
	if n.files {
		spec.Labels = labels
	} else {
		_ = n.API.Delete(lab.APIPods, "default", name) // there may be none
		n.Put(m)
		if r.IntN(4) > 0 { // some runtimes do not say
			spec.Args = map[string]string{"K8S_POD_UID": m.UID}
		}
	}
	pod = n.NewPod(spec)
	n.mu.Lock()
	n.pods[pod] = true
	n.mu.Unlock()
	n.attaching.RLock()
	defer n.attaching.RUnlock()
	n.adds.Add(1)
	ctx, killed := n.mortal(r)
	if err := pod.AddContext(ctx); err != nil {
		n.failed.Add(1)
		if killed() {
			n.killed.Add(1)
		}
		return pod, app, false
	}
	killed()
	if !n.files {
		for _, a := range pod.Addresses {
			m.Addresses = append(m.Addresses, a.String())
		}
		m.Phase = "Running"
		n.Put(m)
	}
	pod.Listen(lab.UDP, port)
	pod.Listen(lab.UDP, shut)
	return pod, app, true
}

// mortal is a context that may end within what a plugin takes. killed reports whether it has.
func (n *node) mortal(r *rand.Rand) (ctx context.Context, killed func() bool) {
	ctx, end := context.WithCancel(context.Background())
	if r.IntN(3) > 0 {
		return ctx, func() bool { end(); return false }
	}
	t := time.AfterFunc(time.Duration(r.Int64N(int64(time.Second))), end)
	return ctx, func() bool { return !t.Stop() }
}

// end takes a pod away, as often as it takes.
func (n *node) end(r *rand.Rand, pod *lab.Pod) {
	n.attaching.RLock()
	defer n.attaching.RUnlock()
	err := wait.Poll(func() error {
		ctx, killed := n.mortal(r)
		n.dels.Add(1)
		err := pod.DelContext(ctx)
		if killed() {
			n.killedDels.Add(1)
		}
		return err
	})
	if err != nil {
		n.t.Errorf("%s cannot be deleted: %v", pod.Name, err)
	}
	n.mu.Lock()
	delete(n.pods, pod)
	n.mu.Unlock()
	pod.Remove()
}

// judge asks a pod, and has it ask.
func (n *node) judge(pod *lab.Pod, app string) {
	for _, f := range n.families {
		to := func(port uint16) lab.Request { return lab.Request{Protocol: lab.UDP, To: pod.At(f, port)} }
		out := lab.Request{Protocol: lab.UDP, To: n.outside.At(f, port)}
		switch app {
		case open:
			n.Eventually("an open pod is asked", n.outside.NS, to(port), lab.OK)
		case served:
			n.forbidden("a pod on a port that it does not serve", n.outside.NS, to(shut))
			n.Eventually("a pod on the port that it serves", n.outside.NS, to(port), lab.OK)
		case closed:
			n.forbidden("a closed pod", n.outside.NS, to(port))
			n.forbidden("by a closed pod", pod.NS, out)
		}
	}
}

// forbidden is what must not be answered, nor arrive, while the rules are whole.
func (n *node) forbidden(what string, from *lab.NS, r lab.Request) {
	n.whole.RLock()
	defer n.whole.RUnlock()
	n.asked.Add(1)
	r.Limit = silence
	if got := from.Send(r); got.Outcome == lab.OK || got.Outcome == lab.OneWay {
		n.t.Errorf("%s: %v: %v", what, r.To, got)
	}
}

// check is CHECK of a pod whose rules are whole, which may have to wait.
func (n *node) check(pod *lab.Pod) {
	n.whole.RLock()
	defer n.whole.RUnlock()
	if err := wait.Poll(pod.Check); err != nil {
		n.t.Errorf("%s: CHECK: %v", pod.Name, err)
	}
}

// disturb harms the whole node.
func (n *node) disturb(r *rand.Rand) {
	time.Sleep(time.Duration(r.Int64N(int64(time.Second))))
	switch r.IntN(4) {
	case 0, 1:
		n.restarts.Add(1)
		n.Stop()
		if r.IntN(2) == 0 { // pods come and go without it
			time.Sleep(time.Duration(r.Int64N(int64(time.Second))))
		}
		n.Start()
	case 2:
		n.flushes.Add(1)
		n.flush()
	case 3:
		n.collected.Add(1)
		n.attaching.Lock()
		defer n.attaching.Unlock()
		n.mu.Lock()
		var valid []*lab.Pod
		for pod := range n.pods {
			valid = append(valid, pod)
		}
		n.mu.Unlock()
		if err := n.GC(n.Network, valid...); err != nil && !strings.Contains(err.Error(), "podmarkd") {
			n.t.Errorf("GC: %v", err)
		}
	}
}

// flush takes all rules away, and waits until they are back: podmarkd writes them, or a plugin
// that finds them gone.
func (n *node) flush() {
	n.whole.Lock()
	defer n.whole.Unlock()
	if n.Backend() == lab.NFTables {
		n.Node.Run("nft", "flush", "ruleset")
	} else {
		for _, f := range lab.Families {
			n.Iptables(f, "-t", "mangle", "-F")
		}
	}
	n.until("the rules are back", func() error {
		if n.Backend() == lab.NFTables {
			_, err := n.Try("nft", "list", "chain", "inet", "podmark", "forward")
			return err
		}
		for _, f := range lab.Families {
			if rules := n.Iptables(f, "-t", "mangle", "-S", "FORWARD"); !strings.Contains(rules, "PODMARK-") {
				return fmt.Errorf("FORWARD is %q", rules)
			}
		}
		return nil
	})
}

func (n *node) until(what string, f func() error) {
	if err := wait.Poll(f); err != nil {
		n.t.Errorf("%s: %v", what, err)
	}
}

// empty says what is left of pods, in the state directory and in the kernel.
func (n *node) empty() {
	if err := n.GC(n.Network); err != nil {
		n.t.Errorf("GC at the end: %v", err)
	}
	n.until("nothing is left", func() error {
		for _, directory := range []string{"attachments", "ids", "addresses"} {
			list, err := os.ReadDir(filepath.Join(n.StateDir, directory))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			if len(list) > 0 {
				return fmt.Errorf("%d files are left in %s, the first of them %s", len(list), directory, list[0].Name())
			}
		}
		kernel := n.Node.Run("nft", "list", "ruleset")
		if n.Backend() != lab.NFTables {
			kernel += n.Node.Run("ipset", "save")
		}
		for line := range strings.Lines(kernel) {
			if strings.Contains(line, "10.1.0.") || strings.Contains(line, "fd00:10:1::") {
				return fmt.Errorf("an address is left in the kernel: %s", line)
			}
		}
		return nil
	})
}
