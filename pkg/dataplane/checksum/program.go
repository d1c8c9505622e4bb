package checksum

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
)

// version is of the program: another one is attached in place of what an older podmark
// left. Who changes instructions or hooks counts it up.
const version = 1

// Kernel facts: include/linux/skbuff.h, include/uapi/linux/netfilter.h, and
// ipv6_ext_hdr in net/ipv6/exthdrs_core.c, by which its judges find the transport header.
const (
	checksumPartial = 3 // ip_summed: what comes behind writes the checksum
	drop, accept    = 0, 1

	protoHopByHop    = 0
	protoICMP        = 1
	protoRouting     = 43
	protoFragment    = 44
	protoAH          = 51
	protoICMPv6      = 58
	protoDestination = 60

	// fragmented is the offset and the flag for more fragments, RFC 791 3.1.
	fragmented = 0x3fff
	// keep is how much of the transport header is judged: two ports, or type and code.
	keep = 4
	// extensions is how many headers may stand between IPv6 and transport. RFC 8200 4.1 has five
	// different ones, and those for the destination twice.
	extensions = 8
)

// License of the program in the kernel, which lets it call bpf_probe_read_kernel and read
// sk_buff only by one that is compatible with the GPL. So these instructions, and nothing else
// of podmark, may be used under the BSD license or the GPL too.
const license = "Dual BSD/GPL"

// load hands the program to the kernel, which has to show that it is safe.
func load() (*ebpf.Program, error) {
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		return nil, fmt.Errorf("reading the types of the kernel: %w", err)
	}
	var skb, ctx *btf.Struct
	if err := errors.Join(kernel.TypeByName("sk_buff", &skb), kernel.TypeByName("bpf_nf_ctx", &ctx)); err != nil {
		return nil, fmt.Errorf("looking up types of the kernel: %w", err)
	}
	instructions, err := program(ctx, skb)
	if err != nil {
		return nil, err
	}
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "podmark_csum", Type: ebpf.Netfilter, AttachType: ebpf.AttachNetfilter, License: license,
		Instructions: instructions,
	})
	if err != nil {
		return nil, fmt.Errorf("loading the program: %w", err)
	}
	return p, nil
}

// Registers that a call leaves alone.
const (
	skbReg     = asm.R6 // and later the protocol
	networkReg = asm.R7 // the address of the network header
	targetReg  = asm.R8 // where the checksum goes, counted from there
	offsetReg  = asm.R9 // where the next header of IPv6 begins, counted from there
	protoReg   = asm.R6
)

// stack is of what is read of headers.
const stack = -16

// program is the verdict. To it a packet is what stands at its network header: IPv4 or IPv6,
// by the version in there, which the kernel has compared with the EtherType.
func program(ctx, skb *btf.Struct) (asm.Instructions, error) {
	at, err := offsetsOf(ctx, skb)
	return slices.Concat(
		acceptComplete(at),
		locateTarget(at),
		judgeIPv4(),
		judgeIPv6(),
		verdicts(),
	), err
}

// offsets are where the kernel keeps what the program reads of a packet: the bytes in which members
// begin, and how far ip_summed is from the low end of its byte.
type offsets struct {
	skb, summed, start, offset, network, head int16
	summedShift                               int32
}

func offsetsOf(ctx, skb *btf.Struct) (offsets, error) {
	var lookups []error
	at := func(s *btf.Struct, name string) int16 {
		n, err := offset(s, name)
		lookups = append(lookups, err)
		return n
	}
	o := offsets{skb: at(ctx, "skb")}
	shift, err := bits(skb, "ip_summed")
	lookups = append(lookups, err)
	o.summedShift, o.summed = shift, at(skb, "ip_summed")
	o.start, o.offset = at(skb, "csum_start"), at(skb, "csum_offset")
	o.network, o.head = at(skb, "network_header"), at(skb, "head")
	return o, errors.Join(lookups...)
}

// acceptComplete accepts packets into which nothing is written after the hooks.
func acceptComplete(at offsets) asm.Instructions {
	return asm.Instructions{
		asm.LoadMem(skbReg, asm.R1, at.skb, asm.DWord),
		asm.LoadMem(asm.R1, skbReg, at.summed, asm.Byte),
		asm.RSh.Imm(asm.R1, at.summedShift),
		asm.And.Imm(asm.R1, 3),
		asm.JNE.Imm(asm.R1, checksumPartial, "accept"),
	}
}

// locateTarget computes
//
//	target = csum_start + csum_offset - network_header
//
// of which the first and the last count from head, as skb_checksum_help does.
func locateTarget(at offsets) asm.Instructions {
	return asm.Instructions{
		asm.LoadMem(targetReg, skbReg, at.start, asm.Half),
		asm.LoadMem(asm.R1, skbReg, at.offset, asm.Half),
		asm.Add.Reg(targetReg, asm.R1),
		asm.LoadMem(asm.R1, skbReg, at.network, asm.Half),
		asm.Sub.Reg(targetReg, asm.R1),
		asm.LoadMem(networkReg, skbReg, at.head, asm.DWord),
		asm.Add.Reg(networkReg, asm.R1),
	}
}

// read copies n bytes to the stack, from an offset to the network header.
func read(n int32, from ...asm.Instruction) asm.Instructions {
	out := asm.Instructions{
		asm.Mov.Reg(asm.R1, asm.RFP), asm.Add.Imm(asm.R1, stack), asm.Mov.Imm(asm.R2, n), asm.Mov.Reg(asm.R3, networkReg),
	}
	return append(append(out, from...), asm.FnProbeReadKernel.Call(), asm.JNE.Imm(asm.R0, 0, "drop"))
}

// judgeIPv4 reads the network header, and judges it if it is of IPv4: the transport header is
// after the options.
func judgeIPv4() asm.Instructions {
	return append(read(10),
		asm.LoadMem(asm.R1, asm.RFP, stack, asm.Byte),
		asm.Mov.Reg(asm.R2, asm.R1),
		asm.RSh.Imm(asm.R2, 4),
		asm.JNE.Imm(asm.R2, 4, "ipv6"),

		asm.And.Imm(asm.R1, 0xf),
		asm.LSh.Imm(asm.R1, 2),
		asm.Add.Imm(asm.R1, keep),
		asm.JSLT.Reg(targetReg, asm.R1, "drop"),
		// Of a fragment it is not known yet what is in it, and no sender leaves its checksum:
		// ip_do_fragment writes it before.
		asm.LoadMem(asm.R1, asm.RFP, stack+6, asm.Half),
		asm.HostTo(asm.BE, asm.R1, asm.Half),
		asm.And.Imm(asm.R1, fragmented),
		asm.JNE.Imm(asm.R1, 0, "drop"),
		// What is in an error is judged too, and the checksum of ICMP is never offloaded.
		asm.LoadMem(asm.R1, asm.RFP, stack+9, asm.Byte),
		asm.JEq.Imm(asm.R1, protoICMP, "drop"),
		asm.Ja.Label("accept"),
	)
}

// judgeIPv6 judges the header that judgeIPv4 has read: the transport header is after the extension
// headers. Each round judges what is at the offset. A header that the checksum does not go into,
// nor before, is in the linear part, as the place of the checksum is.
func judgeIPv6() asm.Instructions {
	b := asm.Instructions{
		asm.LoadMem(protoReg, asm.RFP, stack+6, asm.Byte).WithSymbol("ipv6"),
		asm.Mov.Imm(offsetReg, 40),
	}
	for i := range extensions {
		b = append(b, judgeHeader(i)...)
		b = append(b, passExtension(i)...)
	}
	b = append(b, judgeHeader(extensions)...)
	return append(b, asm.Ja.Label("drop").WithSymbol(extensionLabel(extensions)))
}

// extensionLabel is where header number i is handled if it is an extension header.
func extensionLabel(i int) string { return fmt.Sprintf("extension%d", i) }

// judgeHeader judges header number i after that of IPv6, or leads on if it is an extension header.
func judgeHeader(i int) asm.Instructions {
	return asm.Instructions{
		asm.Mov.Reg(asm.R1, offsetReg),
		asm.Add.Imm(asm.R1, keep),
		asm.JSLT.Reg(targetReg, asm.R1, "drop"),
		asm.JEq.Imm(protoReg, protoFragment, "drop"),
		asm.JEq.Imm(protoReg, protoICMPv6, "drop"),
		asm.JEq.Imm(protoReg, protoHopByHop, extensionLabel(i)),
		asm.JEq.Imm(protoReg, protoDestination, extensionLabel(i)),
		asm.JEq.Imm(protoReg, protoRouting, extensionLabel(i)),
		asm.JNE.Imm(protoReg, protoAH, "accept"),
	}
}

// passExtension goes to what is after an extension header. Its length counts 8 bytes behind the
// first 8, that of AH 4 after the first 8.
func passExtension(i int) asm.Instructions {
	next := fmt.Sprintf("next%d", i)
	b := read(2, asm.Add.Reg(asm.R3, offsetReg))
	b[0] = b[0].WithSymbol(extensionLabel(i))
	return append(b,
		asm.LoadMem(asm.R1, asm.RFP, stack+1, asm.Byte),
		asm.Add.Imm(asm.R1, 2),
		asm.LSh.Imm(asm.R1, 2),
		asm.JEq.Imm(protoReg, protoAH, next),
		asm.LSh.Imm(asm.R1, 1),
		asm.Sub.Imm(asm.R1, 8),
		asm.Add.Reg(offsetReg, asm.R1).WithSymbol(next),
		asm.LoadMem(protoReg, asm.RFP, stack, asm.Byte),
	)
}

// verdicts are where the other parts lead.
func verdicts() asm.Instructions {
	return asm.Instructions{
		asm.Mov.Imm(asm.R0, drop).WithSymbol("drop"),
		asm.Return(),
		asm.Mov.Imm(asm.R0, accept).WithSymbol("accept"),
		asm.Return(),
	}
}

// offset is where the byte is in which a member of a structure begins.
func offset(s *btf.Struct, name string) (int16, error) {
	m, base, ok := member(s.Members, name)
	if !ok {
		return 0, fmt.Errorf("looking up %q in %q: this kernel has no such member", name, s.Name)
	}
	return int16((base + m.Offset) / 8), nil
}

// bits is how far a bit field of two bits is from the low end of its byte.
func bits(s *btf.Struct, name string) (int32, error) {
	m, base, ok := member(s.Members, name)
	n := (base + m.Offset) % 8
	if !ok || m.BitfieldSize != 2 || n > 6 {
		return 0, fmt.Errorf("looking up %q in %q: it is no bit field of two bits in a byte", name, s.Name)
	}
	if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 { // big: bits count from the high end
		n = 6 - n
	}
	return int32(n), nil
}

// member finds one by name, in members without a name too, which begin at base.
func member(list []btf.Member, name string) (m btf.Member, base btf.Bits, ok bool) {
	for _, m := range list {
		if m.Name == name {
			return m, 0, true
		}
		if m.Name != "" {
			continue
		}
		var inner []btf.Member
		switch t := btf.UnderlyingType(m.Type).(type) {
		case *btf.Struct:
			inner = t.Members
		case *btf.Union:
			inner = t.Members
		}
		if found, base, ok := member(inner, name); ok {
			return found, base + m.Offset, true
		}
	}
	return btf.Member{}, 0, false
}
