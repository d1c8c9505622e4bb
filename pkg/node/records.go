package node

import (
	"slices"

	"github.com/podmark/podmark/pkg/attachment"
)

// readRecords lists the attachments that are complete, each with the addresses that
// are still its own.
func (n Node) readRecords() ([]attachment.Record, error) {
	all, err := n.Store.List()
	if err != nil {
		return nil, err
	}
	var live []attachment.Record
	for _, r := range all {
		if r = n.owned(r); r.Committed && len(r.Addresses) > 0 {
			live = append(live, r)
		}
	}
	return live, nil
}

// owned is r with the addresses that no later attachment has taken over.
func (n Node) owned(r attachment.Record) attachment.Record {
	addresses := r.Addresses
	r.Addresses = nil
	for _, a := range addresses {
		if n.Store.Owns(r.Key, a) {
			r.Addresses = append(r.Addresses, a)
		}
	}
	return r
}

// unclaimed is r with the addresses that no other attachment has: also those that were taken from
// it before an earlier call ended.
func (n Node) unclaimed(r attachment.Record) attachment.Record {
	r.Addresses = slices.DeleteFunc(slices.Clone(r.Addresses), func(a addr) bool { return n.Store.Others(r.Key, a) })
	return r
}
