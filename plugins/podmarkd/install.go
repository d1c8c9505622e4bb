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
	"strings"
	"sync/atomic"
	"time"

	cniversion "github.com/containernetworking/cni/pkg/version"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"k8s.io/client-go/rest"

	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/conflist"
	"github.com/podmark/podmark/pkg/fault"
	"github.com/podmark/podmark/pkg/foreign"
	"github.com/podmark/podmark/pkg/foreign/fwmark"
	"github.com/podmark/podmark/pkg/node"
	"github.com/podmark/podmark/pkg/runtimes"
	"github.com/podmark/podmark/pkg/state"
)

// installOptions are the flags of everything that installs.
type installOptions struct {
	*options
	// confDir and binDir are as given, found the place that was found last.
	confDir, binDir string
	endpoint        string
	found           atomic.Pointer[runtimes.Place]
	// reloaded is the site's, which install keeps from one time to the next.
	reloaded  map[string]time.Time
	confName  string
	entryFile string
	source    string
	dropIn    bool
	policy    string
	// hasAPI is whether podmarkd has an API server to ask.
	hasAPI bool
}

func (o *installOptions) addDirectoryFlags(flags *pflag.FlagSet) {
	flags.StringVar(&o.confDir, "cni-conf-dir", runtimes.Auto, "the runtime's directory of network configurations; auto is what the runtime says, else what a known distribution has")
	flags.StringVar(&o.binDir, "cni-bin-dir", runtimes.Auto, "the runtime's directory of plugins; auto as above")
	flags.StringVar(&o.endpoint, "runtime-endpoint", runtimes.Auto, "socket of the runtime that is asked for its directories; auto is those of containerd, CRI-O, k3s and MicroK8s, empty is none")
}

func (o *installOptions) addFlags(flags *pflag.FlagSet) {
	o.addDirectoryFlags(flags)
	flags.StringVar(&o.confName, "cni-conf-name", "", "the file of the conflist that gets the entry (default the first by name; behind Multus, that of its default network)")
	flags.StringVar(&o.entryFile, "entry", "", `file with the entry for the conflist (default the entry that is there, else one of the defaults and --policy)`)
	flags.StringVar(&o.policy, "policy", "", "where the entry takes policies from: kubernetes, files or none (default what it says; kubernetes for a new one, where podmarkd has an API server)")
	flags.StringVar(&o.source, "source", "", "directory with the plugin podmark (default that of podmarkd)")
	flags.BoolVar(&o.dropIn, "drop-in", false, "put the entry into a file of its own; needs containerd 2.1 or CRI-O 1.33, older ones ignore it")
}

func (o *installOptions) site() site {
	place := o.found.Load()
	return site{
		conf: place.Conf, bin: place.Bins[0], others: place.Bins[1:],
		wanted: conflist.Wanted{Name: o.confName, Network: place.Network, Dir: place.Conf}, step: fault.Steps(),
		swap: fault.Exchange(swapFiles),
	}
}

// change is something that differs from what is wanted.
type change struct {
	// Verb is write, reload (write the same again, so that the runtime reads it) or remove.
	Verb string `json:"verb"`
	Path string `json:"path"`
	Why  string `json:"why"`
	// content of a file that is written; before is what it was decided upon, nil for
	// a file that is not there yet.
	content, before []byte
}

// installed is what 'install -o json' shows.
type installed struct {
	// Place is where the runtime looks, and how that is known.
	Place    string `json:"place"`
	Binary   string `json:"binary"`
	Conflist string `json:"conflist"`
	Network  string `json:"network"`
	// DropIn is empty where the entry stands in the conflist.
	DropIn string          `json:"dropIn,omitempty"`
	Entry  json.RawMessage `json:"entry"`
	// from is the file that had the entry; empty for another one than was there.
	from    string
	Changes []change `json:"changes"`
	Notes   []string `json:"notes"`
}

func newInstall(common *options) *cobra.Command {
	o := &installOptions{options: common}
	var dryRun bool
	var output string
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Install the plugin and its entry in the active conflist",
		Long: `Install puts the plugin podmark into the runtime's directory, then its entry at the
end of the conflist that runtimes take: the first by name. Where that is Multus', it
is the conflist that Multus calls. Everything else in the conflist stays byte for
byte. When nothing differs, nothing is written.

Before it writes anything it asks whether pods could start then: the main plugin, the
plugins in the runtime's directory, the version of CNI, the kernel.

A new entry says where policies come from. In a pod that is the Kubernetes API; elsewhere
you choose with --policy: with "none" pods are marked and not policed.

Each file is replaced in one step, the plugin first, so pods start whenever the
command is ended; run it again to finish.`,
		Example: `  podmarkd install --policy kubernetes --dry-run
  podmarkd install --entry /etc/podmark/entry.json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "table" && output != "json" {
				return fmt.Errorf("--output %q: want table or json", output)
			}
			_, err := rest.InClusterConfig()
			o.hasAPI = err == nil
			if _, err := o.locate(cmd.Context()); err != nil {
				return err
			}
			done, err := o.install(cmd.Context(), nil, o.asks, dryRun)
			if err != nil {
				return err
			}
			if output == "json" {
				enc := json.NewEncoder(cmd.OutOrStdout())
				enc.SetIndent("", "  ")
				return enc.Encode(done)
			}
			return done.table(cmd.OutOrStdout(), dryRun)
		},
	}
	o.addFlags(cmd.Flags())
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "say what would be changed and change nothing")
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	choices(cmd, "output", "table", "json")
	completeInstall(cmd)
	return cmd
}

// asks is what the first ADD asks of the node: whether the kernel can enforce, and who else
// uses the bits that the entry would give podmark. What an ADD would refuse is refused; where
// pods have their IDs already, the bits are a note. A podmarkd that keeps podmark installed does
// not ask here: a node without podmark runs its pods unpoliced, and one with it refuses them,
// and its podmarkd warns.
func (o *installOptions) asks(ctx context.Context, planned installed) ([]string, error) {
	// Not for a podmarkd that keeps podmark installed either: it keeps the plugin, and is not ready.
	if unknown := config.Unknown(planned.Entry); unknown != nil {
		return nil, fmt.Errorf("podmark's entry in %q has %w", planned.from, unknownKeys(unknown))
	}
	c, err := config.ParseEntry(planned.Entry, planned.Network, cniversion.Current())
	if err != nil {
		return nil, err
	}
	n := node.Node{Store: state.At(c.StateDir), LockTimeout: o.lockTimeout}
	settings := node.SettingsOf(c)
	if err := n.Status(ctx, settings); errors.Is(err, node.ErrBackend) {
		return nil, fmt.Errorf("every ADD would fail with code 102: %w", err)
	}
	if now, err := n.Configured(); err == nil {
		if empty, err := n.Store.Empty(); err == nil && !empty {
			settings.Layout, settings.MarkCollision = now.Layout, config.CollisionWarn
		}
	}
	report := foreign.Read(ctx).With(fwmark.Services())
	_, notes, err := node.Begin(report, n.WillEnforce(c.Backend), settings)
	if err == nil && report.Error() != nil {
		notes = append(notes, report.Error().Error())
	}
	return notes, err
}

func (i installed) table(w io.Writer, dryRun bool) error {
	printChanges(w, i.Changes, dryRun)
	fmt.Fprintf(w, "the runtime has %s\n", i.Place)
	for _, n := range i.Notes {
		fmt.Fprintf(w, "note: %s\n", n)
	}
	where := i.Conflist
	if i.DropIn != "" {
		where = i.DropIn
	}
	state := "is installed"
	if dryRun && len(i.Changes) > 0 {
		state = "would be installed"
	}
	_, err := fmt.Fprintf(w, "podmark %s: network %s, entry in %s, plugin %s\n", state, i.Network, where, i.Binary)
	return err
}

func printChanges(w io.Writer, changes []change, dryRun bool) {
	would := ""
	if dryRun {
		would = "would "
	}
	for _, c := range changes {
		fmt.Fprintf(w, "%s%s %s: %s\n", would, c.Verb, c.Path, c.Why)
	}
}

// judge says what there is to note of a plan before anything is written, or refuses it.
type judge func(context.Context, installed) (notes []string, err error)

// install brings plugin and entry to what is wanted. The entry is that of --entry, else the one
// that is there, else known, else the default. It goes where the runtime was located. A judge of
// nil has nothing to say.
func (o *installOptions) install(ctx context.Context, known []byte, judge judge, dryRun bool) (installed, error) {
	given, err := o.entry()
	if err != nil {
		return installed{}, err
	}
	s := o.site()
	s.reloaded = o.reloaded
	unlock, err := s.lock(ctx, o.lockTimeout)
	if err != nil {
		return installed{}, err
	}
	defer unlock()
	binary, err := o.binary(s)
	if err != nil {
		return installed{}, err
	}
	if known == nil {
		known = o.byDefault()
	}
	first := slices.Concat(binary, s.left())
	// Another process may write at the same time; its content is the next one's base.
	for try := range 20 {
		var f confDirectory
		if f, err = s.read(); err != nil {
			return installed{}, err
		}
		var done installed
		if done, err = o.judged(ctx, f, s, given, known, judge); err != nil {
			return installed{}, err
		}
		rest := done.Changes
		done.Changes = append(append([]change{}, first...), rest...)
		if dryRun {
			return done, nil
		}
		if try == 0 {
			err = s.act(first)
		}
		if err == nil {
			err = s.act(rest)
		}
		if err == nil && slices.ContainsFunc(rest, func(c change) bool { return c.Path == done.Conflist }) {
			o.reloaded = map[string]time.Time{done.Network: f.networks[done.Network].modified}
		}
		if !errors.Is(err, errChanged) {
			return done, err
		}
	}
	return installed{}, err
}

// judged is the plan for a directory, with the notes of the judge.
func (o *installOptions) judged(
	ctx context.Context,
	f confDirectory,
	s site,
	given, known []byte,
	judge judge,
) (installed, error) {
	plan, err := f.plan(s, given, known, o.policy, o.dropIn)
	if err != nil {
		return installed{}, err
	}
	plan.Place = o.found.Load().String()
	if judge == nil {
		return plan, nil
	}
	notes, err := judge(ctx, plan)
	plan.Notes = append(plan.Notes, notes...)
	return plan, err
}

// plan says what is to be changed in a directory, in an order that may end anywhere.
func (f confDirectory) plan(s site, given, known []byte, policy string, dropIn bool) (installed, error) {
	active, n, skipped, err := f.active(s)
	if err != nil {
		return installed{}, err
	}
	warning, err := f.works(s, active)
	if err != nil {
		return installed{}, err
	}
	done := installed{
		Binary: filepath.Join(s.bin, pluginFile), Conflist: filepath.Join(s.conf, active.Name), Network: n.Name,
		Notes: []string{},
	}
	if done.Entry, done.from, err = f.entry(s, active.File, n, given, known); err != nil {
		return installed{}, err
	}
	if policy != "" {
		done.Entry = withPolicy(done.Entry, policy)
	}
	if err := validate(done.Entry, n.Name, n.CNIVersion); err != nil {
		return installed{}, fmt.Errorf("the entry for %q: %w", done.Conflist, err)
	}
	if dropIn && !n.OnlyInlined {
		done.DropIn = filepath.Join(s.conf, n.Name, dropInFile)
	}
	if warning != "" {
		done.Notes = append(done.Notes, warning)
	}
	done.Notes = append(done.Notes, done.remarks(s, active, skipped)...)
	if dropIn && n.OnlyInlined {
		done.Notes = append(done.Notes, "the conflist has loadOnlyInlinedPlugins, so the entry stands in it and not in a file of its own")
	}
	wanted, err := done.conflist(active.Content, n)
	if err != nil {
		return installed{}, fmt.Errorf("editing %q: %w", done.Conflist, err)
	}
	done.Changes = f.changes(s, done, active.File, wanted)
	return done, nil
}

// remarks are what the next pod meets once the plan is carried out, and what stands before the
// conflist.
func (i installed) remarks(s site, active conflist.Choice, skipped []conflist.Skipped) (notes []string) {
	if active.Unused != nil {
		notes = append(notes, fmt.Sprintf("pods start without podmark: %v", active.Unused))
	}
	if active.StaleCopy {
		notes = append(notes, fmt.Sprintf("%q has a copy of %q without podmark's entry as it is here, and Multus calls that until it rewrites the file: its daemon does when the conflist changes; restart it otherwise", filepath.Join(s.conf, active.Multus), i.Conflist))
	}
	if !config.SaysPolicy(i.Entry) {
		notes = append(notes, fmt.Sprintf("podmark's entry for %q has no \"policy\", so pods are marked and not policed: give --policy kubernetes, files or none, or write the key", i.Conflist))
	}
	for _, bad := range skipped {
		notes = append(notes, fmt.Sprintf("%q comes first and cannot be read; containerd has no network until it is fixed: %v", bad.Name, bad.Reason))
	}
	return notes
}

// conflist is what the conflist, which is now list, is to be: without the entry where that has a file
// of its own.
func (i installed) conflist(list []byte, n conflist.Network) ([]byte, error) {
	if i.DropIn != "" {
		return conflist.Remove(list, pluginFile)
	}
	wanted, err := inserted(list, n, i.Entry)
	if errors.Is(err, conflist.ErrNoPlugins) {
		err = fmt.Errorf("%w: use --drop-in", err)
	}
	return wanted, err
}

// changes lists what is to be changed for a plan. The conflist comes last: runtimes read a file of
// the entry's own with it.
func (f confDirectory) changes(s site, plan installed, list conflist.File, wanted []byte) (changes []change) {
	for _, path := range f.left {
		changes = append(changes, change{Verb: "remove", Path: path, Why: "left by a crash"})
	}
	sub := f.networks[plan.Network]
	switch {
	case plan.DropIn != "" && !conflist.Equal(sub.dropIn, plan.Entry):
		var content bytes.Buffer
		_ = json.Indent(&content, plan.Entry, "", "  ") // it is valid
		content.WriteByte('\n')
		changes = append(changes, change{
			Verb: "write", Path: plan.DropIn, Why: "podmark's entry", content: content.Bytes(),
			before: sub.dropIn,
		})
	case plan.DropIn == "" && sub.dropIn != nil:
		changes = append(changes, change{Verb: "remove", Path: filepath.Join(s.conf, plan.Network, dropInFile), Why: "the entry stands in the conflist"})
	}
	if c, ok := f.rewrite(s, list, wanted, len(changes) > len(f.left)); ok {
		changes = append(changes, c)
	}
	return changes
}

// inserted is the list with the entry. One that comes first has no main plugin before it,
// and is put to the end; where it stands otherwise, it stays.
func inserted(list []byte, n conflist.Network, entry []byte) ([]byte, error) {
	if n.Types != nil && n.Types[0] == pluginFile {
		var err error
		if list, err = conflist.Remove(list, pluginFile); err != nil {
			return nil, err
		}
	}
	return conflist.Insert(list, entry)
}

// works asks whether an ADD behind the conflist's main plugin could work, and whether the
// runtime finds the conflist's plugins where podmark's goes: it is another directory else, or a
// plugin is missing without which no pod starts.
func (f confDirectory) works(s site, active conflist.Choice) (warning string, err error) {
	path := filepath.Join(s.conf, active.Name)
	if warning, err = conflist.Behind(active.Content); err != nil {
		return "", fmt.Errorf("%q: %w", path, err)
	}
	programs, err := conflist.Programs(active.Content, pluginFile)
	if err != nil {
		return "", fmt.Errorf("%q: %w", path, err)
	}
	missing := slices.DeleteFunc(programs, func(p string) bool { return f.programs[p] })
	if len(missing) > 0 {
		return "", fmt.Errorf("%q calls the plugins %q, which are not in %q: the runtime looks into another directory, which --cni-bin-dir names, or they are not installed yet", path, missing, append([]string{s.bin}, s.others...))
	}
	return warning, nil
}

// active is the conflist that gets the entry, what it says, and what comes before it.
func (f confDirectory) active(s site) (conflist.Choice, conflist.Network, []conflist.Skipped, error) {
	active, skipped, err := f.choose(s.wanted)
	if errors.Is(err, conflist.ErrNone) {
		err = fmt.Errorf("%w; the agent of the main plugin has not written it yet, or --cni-conf-dir is another directory; docs/install.md has those of distributions", err)
	}
	if err == nil && f.links[active.Name] {
		err = fmt.Errorf("%q is a symbolic link, and runtimes do not notice when what it leads to changes: make it a file", active.Name)
	}
	if err != nil {
		return conflist.Choice{}, conflist.Network{}, nil,
			errors.Join(fmt.Errorf("looking for the conflist in %q: %w", s.conf, err), reasons(skipped))
	}
	n, err := conflist.Parse(active.Content)
	if err == nil {
		err = f.networks[n.Name].unread
	}
	return active, n, skipped, err
}

// rewrite is the change of a conflist to wanted, if there is one. Runtimes do not
// watch the directories of networks, so the conflist is written again, the same, when
// something is changed there, or was since the conflist was written.
func (f confDirectory) rewrite(s site, list conflist.File, wanted []byte, changed bool) (change, bool) {
	c := change{Path: filepath.Join(s.conf, list.Name), content: wanted, before: list.Content}
	n, err := conflist.Parse(list.Content)
	sub, ok := f.networks[n.Name]
	switch {
	case !bytes.Equal(wanted, list.Content):
		c.Verb, c.Why = "write", "podmark's entry"
	case changed, err == nil && ok && sub.modified.After(f.modified[list.Name]) && !sub.modified.Equal(s.reloaded[n.Name]):
		c.Verb, c.Why = "reload", "so that the runtime reads the directory of the network"
	default:
		return change{}, false
	}
	return c, true
}

func reasons(skipped []conflist.Skipped) error {
	var errs []error
	for _, s := range skipped {
		errs = append(errs, fmt.Errorf("%q: %w", s.Name, s.Reason))
	}
	return errors.Join(errs...)
}

// errNoPolicy: nobody said where the policies of a new entry come from.
var errNoPolicy = errors.New(`nothing says where policies come from: give --policy kubernetes (podmarkd asks the API server), files (podmarkctl apply) or none (pods are marked and not policed), or the key "policy" in --entry`)

// entry is the entry for the active conflist, and the file that it is from; empty for one that
// is not there yet. Errors: errNoPolicy where it would be new, and known is nil.
func (f confDirectory) entry(
	s site,
	active conflist.File,
	n conflist.Network,
	given, known []byte,
) (entry json.RawMessage, from string, err error) {
	if given != nil {
		return given, "", nil
	}
	if e, err := conflist.Entry(active.Content, pluginFile); err != nil || e != nil {
		return e, filepath.Join(s.conf, active.Name), err
	}
	if e := f.networks[n.Name].dropIn; e != nil {
		return bytes.TrimSpace(e), filepath.Join(s.conf, n.Name, dropInFile), nil
	}
	if known == nil {
		return nil, "", errNoPolicy
	}
	return known, "", nil
}

// unknownKeys is the error for keys of an entry that mean nothing.
func unknownKeys(keys []string) error {
	return fmt.Errorf("unknown keys %q: known are %s", keys, strings.Join(config.Keys(), ", "))
}

// entry reads --entry and refuses one that is wrong for every network; nil without.
func (o *installOptions) entry() ([]byte, error) {
	if all := []config.Policy{"", config.PolicyKubernetes, config.PolicyFiles, config.PolicyNone}; !slices.Contains(all,
		config.Policy(o.policy)) {
		return nil, fmt.Errorf("--policy %q: want %s, %s or %s", o.policy, all[1], all[2], all[3])
	}
	if o.entryFile == "" {
		return nil, nil
	}
	b, err := os.ReadFile(o.entryFile)
	if err != nil {
		return nil, fmt.Errorf("--entry: %w", err)
	}
	b = bytes.TrimSpace(b)
	err = validate(b, "network", "1.0.0")
	if unknown := config.Unknown(b); err == nil && unknown != nil {
		err = fmt.Errorf("it has %w", unknownKeys(unknown))
	}
	if err == nil && o.policy == "" && !config.SaysPolicy(b) {
		err = errNoPolicy
	}
	if err != nil {
		return nil, fmt.Errorf("--entry %q: %w", o.entryFile, err)
	}
	return b, nil
}

// byDefault is a new entry; nil where nobody said where its policies come from.
func (o *installOptions) byDefault() []byte {
	entry := struct {
		Type     string `json:"type"`
		StateDir string `json:"stateDir,omitempty"`
		Policy   string `json:"policy"`
	}{Type: pluginFile, Policy: o.policy}
	if o.stateDir != config.DefaultStateDir {
		entry.StateDir = o.stateDir
	}
	if entry.Policy == "" && o.hasAPI {
		entry.Policy = string(config.PolicyKubernetes)
	}
	if entry.Policy == "" {
		return nil
	}
	b, _ := json.Marshal(entry)
	return b
}

// withPolicy is an entry that takes its policies from there. What it says of it besides stays:
// it is refused where it does not go together.
func withPolicy(entry json.RawMessage, policy string) json.RawMessage {
	keys := map[string]json.RawMessage{}
	var now struct{ Policy string }
	if json.Unmarshal(entry, &keys) != nil || json.Unmarshal(entry, &now) == nil && now.Policy == policy {
		return entry
	}
	for key := range keys {
		if strings.EqualFold(key, "policy") { // so does encoding/json
			delete(keys, key)
		}
	}
	keys["policy"], _ = json.Marshal(policy)
	b, _ := json.Marshal(keys) // it came from JSON
	return b
}

// validate refuses what the plugin would refuse, at the first pod, as an entry of
// that network.
func validate(entry []byte, network, version string) error {
	plugin, err := conflist.EntryType(entry)
	if err != nil {
		return err
	}
	if plugin != pluginFile {
		return fmt.Errorf("it has type %q, want %q", plugin, pluginFile)
	}
	if speaks := config.Versions.SupportedVersions(); !slices.Contains(speaks, version) {
		return fmt.Errorf("the conflist has cniVersion %q, and podmark speaks %s", version, strings.Join(speaks, ", "))
	}
	keys := map[string]any{}
	if err := json.Unmarshal(entry, &keys); err != nil {
		return err
	}
	maps.Copy(keys, map[string]any{"name": network, "cniVersion": version}) // as libcni does
	whole, err := json.Marshal(keys)
	if err == nil {
		_, err = config.Parse(whole)
	}
	return err
}

// binary is the change of the plugin, if there is one.
func (o *installOptions) binary(s site) ([]change, error) {
	from, err := o.plugin()
	if err != nil {
		return nil, err
	}
	content, err := os.ReadFile(from)
	if err != nil {
		return nil, fmt.Errorf("reading the plugin: %w; --source names the directory it is in", err)
	}
	c := change{Verb: "write", Path: filepath.Join(s.bin, pluginFile), Why: "the plugin is not there", content: content}
	info, err := os.Stat(c.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return []change{c}, nil
	}
	if err == nil {
		c.before, err = os.ReadFile(c.Path)
	}
	switch {
	case err != nil:
		return nil, fmt.Errorf("reading the plugin: %w", err)
	case bytes.Equal(c.before, content) && info.Mode().Perm()&0o555 == 0o555:
		return nil, nil
	}
	c.Why = "the plugin is another one"
	return []change{c}, nil
}

// plugin is the path of the plugin that is to be installed.
func (o *installOptions) plugin() (string, error) {
	if o.source != "" {
		return filepath.Join(o.source, pluginFile), nil
	}
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("looking for the plugin beside podmarkd: %w", err)
	}
	return filepath.Join(filepath.Dir(self), pluginFile), nil
}

// left are the temporary files of crashes in the directory of plugins.
func (s site) left() []change {
	var out []change
	paths, _ := filepath.Glob(filepath.Join(s.bin, temporaryPrefix+"*"+temporarySuffix))
	for _, path := range paths {
		out = append(out, change{Verb: "remove", Path: path, Why: "left by a crash"})
	}
	return out
}
