package node

import (
	"github.com/podmark/podmark/pkg/dataplane/checksum"
)

// What file.Checksums says.
const (
	checksumsByBPF     = "bpf"
	checksumsUnchecked = "none"
)

// syncChecksums has the kernel check where checksums go, and notes why where it cannot. podmark
// enforces all the same, and tries again when it writes everything again.
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
		return "it was not tried yet: the next ADD does, and 'podmarkctl gc'"
	}
	return f.ChecksumsLacks
}
