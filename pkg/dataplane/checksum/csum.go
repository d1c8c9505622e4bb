// Package checksum keeps what a packet says when it is judged.
//
// A sender may leave the checksum of a packet to the kernel, and then it says where that
// goes: csum_start and csum_offset of its sk_buff, CHECKSUM_PARTIAL. It is written as late as
// can be, after every hook: where the packet is fragmented, or by a link, or for a link
// that cannot. A pod with CAP_NET_RAW chooses that place freely (PACKET_VNET_HDR), so it
// may be the port or the address by which the packet was allowed.
//
// Neither nftables nor iptables can see that place. A BPF program can, ahead of conntrack, on
// the packets of every interface: it drops where the two bytes would change what is judged,
// and passes what any kernel sends. It needs Linux 6.4.
//
// The program is held by links in a bpffs, one for each family. A link keeps its network
// namespace, so it is gone after [Remove], with the bpffs, and not before.
//
//	if err := csum.Sync(); err != nil {
//		fmt.Println("checksums are written wherever a pod likes:", err)
//	}
package checksum

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/dataplane/drift"
)

// Mount is where the node has its bpffs. systemd mounts it; podmark does not: in the
// mount namespace of a container it would hold for that container alone.
const Mount = "/sys/fs/bpf"

// directory is podmark's in there, one for each network namespace: behind it comes the cookie of that,
// which no other namespace gets again (Linux 5.14, SO_NETNS_COOKIE).
const directory = "podmark-"

// The program comes ahead of defragmentation, at priority -400, behind which the parts of
// a packet are one. A BPF program has a priority to itself (EBUSY), so the next one is taken where
// there is another: an older one of podmark's leaves when the new one is there.
const (
	first = -500
	last  = -490
)

// hook is where the program is attached; name is that of its link in the bpffs.
type hook struct {
	name   string
	family link.NetfilterProtocolFamily
}

var hooks = [...]hook{
	{fmt.Sprintf("ipv4-%d", version), link.NetfilterProtoIPv4},
	{fmt.Sprintf("ipv6-%d", version), link.NetfilterProtoIPv6},
}

// Sync attaches the program in the caller's network namespace, where it is not: packets are
// looked at from then on, after this process too. Callers hold a lock among them. What
// an older podmark attached goes afterwards.
func Sync() error {
	dir, err := place()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making a directory for links of BPF: %w", err)
	}
	var p *ebpf.Program
	for _, h := range hooks {
		path := filepath.Join(dir, h.name)
		if _, err := os.Stat(path); err == nil {
			continue
		}
		if p == nil {
			if p, err = load(); err != nil {
				return fmt.Errorf("%w (%s can, with CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN)", err, Kernel)
			}
			defer p.Close()
		}
		if err := h.attach(p, path); err != nil {
			return err
		}
	}
	return clean(dir, hooks[:]...)
}

// attach attaches the program and pins its link. Before that, the link ends with the process.
func (h hook) attach(p *ebpf.Program, path string) error {
	for priority := int32(first); ; priority++ {
		l, err := link.AttachNetfilter(link.NetfilterOptions{
			Program: p, ProtocolFamily: h.family, Hook: link.NetfilterInetPreRouting, Priority: priority,
		})
		if errors.Is(err, unix.EBUSY) && priority < last {
			continue
		}
		if err != nil {
			return fmt.Errorf("attaching %q: %w", h.name, err)
		}
		defer l.Close()
		if err := l.Pin(path); err != nil {
			return fmt.Errorf("keeping %q: %w", path, err)
		}
		return nil
	}
}

// clean detaches what is in a directory but for the links of these hooks.
func clean(dir string, but ...hook) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("reading links of BPF: %w", err)
	}
	for _, e := range entries {
		if slices.ContainsFunc(but, func(h hook) bool { return h.name == e.Name() }) {
			continue
		}
		if err := detach(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// detach ends a link that is pinned. By the removal of its file alone the kernel does that
// some time later, which has to do for who may not use BPF.
func detach(path string) error {
	l, err := link.LoadPinnedLink(path, nil)
	// The file first: a crash in between must leave none that no program is behind.
	gone := os.Remove(path)
	if err == nil {
		err = errors.Join(l.Detach(), l.Close())
	}
	if errors.Is(err, unix.EPERM) {
		err = nil
	}
	if err := errors.Join(err, gone); err != nil {
		return fmt.Errorf("detaching %q: %w", path, err)
	}
	return nil
}

// Check reports what Sync would attach, as [drift.Hook], by a look at the bpffs alone.
func Check() error {
	dir, err := place()
	if err != nil {
		return fmt.Errorf("%w: %w", drift.Hook.Err(), err)
	}
	for _, h := range hooks {
		if _, err := os.Stat(filepath.Join(dir, h.name)); err != nil {
			return fmt.Errorf("%w: a BPF program that looks where checksums go: %w", drift.Hook.Err(), err)
		}
	}
	return nil
}

// Remove detaches whatever podmark has attached in the caller's network namespace. Where
// nothing can be, there is nothing to do.
func Remove() error {
	dir, err := place()
	if errors.Is(err, errNoBPFFS) || errors.Is(err, unix.ENOPROTOOPT) { // the latter before Linux 5.14
		return nil
	}
	if err != nil {
		return err
	}
	switch err := clean(dir); {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	}
	if err := os.Remove(dir); err != nil {
		return fmt.Errorf("removing the directory for links of BPF: %w", err)
	}
	return nil
}

// errNoBPFFS: links cannot outlive the process.
// Kernel is what the program needs; errors about a kernel that may lack it name it.
const Kernel = "Linux 6.4 with NETFILTER_BPF_LINK and DEBUG_INFO_BTF"

var errNoBPFFS = errors.New("no bpffs is mounted at " + Mount)

// place is the directory of the caller's network namespace.
func place() (string, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(Mount, &st); err != nil || st.Type != unix.BPF_FS_MAGIC {
		return "", fmt.Errorf("%w: 'mount -t bpf bpffs %s' does that, and a container needs the node's", errNoBPFFS, Mount)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("asking which network namespace this is: %w", err)
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return "", fmt.Errorf("asking which network namespace this is (Linux 5.14 says): %w", err)
	}
	return filepath.Join(Mount, directory+strconv.FormatUint(cookie, 10)), nil
}
