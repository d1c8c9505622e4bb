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

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/mark"
	"github.com/podmark/podmark/pkg/state"
)

func TestDamagedRecord(t *testing.T) {
	s := newStore(t)
	good := record("a", "10.0.0.1", "fd00::1")
	good.ID = 2
	if err := s.Put(good); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(good.Key); err != nil {
		t.Fatal(err)
	}
	change := func(f func(r *attachment.Record)) string {
		r := good
		r.Addresses = append([]netip.Addr(nil), good.Addresses...)
		f(&r)
		b, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for name, content := range map[string]string{
		"empty":              "",
		"half":               `{"network":"net","cont`,
		"another shape":      `[]`,
		"another attachment": change(func(r *attachment.Record) { r.ContainerID = "b" }),
		"no address":         change(func(r *attachment.Record) { r.Addresses = nil }),
	} {
		write(t, s, "attachments/"+good.Hash(), content)
		if _, err := s.Get(good.Key); !errors.Is(err, state.ErrDamaged) || !strings.Contains(err.Error(), good.Hash()) {
			t.Errorf("%s: Get = %v, want damaged, with the file's name", name, err)
		}
		if list, err := s.List(); !errors.Is(err, state.ErrDamaged) || len(list) != 0 {
			t.Errorf("%s: List = %v, %v", name, list, err)
		}
	}
	// The good ones are listed beside the damaged.
	other := record("other")
	other.ID = 3
	if err := s.Put(other); err != nil {
		t.Fatal(err)
	}
	if list, err := s.List(); !errors.Is(err, state.ErrDamaged) || len(list) != 1 {
		t.Errorf("List = %v, %v", list, err)
	}
}

// FuzzRecord puts any bytes in the place of the files of the state directory.
func FuzzRecord(f *testing.F) {
	good := record("a")
	good.ID = 2
	b, err := json.Marshal(good)
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{
		string(b), "", "{}", "[]", "null", "2", "-1", "99999999999", good.Hash(), "../attachments/" + good.Hash(), "../attachments/../node.json", "../../../etc/passwd", strings.Repeat("a", 32),
		strings.Replace(string(b), "veth-a", `a\nflush`, 1), strings.Replace(string(b), "10.0.0.1", "::1%../x", 1),
	} {
		f.Add([]byte(seed), false)
		f.Add([]byte(seed), true)
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, content []byte, links bool) {
		s := state.At(filepath.Join(dir, "state"))
		defer os.RemoveAll(s.Dir())
		if err := s.Init(); err != nil {
			t.Fatal(err)
		}
		addr := netip.MustParseAddr("10.0.0.1")
		for _, name := range []string{"attachments/" + good.Hash(), "addresses/10.0.0.1", "ids/2", "next"} {
			link := links && (strings.HasPrefix(name, "ids") || strings.HasPrefix(name, "addresses"))
			if !link || os.Symlink(string(content), filepath.Join(s.Dir(), name)) != nil { // no link can be that
				write(t, s, name, string(content))
			}
		}
		for _, read := range []func() (attachment.Record, error){
			func() (attachment.Record, error) { return s.Get(good.Key) },
			func() (attachment.Record, error) { return s.Owner(addr) },
		} {
			r, err := read()
			switch {
			case err == nil:
				safe(t, r)
			case !errors.Is(err, state.ErrDamaged) && !errors.Is(err, fs.ErrNotExist):
				t.Errorf("error is %v", err)
			}
		}
		list, _ := s.List()
		for _, r := range list {
			safe(t, r)
		}
		// Whatever was there, a new attachment gets an ID that nobody has.
		l := layout(t, 0xff0000)
		r, err := s.Reserve(l, record("new", "10.0.0.1"))
		if err != nil || r.ID < mark.First || uint32(r.ID) > l.Max() || r.ID == 2 {
			t.Fatalf("Reserve = %v, %v", r.ID, err)
		}
		if err := errors.Join(s.Own(r), s.Release(good)); err != nil {
			t.Error(err)
		}
		if _, err := s.RemoveTemporary(false); err != nil {
			t.Error(err)
		}
		if got, err := s.Get(r.Key); err != nil || got.ID != r.ID || !s.Owns(r.Key, addr) {
			t.Errorf("the new record after a sweep: %v, %v", got, err)
		}
	})
}

// safe fails the test where a part of r could leave a directory or break a line.
func safe(t *testing.T, r attachment.Record) {
	t.Helper()
	for _, name := range []string{r.L3Interface, r.HostVeth} {
		if name == "" || len(name) > 15 || name == "." || name == ".." || strings.ContainsAny(name, " \t\r\n\v\f/:\x00") {
			t.Errorf("interface name %q", name)
		}
	}
	for _, a := range r.Addresses {
		if strings.ContainsAny(a.String(), "/%\n ") || !a.IsValid() {
			t.Errorf("address %q", a)
		}
	}
	if r.ID < mark.First {
		t.Errorf("ID %d", r.ID)
	}
}
