package main_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// room is a file system of its own for the state directory, with little of it.
type room struct {
	t   *testing.T
	dir string
}

// small gives the node's state directory, which is not there yet, such a file system.
func (n *node) small(t *testing.T) *room {
	t.Helper()
	r := &room{t, filepath.Dir(n.Dir)}
	if err := unix.Mount("tmpfs", r.dir, "tmpfs", 0, "size=256k,nr_inodes=64,mode=755"); err != nil {
		t.Fatalf("mounting %s: %v", r.dir, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(r.dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return r
}

// fill writes a file until there is no space.
func (r *room) fill() {
	r.t.Helper()
	f, err := os.OpenFile(filepath.Join(r.dir, "filler"), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		r.t.Fatal(err)
	}
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if !errors.Is(err, unix.ENOSPC) {
		r.t.Fatal(err)
	}
}

// crowd makes files until there is no inode.
func (r *room) crowd() {
	r.t.Helper()
	var err error
	for i := 0; err == nil; i++ {
		err = os.WriteFile(filepath.Join(r.dir, fmt.Sprint("filler", i)), nil, 0o600)
	}
	if !errors.Is(err, unix.ENOSPC) {
		r.t.Fatal(err)
	}
}

// close makes it read-only.
func (r *room) close() { r.remount(unix.MS_RDONLY) }

func (r *room) remount(flags uintptr) {
	r.t.Helper()
	if err := unix.Mount("", r.dir, "", unix.MS_REMOUNT|flags, ""); err != nil {
		r.t.Fatal(err)
	}
}

// free undoes all that.
func (r *room) free() {
	r.t.Helper()
	r.remount(0)
	names, err := filepath.Glob(filepath.Join(r.dir, "filler*"))
	for _, name := range names {
		err = errors.Join(err, os.Remove(name))
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

// Where nothing can be written, pods go all the same: kernel and address are free when DEL
// and gc return, whoever stays is policed, and when there is room again nothing is left.
func TestFreeingNeedsNoRoom(t *testing.T) {
	for name, take := range map[string]func(*room){"space": (*room).fill, "inodes": (*room).crowd, "read-only": (*room).close} {
		t.Run(name, func(t *testing.T) {
			eachKind(t, func(t *testing.T, n *node) {
				r := n.small(t)
				n.withHost().Apply(webPolicy)
				stays := n.addPod().listen()
				stays.Add().OK(t)
				n.ctl("gc")
				want, kernel := n.endpoints(), n.kernel()
				deleted, invalid, gone := n.addPod(), n.addPod(), n.addPod()
				for _, p := range []*pod{deleted, invalid, gone} {
					p.Add().OK(t)
				}
				take(r)
				deleted.Del().OK(t)
				deleted.Del().OK(t)
				n.gc(conf{"cni.dev/valid-attachments": []conf{{"containerID": stays.ID, "ifname": "eth0"}, {"containerID": gone.ID, "ifname": "eth0"}}}).OK(t)
				for _, p := range []*pod{deleted, invalid, gone} {
					p.Unlink() // as the main plugin does
				}
				n.ctl("gc")
				if diff := cmp.Diff(want, n.endpoints()); diff != "" {
					t.Errorf("endpoint elements without room:\n%s", diff)
				}
				stays.is(t, policed)
				// Nobody comes where nothing can be written at all.
				young := n.addPodAt(deleted.V4, deleted.V6).listen()
				if name == "read-only" {
					if reply := young.Add(); reply.Code() == 0 {
						t.Error("an ADD succeeds without room")
					}
				}
				r.free()
				young.Add().OK(t)
				young.Check().OK(t)
				young.is(t, policed)
				young.Del().OK(t)
				young.Unlink()
				n.ctl("gc")
				if diff := cmp.Diff(kernel, n.kernel()); diff != "" {
					t.Errorf("left in the kernel:\n%s", diff)
				}
				if left := n.attachments(); len(left) != 4 { // record, ID and two addresses
					t.Errorf("left behind: %q", left)
				}
				stays.Check().OK(t)
			})
		})
	}
}
