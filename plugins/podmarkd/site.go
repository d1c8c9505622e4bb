package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/conflist"
	"github.com/podmark/podmark/pkg/runtimes"
)

const (
	// dropInFile is podmark's in the directory of a network.
	dropInFile = "50-podmark.conf"
	pluginFile = "podmark"
	// Temporary files have no name that a runtime would read.
	temporaryPrefix, temporarySuffix = ".podmark-", ".tmp"
	// maxConfiguration is far above any network configuration, in bytes.
	maxConfiguration = 1 << 20
)

// errChanged: another program wrote a file while it was being replaced.
var errChanged = errors.New("another program keeps writing the file")

// site is where CNI configurations and plugins are on this node.
type site struct {
	conf, bin string
	// others are further directories of plugins, which podmark only looks into.
	others []string
	// wanted is the conflist that was asked for, or what runtimes take.
	wanted conflist.Wanted
	// setAside is whether files count, too, that agents may have put away under another name:
	// runtimes do not read these.
	setAside bool
	// reloaded are the times of directories of networks for which their conflists were written, by
	// network. A clock that was put back leaves one that is later than any conflist.
	reloaded map[string]time.Time
	// step is called after each change with its name: tests end the process there.
	step func(string)
	// swap exchanges two files; EINVAL or ENOSYS where the file system cannot.
	swap func(a, b string) error
}

// confDirectory is what the directory of configurations holds.
type confDirectory struct {
	// files are the regular files that count and are no larger than maxConfiguration; unread is why
	// others are not among them that are configurations by their names.
	files    []conflist.File
	unread   map[string]error
	modified map[string]time.Time
	// links are those of files that are symbolic links.
	links    map[string]bool
	networks map[string]network
	// programs are the plugins that can be called.
	programs map[string]bool
	// left are the paths of what crashes left.
	left []string
}

// network is a directory that has a network's name, for plugins in files of their own.
type network struct {
	modified time.Time
	// dropIn is nil without one of podmark's.
	dropIn []byte
	// others counts what else is there.
	others int
	// unread is why nothing of it is known.
	unread error
}

func isTemporary(name string) bool {
	return strings.HasPrefix(name, temporaryPrefix) && strings.HasSuffix(name, temporarySuffix)
}

// read reads the directory of configurations, and which plugins there are. What disappears meanwhile is left out.
func (s site) read() (confDirectory, error) {
	f := confDirectory{
		unread: map[string]error{}, modified: map[string]time.Time{}, links: map[string]bool{},
		networks: map[string]network{}, programs: s.programs(),
	}
	entries, err := os.ReadDir(s.conf)
	if err != nil {
		return f, fmt.Errorf("reading network configurations: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(s.conf, e.Name())
		info, err := os.Stat(path)
		switch {
		case err != nil:
			f.skip(e.Name(), err)
		case info.IsDir() && e.IsDir():
			f.networks[e.Name()] = f.readNetwork(path, info.ModTime())
		case isTemporary(e.Name()):
			f.left = append(f.left, path)
		case info.Mode().IsRegular() && info.Size() <= maxConfiguration && (s.setAside || conflist.IsConfiguration(e.Name())):
			b, err := os.ReadFile(path)
			if err != nil {
				f.skip(e.Name(), err)
				continue
			}
			f.files = append(f.files, conflist.File{Name: e.Name(), Content: b})
			f.modified[e.Name()], f.links[e.Name()] = info.ModTime(), e.Type()&fs.ModeSymlink != 0
		}
	}
	return f, nil
}

// skip notes a file that cannot be read, if a runtime would read it and it is still there.
func (f *confDirectory) skip(name string, err error) {
	if conflist.IsConfiguration(name) && !errors.Is(err, fs.ErrNotExist) {
		f.unread[name] = fmt.Errorf("reading network configurations: %w", err)
	}
}

// choose picks the conflist as conflist.Choose does. A file that cannot be read is an error
// where runtimes could take it.
func (f confDirectory) choose(want conflist.Wanted) (conflist.Choice, []conflist.Skipped, error) {
	chosen, skipped, err := conflist.Choose(f.files, want)
	last := max(chosen.Name, chosen.Multus)
	for _, unread := range slices.Sorted(maps.Keys(f.unread)) {
		if unread == want.Name || want.Name == "" && (last == "" || unread < last) {
			return conflist.Choice{}, skipped, f.unread[unread]
		}
	}
	return chosen, skipped, err
}

// programs are the names of files that can be executed.
func (s site) programs() map[string]bool {
	out := map[string]bool{}
	for _, dir := range append([]string{s.bin}, s.others...) {
		entries, _ := os.ReadDir(dir) // what is not there is missing
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			ok := runtimes.Executable(path)
			if e.Name() == pluginFile {
				_, err := os.Stat(path)
				ok = ok && err == nil // podmark's own leads to nothing on the node either
			}
			out[e.Name()] = out[e.Name()] || ok
		}
	}
	return out
}

// readNetwork reads a directory, which may be anybody's.
func (f *confDirectory) readNetwork(path string, modified time.Time) network {
	n := network{modified: modified}
	entries, err := os.ReadDir(path)
	failed := func(err error) {
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			n.unread = fmt.Errorf("reading network configurations: %w", err)
		}
	}
	failed(err)
	for _, e := range entries {
		switch {
		case e.Name() == dropInFile:
			b, err := os.ReadFile(filepath.Join(path, dropInFile))
			if failed(err); err == nil {
				n.dropIn = b
			}
		case isTemporary(e.Name()):
			f.left = append(f.left, filepath.Join(path, e.Name()))
		default:
			n.others++
		}
	}
	return n
}

// lock waits, at most for timeout, until no other podmarkd installs here.
func (s site) lock(ctx context.Context, timeout time.Duration) (unlock func(), err error) {
	dir, err := os.Open(s.conf)
	if err != nil {
		return nil, fmt.Errorf("opening the directory of network configurations: %w; --cni-conf-dir says where it is", err)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for {
		err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { dir.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			dir.Close()
			return nil, fmt.Errorf("locking %q: %w", s.conf, err)
		}
		select {
		case <-ctx.Done():
			dir.Close()
			return nil, fmt.Errorf("locking %q: another podmarkd has held it for %v", s.conf, timeout)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// create writes a file by a temporary one in the same directory, which readers never
// see half of, and which may be a program that runs.
func (s site) create(path string, content io.Reader, mode fs.FileMode) error {
	tmp, err := s.temporary(path, content, mode, nil)
	if err != nil {
		return fmt.Errorf("writing %q: %w", path, err)
	}
	s.step("temporary file of " + filepath.Base(path))
	if err := os.Rename(tmp, path); err != nil {
		return errors.Join(fmt.Errorf("writing %q: %w", path, err), os.Remove(tmp))
	}
	s.step("renamed " + filepath.Base(path))
	return syncDirectory(filepath.Dir(path))
}

// temporary writes a synced file beside path. With like it gets the owner of that.
func (s site) temporary(path string, content io.Reader, mode fs.FileMode, like fs.FileInfo) (tmp string, err error) {
	f, err := os.CreateTemp(filepath.Dir(path), temporaryPrefix+"*"+temporarySuffix)
	if err != nil {
		return "", err
	}
	_, err = io.Copy(f, content)
	if like != nil && err == nil {
		if stat, ok := like.Sys().(*syscall.Stat_t); ok {
			err = f.Chown(int(stat.Uid), int(stat.Gid))
		}
	}
	// Behind the change of owner, which takes bits off the mode.
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return "", errors.Join(err, os.Remove(f.Name()))
	}
	return f.Name(), nil
}

// replace puts content where a file still holds before, and keeps its mode and
// owner. The two are exchanged, so what another process wrote at the last moment
// comes to light and is put back, and a file that was moved away stays away: both
// are errChanged.
func (s site) replace(path string, content, before []byte) error {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return errChanged
	}
	if err != nil {
		return fmt.Errorf("writing %q: %w", path, err)
	}
	tmp, err := s.temporary(path, bytes.NewReader(content), info.Mode().Perm(), info)
	if err != nil {
		return fmt.Errorf("writing %q: %w", path, err)
	}
	s.step("temporary file of " + filepath.Base(path))
	err = s.exchange(tmp, path, content, before)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		err = overwrite(tmp, path, before) // a file system that cannot exchange
	}
	s.step("replaced " + filepath.Base(path))
	if gone := os.Remove(tmp); gone != nil && !errors.Is(gone, fs.ErrNotExist) {
		err = errors.Join(err, gone)
	}
	if err != nil {
		return fmt.Errorf("writing %q: %w", path, err)
	}
	s.step("removed what was " + filepath.Base(path))
	return syncDirectory(filepath.Dir(path))
}

// exchange swaps tmp, which holds content, and path, which should hold before. If
// it does not, it swaps until what comes out is what it had put in: then path holds
// what others wrote last.
func (s site) exchange(tmp, path string, content, before []byte) error {
	swap := func() ([]byte, error) {
		err := s.swap(tmp, path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, errChanged
		}
		if err != nil {
			return nil, err
		}
		return os.ReadFile(tmp)
	}
	out, err := swap()
	if err != nil || bytes.Equal(out, before) {
		return err
	}
	for in := content; ; {
		put := out
		if out, err = swap(); err != nil {
			return err
		}
		if bytes.Equal(out, in) {
			return errChanged
		}
		in = put
	}
}

func swapFiles(a, b string) error {
	return unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
}

// overwrite is exchange without the kernel's help: it looks, then renames.
func overwrite(tmp, path string, before []byte) error {
	now, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !bytes.Equal(now, before) {
		return errChanged
	}
	if err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// remove deletes a file or an empty directory; a missing one is fine.
func (s site) remove(path string) error {
	if err := os.Remove(path); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("removing %q: %w", path, err)
	}
	s.step("removed " + filepath.Base(path))
	return syncDirectory(filepath.Dir(path))
}

// act makes the changes, in order.
func (s site) act(changes []change) error {
	for _, c := range changes {
		var err error
		switch {
		case c.Verb == "remove":
			err = s.remove(c.Path)
		case c.Path == filepath.Join(s.bin, pluginFile):
			if err = os.MkdirAll(s.bin, 0o755); err == nil {
				err = s.create(c.Path, bytes.NewReader(c.content), 0o755)
			}
		case c.before == nil:
			if err = os.MkdirAll(filepath.Dir(c.Path), 0o755); err == nil {
				err = s.create(c.Path, bytes.NewReader(c.content), 0o600)
			}
		default:
			err = s.replace(c.Path, c.content, c.before)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// syncDirectory makes what was renamed or removed in dir last.
func syncDirectory(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
