package explain

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/podmark/podmark/pkg/desired"
)

// What a side may be called besides a pod's name or an address.
const (
	Host    = "host"
	Outside = "outside"
)

const icmp desired.Protocol = 1

var protocols = map[string]desired.Protocol{"tcp": desired.TCP, "udp": desired.UDP, "sctp": desired.SCTP, "icmp": icmp}

// Query is a question.
type Query struct {
	Src, Dst Side
	Protocol desired.Protocol
	// Port is 0 where none was named: then it stands for every port that no rule names.
	Port uint16
}

// Side is one side of a question.
type Side struct {
	// Name is Host, Outside or a pod's, with or without "namespace/"; empty for an
	// address.
	Name    string
	Address netip.Addr
}

func (s Side) String() string {
	if s.Name == "" {
		return s.Address.String()
	}
	return s.Name
}

// Parse reads SRC and DST[:PORT][/PROTO]. An IPv6 address with a port is in brackets.
// The protocol is tcp unless it is named; what it is named by is never a pod's name.
func Parse(src, dst string) (Query, error) {
	q := Query{Protocol: desired.TCP}
	var err error
	if q.Src, err = side(src); err != nil {
		return q, fmt.Errorf("SRC %q: %w", src, err)
	}
	rest := dst
	if i := strings.LastIndexByte(dst, '/'); i >= 0 {
		if p, ok := protocols[strings.ToLower(dst[i+1:])]; ok {
			q.Protocol, rest = p, dst[:i]
		}
	}
	if rest, q.Port, err = cutPort(rest); err == nil {
		q.Dst, err = side(rest)
	}
	switch {
	case err != nil:
	case q.Protocol == icmp && q.Port != 0:
		err = fmt.Errorf("icmp has no ports")
	case q.Src.Name == Outside && q.Dst.Name == Outside:
		err = fmt.Errorf("from outside to outside nothing of this node is asked")
	}
	if err != nil {
		return q, fmt.Errorf("DST %q: %w", dst, err)
	}
	return q, nil
}

// cutPort takes ":PORT" off the end. A bare IPv6 address has none.
func cutPort(s string) (string, uint16, error) {
	if _, err := netip.ParseAddr(s); err == nil {
		return s, 0, nil
	}
	if inner, ok := strings.CutPrefix(s, "["); ok && strings.HasSuffix(inner, "]") {
		return strings.TrimSuffix(inner, "]"), 0, nil
	}
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return s, 0, nil
	}
	port, err := strconv.ParseUint(s[i+1:], 10, 16)
	if err != nil || port == 0 {
		return "", 0, fmt.Errorf("port %q: want 1 to 65535", s[i+1:])
	}
	host := s[:i]
	if inner, ok := strings.CutPrefix(host, "["); ok {
		host, ok = strings.CutSuffix(inner, "]")
		if !ok {
			return "", 0, fmt.Errorf("%q has no ]", s)
		}
	}
	return host, uint16(port), nil
}

func side(s string) (Side, error) {
	addr, err := netip.ParseAddr(s)
	if err != nil {
		if s == "" || strings.ContainsAny(s, ":[] ") || strings.Count(s, "/") > 1 {
			return Side{}, fmt.Errorf("want a pod as [NAMESPACE/]NAME, an address, %s or %s", Host, Outside)
		}
		return Side{Name: s}, nil
	}
	addr = addr.Unmap()
	// IPv4 link-local addresses are routed as others are, and the node may have one: those of a
	// cloud's metadata and of a node-local DNS cache. IPv6's are one to each link.
	if addr.IsLoopback() || addr.IsUnspecified() || addr.Is6() && addr.IsLinkLocalUnicast() {
		return Side{}, fmt.Errorf("%s means another machine on each: name one that can be routed", addr)
	}
	return Side{Address: addr}, nil
}

// String is the question as Parse reads it.
func (q Query) String() string { return q.Src.String() + " > " + q.text() }

// text is the question's destination with port and protocol.
func (q Query) text() string {
	dst := q.Dst.String()
	if q.Port != 0 {
		if q.Dst.Address.Is6() {
			dst = "[" + dst + "]"
		}
		dst += ":" + strconv.Itoa(int(q.Port))
	}
	return dst + "/" + name(q.Protocol)
}

func name(p desired.Protocol) string {
	if p == icmp {
		return "icmp"
	}
	return p.String()
}
