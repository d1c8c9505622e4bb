package dataplane

import (
	"context"

	"github.com/podmark/podmark/pkg/dataplane/checksum"
	"github.com/podmark/podmark/pkg/desired"
)

// Checksummed is a backend with package checksum beside it, which no backend can stand in for: what a
// packet says when it is judged, it says behind.
type Checksummed struct{ Backend }

// Stands is that of Backend.
func (b Checksummed) Stands(ctx context.Context, n desired.Node) error {
	if err := checksum.Check(); err != nil {
		return err
	}
	return b.Backend.Stands(ctx, n)
}

// Check is that of Backend.
func (b Checksummed) Check(ctx context.Context, want desired.State) error {
	if err := checksum.Check(); err != nil {
		return err
	}
	return b.Backend.Check(ctx, want)
}

// Verify is that of Backend.
func (b Checksummed) Verify(ctx context.Context, want desired.State) error {
	if err := checksum.Check(); err != nil {
		return err
	}
	return b.Backend.Verify(ctx, want)
}

// Keep is that of Backend.
func (b Checksummed) Keep(ctx context.Context, want desired.State) (replaced []string, err error) {
	if err := checksum.Check(); err != nil {
		return nil, err
	}
	return b.Backend.Keep(ctx, want)
}
