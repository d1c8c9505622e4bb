package state_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/podmark/podmark/pkg/state"
)

func spool(t testing.TB) (s state.Store, file string) {
	t.Helper()
	dir := t.TempDir()
	return state.At(dir), filepath.Join(dir, state.SpoolFile)
}

func note(t testing.TB, s state.Store, calls ...state.Call) {
	t.Helper()
	for _, c := range calls {
		if err := s.RecordCall(c); err != nil {
			t.Fatal(err)
		}
	}
}

// What was noted is taken once, in its order.
func TestSpool(t *testing.T) {
	s, file := spool(t)
	calls := []state.Call{{Verb: "ADD", Took: 2750 * time.Microsecond}, {Verb: "DEL", Code: 101, Took: 30 * time.Second}, {Verb: "GC", Code: 999}}
	for range 2 {
		note(t, s, calls...)
		got, damaged, full, err := s.TakeCalls()
		if diff := cmp.Diff(calls, got); diff != "" || damaged != 0 || full || err != nil {
			t.Errorf("%d damaged, full %v, %v:\n%s", damaged, full, err, diff)
		}
		if got, _, _, err := s.TakeCalls(); len(got) != 0 || err != nil {
			t.Errorf("taken again: %v, %v", got, err)
		}
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v; want mode 0600", info, err)
	}
}

// Where there is no directory, none is made, and nothing is there to be taken.
func TestSpoolWithoutDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	s := state.At(dir)
	if err := s.RecordCall(state.Call{Verb: "ADD"}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("noting: %v, want fs.ErrNotExist", err)
	}
	if calls, _, _, err := s.TakeCalls(); len(calls) != 0 || err != nil {
		t.Errorf("taking: %v, %v", calls, err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory: %v", err)
	}
}

// A spool that nobody empties stops growing, says so, and goes on when it was emptied.
func TestSpoolIsBounded(t *testing.T) {
	s, file := spool(t)
	line := "ADD 0 2750\n"
	if err := os.WriteFile(file, []byte(strings.Repeat(line, state.SpoolLimit/len(line))), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		note(t, s, state.Call{Verb: "ADD"})
	}
	if info, err := os.Stat(file); err != nil || info.Size() > state.SpoolLimit+64 {
		t.Errorf("%v, %v; want %d bytes", info, err, state.SpoolLimit)
	}
	calls, damaged, full, err := s.TakeCalls()
	if len(calls) < state.SpoolLimit/len(line) || damaged != 0 || !full || err != nil {
		t.Errorf("%d calls, %d damaged, full %v, %v", len(calls), damaged, full, err)
	}
	note(t, s, state.Call{Verb: "DEL"})
	if calls, _, full, err := s.TakeCalls(); len(calls) != 1 || full || err != nil {
		t.Errorf("afterwards %d calls, full %v, %v", len(calls), full, err)
	}
}

// What is no call is left out, and the calls around it are not.
func TestSpoolIsDamaged(t *testing.T) {
	s, file := spool(t)
	if err := os.WriteFile(file, []byte("ADD 0 1\nADD 0\n\nLS 0 1\nADD -1 1\nADD 0 1e3\nADD 0 99999999999999\nDEL 5 2\nGC 0 1"), 0o600); err != nil {
		t.Fatal(err)
	}
	calls, damaged, _, err := s.TakeCalls()
	want := []state.Call{{Verb: "ADD", Took: time.Microsecond}, {Verb: "DEL", Code: 5, Took: 2 * time.Microsecond}}
	if diff := cmp.Diff(want, calls); diff != "" || damaged != 7 || err != nil {
		t.Errorf("%d damaged, %v:\n%s", damaged, err, diff)
	}
}

// However writers and readers meet, each call is taken exactly once.
func TestSpoolLosesNothing(t *testing.T) {
	s, _ := spool(t)
	const writers, each = 8, 500
	var left atomic.Int32
	left.Store(writers)
	var writing, reading sync.WaitGroup
	for w := range writers {
		writing.Go(func() {
			defer left.Add(-1)
			for i := range each {
				if err := s.RecordCall(state.Call{Verb: "ADD", Took: time.Duration(w*each+i) * time.Microsecond}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	var mu sync.Mutex
	var taken []int
	take := func() {
		calls, damaged, _, err := s.TakeCalls()
		if damaged != 0 {
			t.Errorf("%d damaged", damaged)
		}
		_ = err // busy: it is there the next time
		mu.Lock()
		defer mu.Unlock()
		for _, c := range calls {
			taken = append(taken, int(c.Took.Microseconds()))
		}
	}
	for range 2 {
		reading.Go(func() {
			for left.Load() > 0 {
				take()
				runtime.Gosched()
			}
		})
	}
	writing.Wait()
	reading.Wait()
	take()
	slices.Sort(taken)
	for i, n := range taken {
		if n != i {
			t.Fatalf("of %d calls, number %d is %d: lost or taken twice", len(taken), i, n)
		}
	}
	if len(taken) != writers*each {
		t.Errorf("%d of %d calls were taken", len(taken), writers*each)
	}
}

// BenchmarkNote is what the spool costs a call.
func BenchmarkNote(b *testing.B) {
	s, _ := spool(b)
	for i := 0; b.Loop(); i++ {
		if i%10000 == 0 {
			b.StopTimer()
			_, _, _, _ = s.TakeCalls()
			b.StartTimer()
		}
		note(b, s, state.Call{Verb: "ADD", Took: 2750 * time.Microsecond})
	}
}
