// Package conflist edits CNI network configuration lists.
//
// It owns where podmark's entry stands in a list that is another program's: it
// inserts, replaces or cuts that one entry and leaves every other byte as it is. It
// is pure: it opens no file, and it understands a list exactly as libcni does.
//
//	chosen, _, err := conflist.Choose(files, conflist.Wanted{})
//	content, err := conflist.Insert(chosen.Content, []byte(`{"type": "podmark"}`))
package conflist

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"
)

// Errors that callers branch on.
var (
	// ErrSyntax: not a network configuration list that libcni would take.
	ErrSyntax = errors.New("not a network configuration list")
	// ErrNoPlugins: the list has all its plugins in files of their own.
	ErrNoPlugins = errors.New("the list has no \"plugins\" to add an entry to")
	// ErrOnly: without the entry the list would have no plugin, and no runtime takes that.
	ErrOnly = errors.New("the list has no other plugin")
	// ErrEntry: not an entry of a list.
	ErrEntry = errors.New("an entry is a JSON object with a \"type\"")
)

// Network is what a list says about itself, read by libcni.
type Network struct {
	Name string
	// CNIVersion is the version that libcni calls the plugins with; may be empty.
	CNIVersion string
	// OnlyInlined is loadOnlyInlinedPlugins: files of plugins beside the list are ignored.
	OnlyInlined bool
	// Types are the plugins in order, without those that have files of their own.
	Types []string
}

// Parse reads a list; ErrSyntax.
func Parse(conf []byte) (Network, error) {
	list, err := libcni.NetworkConfFromBytes(conf)
	if err != nil {
		return Network{}, fmt.Errorf("%w: %w", ErrSyntax, err)
	}
	n := Network{Name: list.Name, CNIVersion: list.CNIVersion, OnlyInlined: list.LoadOnlyInlinedPlugins}
	for _, p := range list.Plugins {
		n.Types = append(n.Types, p.Network.Type)
	}
	return n, nil
}

// Entry returns the first entry of that type as it stands in the list, nil when
// there is none.
func Entry(conf []byte, plugin string) (json.RawMessage, error) {
	l, err := scan(conf)
	if err != nil {
		return nil, err
	}
	for _, e := range l.elements {
		if e.plugin == plugin {
			return slices.Clone(conf[e.start:e.end]), nil
		}
	}
	return nil, nil
}

// Insert makes entry the list's only entry of its type and returns the list. A new
// one comes last and is indented like its neighbour, one that says something else
// is replaced where it stands, and a list that has the entry is returned as it is.
// Errors: ErrSyntax, ErrNoPlugins, ErrEntry.
func Insert(conf, entry []byte) ([]byte, error) {
	plugin, err := EntryType(entry)
	if err != nil {
		return nil, err
	}
	l, err := scan(conf)
	if err != nil {
		return nil, err
	}
	if len(l.elements) == 0 {
		return nil, ErrNoPlugins
	}
	there := slices.IndexFunc(l.elements, func(e element) bool { return e.plugin == plugin })
	if there < 0 {
		last := l.elements[len(l.elements)-1]
		return splice(conf, last.end, last.end, l.separator(conf), styleOf(conf, last).format(entry)), nil
	}
	// Cut later ones of the type first: their positions are after this one's.
	for i := len(l.elements) - 1; i > there; i-- {
		if l.elements[i].plugin == plugin {
			conf = splice(conf, l.elements[i-1].end, l.elements[i].end)
		}
	}
	e := l.elements[there]
	if Equal(conf[e.start:e.end], entry) {
		return conf, nil
	}
	return splice(conf, e.start, e.end, styleOf(conf, e).format(entry)), nil
}

// Remove cuts every entry of that type out of the list, with the comma and the
// space before it: what Insert added is gone byte for byte. Errors: ErrSyntax, ErrOnly.
func Remove(conf []byte, plugin string) ([]byte, error) {
	l, err := scan(conf)
	if err != nil {
		return nil, err
	}
	kept := slices.DeleteFunc(slices.Clone(l.elements), func(e element) bool { return e.plugin == plugin })
	switch {
	case len(kept) == len(l.elements):
		return conf, nil
	case len(kept) == 0:
		return nil, fmt.Errorf("%w than %q", ErrOnly, plugin)
	}
	for i := len(l.elements) - 1; i >= 0; i-- {
		if l.elements[i].plugin != plugin {
			continue
		}
		if l.elements[i].start < kept[0].start {
			// Everything up to the first one that stays.
			return splice(conf, l.elements[0].start, kept[0].start), nil
		}
		conf = splice(conf, l.elements[i-1].end, l.elements[i].end)
	}
	return conf, nil
}

// Calls reports whether a runtime that reads a configuration calls that plugin: as one of a
// list, or of what another plugin is told to call, as Multus is in "delegates". What the
// configuration itself is of does not count: podmark cannot work alone.
func Calls(conf []byte, plugin string) bool {
	var object map[string]any
	if json.Unmarshal(conf, &object) != nil {
		return false // nobody can read it
	}
	return slices.ContainsFunc(slices.Collect(maps.Values(object)), func(v any) bool { return names(v, plugin) })
}

// names reports whether a value is, or has in it, an object of that type.
func names(value any, plugin string) bool {
	switch v := value.(type) {
	case map[string]any:
		for key, inner := range v {
			if strings.EqualFold(key, "type") && inner == plugin || names(inner, plugin) {
				return true
			}
		}
	case []any:
		return slices.ContainsFunc(v, func(inner any) bool { return names(inner, plugin) })
	}
	return false
}

// EntryType returns the type of an entry; ErrEntry when it is none. Like libcni it
// takes the last of several types, and any case of the key.
func EntryType(entry []byte) (string, error) {
	var object map[string]any
	if err := json.Unmarshal(entry, &object); err != nil {
		return "", fmt.Errorf("%w: %w", ErrEntry, err)
	}
	b, err := json.Marshal(object)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrEntry, err)
	}
	c, err := libcni.NetworkPluginConfFromBytes(b)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrEntry, err)
	}
	return c.Network.Type, nil
}

// Equal reports whether two JSON values say the same, whatever their order of keys
// and their white space.
func Equal(a, b []byte) bool {
	canonical := func(b []byte) []byte {
		d := json.NewDecoder(bytes.NewReader(b))
		d.UseNumber()
		var v any
		if d.Decode(&v) != nil {
			return nil
		}
		out, _ := json.Marshal(v)
		return out
	}
	x, y := canonical(a), canonical(b)
	return x != nil && bytes.Equal(x, y)
}

// splice returns conf with the bytes from start to end replaced, in a new slice.
func splice(conf []byte, start, end int, parts ...[]byte) []byte {
	return slices.Concat(conf[:start], slices.Concat(parts...), conf[end:])
}
