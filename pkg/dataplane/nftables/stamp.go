package nftables

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"github.com/podmark/podmark/pkg/nfnetlink"
	"golang.org/x/sys/unix"
)

// A stamp goes with each rule, in what the kernel keeps for its user and nft does not show
// (NFTA_RULE_USERDATA). It says which rule of which chain that is, and all that it does. Another
// rule in its place has none, whoever wrote it, and a rule of another podmark another one.
type stamp uint64

// stampType is that of the stamp among the user's data: nft has types 0 and 1, and skips
// what it does not know.
const stampType userdata.Type = 0x50

// stamped appends a stamp to the data of a rule's user.
func stamped(data []byte, s stamp) []byte {
	return userdata.Append(data, stampType, binary.BigEndian.AppendUint64(nil, uint64(s)))
}

// stampIn reads a stamp; 0 where there is none.
func stampIn(data []byte) stamp {
	if b := userdata.Get(data, stampType); len(b) == 8 {
		return stamp(binary.BigEndian.Uint64(b))
	}
	return 0
}

// stamp is that of rule number i, whose expressions are encoded.
func (c chain) stamp(i int, encoded [][]byte) stamp {
	h := sha256.New()
	fmt.Fprintf(h, "%d %s %d\n%s\n", c.table.Family, c.name, i, c.rules[i].comment)
	for _, b := range encoded {
		fmt.Fprintf(h, "%d:", len(b))
		h.Write(b)
	}
	for _, p := range c.rules[i].parts {
		if p.set == nil {
			continue
		}
		fmt.Fprintf(h, "%s %t", p.set.key.Name, p.set.interval)
		for _, e := range p.set.elements {
			fmt.Fprintf(h, "%x-%x %t", e.Key, e.KeyEnd, e.IntervalEnd)
		}
	}
	return max(stamp(binary.BigEndian.Uint64(h.Sum(nil))), 1)
}

// stamps are those of the chain's rules, in order.
func (c chain) stamps() ([]stamp, error) {
	out := make([]stamp, len(c.rules))
	for i, r := range c.rules {
		encoded, err := r.encode(c.table.Family, nil)
		if err != nil {
			return nil, fmt.Errorf("encoding rule %d of %s: %w", i, path(c.table, c.name), err)
		}
		out[i] = c.stamp(i, encoded)
	}
	return out, nil
}

// encode encodes the expressions. Constants are named by those of the list, in order; without,
// all by none, which a stamp is made of.
func (r rule) encode(f nftables.TableFamily, constants []*nftables.Set) (encoded [][]byte, err error) {
	for _, p := range r.parts {
		constant := &nftables.Set{}
		if p.set != nil && constants != nil {
			constant, constants = constants[0], constants[1:]
		}
		for _, x := range p.exprs {
			b, err := encodeExpr(f, x, constant)
			if err != nil {
				return nil, err
			}
			encoded = append(encoded, b)
		}
	}
	return encoded, nil
}

// stamps reads those of the rules of a chain, or of all chains of the table where it has no
// name.
func (c *conn) stamps(t nftables.Table, name string) (map[string][]stamp, error) {
	ae := netlink.NewAttributeEncoder()
	ae.String(unix.NFTA_RULE_TABLE, t.Name)
	if name != "" {
		ae.String(unix.NFTA_RULE_CHAIN, name)
	}
	attrs, err := ae.Encode()
	if err != nil {
		return nil, err
	}
	out := map[string][]stamp{}
	dump := []netlink.Message{request(unix.NFT_MSG_GETRULE, netlink.Dump, t.Family, attrs)}
	err = c.exchangeEach(dump, 0, func(m netlink.Message) (more bool, err error) {
		ad, err := nfnetlink.Attributes(m)
		if err != nil {
			return false, err
		}
		var of string
		var s stamp
		for ad.Next() {
			switch ad.Type() {
			case unix.NFTA_RULE_CHAIN:
				of = ad.String()
			case unix.NFTA_RULE_USERDATA:
				s = stampIn(ad.Bytes())
			}
		}
		out[of] = append(out[of], s)
		return true, ad.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("reading rules of %s: %w", path(t), err)
	}
	return out, nil
}

// checkStamps reports the first of the chains whose rules are not those that it has here.
func checkStamps(c *conn, chains []chain) error {
	for _, ch := range chains {
		have, err := c.stamps(ch.table, ch.name)
		if err != nil {
			return err
		}
		if err := ch.compare(have); err != nil {
			return err
		}
	}
	return nil
}

// checkAllStamps is checkStamps for most of what there is, in one dump a table.
func checkAllStamps(c *conn, chains []chain) error {
	for _, t := range tables() {
		have, err := c.stamps(t, "")
		if err != nil {
			return err
		}
		for _, ch := range chains {
			if ch.table != t {
				continue
			}
			if err := ch.compare(have); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c chain) compare(have map[string][]stamp) error {
	want, err := c.stamps()
	if err == nil && !slices.Equal(have[c.name], want) {
		err = errChain(c)
	}
	return err
}
