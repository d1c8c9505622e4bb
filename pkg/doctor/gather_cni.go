package doctor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/conflist"
	"github.com/podmark/podmark/pkg/foreign"
	"github.com/podmark/podmark/pkg/runtimes"
	"github.com/podmark/podmark/pkg/runtimes/cri"
)

const (
	// dropIn is podmark's file in the directory of a network, as 'podmarkd install
	// --drop-in' makes it.
	dropIn = "50-podmark.conf"
	// maxConfiguration is far above any network configuration, in bytes.
	maxConfiguration = 1 << 20
)

// locate finds the runtime's directories, as podmarkd does. Where a runtime cannot be asked, which
// is the error, what is known of the node counts.
func (f *Facts) locate(ctx context.Context) error {
	f.ConfDir, f.BinDir = f.Given.Conf, f.Given.Bin
	said, err := cri.Places(ctx, f.Endpoint)
	if f.Place, f.PlaceErr = runtimes.Decide(f.Given, said, runtimes.OnNode("/")); f.PlaceErr != nil {
		return err
	}
	f.ConfDir, f.BinDir = f.Place.Conf, f.Place.Bins[0]
	if f.Given.Bin == "" {
		f.BinDir = f.Place.Sorted().Bins[0]
	}
	// A runtime takes the first that it comes to.
	for _, bin := range f.Place.Bins {
		if info, err := os.Stat(filepath.Join(bin, plugin)); err == nil && info.Mode().IsRegular() {
			f.BinDir = bin
			break
		}
	}
	return err
}

// readCNI reads the runtime's directories.
func (f *Facts) readCNI() error {
	files, err := readFiles(f.ConfDir)
	if err != nil {
		f.ActiveErr = fmt.Errorf("%w: %w", conflist.ErrNone, err)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // that there is none is a finding
		}
		return err
	}
	f.Active, f.Skipped, f.ActiveErr = conflist.Choose(files,
		conflist.Wanted{Name: f.ConfName, Network: f.Place.Network, Dir: f.ConfDir})
	if err := f.readNetworks(files); err != nil {
		return err
	}
	if f.ActiveErr == nil {
		programs, err := conflist.Programs(f.Active.Content, plugin)
		if err != nil {
			return err
		}
		f.Lacking = slices.DeleteFunc(programs, func(p string) bool {
			return slices.ContainsFunc(f.Place.Bins, func(bin string) bool { return runtimes.Executable(filepath.Join(bin, p)) })
		})
	}
	f.readPlugin()
	return nil
}

// readNetworks reads the network of the active conflist, which comes first, and those of the others
// that have an entry of podmark's.
func (f *Facts) readNetworks(files []conflist.File) error {
	for _, file := range files {
		f.configured |= foreign.Configured(file.Content)
		if filepath.Ext(file.Name) != ".conflist" {
			continue
		}
		list, err := conflist.Parse(file.Content)
		if err != nil {
			continue // if it comes first, it is among those skipped
		}
		n, err := f.network(file, list)
		if err != nil {
			return err
		}
		switch active := f.ActiveErr == nil && file.Name == f.Active.Name; {
		case active:
			f.Networks = append([]Network{n}, f.Networks...)
		case n.Entry != nil:
			f.Networks = append(f.Networks, n)
		}
	}
	return nil
}

// readPlugin finds out whether the runtime can execute the plugin.
func (f *Facts) readPlugin() {
	path := filepath.Join(f.BinDir, plugin)
	info, err := os.Stat(path)
	_, errLink := os.Readlink(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && errLink == nil:
		f.Plugin, f.PluginMissing = fmt.Errorf("%q is a link that leads to nothing", path), true
	case err != nil:
		f.Plugin, f.PluginMissing = err, errors.Is(err, fs.ErrNotExist)
	case !info.Mode().IsRegular() || info.Mode().Perm()&0o111 == 0:
		f.Plugin = fmt.Errorf("%q is not an executable file: its mode is %v", path, info.Mode())
	}
}

// readFiles reads the configurations of a directory. What disappears meanwhile is
// left out.
func readFiles(dir string) ([]conflist.File, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var files []conflist.File
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		info, err := os.Stat(path)
		if err != nil || !info.Mode().IsRegular() || info.Size() > maxConfiguration || !conflist.IsConfiguration(e.Name()) {
			continue
		}
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		files = append(files, conflist.File{Name: e.Name(), Content: b})
	}
	return files, nil
}

// network reads what podmark is told for a network.
func (f *Facts) network(file conflist.File, list conflist.Network) (Network, error) {
	n := Network{File: filepath.Join(f.ConfDir, file.Name), Network: list, Content: file.Content}
	entry, err := conflist.Entry(file.Content, plugin)
	if err != nil {
		return n, err
	}
	if n.Entry = entry; entry == nil && !list.OnlyInlined {
		path := filepath.Join(f.ConfDir, list.Name, dropIn)
		b, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrInvalid) {
			return n, err
		}
		if b != nil {
			n.Entry, n.DropIn = bytes.TrimSpace(b), path
		}
	}
	if n.Entry != nil {
		n.Config, n.Err = config.ParseEntry(n.Entry, list.Name, list.CNIVersion)
	}
	return n, nil
}
