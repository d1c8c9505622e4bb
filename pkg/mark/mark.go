// Package mark lays numbers out in the bits of a packet's fwmark.
//
// It owns the mapping between a number (an endpoint's ID, or a policy epoch in
// the conntrack mark) and the bits of IptablesMarkMask that carry it. It is
// pure: nothing here reads or writes the kernel.
//
// The lowest bit of a number goes into the lowest bit of the mask, the next
// into the next, so the mask may have holes:
//
//	mask 0x00ff0f00, number 0x123  ->  fwmark 0x00120300
package mark

import (
	"fmt"
	"math/bits"
	"strconv"
)

// KubeProxy is the pair of bits that kube-proxy uses (0x4000 masquerade,
// 0x8000 drop; k8s.io/kubernetes pkg/proxy/ipvs). No mask may touch them.
const KubeProxy uint32 = 0xC000

// ID is the number of an endpoint on this node.
type ID uint32

const (
	// None is the ID of a packet that was not forwarded: its mark bits are zero.
	None ID = 0
	// Outside is the ID of every source that is not a local endpoint.
	Outside ID = 1
	// First is the lowest ID an endpoint can have.
	First ID = 2
)

// Block is how many IDs make a block: those in use are in as few blocks as can be, so a backend
// can keep something for each.
const Block = 32

// Mark is a fwmark value together with the bits that it speaks about.
type Mark struct {
	Value uint32
	Mask  uint32
}

// String renders the mark as iptables and nft read it: "0x20000/0xffff0000".
func (m Mark) String() string {
	return fmt.Sprintf("%#x/%#x", m.Value, m.Mask)
}

// Layout is a validated IptablesMarkMask.
type Layout struct {
	mask uint32
	// besides are bits that every mark of the layout has at zero.
	besides uint32
}

// NewLayout accepts any mask of at least two bits, contiguous or not, that
// leaves kube-proxy's two bits alone.
func NewLayout(mask uint32) (Layout, error) {
	switch overlap := mask & KubeProxy; {
	case overlap != 0:
		return Layout{}, fmt.Errorf("mask %#x overlaps kube-proxy's %#x in %#x: use bits outside %#x", mask, KubeProxy, overlap, KubeProxy)
	case bits.OnesCount32(mask) < 2:
		return Layout{}, fmt.Errorf("mask %#x has %d bit(s): at least 2 are needed", mask, bits.OnesCount32(mask))
	}
	return Layout{mask: mask}, nil
}

// ParseMask reads a mask as a decimal, hexadecimal (0x) or octal (0) number.
func ParseMask(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 0, 32)
	if err != nil {
		return 0, fmt.Errorf("parsing mask %q: want a 32-bit number such as 0xffff0000", s)
	}
	return uint32(n), nil
}

// Mask returns the bits that marks of the layout speak about.
func (l Layout) Mask() uint32 { return l.mask | l.besides }

// Over is the layout while packets still carry marks of another one: it has the same
// numbers in the same bits, and its marks say of the other's bits that they are zero.
func (l Layout) Over(former Layout) Layout {
	l.besides |= former.Mask() &^ l.mask
	return l
}

// Max is the highest number that fits: 2^n - 1 for a mask of n bits.
func (l Layout) Max() uint32 {
	return uint32(1)<<bits.OnesCount32(l.mask) - 1
}

// Capacity is how many endpoints fit: every number but None and Outside.
func (l Layout) Capacity() int { return int(l.Max()) - 1 }

// Mark places n into the bits of the mask. It panics when n does not fit,
// because a truncated ID would be another endpoint's.
func (l Layout) Mark(n uint32) Mark {
	if n > l.Max() {
		panic(fmt.Sprintf("mark: number %d does not fit mask %#x", n, l.mask))
	}
	m := Mark{Mask: l.Mask()}
	for rest := l.mask; rest != 0; rest &= rest - 1 {
		if n&1 != 0 {
			m.Value |= rest & -rest
		}
		n >>= 1
	}
	return m
}

// ID places an endpoint's ID into the mask; see [Layout.Mark].
func (l Layout) ID(id ID) Mark { return l.Mark(uint32(id)) }

// Number reads the number back out of a fwmark; bits outside the mask are
// ignored.
func (l Layout) Number(fwmark uint32) uint32 {
	var n uint32
	for i, rest := 0, l.mask; rest != 0; i, rest = i+1, rest&(rest-1) {
		if fwmark&rest&-rest != 0 {
			n |= 1 << i
		}
	}
	return n
}

// Wider proposes a layout that holds twice as many numbers: the same bits and
// the highest free one. It reports false when every bit but kube-proxy's is taken.
func (l Layout) Wider() (Layout, bool) {
	free := ^(l.mask | KubeProxy)
	if free == 0 {
		return Layout{}, false
	}
	return Layout{mask: l.mask | 1<<(bits.Len32(free)-1)}, true
}

// NextEpoch is the epoch that follows e: 1 to Max, then 1 again. Epoch 0 means
// "not judged", so it is never given out.
func (l Layout) NextEpoch(e uint32) uint32 {
	return e%l.Max() + 1
}
