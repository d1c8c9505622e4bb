// Package state keeps, on disk, which attachment has which ID.
//
// It owns the state directory (default /run/podmark, a tmpfs: allocations and
// kernel state vanish together at a reboot):
//
//	lock                   held during every change
//	node.json              the node's settings; see package node
//	policies.json          the policies it enforces
//	daemon.json            what the daemon says about itself; see package agent
//	daemon.lock            held by the daemon
//	calls                  what the plugin did, until the daemon counts it; see Call
//	next                   the ID to try first, so that a freed ID is reused late
//	attachments/<hash>     one attachment.Record each; <hash> is of (network, containerID, ifname)
//	ids/<n>                a link to the attachment that has the ID
//	addresses/<address>    a link to the attachment that owns it now
//
// A link is there, whole, or is not, and it cannot be made twice. Other files but
// calls and next are written beside their place, synced and renamed, so a reader
// sees the old one or the new one. Nothing here touches the kernel's network.
package state
