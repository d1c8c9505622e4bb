//go:build linux

package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ReadJSON decodes the file of the state directory at path into v. The error is fs.ErrNotExist
// when there is no file and ErrDamaged when it is not one that podmark has written, or does not
// hold JSON of that shape.
func ReadJSON(path string, v any) error {
	b, err := Read(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%w: %q: %w", ErrDamaged, path, err)
	}
	return nil
}

// Write replaces the file name, relative to the state directory, in one step: a
// reader, or the next change after a crash, finds the old content or the new. When
// it returns, the new one outlives a loss of power too. ErrNoRoom where it cannot be written
// for want of room.
func (s Store) Write(name string, content []byte) error {
	if err := s.replace(name, content); err != nil {
		return err
	}
	return syncDir(filepath.Dir(s.path(name)))
}

// replace is Write for what a loss of power makes worthless: it ends the endpoints.
func (s Store) replace(name string, content []byte) error {
	path := s.path(name)
	if most := limit(path); int64(len(content)) > most {
		return fmt.Errorf("writing %q: it would have %d bytes, and may have %d", path, len(content), most)
	}
	err := writeSynced(path+temporary, content)
	if err == nil {
		err = os.Rename(path+temporary, path)
	}
	if err != nil {
		_ = os.Remove(path + temporary)
		return fmt.Errorf("writing %q: %w", path, room(err))
	}
	return nil
}

// room tells whether err is for want of room.
func room(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EROFS) {
		return fmt.Errorf("%w: %w", ErrNoRoom, err)
	}
	return err
}

// Remove deletes the file name, relative to the state directory; a missing one is fine. ErrNoRoom
// where the file system is read-only.
func (s Store) Remove(name string) error {
	if err := os.Remove(s.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing state: %w", room(err))
	}
	return nil
}

// writeSynced makes the file again, whatever there is of that name.
func writeSynced(path string, content []byte) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	return errors.Join(err, f.Sync(), f.Close())
}

// syncDir makes a rename in dir last.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
