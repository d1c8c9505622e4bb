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

// File is a file of a folder of network configurations.
type File struct {
	// Name is without the folder.
	Name    string
	Content []byte
}

// Skipped is a file that no runtime takes, and why. CRI-O passes it over as
// Choose does; containerd reports it and has no network until it is mended.
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
	// Copied is set where Multus' file has a copy of the list, without podmark in it.
	Copied bool
}

// Choose picks the list that gets the entry, and reads it: the file of that name, or
// without one the first by name that runtimes find valid. Where that is Multus', it is the
// list of Multus' default network: what it calls first. The skipped are those before the one
// that runtimes take. Errors: ErrNone; ErrPlain, with the file that it is; ErrMultus.
func Choose(files []File, name string) (chosen Choice, skipped []Skipped, err error) {
	files = slices.DeleteFunc(slices.Clone(files), func(f File) bool { return !IsConfiguration(f.Name) })
	slices.SortFunc(files, func(a, b File) int { return strings.Compare(a.Name, b.Name) })
	if name != "" {
		chosen.File, err = named(files, name)
		return chosen, nil, err
	}
	for i, f := range files {
		types, err := typesOf(f)
		switch {
		case err != nil:
			skipped = append(skipped, Skipped{f.Name, err, strings.Contains(strings.ToLower(f.Name+string(f.Content)), "multus")})
		case isMultus(types):
			chosen, err = behindMultus(f, slices.Delete(slices.Clone(files), i, i+1))
			return chosen, skipped, err
		case filepath.Ext(f.Name) != ".conflist":
			return Choice{File: f}, skipped, plain(f, types)
		default:
			return Choice{File: f}, skipped, nil
		}
	}
	return Choice{}, skipped, ErrNone
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
// of the other files.
func behindMultus(f File, others []File) (Choice, error) {
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
	wanted, copied := m.ClusterNetwork, false
	if wanted == "" && len(m.Delegates) > 0 {
		var d struct {
			Name    string
			Plugins []struct{ Type string }
		}
		_ = json.Unmarshal(m.Delegates[0], &d) // without a name it is looked for in vain
		if d.Name == "" {
			return Choice{}, fmt.Errorf("%w: the first of the \"delegates\" in %q has no name by which to find its conflist: name the conflist with --cni-conf-name", ErrMultus, f.Name)
		}
		wanted = d.Name
		copied = !slices.ContainsFunc(d.Plugins, func(p struct{ Type string }) bool { return p.Type == "podmark" })
	}
	for _, o := range others {
		types, err := typesOf(o)
		if err != nil || isMultus(types) || wanted != "" && !isNamed(o, wanted) {
			continue
		}
		if filepath.Ext(o.Name) != ".conflist" {
			return Choice{File: o, Multus: f.Name}, plain(o, types)
		}
		return Choice{File: o, Multus: f.Name, Copied: copied}, nil
	}
	if wanted == "" {
		return Choice{}, fmt.Errorf("%w: %q is Multus', and there is no other file for its default network", ErrNone, f.Name)
	}
	return Choice{}, fmt.Errorf("%w: %q takes its default network %q from somewhere else than this folder: name the conflist with --cni-conf-name, or its folder with --cni-conf-dir", ErrMultus, f.Name, wanted)
}

// isNamed reports whether wanted means the file: its network, its name or its path.
func isNamed(f File, wanted string) bool {
	base := filepath.Base(wanted)
	if base == f.Name || base == strings.TrimSuffix(f.Name, filepath.Ext(f.Name)) {
		return true
	}
	var network struct{ Name string }
	return json.Unmarshal(f.Content, &network) == nil && network.Name == wanted
}
