package nftables

import (
	"encoding/binary"
	"fmt"

	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/mark"
)

// setMarkFrom puts the ID that lead finds into the bits of the layout and leaves
// the others of the fwmark as they are.
//
// A map's value can be or'ed into a mark from Linux 6.13 on only, and a chain a
// value, with a constant each, makes every change of the map cost as much as
// the map is long: the kernel walks all elements that lead to a chain. Shifts
// over two registers, which Linux has since 5.6, carry bits from one into the
// other, so the mark is put together from the runs of bits that it takes from
// either, the highest first. 'nft list' shows the shifts of the value alone.
func setMarkFrom(layout mark.Layout, key part, leads set) part {
	const a, b, value, old = keyReg + 1, keyReg + 2, idReg, keyReg + 3
	p := mapTo(key, leads)
	p.text = fmt.Sprintf("meta mark set meta mark & %s | %s", hex(^layout.Mask()), p.text)
	p.exprs = append(p.exprs, load(expr.MetaKeyMARK, old))
	for high := uint32(32); high > 0; {
		low := runBelow(layout.Mask(), high)
		from := uint32(old)
		if layout.Mask()>>low&1 == 1 {
			from = value
		}
		if high == 32 {
			p.exprs = append(p.exprs, shift{from: from, to: a, size: 4, right: true, by: low})
		} else {
			p.exprs = append(p.exprs,
				shift{from: from, to: b, size: 4, by: 32 - high},
				shift{from: a, to: a, size: 8, by: high - low})
		}
		high = low
	}
	p.exprs = append(p.exprs, &expr.Meta{Key: expr.MetaKeyMARK, Register: a, SourceRegister: true})
	return p
}

// runBelow is the lowest bit of the run of equal bits of mask that ends below high.
func runBelow(mask, high uint32) uint32 {
	low := high - 1
	for low > 0 && mask>>(low-1)&1 == mask>>low&1 {
		low--
	}
	return low
}

// shift is a bitwise expression that the library does not have: size bytes from
// one register on, taken as words of which the first is the highest, are
// shifted by 1 to 31 bits (nft_bitwise_eval_lshift).
type shift struct {
	from, to, size uint32
	right          bool
	by             uint32
}

// marshal encodes the expression as expr.Marshal does the others.
func (s shift) marshal() ([]byte, error) {
	// include/uapi/linux/netfilter/nf_tables.h, Linux 5.6
	const (
		attrOp, attrData = 6, 7
		opLeft, opRight  = 1, 2
	)
	op := uint32(opLeft)
	if s.right {
		op = opRight
	}
	ae := netlink.NewAttributeEncoder()
	ae.String(unix.NFTA_EXPR_NAME, "bitwise")
	ae.Nested(unix.NFTA_EXPR_DATA, func(ae *netlink.AttributeEncoder) error {
		ae.ByteOrder = binary.BigEndian
		ae.Uint32(unix.NFTA_BITWISE_SREG, s.from)
		ae.Uint32(unix.NFTA_BITWISE_DREG, s.to)
		ae.Uint32(unix.NFTA_BITWISE_LEN, s.size)
		ae.Uint32(attrOp, op)
		ae.Nested(attrData, func(ae *netlink.AttributeEncoder) error {
			ae.Bytes(unix.NFTA_DATA_VALUE, native(s.by))
			return nil
		})
		return nil
	})
	return ae.Encode()
}
