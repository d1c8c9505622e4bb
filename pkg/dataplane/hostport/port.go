// Package hostport closes and opens the host side of an endpoint, so that no packet
// of it passes while podmark is half-way through an ADD or a DEL.
//
// A routed host veth is put into podmark's device group: the rules drop what
// comes from the group with an unknown source, so it is closed until its
// endpoint element is there, and again once that is gone.
//
// A bridge is shared, so its group is never touched. There the veth's bridge
// port is blocked and unblocked, and held to the pod's MAC address: a static
// forwarding entry, no learning, and "locked" where the kernel has it (5.18),
// which drops frames with any other source MAC.
package hostport

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/attachment"
)

// Group is the device group of every routed host veth that podmark manages. By
// this number a restarted process knows them.
const Group = 1886

// Spanning tree states of a bridge port (include/uapi/linux/if_bridge.h). Of those
// that pass nothing only "listening" lasts: without spanning tree the kernel makes
// "blocking" forward at once (br_make_forwarding), and "disabled" at the next
// change of the link (br_port_carrier_check).
const (
	stateListening  = 1
	stateForwarding = 3
)

// Block makes the endpoint's port pass nothing until [Unblock] and, when it is
// routed, the backend has its element.
func Block(e attachment.Endpoint) error { return guard(e, stateListening) }

// Guard guards a port as Close and Open do together, without closing it: for an
// endpoint that is running. When it is routed, the backend has its element.
func Guard(e attachment.Endpoint) error { return guard(e, stateForwarding) }

func guard(e attachment.Endpoint, state byte) error {
	if e.Routed() {
		return SetGroup(e)
	}
	link, err := find(e)
	if err != nil {
		return fmt.Errorf("guarding port %q: %w", e.HostVeth, err)
	}
	entry, err := forwardingEntry(e, link)
	if err != nil {
		return err
	}
	// First the entry: a locked port takes no frame without one.
	if err := netlink.NeighSet(entry); err != nil {
		return fmt.Errorf("holding bridge port %q to MAC %s: %w", e.HostVeth, e.MAC, err)
	}
	if err := setBridgePort(link, state, true); err != nil {
		return fmt.Errorf("locking bridge port %q: %w", e.HostVeth, err)
	}
	return nil
}

// SetGroup puts a routed host veth into podmark's device group.
func SetGroup(e attachment.Endpoint) error {
	if err := setGroup(e, Group); err != nil {
		return fmt.Errorf("putting %q into device group %d: %w", e.HostVeth, Group, err)
	}
	return nil
}

// Unblock lets a bridge port forward again. A routed port is opened by its element.
func Unblock(e attachment.Endpoint) error {
	if e.Routed() {
		return nil
	}
	link, err := find(e)
	if err != nil {
		return fmt.Errorf("opening port %q: %w", e.HostVeth, err)
	}
	if err := setBridgePort(link, stateForwarding, true); err != nil {
		return fmt.Errorf("opening bridge port %q: %w", e.HostVeth, err)
	}
	return nil
}

// Restore gives the port back as the main plugin made it. A port that is gone is fine.
func Restore(e attachment.Endpoint) error {
	link, err := find(e)
	if gone(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("releasing port %q: %w", e.HostVeth, err)
	}
	if e.Routed() {
		return RestoreLink(link)
	}
	if link.Attrs().MasterIndex == 0 {
		return nil // no bridge port any more
	}
	if err := setBridgePort(link, stateForwarding, false); err != nil {
		return fmt.Errorf("releasing bridge port %q: %w", e.HostVeth, err)
	}
	entry, err := forwardingEntry(e, link)
	if err != nil {
		return err
	}
	if err := netlink.NeighDel(entry); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("releasing bridge port %q: %w", e.HostVeth, err)
	}
	return nil
}

// RestoreLink takes a link out of the device group if it is in it.
func RestoreLink(link netlink.Link) error {
	if link.Attrs().Group != Group {
		return nil
	}
	if err := netlink.LinkSetGroup(link, 0); err != nil && !gone(err) {
		return fmt.Errorf("taking %q out of device group %d: %w", link.Attrs().Name, Group, err)
	}
	return nil
}

// BlockForDelete closes the port again at a DEL. A port that is gone is fine, and a routed
// one needs nothing: it stays in the group until the main plugin deletes it.
func BlockForDelete(e attachment.Endpoint) error {
	if e.Routed() {
		return nil
	}
	link, err := find(e)
	if gone(err) || err == nil && link.Attrs().MasterIndex == 0 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("closing port %q: %w", e.HostVeth, err)
	}
	// A port whose link is down passes nothing and takes no state.
	if err := setBridgePort(link, stateListening, true); err != nil && !errors.Is(err, unix.ENETDOWN) {
		return fmt.Errorf("blocking bridge port %q: %w", e.HostVeth, err)
	}
	return nil
}

// Check reports what keeps the port from being guarded: that its links are not those, or
// not where, the record of e has them.
func Check(e attachment.Endpoint) error {
	var unread error
	drifts := Drifts(e, func(index int) (Link, bool) {
		link, err := netlink.LinkByIndex(index)
		if err != nil && !gone(err) {
			unread = errors.Join(unread, fmt.Errorf("reading link %d: %w", index, err))
		}
		if err != nil {
			return Link{}, false
		}
		return linkOf(link), true
	})
	if unread != nil {
		return unread
	}
	var errs []error
	for _, d := range drifts {
		errs = append(errs, errors.New(d.String()))
	}
	return errors.Join(errs...)
}

// Alive reports whether the host veth is still there.
func Alive(e attachment.Endpoint) bool {
	_, err := find(e)
	return !gone(err)
}

// find reads the host veth: by its number, which no other link gets. Only a record of an
// older podmark lacks that.
func find(e attachment.Endpoint) (netlink.Link, error) {
	if e.HostVethIndex != 0 {
		return netlink.LinkByIndex(e.HostVethIndex)
	}
	return netlink.LinkByName(e.HostVeth)
}

// BridgeFiltered reports whether frames between two ports of one bridge pass the
// IP hooks. Without it pods on one bridge reach each other unjudged.
func BridgeFiltered(ipv6 bool) error {
	name := BridgeSysctl(ipv6)
	b, err := os.ReadFile("/proc/sys/" + strings.ReplaceAll(name, ".", "/"))
	if err == nil && strings.TrimSpace(string(b)) == "1" {
		return nil
	}
	return fmt.Errorf("sysctl %s is not 1, so pods on one bridge reach each other unjudged: run 'modprobe br_netfilter && sysctl -w %s=1', or set policy to \"none\"", name, name)
}

// BridgeSysctl names the kernel parameter that has the frames of bridges pass the IP hooks. Where it
// is missing, so is the module br_netfilter.
func BridgeSysctl(ipv6 bool) string {
	if ipv6 {
		return "net.bridge.bridge-nf-call-ip6tables"
	}
	return "net.bridge.bridge-nf-call-iptables"
}

func gone(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.As(err, &notFound) || errors.Is(err, unix.ENODEV)
}

// forwardingEntry is the static entry that ties the pod's MAC to its port, as
// 'bridge fdb replace MAC dev PORT master static sticky': a static entry alone moves to the
// port where another station sends from that address (br_fdb_update; sticky since Linux 4.20).
func forwardingEntry(e attachment.Endpoint, link netlink.Link) (*netlink.Neigh, error) {
	mac, err := net.ParseMAC(e.MAC)
	if err != nil {
		return nil, fmt.Errorf("MAC address of port %q: %w", e.HostVeth, err)
	}
	return &netlink.Neigh{
		LinkIndex:    link.Attrs().Index,
		Family:       unix.AF_BRIDGE,
		Flags:        netlink.NTF_MASTER | netlink.NTF_STICKY,
		State:        netlink.NUD_NOARP,
		HardwareAddr: mac,
	}, nil
}

// setGroup puts the host veth into a device group, without asking for the link first as
// the library would.
func setGroup(e attachment.Endpoint, group uint32) error {
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(e.HostVethIndex)
	req.AddData(msg)
	if e.HostVethIndex == 0 {
		req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(e.HostVeth)))
	}
	req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(group)))
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// setBridgePort changes state, learning and lock of a bridge port in one message.
// A kernel that does not know the lock ignores it.
func setBridgePort(link netlink.Link, state byte, locked bool) error {
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_BRIDGE)
	msg.Index = int32(link.Attrs().Index)
	req.AddData(msg)
	info := nl.NewRtAttr(unix.IFLA_PROTINFO|unix.NLA_F_NESTED, nil)
	flag := map[bool]byte{true: 1}
	info.AddRtAttr(nl.IFLA_BRPORT_STATE, []byte{state})
	info.AddRtAttr(nl.IFLA_BRPORT_LEARNING, []byte{flag[!locked]})
	info.AddRtAttr(nl.IFLA_BRPORT_LOCKED, []byte{flag[locked]})
	req.AddData(info)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}
