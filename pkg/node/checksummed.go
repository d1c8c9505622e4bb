package node

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

// What file.Checksums says.
const (
	checksumsByBPF     = "bpf"
	checksumsUnchecked = "none"
)

// syncChecksums has the kernel look where checksums go, and notes why where it cannot. podmark
// enforces all the same, and tries again when it writes everything anew.
func (f *nodeFile) syncChecksums() {
	f.Checksums, f.ChecksumsLacks = checksumsByBPF, ""
	if lacking := checksum.Sync(); lacking != nil {
		f.Checksums, f.ChecksumsLacks = checksumsUnchecked, lacking.Error()
	}
}

// Alterable says what is lacking to keep what has been judged as it is: a pod may have the kernel
// write a checksum over a port or an address. Empty where it may not.
func (n Node) Alterable() (string, error) {
	f, err := n.load()
	return f.alterable(), err
}

func (f nodeFile) alterable() string {
	switch f.Checksums {
	case checksumsByBPF:
		if err := checksum.Check(); err != nil {
			return err.Error()
		}
	case "":
		return "nobody has tried yet: the next ADD does, and 'podmarkctl gc'"
	}
	return f.ChecksumsLacks
}
