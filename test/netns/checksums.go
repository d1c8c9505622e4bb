package netns

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// WithoutChecksums takes a link of the caller's network namespace for one that writes no
// checksums, as 'ethtool -K LINK tx off' does: the kernel writes them before.
func WithoutChecksums(link string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("turning the checksums of link %q off: %w", link, err)
	}
	defer unix.Close(fd)
	value := struct{ command, data uint32 }{command: unix.ETHTOOL_STXCSUM}
	request, err := unix.NewIfreq(link)
	if err != nil {
		return fmt.Errorf("turning the checksums of link %q off: %w", link, err)
	}
	// The structure is struct ifreq: a name, and the address of what is asked.
	raw := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		rest [24 - unsafe.Sizeof(uintptr(0))]byte
	}{data: unsafe.Pointer(&value)}
	copy(raw.name[:], request.Name())
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&raw))); errno != 0 {
		return fmt.Errorf("turning the checksums of link %q off: %w", link, errno)
	}
	return nil
}
