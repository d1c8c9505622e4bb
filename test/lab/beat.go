package lab

import (
	"bufio"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Beats are connections that never stop: each asks its server all the time, whether it is
// answered or not. A test changes what is allowed, and says which of them are silent then:
//
//	beats := node.Beats(10 * time.Millisecond)
//	beats.Start("client", client.NS, lab.Request{Protocol: lab.UDP, To: web.At(lab.V4, 8080)})
//	beats.Start("other", other.NS, lab.Request{Protocol: lab.UDP, To: web.At(lab.V4, 8080)})
//	// forbid it to the other
//	beats.Are("forbidden", "other")
//
// Every other one must have been answered all the time, each question of it.
type Beats struct {
	t     testing.TB
	every time.Duration
	list  []*beat
}

// Limits for beats, generous for a machine that does much else.
const (
	// mostGap is how long one that goes on may be without an answer.
	mostGap = 5 * time.Second
	// stopLimit is how long after a change one that it forbids may go on.
	stopLimit = time.Minute
	// resumeLimit is how long one that was silent may take until it is answered again: TCP
	// waits longer each time before it tries.
	resumeLimit = time.Minute
	// stillFor is how many questions are asked while those that are silent stay so.
	stillFor = 25
)

// Beats makes connections that ask once in a while; the while is the caller's.
func (n *Node) Beats(every time.Duration) *Beats { return &Beats{t: n.t, every: every} }

// Start opens a connection, which must be answered, and uses it until the test ends.
func (b *Beats) Start(name string, from *NS, r Request) {
	b.t.Helper()
	s := from.Stream(r)
	if err := s.roomToWait(); err != nil {
		b.t.Fatal(err)
	}
	one := &beat{
		name: name, full: fmt.Sprintf("%s %v %v", name, r.Protocol, familyOf(r.To.Addr())),
		stream: s, id: rand.Text()[:10], last: time.Now(), stop: make(chan struct{}), heard: map[int]bool{},
	}
	b.list = append(b.list, one)
	var running sync.WaitGroup
	running.Go(func() { one.ask(b.every) })
	running.Go(func() { one.hear() })
	b.t.Cleanup(func() {
		close(one.stop)
		s.Close()
		running.Wait()
	})
}

// roomToWait lets questions wait in the socket of a silent connection for as long as others
// take: one that blocks its writer would ask nothing more.
func (s *Stream) roomToWait() error {
	c, ok := s.conn.(syscall.Conn)
	if !ok {
		return fmt.Errorf("enlarging a send buffer: %T has no socket", s.conn)
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 64<<20)
	})
	if err = errors.Join(err, failed); err != nil {
		return fmt.Errorf("enlarging a send buffer: %w", err)
	}
	return nil
}

// Are waits until those of the given names get no answer any more, and those that were
// silent and are not named get some again. Then it makes sure that the silent ones stay
// silent, without a question that reaches a server, and that no other has missed an answer.
// The test ends where that is not so.
func (b *Beats) Are(when string, silent ...string) {
	b.t.Helper()
	named := map[string]bool{}
	for _, name := range silent {
		named[name] = false
	}
	begin := time.Now()
	stopped := make(chan time.Duration, len(b.list))
	b.each(when, func(one *beat) error {
		_, want := named[one.name]
		switch {
		case want && !one.silent:
			one.silent = true
			err := one.fallsSilent()
			stopped <- one.latest().Sub(begin)
			return err
		case !want && one.silent:
			one.silent = false
			return one.resumes()
		}
		return nil
	})
	close(stopped)
	last := time.Duration(0)
	for after := range stopped {
		last = max(last, after)
	}
	if last > 0 {
		b.t.Logf("%s: the last answer that it forbids came %v after it", when, last.Round(time.Millisecond))
	}
	before := map[*beat]int{}
	for _, one := range b.list {
		if one.silent {
			named[one.name] = true
			before[one] = one.asked()
		}
	}
	b.each(when, func(one *beat) error {
		if err := one.reaches(one.asked() + stillFor); err != nil {
			return err
		}
		if one.silent {
			return one.stillSilent(before[one])
		}
		return one.steady()
	})
	for name, known := range named {
		if !known {
			b.t.Errorf("%s: there is no connection %q", when, name)
		}
	}
}

// each calls f for every connection at once.
func (b *Beats) each(when string, f func(*beat) error) {
	b.t.Helper()
	errs := make(chan error)
	for _, one := range b.list {
		go func() { errs <- f(one) }()
	}
	failed := false
	for range b.list {
		if err := <-errs; err != nil {
			failed = true
			b.t.Errorf("%s: %v", when, err)
		}
	}
	if failed {
		b.t.FailNow()
	}
}

// beat is one of them.
type beat struct {
	name, full string
	stream     *Stream
	id         string
	stop       chan struct{}
	// silent is what it should be; only the test's goroutine and those it waits for see it.
	silent bool

	mu sync.Mutex
	// sent is when each question was asked, by its number. Those below from have been
	// looked at, or were asked while it was silent.
	sent []time.Time
	from int
	// heard has the numbers of the answers from there on, last is when the latest came, gap
	// the longest time between two.
	heard   map[int]bool
	answers int
	last    time.Time
	gap     time.Duration
	failed  error
}

func (b *beat) nonce(n int) string { return fmt.Sprintf("%s-%d", b.id, n) }

func (b *beat) ask(every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		b.mu.Lock()
		n := len(b.sent)
		b.sent = append(b.sent, time.Now())
		b.mu.Unlock()
		if _, err := b.stream.conn.Write([]byte(b.nonce(n) + "\n")); err != nil {
			b.fail(fmt.Errorf("asking: %w", err))
			return
		}
		select {
		case <-b.stop:
			return
		case <-tick.C:
		}
	}
}

// hear notes the answers. Nobody else reads from the connection any more.
func (b *beat) hear() {
	if err := b.stream.conn.SetDeadline(time.Time{}); err != nil {
		b.fail(err)
		return
	}
	lines := bufio.NewScanner(b.stream.answers)
	for lines.Scan() {
		nonce, _, _ := strings.Cut(lines.Text(), " ")
		id, number, _ := strings.Cut(nonce, "-")
		n, err := strconv.Atoi(number)
		if id != b.id || err != nil {
			continue
		}
		b.note(n, time.Now())
	}
	b.fail(fmt.Errorf("hearing: %w", errors.Join(errors.New("no more answers can come"), lines.Err())))
}

func (b *beat) note(n int, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.answers++
	if n >= b.from {
		b.gap = max(b.gap, now.Sub(b.last))
		b.heard[n] = true
	}
	b.last = now
}

func (b *beat) fail(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failed = errors.Join(b.failed, err)
}

// asked is the number of the next question.
func (b *beat) asked() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.sent)
}

// latest is when the last answer came.
func (b *beat) latest() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.last
}

// wait polls until done says so, and says what did not come in time. It holds the lock
// for done.
func (b *beat) wait(limit time.Duration, what string, done func() bool) error {
	for deadline := time.Now().Add(limit); ; time.Sleep(5 * time.Millisecond) {
		b.mu.Lock()
		ok, failed := done(), b.failed
		b.mu.Unlock()
		switch {
		case failed != nil:
			return fmt.Errorf("live connection %s: %w", b.full, failed)
		case ok:
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("live connection %s: not within %v: %s", b.full, limit, what)
		}
	}
}

// reaches waits until a question was asked.
func (b *beat) reaches(n int) error {
	return b.wait(resumeLimit, "the next questions", func() bool { return len(b.sent) > n })
}

// fallsSilent waits until no answers come.
func (b *beat) fallsSilent() error {
	return b.wait(stopLimit, "it is forbidden, and answered", func() bool { return time.Since(b.last) > SilenceLimit })
}

// resumes waits for an answer, and begins to count anew.
func (b *beat) resumes() error {
	b.mu.Lock()
	before := b.answers
	b.mu.Unlock()
	return b.wait(resumeLimit, "it is allowed again, and not answered", func() bool {
		if b.answers == before {
			return false
		}
		b.from, b.gap = len(b.sent), 0
		clear(b.heard)
		return true
	})
}

// stillSilent makes sure that no question since one got to the server.
func (b *beat) stillSilent(since int) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for n := since; n < len(b.sent); n++ {
		if b.stream.journal.has(b.nonce(n)) {
			return fmt.Errorf("live connection %s: question %d reached the server, %v after it had become silent", b.full, n, b.sent[n].Sub(b.last))
		}
	}
	return nil
}

// steady makes sure that every question was answered, in time.
func (b *beat) steady() error {
	upTo, lost := b.asked(), 0
	err := b.wait(mostGap, "an answer to every question of one that is allowed", func() bool {
		lost = 0
		for i := b.from; i < upTo; i++ {
			if !b.heard[i] {
				lost++
			}
		}
		return lost == 0
	})
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil {
		return fmt.Errorf("%w: %d of %d are lost, the longest gap is %v", err, lost, upTo-b.from, b.gap)
	}
	for ; b.from < upTo; b.from++ {
		delete(b.heard, b.from)
	}
	if b.gap > mostGap {
		return fmt.Errorf("live connection %s: %v without an answer", b.full, b.gap)
	}
	return nil
}
