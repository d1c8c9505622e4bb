package state_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/podmark/podmark/pkg/mark"
	"github.com/podmark/podmark/pkg/state"
)

// The test binary is also the other process: see TestMain.
const (
	envDir  = "PODMARK_TEST_DIR"
	envRole = "PODMARK_TEST_ROLE" // holder, daemon or worker
)

func TestMain(m *testing.M) {
	switch role := os.Getenv(envRole); role {
	case "":
		// As in /run, where the state directory is, syncing a file costs nothing there.
		if info, err := os.Stat("/dev/shm"); err == nil && info.IsDir() {
			os.Setenv("TMPDIR", "/dev/shm")
		}
		os.Exit(m.Run())
	case "holder":
		hold()
	case "daemon":
		_, err := state.At(os.Getenv(envDir)).ClaimAsDaemon()
		fmt.Println(err)
		bufio.NewReader(os.Stdin).ReadString('\n') //nolint:errcheck // the end is what it waits for
	default:
		if err := work(role); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

// hold takes the lock, says so, and keeps it until stdin ends.
func hold() {
	if _, err := state.At(os.Getenv(envDir)).Lock(context.Background(), time.Minute); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("locked")
	bufio.NewReader(os.Stdin).ReadString('\n') //nolint:errcheck // the end is what it waits for
}

// work reserves and releases a few times, noting in the directory who has what.
func work(name string) error {
	s := state.At(os.Getenv(envDir))
	l, err := mark.NewLayout(0xff0000)
	if err != nil {
		return err
	}
	for round := range 3 {
		r := record(fmt.Sprint(name, "-", round), fmt.Sprintf("10.0.%s.%d", name, round))
		unlock, err := s.Lock(context.Background(), time.Minute)
		if err != nil {
			return err
		}
		r, err = s.Reserve(l, r)
		unlock()
		if err != nil {
			return err
		}
		claim := s.Dir() + "/claim-" + strconv.Itoa(int(r.ID))
		f, err := os.OpenFile(claim, os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return fmt.Errorf("two have ID %d: %w", r.ID, err)
		}
		f.Close()
		if round == 2 {
			return nil // kept
		}
		if err := os.Remove(claim); err != nil {
			return err
		}
		if unlock, err = s.Lock(context.Background(), time.Minute); err != nil {
			return err
		}
		err = s.Release(r)
		unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

func process(s state.Store, role string) *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), envRole+"="+role, envDir+"="+s.Dir())
	return cmd
}

func TestLock(t *testing.T) {
	s := newStore(t)
	holder := process(s, "holder")
	stdin, errIn := holder.StdinPipe()
	stdout, errOut := holder.StdoutPipe()
	if err := errors.Join(errIn, errOut, holder.Start()); err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	t.Cleanup(func() { holder.Process.Kill(); holder.Wait() }) //nolint:errcheck // it may be gone
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || line != "locked\n" {
		t.Fatalf("the other process says %q, %v", line, err)
	}
	const timeout = 50 * time.Millisecond
	start := time.Now()
	_, err := s.Lock(t.Context(), timeout)
	if !errors.Is(err, state.ErrLockTimeout) || !strings.Contains(err.Error(), "50ms") || !strings.Contains(err.Error(), "lockTimeoutSeconds") {
		t.Errorf("Lock = %v", err)
	}
	if took := time.Since(start); took < timeout {
		t.Errorf("it gave up after %v", took)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Lock(ctx, time.Hour); err == nil {
		t.Error("Lock does not end with its context")
	}
	// A killed process lets go.
	if err := holder.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	unlock, err := s.Lock(t.Context(), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
	if unlock, err = s.Lock(t.Context(), timeout); err != nil {
		t.Errorf("after unlock: %v", err)
	} else {
		unlock()
	}
}

// A daemon lives until it is gone, however it ends. Who keeps daemons away is none, and neither
// is who asks.
func TestDaemonLives(t *testing.T) {
	s := newStore(t)
	lives := func(want bool, when string) {
		t.Helper()
		if got, err := s.DaemonLives(); got != want || err != nil {
			t.Errorf("%s: %t, %v", when, got, err)
		}
	}
	lives(false, "nobody was ever there")
	if _, err := os.Stat(s.Path(state.DaemonLock)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("to ask made something: %v", err)
	}
	daemon := process(s, "daemon")
	stdin, errIn := daemon.StdinPipe()
	stdout, errOut := daemon.StdoutPipe()
	if err := errors.Join(errIn, errOut, daemon.Start()); err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	t.Cleanup(func() { daemon.Process.Kill(); daemon.Wait() }) //nolint:errcheck // it may be gone
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || line != "<nil>\n" {
		t.Fatalf("the daemon says %q, %v", line, err)
	}
	lives(true, "it runs")
	for _, claim := range []func() (func(), error){s.Claim, s.ClaimAsDaemon} {
		if _, err := claim(); !errors.Is(err, state.ErrClaimed) {
			t.Errorf("a second one: %v", err)
		}
	}
	lives(true, "another has tried")
	if err := daemon.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = daemon.Wait()
	lives(false, "it was killed")
	release, err := s.Claim()
	if err != nil {
		t.Fatal(err)
	}
	lives(false, "an uninstall is under way")
	release()
	if release, err = s.ClaimAsDaemon(); err != nil {
		t.Fatal(err)
	}
	lives(true, "it is this process")
	release()
	lives(false, "it has ended")
}

// To ask whether there is a daemon keeps none from starting.
func TestDaemonLivesTakesNothing(t *testing.T) {
	s := newStore(t)
	done := make(chan struct{})
	var asking sync.WaitGroup
	for range 4 {
		asking.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					if _, err := s.DaemonLives(); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	for range 500 {
		release, err := s.ClaimAsDaemon()
		if err != nil {
			t.Error(err)
			break
		}
		release()
	}
	close(done)
	asking.Wait()
}

// An uninstall removes the directory with the lock in it, under those who wait for it: each of
// them has the lock for itself all the same, of a directory that is there.
func TestLockIsRemoved(t *testing.T) {
	const waiters, rounds = 64, 30 // so many that one opens the file as another removes it
	s := newStore(t)
	var inside atomic.Int32
	var all sync.WaitGroup
	for range waiters {
		all.Go(func() {
			for round := range rounds {
				unlock, err := s.Lock(t.Context(), time.Minute)
				if err != nil {
					t.Error(err)
					return
				}
				if n := inside.Add(1); n != 1 {
					t.Errorf("%d have the lock", n)
				}
				if _, err := s.Reserve(layout(t, 0xff0000), record("a")); err != nil {
					t.Error(err)
				}
				inside.Add(-1)
				if round%8 != 0 { // the last thing that an uninstall does
					if err := s.RemoveAll(); err != nil {
						t.Error(err)
					}
				}
				unlock()
			}
		})
	}
	all.Wait()
}

func TestManyProcesses(t *testing.T) {
	const count = 50
	s := newStore(t)
	var all sync.WaitGroup
	for i := range count {
		all.Go(func() {
			if out, err := process(s, strconv.Itoa(i)).CombinedOutput(); err != nil {
				t.Errorf("process %d: %v: %s", i, err, out)
			}
		})
	}
	all.Wait()
	records, err := s.List()
	if err != nil || len(records) != count {
		t.Errorf("%d records, %v; want %d", len(records), err, count)
	}
	if used, err := s.IDsInUse(); err != nil || used != count {
		t.Errorf("%d IDs in use, %v; want %d", used, err, count)
	}
}

// The lock may fail to keep two apart, as when someone removes its file: they get
// an error then, and never the same ID.
func TestReserveWithoutLock(t *testing.T) {
	s, l := newStore(t), layout(t, 0xffff0000)
	const count = 64
	ids := make(chan mark.ID, count)
	var all sync.WaitGroup
	for i := range count {
		all.Go(func() {
			if r, err := s.Reserve(l, record(strconv.Itoa(i))); err == nil {
				ids <- r.ID
			}
		})
	}
	all.Wait()
	close(ids)
	seen := map[mark.ID]bool{}
	for id := range ids {
		if seen[id] {
			t.Errorf("two have ID %d", id)
		}
		seen[id] = true
	}
	if len(seen) == 0 {
		t.Error("nobody has an ID")
	}
}

// A link that leads nowhere is no directory, and is told.
func TestLockBehindLink(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	if err := os.Symlink(dir+".gone", dir); err != nil {
		t.Fatal(err)
	}
	if _, err := state.At(dir).Lock(t.Context(), time.Minute); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Lock = %v", err)
	}
}
