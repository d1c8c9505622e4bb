package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/conflist"
	"github.com/podmark/podmark/pkg/runtimes"
)

var (
	// errAbsent: pods would start without podmark, or not at all.
	errAbsent = errors.New("podmark is not installed where the runtime looks, so the next pod starts without it, or not at all")
	// errUnsaid: pods would start with defaults that nobody asked for, such as no policy.
	errUnsaid = errors.New("podmark is installed, but its entry does not say what it should, so the next pod starts with defaults")
)

// present says why the next pod would start without podmark, or with another one than was asked
// for, or not at all; nil where it is installed, or no directory is to be examined.
func (o *installOptions) present(ctx context.Context) error {
	if o.confDir == "" {
		return nil
	}
	if place := o.found.Load(); place == nil || place.From == runtimes.Assumed {
		if _, err := o.locate(ctx); err != nil {
			return fmt.Errorf("%w: %w", errAbsent, err)
		}
	}
	s := o.site()
	f, err := s.read()
	if err == nil {
		err = f.present(s, o.stateDir)
	}
	if err != nil && !errors.Is(err, errUnsaid) {
		err = fmt.Errorf("%w: %w", errAbsent, err)
	}
	return err
}

// present examines the conflist that runtimes take, and all that the list calls.
func (f confDirectory) present(s site, stateDir string) error {
	active, _, err := f.choose(s.wanted)
	if err != nil {
		return fmt.Errorf("looking for the conflist in %q: %w", s.conf, err)
	}
	path := filepath.Join(s.conf, active.Name)
	n, err := conflist.Parse(active.Content)
	if err == nil {
		err = f.networks[n.Name].unread
	}
	if err != nil {
		return fmt.Errorf("%q: %w", path, err)
	}
	entry, err := conflist.Entry(active.Content, pluginFile)
	if err != nil {
		return fmt.Errorf("%q: %w", path, err)
	}
	if entry == nil && !n.OnlyInlined {
		entry = f.networks[n.Name].dropIn
	}
	if err := f.called(s, active, n, entry != nil); err != nil {
		return err
	}
	if _, err := f.works(s, active); err != nil {
		return err
	}
	return says(entry, n, path, stateDir)
}

// called asks whether the runtime calls podmark for the next pod, and behind the main plugin.
func (f confDirectory) called(s site, active conflist.Choice, n conflist.Network, hasEntry bool) error {
	path := filepath.Join(s.conf, active.Name)
	switch {
	case !hasEntry:
		return fmt.Errorf("%q has no entry of type %q", path, pluginFile)
	case n.Types != nil && n.Types[0] == pluginFile:
		return fmt.Errorf("%q calls podmark first, before the plugin that makes the interface: every ADD fails; podmarkd install puts the entry to the end", path)
	case active.Unused != nil:
		return active.Unused
	case active.StaleCopy:
		return fmt.Errorf("%q has a copy of %q without podmark's entry as it is there, and Multus calls that: restart Multus' pod on this node", filepath.Join(s.conf, active.Multus), path)
	case !f.programs[pluginFile]:
		return fmt.Errorf("there is no plugin %q that can be executed in %q", pluginFile, s.bin)
	}
	return nil
}

// says asks whether the entry for the conflist at path is one that podmark understands, of the same
// state directory, and says what it should.
func says(entry []byte, n conflist.Network, path, stateDir string) error {
	c, err := config.ParseEntry(entry, n.Name, n.CNIVersion)
	if err != nil {
		return fmt.Errorf("podmark's entry for %q: %w", path, err)
	}
	if c.StateDir != stateDir {
		return fmt.Errorf("podmark's entry for %q has stateDir %q, and podmarkd looks after %q", path, c.StateDir, stateDir)
	}
	if unknown := config.Unknown(entry); unknown != nil {
		return fmt.Errorf("%w: the one for %q has %w", errUnsaid, path, unknownKeys(unknown))
	}
	if !config.SaysPolicy(entry) {
		return fmt.Errorf("%w: the one for %q has no \"policy\", so pods are not policed: give --policy kubernetes, files or none to podmarkd install, or write the key", errUnsaid, path)
	}
	return nil
}
