package lab_test

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/podmark/podmark/test/lab"
	"github.com/podmark/podmark/test/wait"
)

// client makes one request after the other, each a flow of its own, and never stops.
// Its row's Want is OK for one that is allowed, and Blocked for one that never is.
type client struct {
	lab.Row
	// services is whether it needs kube-proxy.
	services bool
	// ports is the first of the source ports that are this client's alone. IPVS takes
	// what a pod answers on a direct connection for an answer on one by a service, if
	// that had the same client, source port and backend: until minutes after its end.
	ports  uint16
	source netip.Addr

	mu sync.Mutex
	// attempts are all of them, failures those that had no answer though allowed,
	// through those that had one though forbidden.
	attempts int
	failures []failure
	through  []lab.Result
}

type failure struct {
	from, to time.Time
	lab.Result
}

// clients are all that run, and when kube-proxy had no rules: from when the test had
// them taken away until kube-proxy had ended its first sync of both families. In such
// a gap, and only there, a request to a service may fail.
type clients struct {
	ctx     context.Context
	stop    context.CancelFunc
	running sync.WaitGroup
	all     []*client
	gaps    []gap
}

type gap struct{ from, to time.Time }

func newClients(t *testing.T) *clients {
	t.Helper()
	c := &clients{}
	c.ctx, c.stop = context.WithCancel(t.Context())
	t.Cleanup(func() {
		c.stop()
		c.running.Wait()
	})
	return c
}

// Source ports, below those that the kernel gives out: enough that none is used again
// within IPVS's longest memory, which is five minutes.
const (
	firstPort = 2000
	portsEach = 700
)

// add starts a client for each row.
func (c *clients) add(services bool, rows ...lab.Row) {
	for _, row := range rows {
		family := lab.V4
		if row.To.Addr().Is6() {
			family = lab.V6
		}
		cl := &client{Row: row, services: services, source: row.From.Addr(family), ports: firstPort + portsEach*uint16(len(c.all))}
		c.all = append(c.all, cl)
		c.running.Go(func() { cl.run(c.ctx) })
	}
}

// pause is between the beginnings of two attempts: one emulated processor has to serve
// all clients, and kube-proxy.
const pause = 500 * time.Millisecond

func (cl *client) run(ctx context.Context) {
	pace := time.NewTicker(pause)
	defer pace.Stop()
	request := lab.Request{Protocol: cl.Protocol, To: cl.To, Limit: lab.AnswerLimit / 2}
	if cl.Want != lab.OK {
		request.Limit = 500 * time.Millisecond
	}
	for n := uint16(0); ctx.Err() == nil; n = (n + 1) % portsEach {
		request.Source = netip.AddrPortFrom(cl.source, cl.ports+n)
		start := time.Now()
		result := cl.From.Send(request)
		cl.mu.Lock()
		cl.attempts++
		switch answered := result.Outcome == lab.OK; {
		case cl.Want == lab.OK && (!answered || result.By != cl.By):
			cl.failures = append(cl.failures, failure{start, time.Now(), result})
		case cl.Want != lab.OK && (answered || result.Outcome == lab.OneWay):
			cl.through = append(cl.through, result)
		}
		cl.mu.Unlock()
		select {
		case <-pace.C:
		case <-ctx.Done():
		}
	}
}

func (cl *client) made() int {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	return cl.attempts
}

// goOn waits until every client has begun and ended n attempts more.
func (c *clients) goOn(t *testing.T, n int) {
	t.Helper()
	want := make([]int, len(c.all))
	for i, cl := range c.all {
		want[i] = cl.made() + n + 1 // one is under way
	}
	for i, cl := range c.all {
		wait.Until(t, "attempts of client "+cl.Name, func() error {
			if made := cl.made(); made < want[i] {
				return fmt.Errorf("%d of %d", made, want[i])
			}
			return nil
		})
	}
}

// without does something that leaves kube-proxy without rules until it returns.
func (c *clients) without(do func()) {
	start := time.Now()
	do()
	c.gaps = append(c.gaps, gap{start, time.Now()})
}

// excused is whether a failure was under way while kube-proxy had no rules.
func (c *clients) excused(f failure) bool {
	for _, g := range c.gaps {
		if f.from.Before(g.to) && g.from.Before(f.to) {
			return true
		}
	}
	return false
}

// verdicts ends all clients and counts: nothing forbidden may ever have passed, and
// nothing allowed may have failed while kube-proxy had its rules.
func (c *clients) verdicts(t *testing.T) {
	t.Helper()
	c.stop()
	c.running.Wait()
	var table strings.Builder
	attempts, excused, wrong := map[lab.Outcome]int{}, 0, map[lab.Outcome]int{}
	for _, cl := range c.all {
		free := 0
		for _, f := range cl.failures {
			if cl.services && c.excused(f) {
				free++
			} else {
				t.Errorf("allowed %s failed though kube-proxy had its rules, at %v: %v", cl.Name, f.from.Format(time.StampMilli), f.Result)
			}
		}
		if n := len(cl.through); n > 0 {
			t.Errorf("%d of %d forbidden attempts of %s got through, the first was %v", n, cl.attempts, cl.Name, cl.through[0])
		}
		attempts[cl.Want] += cl.attempts
		excused += free
		wrong[cl.Want] += len(cl.failures) - free + len(cl.through)
		fmt.Fprintf(&table, "%-48s %4d attempts, want %v, %d without kube-proxy's rules\n", cl.Name, cl.attempts, cl.Want, free)
	}
	var gaps []string
	for _, g := range c.gaps {
		gaps = append(gaps, g.to.Sub(g.from).Round(10*time.Millisecond).String())
	}
	t.Logf("%d forbidden attempts, %d of them got through; %d allowed attempts, %d of them failed, besides %d while kube-proxy had no rules, which was for %v\n%s",
		attempts[lab.Blocked], wrong[lab.Blocked], attempts[lab.OK], wrong[lab.OK], excused, gaps, table.String())
}
