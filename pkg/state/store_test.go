package state_test

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/mark"
	"github.com/podmark/podmark/pkg/state"
)

func newStore(t testing.TB) state.Store {
	t.Helper()
	s := state.At(filepath.Join(t.TempDir(), "state"))
	if err := s.Init(); err != nil {
		t.Fatal(err)
	}
	return s
}

// newStoreIn is one below a directory of a file system that matters.
func newStoreIn(t testing.TB, parent string) state.Store {
	t.Helper()
	dir, err := os.MkdirTemp(parent, "ident")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := state.At(dir)
	if err := s.Init(); err != nil {
		t.Fatal(err)
	}
	return s
}

func layout(t testing.TB, mask uint32) mark.Layout {
	t.Helper()
	l, err := mark.NewLayout(mask)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// record is that of a container with an address of its own.
func record(name string, addresses ...string) attachment.Record {
	r := attachment.Record{
		Key:      attachment.Key{Network: "net", ContainerID: name, IfName: "eth0"},
		Endpoint: attachment.Endpoint{L3Interface: "veth-" + name, HostVeth: "veth-" + name},
	}
	for _, a := range addresses {
		r.Addresses = append(r.Addresses, netip.MustParseAddr(a))
	}
	if addresses == nil {
		r.Addresses = []netip.Addr{netip.MustParseAddr("10.0.0.1")}
	}
	return r
}

func reserve(t *testing.T, s state.Store, l mark.Layout, r attachment.Record) attachment.Record {
	t.Helper()
	got, err := s.Reserve(l, r)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func release(t *testing.T, s state.Store, r attachment.Record) {
	t.Helper()
	if err := s.Release(r); err != nil {
		t.Fatal(err)
	}
}

// files lists the state directory's files, relative to it.
func files(t *testing.T, s state.Store) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(s.Dir(), func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			name, _ := filepath.Rel(s.Dir(), path)
			names = append(names, name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestReserveInOrder(t *testing.T) {
	s, l := newStore(t), layout(t, 0x70000) // IDs 2 to 7
	var got []mark.ID
	next := func(name string) attachment.Record {
		r := reserve(t, s, l, record(name))
		got = append(got, r.ID)
		return r
	}
	a, b := next("a"), next("b")
	release(t, s, a) // 2 is free, and is not given out before all others were
	next("c")
	next("d")
	release(t, s, b) // 3 is free
	next("e")
	next("f")
	next("g") // wraps
	next("h")
	if diff := cmp.Diff([]mark.ID{2, 3, 4, 5, 6, 7, 2, 3}, got); diff != "" {
		t.Errorf("IDs:\n%s", diff)
	}
}

// An attachment that is added again keeps its ID, unless the mask has no room for it any more.
func TestReserveInSmallerMask(t *testing.T) {
	s, wide, narrow := newStore(t), layout(t, 0xff0000), layout(t, 0x30000)
	first := reserve(t, s, wide, record("a"))
	second := reserve(t, s, wide, record("b"))
	third := reserve(t, s, wide, record("c"))
	if again := reserve(t, s, wide, record("b")); again.ID != second.ID {
		t.Errorf("it had ID %d and has %d", second.ID, again.ID)
	}
	release(t, s, first)
	if again := reserve(t, s, narrow, record("c")); again.ID != first.ID {
		t.Errorf("of the IDs up to %d it has %d; it had %d before", narrow.Max(), again.ID, third.ID)
	}
}

// IDs go in turn, and stay in as few blocks as have room for them.
func TestReserveInBlocks(t *testing.T) {
	s, l := newStore(t), layout(t, 0xffff0000)
	kept := 0
	// churn returns the highest ID of pods that come and go beside others that stay, and how many
	// others are given out at least before one comes again.
	churn := func(keep int) (highest mark.ID, distance int) {
		t.Helper()
		for ; kept < keep; kept++ {
			reserve(t, s, l, record(fmt.Sprintf("kept-%d", kept)))
		}
		given := map[mark.ID]int{}
		distance = 1 << 16
		for i := range 4 * mark.Block {
			r := reserve(t, s, l, record("passing"))
			if last, again := given[r.ID]; again {
				distance = min(distance, i-last-1)
			}
			given[r.ID], highest = i, max(highest, r.ID)
			release(t, s, r)
		}
		return highest, distance
	}
	for keep, highest := range map[int]mark.ID{0: 31, 22: 31, 23: 63, 100: 127, 118: 127, 119: 159} {
		s, kept = newStore(t), 0
		if got, distance := churn(keep); got != highest || distance < 7 {
			t.Errorf("with %d endpoints IDs go up to %d, and %d others come before one comes again; want up to %d, and 7 others", keep, got, distance, highest)
		}
	}
	s, kept = newStore(t), 0
	churn(100)
	if err := os.WriteFile(filepath.Join(s.Dir(), "next"), []byte("0000065500\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, _ := churn(kept); got != 127 {
		t.Errorf("the cursor stays at %d, above all blocks in use", got)
	}
}

func TestReserveAgain(t *testing.T) {
	s, l := newStore(t), layout(t, 0x70000)
	first := reserve(t, s, l, record("a"))
	first.Committed = true
	if err := s.Put(first); err != nil {
		t.Fatal(err)
	}
	again := record("a", "10.0.0.2")
	again.Committed = true
	got := reserve(t, s, l, again)
	if got.ID != first.ID || got.Committed {
		t.Errorf("ID %d, committed %t; want %d, uncommitted", got.ID, got.Committed, first.ID)
	}
	stored, err := s.Get(first.Key)
	if diff := cmp.Diff(got, stored, cmpopts.EquateComparable(netip.Addr{})); diff != "" || err != nil {
		t.Errorf("stored record: %v\n%s", err, diff)
	}
	if other := reserve(t, s, l, record("b")); other.ID != first.ID+1 {
		t.Errorf("the next ID is %d", other.ID)
	}
	// A narrower mask has no room for the ID it had.
	wide := reserve(t, s, layout(t, 0xff0000), record("w"))
	for wide.ID <= 3 {
		release(t, s, wide)
		wide = reserve(t, s, layout(t, 0xff0000), record("w"))
	}
	if got := reserve(t, s, layout(t, 0x30000000), record("b")); got.ID != 3 {
		t.Errorf("ID %d was kept or changed without need", got.ID)
	}
}

func TestExhausted(t *testing.T) {
	for _, tt := range []struct {
		mask     uint32
		capacity int
		words    []string
	}{
		{0x30000, 2, []string{"iptablesMarkMask 0x30000", "holds 2 endpoints", "0x80030000 for 6", "podmarkctl gc"}},
		{0x80000001, 2, []string{"iptablesMarkMask 0x80000001", "0xc0000001 for 6"}},
		{0x70000, 6, []string{"iptablesMarkMask 0x70000", "holds 6 endpoints", "0x80070000 for 14"}},
	} {
		s, l := newStore(t), layout(t, tt.mask)
		var last attachment.Record
		for i := range tt.capacity {
			last = reserve(t, s, l, record(fmt.Sprint(i)))
		}
		before := files(t, s)
		_, err := s.Reserve(l, record("one too many"))
		if !errors.Is(err, state.ErrExhausted) {
			t.Fatalf("mask %#x: %v, want exhausted", tt.mask, err)
		}
		for _, w := range tt.words {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%q does not say %q", err, w)
			}
		}
		if diff := cmp.Diff(before, files(t, s)); diff != "" {
			t.Errorf("a refused Reserve changed files:\n%s", diff)
		}
		release(t, s, last)
		if got := reserve(t, s, l, record("now")); got.ID != last.ID {
			t.Errorf("ID %d, want %d, the only free one", got.ID, last.ID)
		}
	}
}

// What another attachment owns by now survives a late Release.
func TestOwnership(t *testing.T) {
	s, l := newStore(t), layout(t, 0xffff0000)
	four, six := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")
	old := reserve(t, s, l, record("old", "10.0.0.1", "fd00::1"))
	young := reserve(t, s, l, record("young", "10.0.0.1"))
	if err := errors.Join(s.Own(old), s.Own(young)); err != nil {
		t.Fatal(err)
	}
	owner := func(a netip.Addr) string {
		r, err := s.Owner(a)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
		return r.ContainerID
	}
	if owner(four) != "young" || owner(six) != "old" {
		t.Errorf("owners are %q and %q", owner(four), owner(six))
	}
	for range 2 {
		release(t, s, old)
		if owner(four) != "young" || owner(six) != "" {
			t.Errorf("after the late release owners are %q and %q", owner(four), owner(six))
		}
	}
	// Its ID was given to another meanwhile, by whoever damaged the directory.
	write(t, s, "ids/2", young.Hash())
	if err := s.Put(old); err != nil {
		t.Fatal(err)
	}
	release(t, s, old)
	if b, _ := os.ReadFile(filepath.Join(s.Dir(), "ids/2")); string(b) != young.Hash() {
		t.Errorf("another's ID file now holds %q", b)
	}
}

func write(t testing.TB, s state.Store, name, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(s.Dir(), name), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestSweep(t *testing.T) {
	s, l := newStore(t), layout(t, 0xffff0000)
	live := reserve(t, s, l, record("live", "10.0.0.1", "fd00::1"))
	if err := errors.Join(s.Own(live), s.Write(state.NodeFile, []byte("{}"))); err != nil {
		t.Fatal(err)
	}
	keep := files(t, s)
	nobody := record("nobody").Hash()
	waste := []string{
		"attachments/" + nobody, "attachments/" + nobody + ".tmp", "attachments/stray",
		"ids/7", "ids/8", "ids/stray", "ids/9.tmp",
		"addresses/10.0.0.9", "addresses/10.0.0.8", "addresses/10.0.0.1.tmp",
	}
	for _, name := range waste {
		write(t, s, name, nobody)
	}
	write(t, s, "ids/8", live.Hash()) // it has ID 2
	write(t, s, "addresses/10.0.0.8", "../../x")
	slices.Sort(waste)
	for _, dryRun := range []bool{true, false} {
		before := files(t, s)
		got, err := s.RemoveTemporary(dryRun)
		slices.Sort(got)
		if diff := cmp.Diff(waste, got); diff != "" || err != nil {
			t.Errorf("swept: %v\n%s", err, diff)
		}
		if dryRun {
			if diff := cmp.Diff(before, files(t, s)); diff != "" {
				t.Errorf("a dry run changed files:\n%s", diff)
			}
		}
	}
	if diff := cmp.Diff(keep, files(t, s)); diff != "" {
		t.Errorf("files after the sweep:\n%s", diff)
	}
	if got, err := s.RemoveTemporary(false); err != nil || got != nil {
		t.Errorf("the second sweep: %v, %v", got, err)
	}
}

func TestPermissions(t *testing.T) {
	s, l := newStore(t), layout(t, 0xffff0000)
	unlock, err := s.Lock(t.Context(), 1e9)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	r := reserve(t, s, l, record("a"))
	if err := errors.Join(s.Own(r), s.Write(state.NodeFile, []byte("{}"))); err != nil {
		t.Fatal(err)
	}
	err = filepath.WalkDir(s.Dir(), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		want := fs.FileMode(0o600)
		switch d.Type() {
		case fs.ModeDir:
			want = fs.ModeDir | 0o700
		case fs.ModeSymlink: // whose mode means nothing
			want = fs.ModeSymlink | 0o777
		}
		if err == nil && info.Mode() != want {
			t.Errorf("%s has mode %v, want %v", path, info.Mode(), want)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestRemoveAll(t *testing.T) {
	s := newStore(t)
	reserve(t, s, layout(t, 0xffff0000), record("a"))
	write(t, s, "foreign", "x")
	if err := s.RemoveAll(); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff([]string{"foreign"}, files(t, s)); diff != "" {
		t.Errorf("left:\n%s", diff)
	}
	if err := os.Remove(filepath.Join(s.Dir(), "foreign")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.RemoveAll(); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(s.Dir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory is left: %v", err)
	}
}

// An ID whose file was lost stays its record's.
func TestLostID(t *testing.T) {
	s, l := newStore(t), layout(t, 0xff0000)
	a, err := s.Reserve(l, record("a", "10.0.0.1"))
	if err == nil {
		err = errors.Join(s.Own(a), os.Remove(filepath.Join(s.Dir(), "ids", fmt.Sprint(a.ID))))
	}
	if err != nil {
		t.Fatal(err)
	}
	want := []string{fmt.Sprint("ids/", a.ID)}
	for _, dryRun := range []bool{true, false} {
		if got, err := s.RemoveTemporary(dryRun); err != nil || !slices.Equal(got, want) {
			t.Errorf("Sweep(%t) = %q, %v; want %q", dryRun, got, err, want)
		}
	}
	if got, err := s.RemoveTemporary(false); err != nil || got != nil {
		t.Errorf("another Sweep = %q, %v", got, err)
	}
	if err := os.Remove(filepath.Join(s.Dir(), "next")); err != nil {
		t.Fatal(err)
	}
	if b, err := s.Reserve(l, record("b", "10.0.0.2")); err != nil || b.ID == a.ID {
		t.Errorf("Reserve = %d, %v; that is the other's", b.ID, err)
	}
}

// Thirty have lost all their IDs, and the cursor: the next gets another, and at once.
func TestAllIDsAreLost(t *testing.T) {
	for _, cursor := range []string{"", "32", "64", "2"} {
		s, l := newStoreIn(t, "/dev/shm"), layout(t, 0xffff0000)
		has := map[mark.ID]bool{}
		for i := range 30 {
			has[reserve(t, s, l, record(fmt.Sprint(i))).ID] = true
		}
		err := errors.Join(os.RemoveAll(s.Path("ids")), os.WriteFile(s.Path("next"), []byte(cursor), 0o600), s.Init())
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"new", "newer"} {
			id := reserve(t, s, l, record(name)).ID
			if has[id] {
				t.Errorf("with cursor %q %s gets ID %d of another", cursor, name, id)
			}
			has[id] = true
		}
	}
}

// Nor does another get it before a Sweep has made it again, on a file system that counts the
// names of a directory, and on one that does not.
func TestLostIDIsNotGivenOut(t *testing.T) {
	for _, parent := range []string{"/dev/shm", "/var/tmp"} {
		for lost := range 8 { // of three files, one bit each
			s, l := newStoreIn(t, parent), layout(t, 0xf0000)
			has := map[mark.ID]string{}
			give := func(name string) {
				t.Helper()
				r, err := s.Reserve(l, record(name, "10.0.0.1"))
				if err != nil {
					t.Fatal(err)
				}
				if other, taken := has[r.ID]; taken && other != name {
					t.Errorf("%s, without files %03b: %s gets ID %d of %s", parent, lost, name, r.ID, other)
				}
				has[r.ID] = name
			}
			for _, name := range []string{"a", "b", "c"} {
				give(name)
			}
			for i, id := range slices.Sorted(maps.Keys(has)) {
				if lost&(1<<i) != 0 {
					if err := os.Remove(s.Path("ids/" + fmt.Sprint(id))); err != nil {
						t.Fatal(err)
					}
				}
			}
			for _, name := range []string{"d", "a", "e"} {
				if err := os.RemoveAll(s.Path("next")); err != nil {
					t.Fatal(err)
				}
				give(name)
			}
		}
	}
}
