package lab

import (
	"bufio"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/podmark/podmark/test/wait"
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

// Limits for beats. Times count in the questions that are asked in them: a machine that does much
// else asks less, as it answers less.
const (
	// mostGap is how long one that goes on may be without an answer.
	mostGap = 5 * time.Second
	// stillFor is how many questions are asked while those that are silent stay so.
	stillFor = 25
)

// Beats makes connections that ask once in a while; the while is the caller's.
func (n *Node) Beats(every time.Duration) *Beats { return &Beats{t: n.t, every: every} }

// Start opens a connection, which must be answered, and uses it until the test ends.
func (b *Beats) Start(name string, from *NS, r Request) {
	b.t.Helper()
	s := from.Stream(r)
	one := &beat{
		name: name, full: fmt.Sprintf("%s %v %v", name, r.Protocol, familyOf(r.To.Addr())),
		stream: s, every: b.every, id: rand.Text()[:10], last: time.Now(), stop: make(chan struct{}), more: make(chan struct{}, 1), heard: map[int]bool{},
	}
	b.list = append(b.list, one)
	var running sync.WaitGroup
	running.Go(one.ask)
	running.Go(one.send)
	running.Go(one.hear)
	b.t.Cleanup(func() {
		close(one.stop)
		s.Close()
		running.Wait()
	})
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
	every      time.Duration
	id         string
	stop, more chan struct{}
	// silent is what it should be; only the test's goroutine and those it waits for see it.
	silent bool

	mu sync.Mutex
	// sent is when each question was asked, by its number. Those below from have been
	// looked at, or were asked while it was silent.
	sent []time.Time
	from int
	// heard has the numbers of the answers from there on. last is when the latest came, and
	// unheard how many questions were asked since; gap is the most there were between two.
	heard        map[int]bool
	answers      int
	last         time.Time
	unheard, gap int
	failed       error
}

func (b *beat) nonce(n int) string { return fmt.Sprintf("%s-%d", b.id, n) }

// ask asks, whether there is room for it in the socket or not: a connection that is silent for
// long has none.
func (b *beat) ask() {
	tick := time.NewTicker(b.every)
	defer tick.Stop()
	for {
		b.mu.Lock()
		b.sent = append(b.sent, time.Now())
		b.unheard++
		b.mu.Unlock()
		select {
		case b.more <- struct{}{}:
		default:
		}
		select {
		case <-b.stop:
			return
		case <-tick.C:
		}
	}
}

// send gives the socket what was asked, as soon as it takes it.
func (b *beat) send() {
	for n := 0; ; {
		for ; n < b.asked(); n++ {
			if _, err := b.stream.conn.Write([]byte(b.nonce(n) + "\n")); err != nil {
				b.fail(fmt.Errorf("asking: %w", err))
				return
			}
		}
		select {
		case <-b.stop:
			return
		case <-b.more:
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
		b.gap = max(b.gap, b.unheard)
		b.heard[n] = true
	}
	b.last, b.unheard = now, 0
}

func (b *beat) fail(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failed = errors.Join(b.failed, err)
}

// within is how many questions are asked in a time.
func (b *beat) within(d time.Duration) int { return int(d / b.every) }

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

// until waits until missing, which is called with the lock held, returns nil.
func (b *beat) until(missing func() error) error {
	var failed error
	err := wait.Poll(func() error {
		b.mu.Lock()
		defer b.mu.Unlock()
		if failed = b.failed; failed != nil {
			return nil
		}
		return missing()
	})
	if err = errors.Join(err, failed); err != nil {
		return fmt.Errorf("live connection %s: %w", b.full, err)
	}
	return nil
}

// reaches waits until a question was asked.
func (b *beat) reaches(n int) error {
	return b.until(func() error {
		if len(b.sent) > n {
			return nil
		}
		return fmt.Errorf("question %d is asked, of %d", len(b.sent), n)
	})
}

// fallsSilent waits until no answers come.
func (b *beat) fallsSilent() error {
	return b.until(func() error {
		if b.unheard > b.within(SilenceLimit) {
			return nil
		}
		return errors.New("it is forbidden, and answered")
	})
}

// resumes waits for an answer, and begins to count again.
func (b *beat) resumes() error {
	b.mu.Lock()
	before := b.answers
	b.mu.Unlock()
	return b.until(func() error {
		if b.answers == before {
			return errors.New("it is allowed again, and not answered")
		}
		b.from, b.gap = len(b.sent), 0
		clear(b.heard)
		return nil
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
	upTo := b.asked()
	err := b.until(func() error {
		lost := 0
		for i := b.from; i < upTo; i++ {
			if !b.heard[i] {
				lost++
			}
		}
		if lost == 0 {
			return nil
		}
		return fmt.Errorf("it is allowed, and %d of its %d questions are not answered, %d in a row at most", lost, upTo-b.from, b.gap)
	})
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for ; b.from < upTo; b.from++ {
		delete(b.heard, b.from)
	}
	if b.gap > b.within(mostGap) {
		return fmt.Errorf("live connection %s: %d questions were asked without an answer", b.full, b.gap)
	}
	return nil
}
