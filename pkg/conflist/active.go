package conflist

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"
)

// Errors of Active.
var (
	// ErrNone: there is no network configuration.
	ErrNone = errors.New("no network configuration that a runtime would take")
	// ErrPlain: the runtime takes a configuration of one plugin, which nothing can be chained to.
	ErrPlain = errors.New("this configuration of a single plugin is the one that runtimes take, and nothing can be chained to it")
)

// File is a file of a folder of network configurations.
type File struct {
	// Name is without the folder.
	Name    string
	Content []byte
}

// Skipped is a file that no runtime takes, and why. CRI-O passes it over as
// Active does; containerd reports it and has no network until it is mended.
type Skipped struct {
	Name   string
	Reason error
}

// IsConfiguration reports whether a runtime looks at files of that name.
func IsConfiguration(name string) bool {
	return slices.Contains([]string{".conf", ".conflist", ".json"}, filepath.Ext(name))
}

// Active picks the file that runtimes take: the first by name that is valid. The
// skipped are those before it. Errors: ErrNone, ErrPlain.
func Active(files []File) (active File, skipped []Skipped, err error) {
	files = slices.DeleteFunc(slices.Clone(files), func(f File) bool { return !IsConfiguration(f.Name) })
	slices.SortFunc(files, func(a, b File) int { return strings.Compare(a.Name, b.Name) })
	for _, f := range files {
		if filepath.Ext(f.Name) == ".conflist" {
			if _, err := Parse(f.Content); err != nil {
				skipped = append(skipped, Skipped{f.Name, err})
				continue
			}
			return f, skipped, nil
		}
		c, err := libcni.NetworkPluginConfFromBytes(f.Content)
		if err != nil {
			skipped = append(skipped, Skipped{f.Name, err})
			continue
		}
		return File{}, skipped, fmt.Errorf("%w: %q of plugin %q; give the network a .conflist, with that plugin in its \"plugins\", and move this file away",
			ErrPlain, f.Name, c.Network.Type)
	}
	return File{}, skipped, ErrNone
}
