//go:build linux

package state

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/mark"
)

// Errors that callers branch on.
var (
	// ErrLockTimeout: another podmark process held the lock for too long.
	ErrLockTimeout = errors.New("waiting for the lock of another podmark process timed out")
	// ErrDamaged: a file of the state directory does not hold what podmark writes.
	ErrDamaged = errors.New("state file is damaged")
	// ErrExhausted: every ID of the mask is taken.
	ErrExhausted = errors.New("mask exhausted")
	// ErrNoRoom: the file system of the state directory is full, or read-only.
	ErrNoRoom = errors.New("there is no room in the state directory")
	// ErrClaimed: another daemon looks after the node.
	ErrClaimed = errors.New("another podmarkd is running")
)

// Store is a state directory. Its methods other than Lock, Get, List, Empty, Note and
// Take are called with the lock held.
type Store struct {
	dir string
}

const (
	attachmentsDir = "attachments"
	idsDir         = "ids"
	addressesDir   = "addresses"
	nextFile       = "next"
	lockFile       = "lock"
	// NodeFile is where package node keeps what the node enforces.
	NodeFile = "node.json"
	// PoliciesFile is where it keeps the node's compiled policies.
	PoliciesFile = "policies.json"
	// DaemonFile is where the daemon keeps its status, and DaemonLock what it holds.
	DaemonFile = "daemon.json"
	DaemonLock = "daemon.lock"
	temporary  = ".tmp"
)

// At names the state directory dir without touching it.
func At(dir string) Store { return Store{dir: dir} }

// Dir returns the state directory.
func (s Store) Dir() string { return s.dir }

// Path is that of a file of the directory.
func (s Store) Path(name string) string { return s.path(name) }

// Directories are those that change whenever an attachment comes, goes or changes, or an
// address another owner.
func (s Store) Directories() [2]string {
	return [2]string{s.path(attachmentsDir), s.path(addressesDir)}
}

func (s Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.dir}, elem...)...)
}

// create makes the state directory if need be. [os.MkdirAll] says that it exists where an uninstall
// has removed it in the moment after.
func (s Store) create() error {
	for {
		err := os.MkdirAll(s.dir, 0o700)
		if err == nil {
			return nil
		}
		info, errThere := os.Lstat(s.dir)
		directory := errThere == nil && info.IsDir()
		if !errors.Is(err, fs.ErrExist) || !directory && !errors.Is(errThere, fs.ErrNotExist) {
			return fmt.Errorf("creating state directory: %w", err)
		}
	}
}

// Init creates the directories that are missing, 0700. ErrDamaged where others may write to one
// that is there.
func (s Store) Init() error {
	if err := s.create(); err != nil {
		return err
	}
	for _, sub := range []string{"", attachmentsDir, idsDir, addressesDir} {
		if err := os.Mkdir(s.path(sub), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("creating state directory: %w", err)
		}
		if err := s.trusted(sub); err != nil {
			return err
		}
	}
	return nil
}

// Lock creates the state directory if need be and waits, at most until timeout or the end of
// ctx, to be the only podmark process that changes anything. The kernel drops the lock when
// the process dies.
func (s Store) Lock(ctx context.Context, timeout time.Duration) (unlock func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for pause := time.Millisecond; ; pause = min(2*pause, 20*time.Millisecond) {
		f, err := s.hold(lockFile)
		if err != nil {
			return nil, fmt.Errorf("locking the state directory: %w", err)
		}
		if f != nil {
			if err := s.Init(); err != nil {
				f.Close()
				return nil, err
			}
			return func() { f.Close() }, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w after %v: %q is held; raise lockTimeoutSeconds or end the process that holds it", ErrLockTimeout, timeout, s.path(lockFile))
		case <-time.After(pause):
		}
	}
}

// hold takes the lock that is the file of the name, until that is closed; nil while another
// process has it. An uninstall removes the file, and a lock on what no path leads to keeps
// nobody out: then the file there is now is locked instead.
func (s Store) hold(name string) (*os.File, error) {
	for {
		if err := s.create(); err != nil {
			return nil, err
		}
		f, err := open(s.path(name), os.O_CREATE|os.O_RDWR)
		if errors.Is(err, unix.EROFS) {
			if f, err = open(s.path(name), os.O_RDONLY); err != nil {
				return nil, unix.EROFS // nobody has ever held it
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			continue // the directory has gone in between
		}
		if err != nil {
			return nil, err
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil && leadsTo(f.Name(), f) {
			return f, nil
		}
		f.Close()
		switch {
		case errors.Is(err, unix.EWOULDBLOCK):
			return nil, nil
		case err != nil && !errors.Is(err, unix.EINTR):
			return nil, fmt.Errorf("%q: %w", f.Name(), err)
		}
	}
}

// leadsTo reports whether path names the file that is open as f.
func leadsTo(path string, f *os.File) bool {
	there, errThere := os.Stat(path)
	open, errOpen := f.Stat()
	return errors.Join(errThere, errOpen) == nil && os.SameFile(there, open)
}

// Claim keeps every daemon off the node until release, or until the process dies;
// ErrClaimed when there is one.
func (s Store) Claim() (release func(), err error) {
	f, err := s.claim()
	if err != nil {
		return nil, fmt.Errorf("claiming the node: %w", err)
	}
	return func() { f.Close() }, nil
}

// ClaimAsDaemon is Claim for the node's daemon, which [Store.DaemonLives] sees until release, or
// until the process dies.
func (s Store) ClaimAsDaemon() (release func(), err error) {
	f, err := s.claim()
	if err != nil {
		return nil, fmt.Errorf("claiming the node: %w", err)
	}
	// A lock of the open file (Linux 3.15), beside flock's, which it has nothing to do with: to
	// ask for flock's is to take it, and a daemon that starts meanwhile would find it taken.
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK}); err != nil {
		f.Close()
		return nil, fmt.Errorf("claiming the node: %q: %w", f.Name(), err)
	}
	return func() { f.Close() }, nil
}

func (s Store) claim() (*os.File, error) {
	f, err := s.hold(DaemonLock)
	if err == nil && f == nil {
		err = fmt.Errorf("%w: it holds %q; 'fuser -v' of that says which process", ErrClaimed, s.path(DaemonLock))
	}
	return f, err
}

// DaemonLives reports whether the node has a daemon now, whatever PID namespace that is in. It
// asks the kernel for the daemon's lock, which no number of a process can tell: that is another
// one outside of the daemon's container, and another program's when the daemon was killed.
func (s Store) DaemonLives() (bool, error) {
	f, err := open(s.path(DaemonLock), os.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("asking whether podmarkd runs: %w", err)
	}
	defer f.Close()
	held := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &held); err != nil {
		return false, fmt.Errorf("asking whether podmarkd runs: %q: %w", f.Name(), err)
	}
	return held.Type != unix.F_UNLCK, nil
}

// Get reads the record of key. The error is fs.ErrNotExist when there is none,
// ErrDamaged when the file cannot be understood.
func (s Store) Get(key attachment.Key) (attachment.Record, error) {
	return s.readRecord(s.path(attachmentsDir, key.Hash()))
}

func (s Store) readRecord(path string) (attachment.Record, error) {
	var r attachment.Record
	err := ReadJSON(path, &r)
	if err == nil {
		wrong := r.Validate()
		if name := filepath.Base(path); r.Hash() != name {
			wrong = fmt.Errorf("it holds attachment %s, whose file is %s", r.Key, r.Hash())
		}
		if wrong != nil {
			err = fmt.Errorf("%w: %q: %w", ErrDamaged, path, wrong)
		}
	}
	if errors.Is(err, ErrDamaged) {
		err = fmt.Errorf("%w; run 'podmarkctl gc'", err)
	}
	if err != nil {
		return attachment.Record{}, err
	}
	return r, nil
}

// List reads every record. Damaged ones are left out and reported together with
// the good ones.
func (s Store) List() ([]attachment.Record, error) {
	names, err := s.names(attachmentsDir)
	if err != nil {
		return nil, fmt.Errorf("listing attachments: %w", err)
	}
	var records []attachment.Record
	var errs []error
	slices.Sort(names)
	for _, name := range names {
		if strings.HasSuffix(name, temporary) {
			continue
		}
		r, err := s.readRecord(s.path(attachmentsDir, name))
		switch {
		case errors.Is(err, fs.ErrNotExist): // a DEL came in between
		case err != nil:
			errs = append(errs, err)
		default:
			records = append(records, r)
		}
	}
	return records, errors.Join(errs...)
}

// Empty reports whether there is no attachment.
func (s Store) Empty() (bool, error) {
	n, err := s.count(attachmentsDir)
	return n == 0, err
}

// IDsInUse counts the IDs that are given out.
func (s Store) IDsInUse() (int, error) { return s.count(idsDir) }

func (s Store) count(sub string) (int, error) {
	names, err := s.names(sub)
	return len(names), err
}

// Reserve writes r, uncommitted, with an ID of its own: the one it had if the
// attachment is known, else the next free one. The record comes first: an ID
// always leads to a record that tells whose it is.
func (s Store) Reserve(layout mark.Layout, r attachment.Record) (attachment.Record, error) {
	if err := s.relink(layout); err != nil {
		return attachment.Record{}, fmt.Errorf("looking for lost IDs: %w", err)
	}
	hash := r.Hash()
	r.Committed = false
	if old, err := s.Get(r.Key); err == nil && uint32(old.ID) <= layout.Max() && s.holds(old.ID, hash) {
		r.ID = old.ID
		return r, s.Put(r)
	}
	id, err := s.free(layout)
	if err != nil {
		return attachment.Record{}, err
	}
	r.ID = id
	if err := s.Put(r); err != nil {
		return attachment.Record{}, err
	}
	if err := os.Symlink(target(hash), s.idPath(id)); err != nil {
		return attachment.Record{}, fmt.Errorf("reserving ID %d: %w", id, err)
	}
	if err := s.setNext(id + 1); err != nil && !errors.Is(err, ErrNoRoom) {
		return attachment.Record{}, err
	}
	return r, nil
}

// next is the ID to try first. Whatever else the file holds means the first one.
func (s Store) next() mark.ID {
	b, _ := Read(s.path(nextFile))
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 32)
	if err != nil {
		return mark.First
	}
	return mark.ID(n)
}

// setNext overwrites the file in place: it is a line of ten digits at any time, and
// a hint only. What is no such file goes.
func (s Store) setNext(id mark.ID) error {
	f, err := open(s.path(nextFile), os.O_CREATE|os.O_WRONLY)
	if errors.Is(err, ErrDamaged) {
		if err := s.Remove(nextFile); err != nil {
			return err
		}
		f, err = open(s.path(nextFile), os.O_CREATE|os.O_WRONLY)
	}
	if err != nil {
		return fmt.Errorf("writing state: %w", room(err))
	}
	_, err = fmt.Fprintf(f, "%010d\n", id)
	return room(errors.Join(err, f.Close()))
}

// rest is how many IDs are free at least when the cursor goes back: mostly, so many others are
// given out before a freed one comes again.
const rest = 8

// free finds the first ID from the cursor on that has no file. The cursor enters a block in
// which nobody is only when nearly all IDs before that are taken, and goes back else.
func (s Store) free(layout mark.Layout) (mark.ID, error) {
	next := s.next()
	for i := range layout.Capacity() {
		if i == 0 || next%mark.Block == 0 {
			early, err := s.early(next)
			if err != nil {
				return 0, fmt.Errorf("looking for a free ID: %w", err)
			}
			if early {
				next = mark.First
			}
		}
		if next < mark.First || uint32(next) > layout.Max() {
			next = mark.First
		}
		if _, err := os.Lstat(s.idPath(next)); errors.Is(err, fs.ErrNotExist) {
			return next, nil
		} else if err != nil {
			return 0, fmt.Errorf("looking for a free ID: %w", err)
		}
		next++
	}
	fix := "every bit but kube-proxy's is in use"
	if wider, ok := layout.Wider(); ok {
		fix = fmt.Sprintf("set iptablesMarkMask to %#x for %d, or run 'podmarkctl gc'", wider.Mask(), wider.Capacity())
	}
	return 0, fmt.Errorf("%w: iptablesMarkMask %#x holds %d endpoints and all are taken; %s", ErrExhausted, layout.Mask(), layout.Capacity(), fix)
}

// early reports whether nobody is in the ID's block, and others are free before it.
func (s Store) early(id mark.ID) (bool, error) {
	first := id - id%mark.Block
	for other := first; other < first+mark.Block; other++ {
		if _, err := os.Lstat(s.idPath(other)); !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
	}
	used, err := s.IDsInUse()
	return int(first)-int(mark.First) >= used+rest, err
}

// relink makes the ID files that records lack: another would get such an ID. Records are read
// only where there are not as many of them as ID files.
func (s Store) relink(layout mark.Layout) error {
	ids, err := s.extent(idsDir)
	if err != nil {
		return err
	}
	records, err := s.extent(attachmentsDir)
	if err != nil || ids == records {
		return err
	}
	for _, sub := range []string{idsDir, attachmentsDir} {
		names, err := s.names(sub)
		if err != nil {
			return err
		}
		for _, name := range names { // what was being written in a crash
			if strings.HasSuffix(name, temporary) {
				if err := s.Remove(filepath.Join(sub, name)); err != nil {
					return err
				}
			}
		}
	}
	list, err := s.List()
	if err != nil && !errors.Is(err, ErrDamaged) { // a damaged one is what a Sweep is for
		return err
	}
	for _, r := range list {
		if r.ID < mark.First || uint32(r.ID) > layout.Max() {
			continue // nobody else gets that
		}
		if _, err := s.link(r, false); err != nil {
			return err
		}
	}
	return nil
}

// link makes the ID file of a record where there is none, or with dryRun says that it would.
func (s Store) link(r attachment.Record, dryRun bool) (made bool, err error) {
	if _, err := os.Lstat(s.idPath(r.ID)); !errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if !dryRun {
		if err := os.Symlink(target(r.Hash()), s.idPath(r.ID)); err != nil {
			return false, fmt.Errorf("giving ID %d back to %s: %w", r.ID, r.Key, room(err))
		}
	}
	return true, nil
}

// extent is the same for two directories that hold equally many files. A tmpfs, which state is on
// as a rule, tells it without reading them (BOGO_DIRENT_SIZE of Linux' mm/shmem.c).
func (s Store) extent(sub string) (int64, error) {
	var system unix.Statfs_t
	var directory unix.Stat_t
	if unix.Statfs(s.path(sub), &system) == nil && system.Type == unix.TMPFS_MAGIC &&
		unix.Stat(s.path(sub), &directory) == nil {
		return directory.Size, nil
	}
	n, err := s.count(sub)
	return int64(n), err
}

func (s Store) idPath(id mark.ID) string { return s.path(idsDir, strconv.FormatUint(uint64(id), 10)) }

// Renumber gives the attachment whose file is hash another ID. The ID it had is left
// to a Sweep: it may be another's by now. Errors: fs.ErrNotExist, ErrDamaged.
func (s Store) Renumber(hash string, id mark.ID) error {
	r, err := s.readRecord(s.path(attachmentsDir, hash))
	if err != nil {
		return err
	}
	if err := replaceLink(target(hash), s.idPath(id)); err != nil {
		return fmt.Errorf("giving ID %d to %s: %w", id, r.Key, err)
	}
	r.ID = id
	return s.Put(r)
}

// target is what the links of ids and addresses point to.
func target(hash string) string { return filepath.Join("..", attachmentsDir, hash) }

// linked reads a link of ids or addresses: the hash it points to, empty where it is
// none, and fs.ErrNotExist where there is nothing.
func (s Store) linked(sub, name string) (hash string, err error) {
	to, err := os.Readlink(s.path(sub, name))
	if errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if hash := filepath.Base(to); err == nil && to == target(hash) && hashName(hash) {
		return hash, nil
	}
	return "", nil
}

// holds reports whether id belongs to the attachment hash.
func (s Store) holds(id mark.ID, hash string) bool {
	to, err := s.linked(idsDir, strconv.FormatUint(uint64(id), 10))
	return err == nil && to == hash
}

// Put writes the record as it is.
func (s Store) Put(r attachment.Record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encoding record of %s: %w", r.Key, err)
	}
	return s.replace(filepath.Join(attachmentsDir, r.Hash()), b)
}

// Disown takes its addresses from the attachment, which ends it as a record does that is not
// committed, and needs no room. What another attachment has by now stays that one's.
func (s Store) Disown(r attachment.Record) error {
	var errs []error
	for _, a := range r.Addresses {
		if s.Owns(r.Key, a) {
			errs = append(errs, s.Remove(filepath.Join(addressesDir, a.String())))
		}
	}
	return errors.Join(errs...)
}

// Release forgets the attachment: its addresses, its ID, then its record.
// What is already gone, or another attachment's by now, is left alone.
func (s Store) Release(r attachment.Record) error {
	hash := r.Hash()
	err := s.Disown(r)
	if s.holds(r.ID, hash) {
		err = errors.Join(err, s.Remove(filepath.Join(idsDir, strconv.FormatUint(uint64(r.ID), 10))))
	}
	if err != nil {
		return err
	}
	return s.Remove(filepath.Join(attachmentsDir, hash))
}

// Owner returns the record that owns addr now; fs.ErrNotExist when none does.
func (s Store) Owner(addr netip.Addr) (attachment.Record, error) {
	hash, err := s.linked(addressesDir, addr.String())
	if err != nil {
		return attachment.Record{}, err
	}
	if hash == "" {
		return attachment.Record{}, fmt.Errorf("%w: %q", ErrDamaged, s.path(addressesDir, addr.String()))
	}
	return s.readRecord(s.path(attachmentsDir, hash))
}

// hashName reports whether name has the shape of a record's file name.
func hashName(name string) bool {
	return len(name) == 32 && strings.Trim(name, "0123456789abcdef") == ""
}

// Owns reports whether key is the owner of addr. An address has one owner: the
// attachment that was added last.
func (s Store) Owns(key attachment.Key, addr netip.Addr) bool {
	hash, err := s.linked(addressesDir, addr.String())
	return err == nil && hash == key.Hash()
}

// Others reports whether addr is another attachment's than key's by now.
func (s Store) Others(key attachment.Key, addr netip.Addr) bool {
	hash, err := s.linked(addressesDir, addr.String())
	return err == nil && hash != "" && hash != key.Hash()
}

// Own makes key the owner of its addresses.
func (s Store) Own(r attachment.Record) error {
	hash := r.Hash()
	for _, a := range r.Addresses {
		owner, err := s.linked(addressesDir, a.String())
		if err == nil && owner == hash {
			continue
		}
		path := s.path(addressesDir, a.String())
		if err = os.Symlink(target(hash), path); errors.Is(err, fs.ErrExist) {
			err = replaceLink(target(hash), path) // another's, or damaged
		}
		if err != nil {
			return fmt.Errorf("owning address %s: %w", a, err)
		}
	}
	return nil
}

// replaceLink makes path a link to another place, in one step.
func replaceLink(to, path string) error {
	if err := os.Remove(path + temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(to, path+temporary); err != nil {
		return err
	}
	return os.Rename(path+temporary, path)
}

// RemoveTemporary removes the files that belong to no record: ID and address files of
// records that are gone, records that cannot be read, and temporary files. An ID file that a
// record lacks it makes: else another would get that ID. It returns what it removed or made, or
// with dryRun what it would, relative to the directory, and says what it could not.
func (s Store) RemoveTemporary(dryRun bool) (removed []string, err error) {
	good := map[string]attachment.Record{}
	records, _ := s.List() // the damaged ones are what this is for
	for _, r := range records {
		good[r.Hash()] = r
	}
	keep := func(sub, name, hash string) bool {
		if strings.HasSuffix(name, temporary) {
			return false
		}
		owner, ok := good[hash]
		switch sub {
		case attachmentsDir:
			_, ok = good[name]
			return ok
		case idsDir:
			return ok && strconv.FormatUint(uint64(owner.ID), 10) == name
		default:
			return ok
		}
	}
	var errs []error
	for _, sub := range []string{attachmentsDir, idsDir, addressesDir} {
		names, err := s.names(sub)
		if err != nil {
			errs = append(errs, fmt.Errorf("sweeping %s: %w", sub, err))
		}
		slices.Sort(names)
		for _, name := range names {
			hash, _ := s.linked(sub, name)
			if keep(sub, name, hash) {
				continue
			}
			name = filepath.Join(sub, name)
			if !dryRun {
				if err := s.Remove(name); err != nil {
					errs = append(errs, err)
					continue
				}
			}
			removed = append(removed, name)
		}
	}
	for _, r := range records {
		if made, err := s.link(r, dryRun); !made {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, filepath.Join(idsDir, strconv.FormatUint(uint64(r.ID), 10)))
	}
	return removed, errors.Join(errs...)
}

// Clear deletes the state but for the lock, and for what is podmarkd's. node.json goes behind
// all that it tells what it is worth.
func (s Store) Clear() error {
	return s.removeAll(attachmentsDir, idsDir, addressesDir, nextFile, nextFile+temporary, PoliciesFile,
		PoliciesFile+temporary, NodeFile, NodeFile+temporary)
}

func (s Store) removeAll(names ...string) error {
	for _, name := range names {
		if err := os.RemoveAll(s.path(name)); err != nil {
			return fmt.Errorf("removing state: %w", err)
		}
	}
	return nil
}

// RemoveAll deletes the state directory's content, the lock last, and the directory
// itself if nothing foreign is in it.
func (s Store) RemoveAll() error {
	if err := s.Clear(); err != nil {
		return err
	}
	if err := s.removeAll(DaemonFile, DaemonFile+temporary, DaemonLock, config.SocketName, SpoolFile); err != nil {
		return err
	}
	if err := s.Remove(lockFile); err != nil {
		return err
	}
	if err := os.Remove(s.dir); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) &&
		!errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EROFS) {
		return fmt.Errorf("removing state directory: %w", err)
	}
	return nil
}
