package cluster_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/test/lab"
	"github.com/podmark/podmark/test/wait"
)

// starts is how many pods are started in each way on each backend. PODMARK_STARTS says
// how many instead.
const starts = 20

func startsOf(t *testing.T) int {
	t.Helper()
	s := os.Getenv("PODMARK_STARTS")
	if s == "" {
		return starts
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatalf("PODMARK_STARTS: %v", err)
	}
	return n
}

// racer is a client that asks from before there is a way to its server: as fast as it can
// over UDP, a connection after the other over TCP. It notes when it asked what arrived.
type racer struct {
	stop    atomic.Bool
	running sync.WaitGroup

	mu   sync.Mutex
	sent []time.Time    // by number
	got  map[int]string // numbers that arrived, with how
}

// pace keeps a racer from taking the processor from what it races with.
const pace = 200 * time.Microsecond

// race starts a racer from a namespace to a server in another.
func race(t *testing.T, from, at *lab.NS, to netip.AddrPort) *racer {
	t.Helper()
	r := &racer{got: map[int]string{}}
	var server, client *net.UDPConn
	var listener net.Listener
	err := errors.Join(
		at.Do(func() (err error) {
			if server, err = net.ListenUDP("udp4", &net.UDPAddr{Port: int(to.Port())}); err != nil {
				return err
			}
			config := net.ListenConfig{}
			config.SetMultipathTCP(false)
			listener, err = config.Listen(context.Background(), "tcp4", ":"+strconv.Itoa(int(to.Port())))
			return err
		}),
		from.Do(func() (err error) {
			client, err = net.ListenUDP("udp4", nil)
			return err
		}),
	)
	if err != nil {
		t.Fatal(err)
	}
	r.running.Go(func() { r.receive(server) })
	r.running.Go(func() { r.accept(listener) })
	r.running.Go(func() {
		for !r.stop.Load() {
			_, _ = client.WriteToUDPAddrPort(binary.BigEndian.AppendUint32(nil, uint32(r.next())), to) // there may be no route yet
			pause(pace)
		}
		client.Close()
		server.Close()
		listener.Close()
	})
	r.running.Go(func() {
		_ = from.Do(func() error {
			for !r.stop.Load() {
				r.connect(to)
				pause(pace)
			}
			return nil
		})
	})
	return r
}

func pause(d time.Duration) {
	ts := unix.NsecToTimespec(int64(d))
	_ = unix.Nanosleep(&ts, nil)
}

// next numbers a question.
func (r *racer) next() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sent = append(r.sent, time.Now())
	return len(r.sent) - 1
}

func (r *racer) arrived(n int, how string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.got[n] = how
}

// connect opens a connection. What is forbidden shows as silence, for which there is no
// need to wait long: each attempt is another connection.
func (r *racer) connect(to netip.AddrPort) {
	n := r.next()
	d := net.Dialer{Timeout: 20 * time.Millisecond}
	d.SetMultipathTCP(false)
	if c, err := d.Dial("tcp4", to.String()); err == nil {
		r.arrived(n, "tcp")
		c.Close()
	}
}

func (r *racer) receive(server *net.UDPConn) {
	for b := make([]byte, 16); ; {
		n, err := server.Read(b)
		if err != nil {
			return
		}
		if n == 4 {
			r.arrived(int(binary.BigEndian.Uint32(b)), "udp")
		}
	}
}

func (r *racer) accept(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		c.Close()
	}
}

// asked is how many questions there were.
func (r *racer) asked() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.sent)
}

// end stops it.
func (r *racer) end() {
	r.stop.Store(true)
	r.running.Wait()
}

// successes counts what arrived of what was asked from one moment to another, and says
// when the last of that was.
func (r *racer) successes(from, to time.Time) (n int, last time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.got {
		if at := r.sent[i]; !at.Before(from) && at.Before(to) {
			n++
			if at.After(last) {
				last = at
			}
		}
	}
	return n, last
}

// startup is what came of many starts.
type startup struct {
	starts, retried, killed int
	questions               int
	// uid is what the runtime says of the pods; empty where it does not.
	uid string
	// before are questions that arrived although asked before podmark was started, during
	// those asked while it ran, and after those asked when it had ended well.
	before, during, after int
	// open is how long after its start the last of those during was asked: of each start.
	open []time.Duration
}

func (s *startup) String() string {
	slices.Sort(s.open)
	at := func(q float64) time.Duration {
		if len(s.open) == 0 {
			return 0
		}
		return s.open[int(q*float64(len(s.open)-1))].Round(time.Millisecond)
	}
	return fmt.Sprintf("%d starts (%d podmarkd killed, %d tried again), %d questions: %d answered of before podmark ran, %d while it did (until %v after its start in the median, %v at most), %d after it",
		s.starts, s.killed, s.retried, s.questions, s.before, s.during, at(0.5), at(1), s.after)
}

// start starts one pod, with racers to it and from it, until it is there. A pod that is
// refused because podmarkd is away is tried again, in another namespace, as the kubelet
// does. disturb, if set, is called along with each ADD.
func (s *startup) start(t *testing.T, k *lab.Kubernetes, network lab.Network, outside *lab.Host, disturb func()) {
	t.Helper()
	wait.For(t, "an ADD succeeds", func() bool {
		ok := s.attempt(t, k, network, outside, disturb)
		if !ok {
			s.retried++
		}
		return ok
	}, k.Progress)
}

func (s *startup) attempt(t *testing.T, k *lab.Kubernetes, network lab.Network, outside *lab.Host, disturb func()) bool {
	t.Helper()
	const address = "10.1.0.200" // all of them have it, so that the last one's is not of use
	args := map[string]string{"IP": address}
	if s.uid != "" {
		args["K8S_POD_UID"] = s.uid
	}
	pod := k.NewPod(lab.PodSpec{Name: "started", Network: network, Args: args})
	defer pod.Remove()
	racers := []*racer{
		race(t, pod.NS, outside.NS, outside.At(lab.V4, port)),
		race(t, outside.NS, pod.NS, netip.AddrPortFrom(netip.MustParseAddr(address), port+1)),
	}
	var began time.Time
	k.Starts = func(plugin string) {
		if plugin == "podmark" {
			began = time.Now()
		}
	}
	var disturbing sync.WaitGroup
	if disturb != nil {
		disturbing.Go(disturb)
	}
	err := pod.Add()
	ended := time.Now()
	disturbing.Wait()
	k.Starts = nil
	if err == nil {
		// As many questions again as fit into some time, and some at least.
		for asked := racers[0].asked(); racers[0].asked() < asked+50 || time.Since(ended) < 30*time.Millisecond; {
			pause(time.Millisecond)
		}
	}
	open := time.Duration(0)
	for _, r := range racers {
		r.end()
		s.questions += r.asked()
		before, _ := r.successes(time.Time{}, began)
		during, last := r.successes(began, ended)
		s.before, s.during = s.before+before, s.during+during
		if during > 0 {
			open = max(open, last.Sub(began))
		}
		if err == nil {
			after, _ := r.successes(ended, time.Now())
			s.after += after
		}
	}
	s.open = append(s.open, open)
	if errDel := pod.Del(); errDel != nil {
		t.Errorf("DEL: %v", errDel)
	}
	if err != nil && !strings.Contains(err.Error(), "podmarkd") {
		t.Fatalf("ADD: %v", err)
	}
	if err == nil {
		s.starts++
	}
	return err == nil
}

// isolated is a node on which every started pod is to be isolated in both directions.
func isolated(t *testing.T, k *lab.Kubernetes) *lab.Host {
	t.Helper()
	outside := k.AddHost("outside", "192.168.50.1/24", "fd00:50::1/64")
	k.Apply(namespace("default", ""))
	k.Apply(policy("isolate", "started", "policyTypes: [Ingress, Egress]"))
	k.Put(lab.Manifest{Name: "started", Labels: app("started"), NodeName: lab.NodeName})
	return outside
}

// Nothing that a pod's policy forbids gets through from the moment that its ADD has ended,
// and nothing goes on that began before, while clients try all the time, from the pod and
// to it: they are there before its ADD begins.
func TestStartup(t *testing.T) {
	onNode(t, func(t *testing.T, k *lab.Kubernetes) {
		outside := isolated(t, k)
		var s, control startup
		for range startsOf(t) {
			s.start(t, k, k.Network, outside, nil)
		}
		t.Log(&s)
		if s.after > 0 {
			t.Errorf("%d questions were answered that the policy forbids", s.after)
		}
		open := k.PTP(k.Podmark(lab.Plugin{"policy": "none"}))
		open.Name = "open" // podmarkd takes in who is of a network that it knows
		control.start(t, k, open, outside, nil)
		t.Logf("without a policy: %v", &control)
		if control.after == 0 {
			t.Error("without a policy nothing is answered either")
		}
	})
}

// The same while podmarkd is killed, at any moment of an ADD or shortly before or after it,
// and started again.
func TestStartupWhilePodmarkdRestarts(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	onNode(t, func(t *testing.T, k *lab.Kubernetes) {
		outside := isolated(t, k)
		random := rand.New(rand.NewPCG(seed, 0))
		var s startup
		took := 200 * time.Millisecond
		for range startsOf(t) {
			began := time.Now()
			s.start(t, k, k.Network, outside, func() {
				if random.IntN(3) == 0 { // this one may succeed
					return
				}
				pause(time.Duration(random.Int64N(int64(took))))
				s.killed++
				k.Stop()
				k.Launch()
			})
			took = min(max(took/2, time.Since(began)), 2*time.Second)
		}
		t.Log(&s)
		if s.after > 0 {
			t.Errorf("%d questions were answered that the policy forbids", s.after)
		}
	})
}

// A former pod of the name, which has not been deleted on the node and had other labels,
// takes nothing of its policy from a pod that starts. Nor does it get that, nor is it cut off.
func TestNamesake(t *testing.T) {
	onNode(t, func(t *testing.T, k *lab.Kubernetes) {
		outside := isolated(t, k)
		for _, uid := range []string{"", "second"} {
			put := func(uid, label string) {
				if err := k.API.Delete(lab.APIPods, "default", "started"); err != nil {
					t.Fatal(err)
				}
				k.Apply(fmt.Sprintf("{apiVersion: v1, kind: Pod, metadata: {namespace: default, name: started, uid: %q, labels: {app: %s}}, spec: {nodeName: node, containers: [{name: main}]}, status: {phase: Pending}}", uid, label))
			}
			put("first", "free")
			args := map[string]string{}
			if uid != "" {
				args["K8S_POD_UID"] = "first"
			}
			former := k.AddPod(lab.PodSpec{Name: "started", Network: k.Network, Args: args})
			former.Listen(lab.TCP, port)
			toFormer := lab.Request{Protocol: lab.TCP, To: former.At(lab.V4, port)}
			put("second", "started")
			s := startup{uid: uid}
			for range 3 {
				s.start(t, k, k.Network, outside, nil)
			}
			t.Log(&s)
			if s.after > 0 {
				t.Errorf("UID %q: %d questions were answered that the policy forbids", uid, s.after)
			}
			k.Eventually("the former one", outside.NS, toFormer, lab.OK)
			if err := former.Del(); err != nil {
				t.Fatal(err)
			}
			former.Remove()
		}
	})
}
