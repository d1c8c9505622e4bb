package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Trigger says why the node was reconciled.
type Trigger string

// The reasons.
const (
	OnStart         Trigger = "start"
	OnLinkChange    Trigger = "link or address"
	OnRulesetChange Trigger = "nf_tables"
	OnNodePorts     Trigger = "NodePort source"
	// OnConfiguration is a network configuration.
	OnConfiguration Trigger = "network configuration"
	OnInterval      Trigger = "interval"
)

// group is a notification of the kernel: include/uapi/linux/rtnetlink.h and
// nfnetlink.h. IPVS has none; kube-proxy gives kube-ipvs0 an address for each
// service. Nor has a change of iptables-legacy.
type group struct {
	protocol int
	number   uint32
	reason   Trigger
	// kind is the only type of notification that there is room for; 0 for all.
	kind uint16
	// news tells whether a notification is worth a reconciliation.
	news func(netlink.Message) bool
}

func groups() []group {
	all := func(netlink.Message) bool { return true }
	return []group{
		{unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, OnLinkChange, 0, all},
		{unix.NETLINK_ROUTE, unix.RTNLGRP_IPV4_IFADDR, OnLinkChange, 0, all},
		{unix.NETLINK_ROUTE, unix.RTNLGRP_IPV6_IFADDR, OnLinkChange, 0, all},
		{unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES, OnRulesetChange, newGeneration, fromOthers},
	}
}

// newGeneration is the last notification of a transaction of nf_tables. Those before, which
// the kernel sends apart from it, are one for each element of a set.
const newGeneration = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWGEN

// fromOthers holds for a new generation, which says who made it (nf_tables_fill_gen_info, Linux
// 4.16), unless that was this program.
func fromOthers(m netlink.Message) bool {
	if m.Header.Type != newGeneration || len(m.Data) < 4 {
		return false
	}
	ad, err := netlink.NewAttributeDecoder(m.Data[4:])
	if err != nil {
		return true
	}
	for ad.Next() {
		if ad.Type() == unix.NFTA_GEN_PROC_NAME && ad.String() == comm() {
			return false
		}
	}
	return true
}

// only has the kernel drop what is of another kind.
func (g group) only(c *netlink.Conn) error {
	if g.kind == 0 {
		return nil
	}
	// A filter loads in network order what a header has in that of the host.
	var kind [2]byte
	binary.NativeEndian.PutUint16(kind[:], g.kind)
	filter, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: 4, Size: 2}, // nlmsg_type
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(binary.BigEndian.Uint16(kind[:])), SkipFalse: 1},
		bpf.RetConstant{Val: math.MaxUint32},
		bpf.RetConstant{Val: 0},
	})
	if err != nil {
		return err
	}
	return c.SetBPF(filter)
}

// comm is what the kernel calls this program.
var comm = sync.OnceValue(func() string {
	name, _ := os.ReadFile("/proc/self/comm")
	return strings.TrimSpace(string(name))
})

// watch calls tell for every notification that is news until ctx is done. What it
// says is not read: the node is reconciled as a whole. One that was lost, because
// they came too fast, is news.
func watch(ctx context.Context, log *slog.Logger, tell func(Trigger)) error {
	for _, g := range groups() {
		c, err := netlink.Dial(g.protocol, &netlink.Config{Groups: 1 << (g.number - 1)})
		if err != nil {
			return fmt.Errorf("listening for kernel notifications of %s: %w", g.reason, err)
		}
		if err := g.only(c); err != nil {
			return errors.Join(fmt.Errorf("listening for kernel notifications of %s: %w", g.reason, err), c.Close())
		}
		go func() {
			<-ctx.Done()
			c.Close()
		}()
		go func() {
			for {
				list, err := c.Receive()
				if ctx.Err() != nil {
					return
				}
				if err != nil && !errors.Is(err, unix.ENOBUFS) {
					log.Warn("Failed to listen for kernel notifications", "of", g.reason, "error", err)
					wait(ctx, time.Second)
				}
				if err != nil || slices.ContainsFunc(list, g.news) {
					tell(g.reason)
				}
			}
		}()
	}
	return nil
}

// wait returns after a time, or when ctx is done.
func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
