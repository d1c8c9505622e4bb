package dataplane

import (
	"context"

	"github.com/podmark/podmark/pkg/dataplane/checksum"
	"github.com/podmark/podmark/pkg/dataplane/drift"
	"github.com/podmark/podmark/pkg/desired"
)

// Checksummed is a backend with package checksum beside it, which no backend can stand in for: what a
// packet says when it is judged, it says behind.
type Checksummed struct{ Backend }

// Check is that of Backend.
func (b Checksummed) Check(ctx context.Context, want desired.State, depth drift.Depth) error {
	if err := checksum.Check(); err != nil {
		return err
	}
	return b.Backend.Check(ctx, want, depth)
}

// Refresh is that of Backend.
func (b Checksummed) Refresh(ctx context.Context, want desired.State) (replaced []string, err error) {
	if err := checksum.Check(); err != nil {
		return nil, err
	}
	return b.Backend.Refresh(ctx, want)
}
