package node

import (
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/state"
)

// Cache keeps what is read off the state directory for a process that reads it all the time.
// What is kept counts as long as the files are the ones that were read.
type Cache struct {
	mu          sync.Mutex
	file        fileStamp
	policies    desired.Policies
	hash        hash // of policies
	directories [2]fileStamp
	records     []attachment.Record
}

// fileStamp tells a file, or the state of a directory, from another one.
type fileStamp struct {
	inode      uint64
	size       int64
	change     unix.Timespec
	recognised time.Time // when it was taken
}

// coarse is by how much the kernel's clock of files may lag: within that, two changes may
// have one time.
const coarse = 50 * time.Millisecond

// stamp is that of a path; the zero one where there is none.
func stamp(path string) fileStamp {
	var s unix.Stat_t
	if err := unix.Stat(path, &s); err != nil {
		return fileStamp{}
	}
	return fileStamp{s.Ino, s.Size, s.Ctim, time.Now()}
}

// same reports whether nothing has changed since s was taken.
func (s fileStamp) same(now fileStamp) bool {
	changed := time.Unix(s.change.Sec, s.change.Nsec)
	return s.inode != 0 && s.inode == now.inode && s.size == now.size && s.change == now.change &&
		s.recognised.Sub(changed) > coarse
}

// cachedPolicies is readPolicies, or knows them. They are not to be changed.
func (n Node) cachedPolicies() (p desired.Policies, is hash, err error) {
	if n.Cache == nil {
		return n.readPolicies()
	}
	c := n.Cache
	c.mu.Lock()
	defer c.mu.Unlock()
	now := stamp(n.Store.Path(state.PoliciesFile))
	if c.file.same(now) {
		return c.policies, c.hash, nil
	}
	if p, is, err = n.readPolicies(); err == nil {
		c.file, c.policies, c.hash = now, p, is
	}
	return p, is, err
}

// records lists the attachments that are complete, each with the addresses that
// are still its own, or knows them. They are not to be changed.
func (n Node) records() ([]attachment.Record, error) {
	records, err := n.allRecords()
	return slices.DeleteFunc(records, func(r attachment.Record) bool { return n.deferred[r.Key] }), err
}

// allRecords are records with those that cannot be removed for want of room.
func (n Node) allRecords() ([]attachment.Record, error) {
	if n.Cache == nil {
		return n.readRecords()
	}
	c := n.Cache
	c.mu.Lock()
	defer c.mu.Unlock()
	var now [2]fileStamp
	same := true
	for i, directory := range n.Store.Directories() {
		now[i] = stamp(directory)
		same = same && c.directories[i].same(now[i])
	}
	if same {
		return append([]attachment.Record{}, c.records...), nil
	}
	records, err := n.readRecords()
	if err != nil {
		return nil, err
	}
	c.directories, c.records = now, records
	return append([]attachment.Record{}, records...), nil
}
