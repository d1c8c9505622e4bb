package node

import (
	"context"
	"fmt"
	"strings"

	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/foreign"
	"github.com/podmark/podmark/pkg/mark"
)

// layoutToBegin is that of a node on which no endpoint has an ID yet. This is when others
// are asked for the bits that they use: it takes a list of all rules, and is not done again
// by an ADD.
func (n Node) layoutToBegin(ctx context.Context, f nodeFile, settings Settings) (mark.Layout, error) {
	report := n.kernel().others(ctx)
	layout, told, err := Begin(report, f.Backend.Backend(), settings)
	if err != nil {
		return mark.Layout{}, err
	}
	if err := report.Error(); err != nil {
		told = append(told, err.Error())
	}
	if n.Warn != nil {
		for _, text := range told {
			n.Warn(text)
		}
	}
	return layout, nil
}

// WillEnforce is what enforces where a configuration names b: with [config.BackendAuto] the
// kernel is asked, unless the node has begun.
func (n Node) WillEnforce(b config.Backend) config.Backend {
	if b != config.BackendAuto {
		return b
	}
	kind, _ := n.Kind() // an ADD says why there is none
	return kind.Backend()
}

// Begin decides on the layout that a node begins with, the one of the settings or bits that
// nobody uses, and says what an operator should know of it. ErrTaken where it is refused.
//
// Refused is a mask of which a well-known program writes bits where a packet could pass for
// another's: kube-router's netpol with iptables, whose chains come between podmark's mark and
// IPVS. Policies would hold, which iptables finds by addresses, but what asks for an ID would
// be misled. With nftables nothing in the usual
// places comes between, and what is in common is only told. So is a rule of nobody known,
// which may be for packets that are no pod's, and what writes whole marks, from which no
// mask is free. With [config.CollisionWarn] nothing is refused.
func Begin(r foreign.Report, b config.Backend, s Settings) (layout mark.Layout, told []string, err error) {
	free, ok := r.Free()
	way := "no two bits are free"
	if ok {
		way = fmt.Sprintf("set \"iptablesMarkMask\" to \"%#x\", which is free, or to %q", free.Mask(), config.MaskAuto)
	}
	if layout = s.Layout; layout.Mask() == 0 {
		if !ok {
			return layout, nil, fmt.Errorf("choosing bits for iptablesMarkMask %q: %w: %s: name a mask", config.MaskAuto, ErrTaken, way)
		}
		layout = free
	}
	var refused []string
	for _, c := range r.Collisions(b, layout.Mask()) {
		switch {
		case c.Harm >= foreign.Misled && c.User.Name != "" && !c.Whole && s.MarkCollision != config.CollisionWarn:
			refused = append(refused, c.String())
		case c.Harm == foreign.Misled:
			told = append(told, "what a router in a pod wraps can pass for what comes from outside: "+c.String())
		case c.Harm == foreign.Forged:
			told = append(told, "policies can be bypassed: "+c.String())
		default:
			told = append(told, c.String())
		}
	}
	if refused != nil {
		return layout, nil, fmt.Errorf("beginning with iptablesMarkMask %#x: %w: %s: %s; or start all the same with \"markCollision\": %q", layout.Mask(), ErrTaken, strings.Join(refused, "; "), way, config.CollisionWarn)
	}
	return layout, told, nil
}
