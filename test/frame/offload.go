package frame

import "encoding/binary"

// Kinds of segments of [Offload], include/uapi/linux/virtio_net.h.
const (
	SegmentsTCPv4 = 1
	SegmentsTCPv6 = 4
	SegmentsUDP   = 5
)

// Offload is what the sender of a frame leaves to the kernel. A packet socket with
// PACKET_VNET_HDR takes it before the frame, as virtio-net does: virtio 1.2, 5.1.6.
type Offload struct {
	// Start is where the checksum begins, in bytes of the frame, and Offset where behind
	// Start it goes.
	Start, Offset int
	// Segments is the kind of segments that the frame is cut into, with Size bytes of data each
	// behind Headers bytes; 0 for a frame that is sent as it is.
	Segments      byte
	Size, Headers int
}

// Frame is the frame with that before it.
func (o Offload) Frame(b []byte) []byte {
	const needsChecksum = 1 // VIRTIO_NET_HDR_F_NEEDS_CSUM
	out := []byte{needsChecksum, o.Segments}
	for _, n := range []int{o.Headers, o.Size, o.Start, o.Offset} {
		out = binary.NativeEndian.AppendUint16(out, uint16(n))
	}
	return append(out, b...)
}
