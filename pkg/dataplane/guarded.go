package dataplane

import (
	"context"
	"errors"

	"github.com/podmark/podmark/pkg/dataplane/counters"
	"github.com/podmark/podmark/pkg/dataplane/iptables"
	"github.com/podmark/podmark/pkg/dataplane/nftables"
	"github.com/podmark/podmark/pkg/desired"
)

// Guarded is iptables with nftables.Guard beside it: iptables knows a link by its name, and
// sees of a bridge what br_netfilter hands to IP, and no more. What a change brings, the
// guard gets first: what it lets pass is judged behind.
type Guarded struct {
	iptables.Backend
	Guard nftables.Guard
}

// Sync is that of Backend. The guard comes second: where nftables has judged so far, that
// ends with it.
func (b Guarded) Sync(ctx context.Context, want desired.State) error {
	if err := b.Backend.Sync(ctx, want); err != nil {
		return err
	}
	return b.Guard.Sync(ctx, want)
}

// Remove is that of Backend. The guard goes last: what it lets pass is judged behind.
func (b Guarded) Remove(ctx context.Context) error {
	return errors.Join(b.Backend.Remove(ctx), b.Guard.Remove(ctx))
}

// Update is that of Backend.
func (b Guarded) Update(ctx context.Context, from, to desired.State) error {
	if err := b.Guard.Update(ctx, from, to); err != nil {
		return err
	}
	return b.Backend.Update(ctx, from, to)
}

// Stands is that of Backend.
func (b Guarded) Stands(ctx context.Context, n desired.Node) error {
	if err := b.Backend.Stands(ctx, n); err != nil {
		return err
	}
	return b.Guard.Stands(ctx, n)
}

// Check is that of Backend.
func (b Guarded) Check(ctx context.Context, want desired.State) error {
	if err := b.Backend.Check(ctx, want); err != nil {
		return err
	}
	return b.Guard.Check(ctx, want)
}

// Verify is that of Backend.
func (b Guarded) Verify(ctx context.Context, want desired.State) error {
	if err := b.Backend.Verify(ctx, want); err != nil {
		return err
	}
	return b.Guard.Check(ctx, want)
}

// Keep is that of Backend.
func (b Guarded) Keep(ctx context.Context, want desired.State) (replaced []string, err error) {
	if err := b.Guard.Check(ctx, want); err != nil {
		return nil, err
	}
	return b.Backend.Keep(ctx, want)
}

// Counters is that of Backend.
func (b Guarded) Counters(ctx context.Context) ([]counters.Rule, error) {
	rules, err := b.Backend.Counters(ctx)
	ofGuard, errGuard := b.Guard.Counters(ctx)
	return append(rules, ofGuard...), errors.Join(err, errGuard)
}
