package nftables

import (
	"context"
	"errors"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/desired"
)

// fillAtOnce is how many elements come or go in one transaction.
const fillAtOnce = 10 * elementsAtOnce

// Fill makes the peer and tuple sets of want hold exactly who is in them there, and says
// how many elements came and went. It makes those that are not there. A packet may see a
// set half-way.
func (b Backend) Fill(_ context.Context, want desired.State) (changed int, err error) {
	c, err := dial()
	if err != nil {
		return 0, err
	}
	defer c.close()
	content := map[string][]string{}
	for name, some := range counts(want) { // lists that grow take twice the room
		content[name] = make([]string, 0, some)
	}
	populate(want, func(s set, e element) { content[s.name] = append(content[s.name], e.key) })
	for _, s := range policySets(want) {
		n, err := replaceContent(c, s, content[s.name])
		if changed += n; err != nil {
			return changed, err
		}
		if n > 0 && b.Step != nil {
			b.Step("filled " + s.name)
		}
	}
	return changed, nil
}

// counts is how many elements each peer and tuple set has, by name.
func counts(s desired.State) map[string]int {
	out := map[string]int{}
	for id, set := range s.PeerSets {
		four := 0
		for _, a := range set.Addrs {
			if a.Is4() {
				four++
			}
		}
		out[peers(v4, id).name], out[peers(v6, id).name] = four, len(set.Addrs)-four
	}
	for id, set := range s.TupleSets {
		four := 0
		for _, t := range set.Tuples {
			if t.Addr().Is4() {
				four++
			}
		}
		out[tuples(v4, id).name], out[tuples(v6, id).name] = four, len(set.Tuples)-four
	}
	return out
}

// replaceContent makes a set hold exactly the keys of want, which are sorted. It keeps no
// element of a set that is as it should be.
func replaceContent(c *conn, s set, want []string) (changed int, err error) {
	there := make([]bool, len(want))
	var gone, come []element
	err = c.eachElement(s, func(e element) bool {
		if i, wanted := slices.BinarySearch(want, e.key); wanted {
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
	for i, key := range want {
		if !there[i] {
			come = append(come, element{key: key})
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
func (b Backend) Holds(_ context.Context, want desired.State) (bool, error) {
	c, err := dial()
	if err != nil {
		return false, err
	}
	defer c.close()
	all := true
	populate(want, func(s set, e element) {
		there, errHas := c.has(s, e)
		all, err = all && there, errors.Join(err, errHas)
	})
	return all, err
}
