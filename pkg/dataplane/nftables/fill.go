package nftables

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/desired"
)

// fillAtOnce is how many elements come or go in one transaction.
const fillAtOnce = 10 * elementsAtOnce

// FillSet makes the peer and tuple sets of want hold exactly who is in them there, and says
// how many elements came and went. It makes those that are not there. A packet may see a
// set half-way.
func (b Backend) FillSet(_ context.Context, want desired.Set) (changed int, err error) {
	c, err := dial()
	if err != nil {
		return 0, err
	}
	defer c.close()
	room := &filling{}
	fill := func(s set, n int, err error) error {
		if changed += n; err == nil && n > 0 && b.Step != nil {
			b.Step("filled " + s.name)
		}
		return err
	}
	for _, f := range []family{v4, v6} {
		for _, id := range slices.Sorted(maps.Keys(want.PeerSets)) {
			some := ofFamily(f, want.PeerSets[id].Addrs, func(a netip.Addr) netip.Addr { return a })
			n, err := replaceContent(c, room, peers(f, id), some, appendAddr)
			if err := fill(peers(f, id), n, err); err != nil {
				return changed, err
			}
		}
		for _, id := range slices.Sorted(maps.Keys(want.TupleSets)) {
			set := want.TupleSets[id]
			n, err := replaceContent(c, room, tuples(f, id), ofFamily(f, set.Tuples, netip.AddrPort.Addr), tupleOf(set.Protocol))
			if err := fill(tuples(f, id), n, err); err != nil {
				return changed, err
			}
		}
	}
	return changed, nil
}

// ofFamily are those of a sorted list whose address is of the family.
func ofFamily[T any](f family, list []T, addr func(T) netip.Addr) []T {
	six, _ := slices.BinarySearchFunc(list, netip.IPv6Unspecified(),
		func(v T, least netip.Addr) int { return addr(v).Compare(least) })
	if f == v4 {
		return list[:six]
	}
	return list[six:]
}

// filling is memory that one set after the other uses while it is filled.
type filling struct {
	there []bool
	come  []element
	key   []byte
}

// replaceContent makes a set hold exactly the elements of want, which are sorted, as are the
// keys that it appends for them. It keeps no list of elements that are as they should be: a
// set can have hundreds of thousands.
func replaceContent[T any](
	c *conn,
	room *filling,
	s set,
	want []T,
	appendKey func([]byte, T) []byte,
) (changed int, err error) {
	there := slices.Grow(room.there[:0], len(want))[:len(want)]
	clear(there)
	var gone []element
	come := room.come[:0]
	defer func() { room.there, room.come = there, come[:0] }()
	err = c.eachElement(s, func(e element) bool {
		i, wanted := slices.BinarySearchFunc(want, e.key, func(v T, key string) int {
			room.key = appendKey(room.key[:0], v)
			return strings.Compare(string(room.key), key)
		})
		if wanted {
			there[i] = true
		} else {
			gone = append(gone, e)
		}
		return true
	})
	if errors.Is(err, unix.ENOENT) {
		err = c.commit(anyGeneration, []command{addTable(s.table), addSet(s)})
	}
	if err != nil {
		return 0, err
	}
	for some := range slices.Chunk(gone, fillAtOnce) {
		if err := c.commit(anyGeneration, deleteElements(s, some)); err != nil {
			return changed, err
		}
		changed += len(some)
	}
	for i, v := range want {
		if !there[i] {
			room.key = appendKey(room.key[:0], v)
			come = append(come, element{key: string(room.key)})
		}
		if len(come) == fillAtOnce || i == len(want)-1 && len(come) > 0 {
			if err := c.commit(anyGeneration, addElements(s, come)); err != nil {
				return changed, err
			}
			changed += len(come)
			come = come[:0]
		}
	}
	return changed, nil
}

// Holds reports whether the kernel's peer and tuple sets hold everybody who is in those of
// want. A set that is not there holds nobody.
func (b Backend) Holds(_ context.Context, want desired.Set) (bool, error) {
	c, err := dial()
	if err != nil {
		return false, err
	}
	defer c.close()
	all := true
	populate(want.State, func(s set, e element) {
		there, errHas := c.has(s, e)
		all, err = all && there, errors.Join(err, errHas)
	})
	return all, err
}
