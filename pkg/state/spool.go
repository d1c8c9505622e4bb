//go:build linux

package state

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Call is one call of the plugin. The plugin notes it in the spool, from which the
// daemon takes it when its metrics are scraped.
type Call struct {
	// Verb is ADD, DEL, CHECK or GC.
	Verb string
	// Code is the CNI error code; 0 for none.
	Code uint
	// Took is how long it took, in whole microseconds.
	Took time.Duration
}

const (
	// SpoolFile holds the calls that nobody has taken yet, one a line.
	SpoolFile = "calls"
	// SpoolLimit bounds it, in bytes, on a node without a daemon: some 18,000 calls.
	// What comes then is not noted.
	SpoolLimit = 256 << 10
	// spoolTries and spoolPause bound the wait for who takes the spool.
	spoolTries = 500
	spoolPause = 100 * time.Microsecond
)

// RecordCall appends c to the spool, which is 5 system calls. It creates no directory: without
// one, the error is fs.ErrNotExist. A full spool stays as it is.
//
// Whoever writes has a share of the file's lock and Take has all of it, so nothing is
// written between what Take reads and what it cuts off. Neither waits for long: a
// writer that cannot get its share writes all the same, and then the call may be lost.
func (s Store) RecordCall(c Call) error {
	fd, err := unix.Open(s.path(SpoolFile),
		unix.O_WRONLY|unix.O_APPEND|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return fmt.Errorf("opening the spool %q: %w", s.path(SpoolFile), unopened(s.path(SpoolFile), err))
	}
	defer unix.Close(fd)
	_ = lockSpool(fd, unix.LOCK_SH)
	var info unix.Stat_t
	if err := unix.Fstat(fd, &info); err != nil {
		return fmt.Errorf("reading the size of %q: %w", s.path(SpoolFile), err)
	}
	if err := ours(s.path(SpoolFile), info, unix.S_IFREG); err != nil {
		return err
	}
	if info.Size >= SpoolLimit {
		return nil
	}
	// One write, so that lines of several writers do not mix.
	if _, err := unix.Write(fd, c.line()); err != nil {
		return fmt.Errorf("writing to %q: %w", s.path(SpoolFile), err)
	}
	return nil
}

// TakeCalls empties the spool and returns what was in it. A line that is not a call, such as
// the end of what a full file system cut off, is left out and counted in damaged. Full
// says that calls may have come that were not noted. No call is returned twice; who
// dies before it has counted them has lost them. What is no spool goes, and counts as one damaged line.
func (s Store) TakeCalls() (calls []Call, damaged int, full bool, err error) {
	f, err := open(s.path(SpoolFile), os.O_RDWR)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, false, nil
	}
	if errors.Is(err, ErrDamaged) {
		return nil, 1, true, s.Remove(SpoolFile)
	}
	if err != nil {
		return nil, 0, false, fmt.Errorf("opening the spool: %w", err)
	}
	defer f.Close()
	if err := lockSpool(int(f.Fd()), unix.LOCK_EX); err != nil {
		return nil, 0, false, fmt.Errorf("locking the spool %q: %w: a plugin that was stopped may hold it", f.Name(), err)
	}
	content, err := io.ReadAll(f)
	if err == nil {
		err = f.Truncate(0)
	}
	if err != nil {
		return nil, 0, false, fmt.Errorf("emptying the spool: %w", err)
	}
	for line := range bytes.Lines(content) {
		if c, ok := parseCall(line); ok {
			calls = append(calls, c)
		} else {
			damaged++
		}
	}
	return calls, damaged, len(content) >= SpoolLimit, nil
}

// lockSpool tries for 50 ms.
func lockSpool(fd, how int) (err error) {
	for range spoolTries {
		if err = unix.Flock(fd, how|unix.LOCK_NB); err == nil {
			return nil
		}
		time.Sleep(spoolPause)
	}
	return err
}

// Verbs are those of a Call: they change something, or say whether something is as it
// should be. STATUS is none of them: runtimes ask for it all the time.
func Verbs() []string { return []string{"ADD", "DEL", "CHECK", "GC"} }

// line is c as the spool has it: "ADD 0 2750".
func (c Call) line() []byte {
	return fmt.Appendf(nil, "%s %d %d\n", c.Verb, c.Code, c.Took.Microseconds())
}

// parseCall reads what line wrote.
func parseCall(line []byte) (Call, bool) {
	text, ended := bytes.CutSuffix(line, []byte("\n"))
	fields := bytes.Split(text, []byte(" "))
	if !ended || len(fields) != 3 || !slices.Contains(Verbs(), string(fields[0])) {
		return Call{}, false
	}
	code, errCode := strconv.ParseUint(string(fields[1]), 10, 16)
	took, errTook := strconv.ParseUint(string(fields[2]), 10, 40)
	return Call{string(fields[0]), uint(code), time.Duration(took) * time.Microsecond}, errCode == nil && errTook == nil
}
