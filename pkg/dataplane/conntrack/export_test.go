package conntrack

import (
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Renew makes every flow of addrs again, as if a flowtable had it: this machine's kernel
// need not have flowtables.
func Renew(addrs []netip.Addr, bits uint32) (renewed int, err error) {
	err = eachOf(addrs, func(c *netlink.Conn, f flow) error {
		taken, err := f.takeBack(c, bits)
		if taken {
			renewed++
		}
		return err
	})
	return renewed, err
}

// TakeBackOn takes a flow back that the kernel at the other end of c has.
func TakeBackOn(c *netlink.Conn) (taken bool, err error) {
	return flow{family: unix.AF_INET, orig: tuple{protocol: unix.IPPROTO_UDP}}.takeBack(c, 0xff0000)
}

// What the requests of TakeBackOn ask for.
const (
	RequestDelete = subsystem | cmdDelete
	RequestMake   = subsystem | cmdNew
)
