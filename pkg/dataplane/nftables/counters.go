package nftables

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/dataplane/counters"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/nfnetlink"
)

// Counters reads what each rule that drops, or decides in a profile, has counted. It
// needs no lock: when a
// change comes in between, it reads again.
func (b Backend) Counters(ctx context.Context) ([]counters.Rule, error) {
	c, err := dial()
	if err != nil {
		return nil, err
	}
	defer c.close()
	for {
		before, err := c.generation()
		if err != nil {
			return nil, err
		}
		var rules []counters.Rule
		for _, t := range tables() {
			of, err := c.counting(t)
			if err != nil {
				return nil, err
			}
			rules = append(rules, of...)
		}
		after, err := c.generation()
		if err != nil || after == before {
			return rules, err
		}
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("reading counters: another program changes nf_tables all the time: %w", err)
		}
	}
}

// counting reads the rules of a table that count. The handle of a rule is unique in its
// table, and that of the table in the network namespace.
func (c *conn) counting(t nftables.Table) ([]counters.Rule, error) {
	table, _, err := c.table(t)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{{
		Type: unix.NFTA_RULE_TABLE,
		Data: append([]byte(t.Name), 0),
	}})
	if err != nil {
		return nil, err
	}
	var out []counters.Rule
	dump := []netlink.Message{request(unix.NFT_MSG_GETRULE, netlink.Dump, t.Family, attrs)}
	err = c.exchangeEach(dump, 0, func(m netlink.Message) (more bool, err error) {
		ad, err := nfnetlink.Attributes(m)
		if err != nil {
			return false, err
		}
		var r countingRule
		r.decode(ad)
		if key, ok := keyOf(r.chain); ok && r.counts {
			rule := counters.Rule{Key: key, ID: fmt.Sprint(table, ".", r.handle), Packets: r.packets}
			switch {
			case r.returns && key.Stage != "" && !r.marks:
				rule.Reason, rule.Origin = counters.Passed, r.comment
			case r.returns:
				rule.Reason, rule.Origin = counters.Allowed, r.comment
			case !r.drops:
				rule.Reason = counters.Audit
			}
			out = append(out, rule)
		}
		return true, ad.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("reading rules of %s: %w", path(t), err)
	}
	return out, nil
}

// table reads the handle of a table, and whether its hooks are called. ENOENT where there is
// none.
func (c *conn) table(t nftables.Table) (handle uint64, awake bool, err error) {
	const (
		attrHandle = 4 // NFTA_TABLE_HANDLE, Linux 4.16
		dormant    = 1 // NFT_TABLE_F_DORMANT
	)
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{{
		Type: unix.NFTA_TABLE_NAME,
		Data: append([]byte(t.Name), 0),
	}})
	if err != nil {
		return 0, false, err
	}
	replies, err := c.exchange([]netlink.Message{request(unix.NFT_MSG_GETTABLE, netlink.Acknowledge, t.Family, attrs)}, 0)
	if err != nil {
		return 0, false, fmt.Errorf("reading table %s: %w", path(t), err)
	}
	awake = true
	for _, m := range replies {
		ad, err := nfnetlink.Attributes(m)
		if err != nil {
			return 0, false, err
		}
		for ad.Next() {
			switch ad.Type() {
			case attrHandle:
				handle = ad.Uint64()
			case unix.NFTA_TABLE_FLAGS:
				awake = ad.Uint32()&dormant == 0
			}
		}
		if err := ad.Err(); err != nil {
			return 0, false, err
		}
	}
	return handle, awake, nil
}

// keyOf tells why the rules of a chain drop, if they do: in a profile, those that end it.
func keyOf(chain string) (counters.Key, bool) {
	switch chain {
	case chainSpoofed, chainFrames:
		return counters.Key{Reason: counters.Spoofed}, true
	case chainUnclassified:
		return counters.Key{Reason: counters.Unclassified}, true
	case chainEncapsulated:
		return counters.Key{Reason: counters.Encapsulated}, true
	case chainStray:
		return counters.Key{Reason: counters.Stray}, true
	}
	for _, d := range desired.Directions {
		for _, f := range []family{v4, v6} {
			if id, ok := strings.CutPrefix(chain, chainOf(d, f, "")); ok {
				return counters.Key{Reason: counters.Policy, Direction: d, Profile: desired.ProfileID(id)}, true
			}
			if id, ok := strings.CutPrefix(chain, stageChain(d, f, "")); ok {
				id, number, _ := strings.Cut(id, "-")
				n, _ := strconv.Atoi(number) // 0 for the chain of the stage
				return counters.Key{Reason: counters.Policy, Direction: d, Stage: desired.StageID(id), Rule: n}, true
			}
		}
	}
	return counters.Key{}, false
}

// countingRule is what of a rule counts here.
type countingRule struct {
	chain, comment string
	handle         uint64
	packets        uint64
	counts         bool
	drops, returns bool
	// marks is set where it writes the packet's mark.
	marks bool
}

func (r *countingRule) decode(ad *netlink.AttributeDecoder) {
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_RULE_CHAIN:
			r.chain = ad.String()
		case unix.NFTA_RULE_HANDLE:
			r.handle = ad.Uint64()
		case unix.NFTA_RULE_USERDATA:
			r.comment, _ = userdata.GetString(ad.Bytes(), userdata.TypeComment)
		case unix.NFTA_RULE_EXPRESSIONS:
			ad.Nested(func(list *netlink.AttributeDecoder) error {
				for list.Next() {
					list.Nested(r.decodeExpr)
				}
				return nil
			})
		}
	}
}

// decodeExpr reads a counter or a verdict: the kernel gives an expression's name first.
func (r *countingRule) decodeExpr(ad *netlink.AttributeDecoder) error {
	name := ""
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_EXPR_NAME:
			name = ad.String()
		case unix.NFTA_EXPR_DATA:
			switch name {
			case "counter":
				ad.Nested(r.decodeCounter)
			case "immediate":
				ad.Nested(r.decodeVerdict)
			case "meta":
				ad.Nested(r.decodeMeta)
			}
		}
	}
	return nil
}

func (r *countingRule) decodeMeta(ad *netlink.AttributeDecoder) error {
	for ad.Next() {
		r.marks = r.marks || ad.Type() == unix.NFTA_META_SREG
	}
	return nil
}

func (r *countingRule) decodeCounter(ad *netlink.AttributeDecoder) error {
	for ad.Next() {
		if ad.Type() == unix.NFTA_COUNTER_PACKETS {
			r.counts, r.packets = true, ad.Uint64()
		}
	}
	return nil
}

func (r *countingRule) decodeVerdict(ad *netlink.AttributeDecoder) error {
	const drop, giveBack = 0, 0xffff_fffb // NF_DROP, NFT_RETURN
	for ad.Next() {
		if ad.Type() != unix.NFTA_IMMEDIATE_DATA {
			continue
		}
		ad.Nested(func(data *netlink.AttributeDecoder) error {
			for data.Next() {
				if data.Type() != unix.NFTA_DATA_VERDICT {
					continue
				}
				data.Nested(func(verdict *netlink.AttributeDecoder) error {
					for verdict.Next() {
						if verdict.Type() == unix.NFTA_VERDICT_CODE {
							r.drops, r.returns = verdict.Uint32() == drop, verdict.Uint32() == giveBack
						}
					}
					return nil
				})
			}
			return nil
		})
	}
	return nil
}
