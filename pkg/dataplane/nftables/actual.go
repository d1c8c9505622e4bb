package nftables

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/nfnetlink"
)

// actual is what of ours the kernel has. Rules are not read: whoever writes
// chains writes their rules.
type actual struct {
	tables   map[nftables.TableFamily]bool
	chains   []chain
	sets     []set // without types
	elements map[string]elements
}

// numbers are those of the profiles that are there.
func (a actual) numbers() numbers {
	var out numbers
	for _, d := range desired.Directions {
		out[d] = numbersOf(a.elements[profiles(d).name])
	}
	return out
}

// numbersOf reads the numbers off the map of one direction's profiles.
func numbersOf(list elements) map[string]uint32 {
	out := map[string]uint32{}
	for _, e := range list {
		if e.chain != "" && len(e.key) == 4 {
			out[e.chain] = binary.NativeEndian.Uint32([]byte(e.key))
		}
	}
	return out
}

// readAll reads the tables. What objects there are the library reads.
func readAll(c *conn, tables []nftables.Table) (actual, error) {
	a := actual{tables: map[nftables.TableFamily]bool{}, elements: map[string]elements{}}
	lib, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return a, fmt.Errorf("connecting to nf_tables: %w", err)
	}
	defer func() { go func() { _ = lib.CloseLasting() }() }() // see conn.close
	for _, t := range tables {
		list, err := lib.ListTablesOfFamily(t.Family)
		if err != nil {
			return a, fmt.Errorf("listing tables: %w", err)
		}
		if !slices.ContainsFunc(list, func(l *nftables.Table) bool { return l.Name == t.Name }) {
			continue
		}
		a.tables[t.Family] = true
		chains, err := lib.ListChainsOfTableFamily(t.Family)
		if err != nil {
			return a, fmt.Errorf("listing chains: %w", err)
		}
		for _, c := range chains {
			if c.Table.Name == t.Name {
				a.chains = append(a.chains, chain{table: t, name: c.Name})
			}
		}
		sets, err := lib.GetSets(&t)
		if err != nil {
			return a, fmt.Errorf("listing sets: %w", err)
		}
		for _, s := range sets {
			if s.Anonymous {
				continue
			}
			ours := set{table: t, name: s.Name, size: s.Size}
			if a.sets = append(a.sets, ours); ours.ofPolicy() || ours.metered() {
				continue // who is in there stays, and may be many
			}
			if a.elements[s.Name], err = c.elements(ours); err != nil {
				return a, err
			}
		}
	}
	return a, nil
}

// generation is the number of the last change of anybody's to the namespace's nf_tables.
func (c *conn) generation() (uint32, error) {
	asked := request(unix.NFT_MSG_GETGEN, netlink.Acknowledge, unix.NFPROTO_UNSPEC, nil)
	replies, err := c.exchange([]netlink.Message{asked}, 0)
	if err != nil {
		return 0, fmt.Errorf("reading the generation: %w", err)
	}
	for _, m := range replies {
		ad, err := nfnetlink.Attributes(m)
		if err != nil {
			return 0, err
		}
		for ad.Next() {
			if ad.Type() == unix.NFTA_GEN_ID {
				return ad.Uint32(), ad.Err()
			}
		}
	}
	return 0, errors.New("reading the generation: the kernel did not say")
}

// elements reads the content of one set.
func (c *conn) elements(s set) (elements, error) {
	out := elements{}
	return out, c.eachElement(s, func(e element) bool {
		out.with(e)
		return true
	})
}

// few is up to how many elements it takes less to ask for each than to read a set of any size.
const few = 50

// lacks is the first of want, which is sorted, that a set does not hold; nil for none.
// What the set holds is not kept.
func (c *conn) lacks(s set, want []element) (*element, error) {
	if s.ofPolicy() && len(want) <= few {
		for i, e := range want {
			if there, err := c.has(s, e); err != nil || !there {
				return &want[i], err
			}
		}
		return nil, nil
	}
	found := make([]bool, len(want))
	err := c.eachElement(s, func(e element) bool {
		i, ok := slices.BinarySearchFunc(want, e.key, func(w element, key string) int { return cmp.Compare(w.key, key) })
		if ok && want[i].same(e) {
			found[i] = true
		}
		return true
	})
	if i := slices.Index(found, false); err == nil && i >= 0 {
		return &want[i], nil
	}
	return nil, err
}

// has reports whether a set, which is there, holds an element.
func (c *conn) has(s set, e element) (bool, error) {
	encoded := addElements(s, []element{e})[0]
	messages, err := encoded.encode(nil)
	if err != nil {
		return false, err
	}
	get := messages[0]
	get.Header.Type, get.Header.Flags = subsystem|unix.NFT_MSG_GETSETELEM, netlink.Request|netlink.Acknowledge
	if _, err = c.exchange([]netlink.Message{get}, 0); errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("looking for %s in %s: %w", s.show(e), path(s.table, s.name), err)
	}
	return true, nil
}

// eachElement hands the content of one set to visit, until that wants no more. The
// library can read sets too, and takes five times as long, which an ADD would feel.
func (c *conn) eachElement(s set, visit func(element) bool) error {
	ae := netlink.NewAttributeEncoder()
	ae.String(unix.NFTA_SET_ELEM_LIST_TABLE, s.table.Name)
	ae.String(unix.NFTA_SET_ELEM_LIST_SET, s.name)
	attrs, err := ae.Encode()
	if err != nil {
		return err
	}
	dump := []netlink.Message{request(unix.NFT_MSG_GETSETELEM, netlink.Dump, s.table.Family, attrs)}
	err = c.exchangeEach(dump, 0, func(m netlink.Message) (more bool, err error) {
		ad, err := nfnetlink.Attributes(m)
		if err != nil {
			return false, err
		}
		more = true
		for more && ad.Next() {
			if ad.Type() != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
				continue
			}
			ad.Nested(func(list *netlink.AttributeDecoder) error {
				for more && list.Next() {
					var e element
					list.Nested(e.decode)
					more = visit(e)
				}
				return nil
			})
		}
		return more, ad.Err()
	})
	if err != nil {
		return fmt.Errorf("reading %s: %w", path(s.table, s.name), err)
	}
	return nil
}

// decode reads one element of a dump.
func (e *element) decode(ad *netlink.AttributeDecoder) error {
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_SET_ELEM_KEY:
			ad.Nested(func(ad *netlink.AttributeDecoder) error {
				for ad.Next() {
					e.key = string(ad.Bytes())
				}
				return nil
			})
		case nftables.NFTA_SET_ELEM_KEY_END:
			ad.Nested(func(ad *netlink.AttributeDecoder) error {
				for ad.Next() {
					e.end = string(ad.Bytes())
				}
				return nil
			})
		case unix.NFTA_SET_ELEM_DATA:
			ad.Nested(e.decodeData)
		}
	}
	return nil
}

// decodeData reads what a map holds: bytes, or a verdict.
func (e *element) decodeData(ad *netlink.AttributeDecoder) error {
	for ad.Next() {
		if ad.Type() == unix.NFTA_DATA_VALUE {
			e.value = string(ad.Bytes())
			continue
		}
		ad.Nested(func(verdict *netlink.AttributeDecoder) error {
			for verdict.Next() {
				if verdict.Type() == unix.NFTA_VERDICT_CHAIN {
					e.chain = verdict.String()
				}
			}
			return nil
		})
	}
	return nil
}

// chainsAtOnce is how many answers about chains fit the socket with room to spare: each
// takes some 1 KiB of its 200.
const chainsAtOnce = 64

// chainUses reads how many rules each of the chains has, with the jumps and gotos
// that lead to it; a chain that is not there is left out.
func (c *conn) chainUses(chains []chain) (map[string]int, error) {
	uses := map[string]int{}
	for some := range slices.Chunk(chains, chainsAtOnce) {
		if err := c.addUses(uses, some); err != nil {
			return nil, fmt.Errorf("reading chains: %w", err)
		}
	}
	return uses, nil
}

func (c *conn) addUses(uses map[string]int, chains []chain) error {
	var messages []netlink.Message
	for _, ch := range chains {
		ae := netlink.NewAttributeEncoder()
		ae.String(unix.NFTA_CHAIN_TABLE, ch.table.Name)
		ae.String(unix.NFTA_CHAIN_NAME, ch.name)
		attrs, err := ae.Encode()
		if err != nil {
			return err
		}
		messages = append(messages, request(unix.NFT_MSG_GETCHAIN, 0, ch.table.Family, attrs))
	}
	last := len(messages) - 1
	messages[last].Header.Flags |= netlink.Acknowledge
	replies, err := c.exchange(messages, last)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	for _, m := range replies {
		ad, err := nfnetlink.Attributes(m)
		if err != nil {
			return err
		}
		name, use := "", 0
		for ad.Next() {
			switch ad.Type() {
			case unix.NFTA_CHAIN_NAME:
				name = ad.String()
			case unix.NFTA_CHAIN_USE:
				use = int(ad.Uint32())
			}
		}
		if err := ad.Err(); err != nil {
			return err
		}
		uses[name] = use
	}
	return nil
}
