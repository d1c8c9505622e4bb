//go:build linux

package state

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// limit is how many bytes the file at path may have. An object of the Kubernetes API, and
// with it the labels of a pod, has 1.5 MiB at most; a node that moves to another mask notes
// each of its attachments.
func limit(path string) int64 {
	switch filepath.Base(path) {
	case lockFile, DaemonLock, nextFile:
		return 64
	case SpoolFile:
		return SpoolLimit + 64<<10 // of those who write at the same time
	case NodeFile, DaemonFile:
		return 16 << 20
	case PoliciesFile:
		return 256 << 20
	default:
		return 4 << 20
	}
}

// open opens a file of the state directory, never waits for it, and follows no link.
// ErrDamaged where it is anything but a plain file that podmark has written: one of this user's, that
// nobody else may write to, of a size that it may have.
func open(path string, flags int) (*os.File, error) {
	f, err := os.OpenFile(path, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, unopened(path, err)
	}
	var info unix.Stat_t
	if err = unix.Fstat(int(f.Fd()), &info); err == nil {
		err = ours(path, info, unix.S_IFREG)
	}
	if err == nil && info.Size > limit(path) {
		err = fmt.Errorf("%w: %q has %d bytes, and may have %d", ErrDamaged, path, info.Size, limit(path))
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// unopened is why path cannot be opened: ErrDamaged where it is no file that could be.
func unopened(path string, err error) error {
	if info, errInfo := os.Lstat(path); errInfo == nil && !info.Mode().IsRegular() {
		return fmt.Errorf("%w: %q is no plain file: %v", ErrDamaged, path, info.Mode())
	}
	return err
}

// ours is ErrDamaged for what is of another kind, another's, or for others to write to.
func ours(path string, info unix.Stat_t, kind uint32) error {
	switch {
	case info.Mode&unix.S_IFMT != kind && kind == unix.S_IFDIR:
		return fmt.Errorf("%w: %q is no directory", ErrDamaged, path)
	case info.Mode&unix.S_IFMT != kind:
		return fmt.Errorf("%w: %q is no plain file", ErrDamaged, path)
	case int(info.Uid) != os.Geteuid():
		return fmt.Errorf("%w: %q is user %d's and not user %d's, so what it says may be forged", ErrDamaged, path, info.Uid, os.Geteuid())
	case info.Mode&0o022 != 0:
		return fmt.Errorf("%w: others may write to %q (mode %#o), so what it says may be forged", ErrDamaged, path, info.Mode&0o7777)
	}
	return nil
}

// Read returns what the file of the state directory at path has. Errors: fs.ErrNotExist, and
// ErrDamaged when it is not one that podmark has written.
func Read(path string) ([]byte, error) {
	f, err := open(path, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit(path)))
}

// trusted is ErrDamaged where others may put files into the directory, or where that is none.
// What is in it already may be forged, so nobody fixes that but an operator. The state directory
// itself may be a link: that is the operator's word.
func (s Store) trusted(sub string) error {
	path, stat := s.path(sub), unix.Lstat
	if sub == "" {
		stat = unix.Stat
	}
	var info unix.Stat_t
	if err := stat(path, &info); err != nil {
		return &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	if err := ours(path, info, unix.S_IFDIR); err != nil {
		return fmt.Errorf("%w; find out who did that, then make it a directory of podmark's user with mode 0700, or remove it and restart the node's pods", err)
	}
	return nil
}

// names lists the directory sub; nothing where there is none. Who may write to the state directory
// may put another in its place.
func (s Store) names(sub string) ([]string, error) {
	err := s.trusted("")
	if err == nil {
		err = s.trusted(sub)
	}
	var f *os.File
	if err == nil {
		f, err = os.Open(s.path(sub))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}
