package state_test

import (
	"encoding/json"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/state"
)

// odd are the things that may be where podmark looks for a file of its own.
var odd = map[string]func(path string) error{
	"named pipe":     func(path string) error { return unix.Mkfifo(path, 0o600) },
	"socket":         func(path string) error { return unix.Mknod(path, unix.S_IFSOCK|0o600, 0) },
	"device":         func(path string) error { return unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5))) }, // endless zeros
	"link":           func(path string) error { return os.Symlink(filepath.Join(filepath.Dir(root(path)), "precious"), path) },
	"broken link":    func(path string) error { return os.Symlink(filepath.Join(filepath.Dir(root(path)), "nowhere"), path) },
	"loop":           func(path string) error { return os.Symlink(path, path) },
	"directory":      func(path string) error { return os.Mkdir(path, 0o700) },
	"full directory": func(path string) error { return os.MkdirAll(filepath.Join(path, "more"), 0o700) },
	"huge": func(path string) error {
		return errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, 1<<30))
	},
	"another user's": func(path string) error {
		return errors.Join(os.WriteFile(path, good(), 0o600), os.Chown(path, 12345, 0))
	},
	"for all": func(path string) error { return errors.Join(os.WriteFile(path, good(), 0o600), os.Chmod(path, 0o666)) },
	"later":   func(path string) error { return os.WriteFile(path, []byte(`{"format":99}`), 0o600) },
}

// root is the state directory that path is in.
func root(path string) string {
	for filepath.Base(path) != "state" {
		path = filepath.Dir(path)
	}
	return path
}

func good() []byte {
	r := record("a", "10.0.0.1")
	r.ID, r.Committed = 2, true
	b, _ := json.Marshal(r)
	return b
}

// Whatever is in the place of a file, nothing waits for it, nothing is read or written by way of it, and
// what it says counts for nothing.
func TestWhateverAFileIs(t *testing.T) {
	key, addr := record("a").Key, netip.MustParseAddr("10.0.0.1")
	verbs := map[string]func(s state.Store) error{
		"Get":   func(s state.Store) error { _, err := s.Get(key); return err },
		"List":  func(s state.Store) error { _, err := s.List(); return err },
		"Owner": func(s state.Store) error { _, err := s.Owner(addr); return err },
		"Lock": func(s state.Store) error {
			unlock, err := s.Lock(t.Context(), time.Hour)
			if err == nil {
				unlock()
			}
			return err
		},
		"Claim": func(s state.Store) error {
			release, err := s.Claim()
			if err == nil {
				release()
			}
			return err
		},
		"DaemonLives": func(s state.Store) error { _, err := s.DaemonLives(); return err },
		"Note":        func(s state.Store) error { return s.RecordCall(state.Call{Verb: "ADD"}) },
		"Take":        func(s state.Store) error { _, _, _, err := s.TakeCalls(); return err },
		"Reserve": func(s state.Store) error {
			_, err := s.Reserve(layout(t, 0xff0000), record("a", "10.0.0.1"))
			return err
		},
		"Own":     func(s state.Store) error { return s.Own(record("a", "10.0.0.1")) },
		"Release": func(s state.Store) error { return s.Release(record("a", "10.0.0.1")) },
		"Sweep":   func(s state.Store) error { _, err := s.RemoveTemporary(false); return err },
		"Remove":  func(s state.Store) error { return s.RemoveAll() },
	}
	// What says so for each file.
	looks := map[string][]string{
		"attachments/" + key.Hash():          {"Get", "List", "Owner"},
		"attachments/" + key.Hash() + ".tmp": nil,
		"addresses/10.0.0.1":                 nil,
		"addresses/10.0.0.1.tmp":             nil,
		"ids/2":                              nil,
		"next":                               nil,
		"lock":                               {"Lock"},
		"daemon.lock":                        {"Claim", "DaemonLives"},
		"calls":                              {"Note"},
		"attachments":                        {"List", "Lock"},
		"ids":                                {"Lock"},
		"addresses":                          {"Lock"},
	}
	for file, says := range looks {
		for kind, place := range odd {
			for verb, call := range verbs {
				s := newStore(t)
				if err := s.Init(); err != nil {
					t.Fatal(err)
				}
				precious := filepath.Join(filepath.Dir(s.Dir()), "precious")
				if err := errors.Join(os.WriteFile(precious, good(), 0o600), os.Symlink("../attachments/"+key.Hash(), filepath.Join(s.Dir(), "addresses/10.0.0.1"))); err != nil {
					t.Fatal(err)
				}
				path := filepath.Join(s.Dir(), file)
				if err := os.RemoveAll(path); err != nil {
					t.Fatal(err)
				}
				if err := place(path); errors.Is(err, unix.EPERM) {
					continue // not root
				} else if err != nil {
					t.Fatal(err)
				}
				err := call(s)
				harmless := kind == "later" && (strings.HasSuffix(file, "lock") || file == "calls") || kind == "huge" && file == "calls" ||
					strings.HasSuffix(kind, "directory") && (file == "attachments" || file == "ids" || file == "addresses")
				for _, v := range says {
					if v == verb && !harmless && !errors.Is(err, state.ErrDamaged) {
						t.Errorf("%s is a %s: %s = %v, want damaged", file, kind, verb, err)
					}
				}
				if b, err := os.ReadFile(precious); err != nil || string(b) != string(good()) {
					t.Errorf("%s is a %s: after %s the file outside has %q, %v", file, kind, verb, b, err)
				}
				if _, err := os.Lstat(filepath.Join(filepath.Dir(s.Dir()), "nowhere")); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%s is a %s: %s made a file outside", file, kind, verb)
				}
			}
		}
	}
}

// A directory that others may write to is not trusted, nor fixed.
func TestDirectoryOfOthers(t *testing.T) {
	for _, sub := range []string{"", "attachments", "ids", "addresses"} {
		for name, change := range map[string]func(path string) error{
			"for all":        func(path string) error { return os.Chmod(path, 0o777) },
			"another user's": func(path string) error { return os.Chown(path, 12345, 0) },
		} {
			s := newStore(t)
			if err := s.Init(); err != nil {
				t.Fatal(err)
			}
			if err := change(filepath.Join(s.Dir(), sub)); errors.Is(err, unix.EPERM) {
				continue
			} else if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Lock(t.Context(), time.Hour); !errors.Is(err, state.ErrDamaged) || !strings.Contains(err.Error(), filepath.Join(s.Dir(), sub)) {
				t.Errorf("%q is %s: Lock = %v, want damaged, with its name", sub, name, err)
			}
			if sub == "addresses" {
				continue // which nobody lists to read
			}
			_, errList := s.List()
			_, errCount := s.IDsInUse()
			if err := errors.Join(errList, errCount); !errors.Is(err, state.ErrDamaged) || !strings.Contains(err.Error(), filepath.Join(s.Dir(), sub)) {
				t.Errorf("%q is %s: reading it = %v, want damaged, with its name", sub, name, err)
			}
		}
	}
}

// What is too large to be read again is not written.
func TestTooLarge(t *testing.T) {
	s := newStore(t)
	if err := s.Init(); err != nil {
		t.Fatal(err)
	}
	r := record("a", "10.0.0.1")
	r.ID, r.Labels = 2, map[string]string{"a": strings.Repeat("x", 5<<20)}
	if err := s.Put(r); err == nil || !strings.Contains(err.Error(), r.Hash()) {
		t.Errorf("Put = %v", err)
	}
	if _, err := s.Get(r.Key); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Get = %v", err)
	}
}
