package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/podmark/podmark/pkg/agent"
	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/conflist"
	"github.com/podmark/podmark/pkg/node"
)

// uninstallOptions are the flags of uninstall.
type uninstallOptions struct {
	installOptions
	wait   time.Duration
	dryRun bool
}

func newUninstall(common *options) *cobra.Command {
	o := &uninstallOptions{installOptions: installOptions{options: common}}
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Take podmark off this node, as far as its pods allow",
		Long: `Uninstall takes podmark's entry out of every conflist, so that no pod starts with
it any more. Rules and plugin stay while pods live that were started with it: they
are policed on, and the runtime may need the plugin to delete them. With the last of
them gone, rules, state and plugin go too; run the command again then, or let it
--wait. The plugin stays while a file names it that is not podmark's to change, as
Multus' own. End podmarkd first.`,
		Example: `  podmarkd uninstall --dry-run
  podmarkd uninstall --wait 10m`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), cmd.OutOrStdout()) },
	}
	o.addDirectoryFlags(cmd.Flags())
	directories(cmd, "cni-conf-dir", "cni-bin-dir")
	cmd.Flags().DurationVar(&o.wait, "wait", 0, "how long to wait for the last pod that was started with podmark")
	cmd.Flags().BoolVar(&o.dryRun, "dry-run", false, "say what would be changed and change nothing")
	return cmd
}

func (o *uninstallOptions) run(ctx context.Context, out io.Writer) error {
	if _, err := o.locate(ctx); err != nil {
		return err
	}
	n, s := o.node(), o.site()
	s.setAside = true
	if !o.dryRun {
		// A daemon would put back what is taken out here.
		release, err := n.Store.Claim()
		if err != nil {
			return fmt.Errorf("%w; end it first", err)
		}
		defer release()
	}
	if err := o.removeEntries(ctx, s, out); err != nil {
		return err
	}
	live, err := o.drained(ctx, n)
	if err != nil {
		return err
	}
	binary := filepath.Join(s.bin, pluginFile)
	if live > 0 {
		_, err := fmt.Fprintf(out, `attachments that were made with podmark: %d
%s and the rules stay for them. Run 'podmarkd uninstall' again when these pods are
gone; 'podmarkctl list' shows them, 'podmarkctl gc' forgets those that lost their interface
`, live, binary)
		return err
	}
	if o.dryRun {
		_, err := fmt.Fprintf(out, "would remove all rules, %s and %s\n", o.stateDir, binary)
		return err
	}
	return o.finish(ctx, n, s, out)
}

// finish removes what no pod needs any more. While the last pod was waited for, others may have
// written podmark into a file again: the plugin goes only when none names it.
func (o *uninstallOptions) finish(ctx context.Context, n node.Node, s site, out io.Writer) error {
	binary := filepath.Join(s.bin, pluginFile)
	unlock, err := o.lock(ctx, s)
	if err != nil {
		return err
	}
	defer unlock()
	if err := o.unnamed(s, out); err != nil {
		return err
	}
	if err := n.Uninstall(ctx); err != nil {
		return err
	}
	s.step("removed the rules")
	if err := o.unnamed(s, out); err != nil {
		return err
	}
	// An ADD that had read a conflist before may have come to its end since.
	live, err := records(n)
	if err != nil {
		return err
	}
	if live > 0 {
		return fmt.Errorf("%d pods were started meanwhile, so %q stays: run 'podmarkd uninstall' again", live, binary)
	}
	for _, c := range s.left() {
		if err := s.remove(c.Path); err != nil {
			return err
		}
	}
	if err := s.remove(binary); err != nil {
		return err
	}
	_, err = fmt.Fprintln(out, "podmark is removed from this node")
	return err
}

// lock is the site's; nobody has to be kept out of a directory that is not there.
func (o *uninstallOptions) lock(ctx context.Context, s site) (unlock func(), err error) {
	if unlock, err = s.lock(ctx, o.lockTimeout); errors.Is(err, fs.ErrNotExist) {
		return func() {}, nil
	}
	return unlock, err
}

// removeEntries takes podmark out of every conflist and drop-in directory.
func (o *uninstallOptions) removeEntries(ctx context.Context, s site, out io.Writer) error {
	unlock, err := o.lock(ctx, s)
	if err != nil {
		return err
	}
	defer unlock()
	return o.takeOut(s, out)
}

// unnamed takes podmark out again, and is an error where a file names it all the same.
func (o *uninstallOptions) unnamed(s site, out io.Writer) error {
	if err := o.takeOut(s, out); err != nil {
		return err
	}
	f, err := s.read()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if naming := f.naming(s); naming != nil {
		return fmt.Errorf("%q still name podmark, so %q stays: no pod of theirs could start or end without it; take it out there, or, where Multus wrote it, restart Multus' pod on this node, and run 'podmarkd uninstall' again",
			naming, filepath.Join(s.bin, pluginFile))
	}
	return nil
}

// naming are the files that have podmark called, by whomever.
func (f confDirectory) naming(s site) (paths []string) {
	for _, file := range f.files {
		if conflist.Calls(file.Content, pluginFile) {
			paths = append(paths, filepath.Join(s.conf, file.Name))
		}
	}
	for name, n := range f.networks {
		if n.dropIn != nil {
			paths = append(paths, filepath.Join(s.conf, name, dropInFile))
		}
	}
	slices.Sort(paths)
	return paths
}

// takeOut is removeEntries for whoever has the lock.
func (o *uninstallOptions) takeOut(s site, out io.Writer) (err error) {
	if _, err := os.Stat(s.conf); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for range 20 {
		var f confDirectory
		if f, err = s.read(); err != nil {
			return err
		}
		var changes []change
		if changes, err = f.without(s, o.stateDir); err != nil {
			return err
		}
		printChanges(out, changes, o.dryRun)
		if o.dryRun {
			return nil
		}
		if err = s.act(changes); !errors.Is(err, errChanged) {
			return err
		}
	}
	return err
}

// without says what is to be changed in a directory for podmark to be gone from it.
// Files that an agent has set aside under another name are among it: they may come back.
func (f confDirectory) without(s site, stateDir string) ([]change, error) {
	if unread := slices.Sorted(maps.Keys(f.unread)); unread != nil {
		return nil, f.unread[unread[0]] // it may have an entry
	}
	var changes []change
	for _, path := range f.left {
		changes = append(changes, change{Verb: "remove", Path: path, Why: "left by a crash"})
	}
	dropIns, directories, err := f.withoutDropIns(s, stateDir)
	if err != nil {
		return nil, err
	}
	changes = append(changes, dropIns...)
	for _, file := range f.files {
		list, err := conflist.Parse(file.Content)
		if err != nil {
			continue // no list, so there is no entry in it
		}
		content, err := f.withoutEntry(file, stateDir)
		if err != nil {
			return nil, fmt.Errorf("taking the entry out of %q: %w", filepath.Join(s.conf, file.Name), err)
		}
		if f.links[file.Name] {
			continue
		}
		if c, ok := f.rewrite(s, file, content, f.networks[list.Name].dropIn != nil); ok {
			changes = append(changes, c)
		}
	}
	// The directories last: while they are there, a second try knows that the runtime
	// may not have read the conflist since.
	return slices.Concat(changes, directories), nil
}

// withoutDropIns lists the removal of podmark's files in the directories of networks, and of those
// directories that are empty then.
func (f confDirectory) withoutDropIns(s site, stateDir string) (files, directories []change, err error) {
	for _, name := range slices.Sorted(maps.Keys(f.networks)) {
		n := f.networks[name]
		if n.unread != nil {
			if f.hasList(name) {
				return nil, nil, n.unread
			}
			continue // another program's
		}
		if n.dropIn != nil {
			if err := sameState(n.dropIn, stateDir); err != nil {
				return nil, nil, fmt.Errorf("the entry of network %q: %w", name, err)
			}
			files = append(files, change{Verb: "remove", Path: filepath.Join(s.conf, name, dropInFile), Why: "podmark's entry"})
		}
		if n.others == 0 && (n.dropIn != nil || f.hasList(name)) {
			directories = append(directories, change{Verb: "remove", Path: filepath.Join(s.conf, name), Why: "empty"})
		}
	}
	return files, directories, nil
}

// withoutEntry is the content of a conflist without podmark's entry. What a link leads to is not
// changed, so there must be none in it.
func (f confDirectory) withoutEntry(file conflist.File, stateDir string) ([]byte, error) {
	entry, err := conflist.Entry(file.Content, pluginFile)
	if err != nil {
		return nil, err
	}
	if entry != nil {
		if err := sameState(entry, stateDir); err != nil {
			return nil, err
		}
	}
	content, err := conflist.Remove(file.Content, pluginFile)
	if err != nil {
		return nil, err
	}
	if f.links[file.Name] && !bytes.Equal(content, file.Content) {
		return nil, errors.New("it is a symbolic link: take the entry out by hand")
	}
	return content, nil
}

// hasList reports whether there is a list of that network.
func (f confDirectory) hasList(network string) bool {
	return slices.ContainsFunc(f.files, func(file conflist.File) bool {
		n, err := conflist.Parse(file.Content)
		return err == nil && n.Name == network
	})
}

// sameState refuses to go on for an entry whose attachments are looked for elsewhere.
func sameState(entry []byte, stateDir string) error {
	keys := struct {
		StateDir string `json:"stateDir"`
	}{config.DefaultStateDir}
	if json.Unmarshal(entry, &keys) != nil || filepath.Clean(keys.StateDir) == stateDir {
		return nil // the plugin refuses one that cannot be read, so it has no attachments
	}
	return fmt.Errorf("its stateDir is %q and --state-dir %q: they must be the same, for the pods that live to be found", keys.StateDir, stateDir)
}

// drained waits, at most as long as --wait says, until no attachment is left, and
// returns how many are.
func (o *uninstallOptions) drained(ctx context.Context, n node.Node) (live int, err error) {
	ticker := time.NewTicker(200 * time.Millisecond)
	defer ticker.Stop()
	for deadline := time.Now().Add(o.wait); ; {
		live, err = living(ctx, n, o.dryRun)
		if err != nil || live == 0 || o.dryRun || !time.Now().Before(deadline) {
			return live, err
		}
		select {
		case <-ctx.Done():
			return live, nil
		case <-ticker.C:
		}
	}
}

// living counts the attachments but for those of pods that are gone, which it collects:
// containerd deletes a pod by the conflist of now, so no DEL comes once the entry is out.
func living(ctx context.Context, n node.Node, dryRun bool) (int, error) {
	list, err := n.Records()
	if err != nil {
		return 0, fmt.Errorf("counting attachments: %w", err)
	}
	live := slices.DeleteFunc(slices.Clone(list), agent.PodGone)
	if len(live) == len(list) || dryRun {
		return len(live), nil
	}
	if _, err := n.CollectGarbage(ctx, agent.PodGone, false); err != nil {
		return 0, fmt.Errorf("collecting what pods left that are gone: %w", err)
	}
	return len(live), nil
}

// records counts the attachments, those that were not finished too. A damaged one
// is an error: nobody knows whether its pod lives.
func records(n node.Node) (int, error) {
	list, err := n.Records()
	if err != nil {
		return 0, fmt.Errorf("counting attachments: %w", err)
	}
	return len(list), nil
}
