package conflist

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"
)

// Errors of Choose.
var (
	// ErrNone: there is no network configuration.
	ErrNone = errors.New("no network configuration that a runtime would take")
	// ErrPlain: the runtime takes a configuration of one plugin, which nothing can be chained to.
	ErrPlain = errors.New("this configuration of a single plugin is the one that runtimes take, and nothing can be chained to it")
	// ErrMultus: it cannot be told which list Multus calls for the default network.
	ErrMultus = errors.New("the conflist behind Multus is not known")
)

// File is a file of a directory of network configurations.
type File struct {
	// Name is without the directory.
	Name    string
	Content []byte
}

// Skipped is a file that no runtime takes, and why. CRI-O passes it over as
// Choose does; containerd reports it and has no network until it is fixed.
type Skipped struct {
	Name   string
	Reason error
	// Multus is set where it seems to be Multus' own: its name or what is left of it says so.
	Multus bool
}

// IsConfiguration reports whether a runtime looks at files of that name.
func IsConfiguration(name string) bool {
	return slices.Contains([]string{".conf", ".conflist", ".json"}, filepath.Ext(name))
}

// Choice is the list that gets podmark's entry.
type Choice struct {
	File
	// Multus is the name of Multus' file that runtimes take, where it is that which calls
	// the list; with ErrPlain, the configuration.
	Multus string
	// StaleCopy is set where Multus' file has a copy of the list, and podmark is not in it or has
	// another entry.
	StaleCopy bool
	// Unused is why runtimes take another list than this one, which was asked for by name.
	Unused error
}

// Wanted is what is known of the list that gets the entry.
type Wanted struct {
	// Name is that of its file; empty for what runtimes take.
	Name string
	// Network is what the runtime was told to take for its default network, as CRI-O by
	// cni_default_network; empty for the first by name.
	Network string
	// Dir is the directory of the files, as an absolute path of the node: Multus names files by
	// theirs. Empty where it is not known.
	Dir string
}

// Choose picks the list that gets the entry, and reads it: what runtimes take is the network
// that they were told, or the first file by name that they find valid. Where that is Multus', it is the
// list of Multus' default network: what it calls first. The skipped are those before the one
// that runtimes take. Errors: ErrNone; ErrPlain, with the file that it is; ErrMultus.
func Choose(files []File, want Wanted) (chosen Choice, skipped []Skipped, err error) {
	files = slices.DeleteFunc(slices.Clone(files), func(f File) bool { return !IsConfiguration(f.Name) })
	slices.SortFunc(files, func(a, b File) int { return strings.Compare(a.Name, b.Name) })
	taken, skipped, errTaken := take(files, want)
	if want.Name == "" {
		return taken, skipped, errTaken
	}
	if chosen.File, err = named(files, want.Name); err != nil {
		return chosen, nil, err
	}
	switch {
	case errTaken == nil && taken.Name == want.Name:
		return taken, nil, nil
	case taken.Multus != "" || errors.Is(errTaken, ErrMultus):
		return chosen, nil, nil // who names it knows more of Multus
	case want.Network != "":
		chosen.Unused = fmt.Errorf("%q was asked for by name, and the runtime was told to take the network %q: name its conflist, or none", want.Name, want.Network)
	default:
		chosen.Unused = fmt.Errorf("%q was asked for by name, and runtimes take %q, which comes first: name that, or none, or move that away", want.Name, taken.Name)
	}
	return chosen, nil, nil
}

// take picks what runtimes take, whatever was asked for by name. With ErrPlain it is the file.
func take(files []File, want Wanted) (taken Choice, skipped []Skipped, err error) {
	for i, f := range files {
		types, err := typesOf(f)
		switch {
		case err != nil:
			skipped = append(skipped, Skipped{
				f.Name, err,
				strings.Contains(strings.ToLower(f.Name+string(f.Content)), "multus"),
			})
		case want.Network != "" && networkOf(f) != want.Network:
		case isMultus(types):
			taken, err = behindMultus(f, slices.Delete(slices.Clone(files), i, i+1), want.Dir)
			return taken, skipped, err
		case filepath.Ext(f.Name) != ".conflist":
			return Choice{File: f}, skipped, plain(f, types)
		default:
			return Choice{File: f}, skipped, nil
		}
	}
	if want.Network != "" {
		return Choice{}, skipped, fmt.Errorf("%w: the runtime was told to take the network %q, and no file has it", ErrNone, want.Network)
	}
	return Choice{}, skipped, ErrNone
}

// networkOf is the name of a file's network.
func networkOf(f File) string {
	var network struct{ Name string }
	_ = json.Unmarshal(f.Content, &network) // what has no name is none that is asked for
	return network.Name
}

// named is the list in the file of that name.
func named(files []File, name string) (File, error) {
	i := slices.IndexFunc(files, func(f File) bool { return f.Name == name })
	if i < 0 {
		return File{}, fmt.Errorf("%w: there is no %q, which was asked for by name", ErrNone, name)
	}
	switch types, err := typesOf(files[i]); {
	case err != nil:
		return File{}, fmt.Errorf("%q: %w", name, err)
	case isMultus(types):
		return File{}, fmt.Errorf("%w: %q is Multus' own file, which it writes itself: name the conflist of its default network", ErrMultus, name)
	case filepath.Ext(name) != ".conflist":
		return files[i], plain(files[i], types)
	}
	return files[i], nil
}

func plain(f File, types []string) error {
	return fmt.Errorf("%w: %q of plugin %q; give the network a .conflist, with that plugin in its \"plugins\", and move this file away",
		ErrPlain, f.Name, types[0])
}

// typesOf are the plugins of a file as runtimes read it.
func typesOf(f File) ([]string, error) {
	if filepath.Ext(f.Name) == ".conflist" {
		n, err := Parse(f.Content)
		return n.Types, err
	}
	c, err := libcni.NetworkPluginConfFromBytes(f.Content)
	if err != nil {
		return nil, err
	}
	return []string{c.Network.Type}, nil
}

// isMultus reports whether the first plugin is Multus: thin, or its daemon's.
func isMultus(types []string) bool {
	return len(types) > 0 && slices.Contains([]string{"multus", "multus-shim"}, types[0])
}

// behindMultus is the list that Multus, of which f is the file, calls for the default network.
// It names that by clusterNetwork, as a network, a file with or without its ending, or a
// path, and without that it has a copy of it in delegates. Where it names nothing, its daemon takes the first
// of the other files, which are in dir.
func behindMultus(f File, others []File, dir string) (Choice, error) {
	var list struct{ Plugins []json.RawMessage }
	own := f.Content
	if filepath.Ext(f.Name) == ".conflist" {
		_ = json.Unmarshal(own, &list) // libcni has read it
		own = list.Plugins[0]
	}
	var m struct {
		ClusterNetwork string
		Delegates      []json.RawMessage
	}
	if err := json.Unmarshal(own, &m); err != nil {
		return Choice{}, fmt.Errorf("%w: reading %q: %w", ErrMultus, f.Name, err)
	}
	wanted := m.ClusterNetwork
	var copied []byte
	if wanted == "" && len(m.Delegates) > 0 {
		var d struct{ Name string }
		_ = json.Unmarshal(m.Delegates[0], &d) // without a name it is looked for in vain
		if d.Name == "" {
			return Choice{}, fmt.Errorf("%w: the first of the \"delegates\" in %q has no name by which to find its conflist: name the conflist with --cni-conf-name", ErrMultus, f.Name)
		}
		wanted = d.Name
		copied = m.Delegates[0]
	}
	for _, o := range others {
		types, err := typesOf(o)
		if err != nil || isMultus(types) || wanted != "" && !isNamed(o, wanted, dir) {
			continue
		}
		if filepath.Ext(o.Name) != ".conflist" {
			return Choice{File: o, Multus: f.Name}, plain(o, types)
		}
		return Choice{File: o, Multus: f.Name, StaleCopy: copied != nil && !sameEntry(copied, o.Content)}, nil
	}
	if wanted == "" {
		return Choice{}, fmt.Errorf("%w: %q is Multus', and there is no other file for its default network", ErrNone, f.Name)
	}
	return Choice{}, fmt.Errorf("%w: %q takes its default network %q from somewhere else than this directory: name the conflist with --cni-conf-name, or its directory with --cni-conf-dir", ErrMultus, f.Name, wanted)
}

// sameEntry reports whether podmark has an entry in the copy of a list, and no other than in the list.
func sameEntry(copied, list []byte) bool {
	x, errX := Entry(copied, "podmark")
	y, errY := Entry(list, "podmark")
	return errX == nil && errY == nil && x != nil && (y == nil || Equal(x, y))
}

// isNamed reports whether wanted means the file in dir: its network, its name or its path. A path
// may be one of Multus' container, which has dir, or the usual one, below another directory.
func isNamed(f File, wanted, dir string) bool {
	base := filepath.Base(wanted)
	if wanted != base && dir != "" {
		of := filepath.Dir(wanted)
		if !strings.HasSuffix(of, filepath.Clean(dir)) && !strings.HasSuffix(of, "/cni/net.d") {
			return false
		}
	}
	return base == f.Name || base == strings.TrimSuffix(f.Name, filepath.Ext(f.Name)) || networkOf(f) == wanted
}
