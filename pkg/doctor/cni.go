package doctor

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/version"

	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/conflist"
	"github.com/podmark/podmark/pkg/runtimes"
)

// plugin is the type of podmark's entry and the name of its file.
const plugin = "podmark"

func checkRuntime(f Facts) []Finding {
	if f.PlaceErr == nil {
		return nil
	}
	found := Finding{
		Severity: Error, What: f.PlaceErr.Error(),
		Why: "which network configuration pods start by is not known, so none was looked at, and podmarkd installs nothing",
		Fix: ctl(f, "doctor --cni-conf-dir DIR --cni-bin-dir DIR") + "  # those of the runtime that the kubelet uses; podmarkd has the same flags",
	}
	if errors.Is(f.PlaceErr, runtimes.ErrElsewhere) {
		command := "doctor"
		if f.Endpoint != runtimes.Auto {
			command += " --runtime-endpoint " + quote(f.Endpoint)
		}
		found.Why = "what is in the directories that were given no pod starts by, so nothing there was looked at. A podmarkd that is given them installs nothing"
		found.Fix = ctl(f, command) + "  # it finds the directories that the runtime reads, and so does podmarkd without the two flags"
	}
	return []Finding{found}
}

func checkConflist(f Facts) []Finding {
	var out []Finding
	for _, s := range f.Skipped {
		out = append(out, unreadable(f, s))
	}
	switch {
	case f.ActiveErr != nil:
		out = append(out, unchosen(f))
	case len(f.Networks) > 0 && f.Networks[0].Entry == nil:
		out = append(out, Finding{
			Severity: Error,
			What:     fmt.Sprintf("%q, the conflist that the node uses, has no entry of type %q", f.Networks[0].File, plugin),
			Why:      "pods start without podmark: unmarked, and with no policy. If another agent rewrote the conflist, 'podmarkd --keep-installed' puts the entry back each time",
			Fix:      chained(f, f.Networks[0]),
		})
	case f.Active.Unused != nil:
		out = append(out, Finding{
			Severity: Error,
			What:     fmt.Sprintf("in %q: %v", f.ConfDir, f.Active.Unused),
			Why:      "pods start without podmark: unmarked, and with no policy",
			Fix:      ctl(f, "doctor"+located(f)) + "  # what it finds without --cni-conf-name is what runtimes take",
		})
	case f.Active.StaleCopy:
		path := filepath.Join(f.ConfDir, f.Active.Multus)
		out = append(out, Finding{
			Severity: Error,
			What:     fmt.Sprintf("%q, by which Multus calls the default network, has a copy of %q without podmark's entry as it is there", path, f.Active.Name),
			Why:      "pods start without podmark, unmarked and with no policy, or with another entry of it, until Multus rewrites its file",
			Fix:      "# restart Multus' pod on this node, which writes " + path + " again; or take the copy away and name the network by \"clusterNetwork\"",
		})
	}
	return out
}

// unreadable is the finding for a configuration before the active one that no runtime can read. It is
// put aside where that leaves a conflist with podmark.
func unreadable(f Facts, s conflist.Skipped) Finding {
	path := filepath.Join(f.ConfDir, s.Name)
	fix := fmt.Sprintf("mv %s %s", quote(path), quote(path+".off"))
	switch _, ok := f.active(); {
	case errors.Is(f.ActiveErr, conflist.ErrNone):
		fix = fmt.Sprintf("# there is no other: fix %s, or have the agent of the main plugin write it again", quote(path))
	case s.Multus || f.multus():
		fix = fmt.Sprintf("# fix %s, or have the program that wrote it write it again: it is Multus', or Multus may call it", quote(path))
	case !ok:
		fix = fmt.Sprintf("# fix %s, or have the program that wrote it write it again: the next by name is without podmark", quote(path))
	}
	return Finding{
		Severity: Error,
		What:     fmt.Sprintf("%q comes first by name, and no runtime can read it: %v", path, s.Reason),
		Why:      "containerd has no network until it is fixed, and CRI-O takes the next file, which may be without podmark",
		Fix:      fix,
	}
}

// unchosen is the finding where there is no conflist that the runtime takes and podmark may be in.
func unchosen(f Facts) Finding {
	switch {
	case errors.Is(f.ActiveErr, conflist.ErrPlain):
		return Finding{
			Severity: Error,
			What:     fmt.Sprintf("in %q: %v", f.ConfDir, f.ActiveErr),
			Why:      "pods start without podmark: unmarked, and with no policy",
			Fix:      chainable(f),
		}
	case errors.Is(f.ActiveErr, conflist.ErrMultus):
		return Finding{
			Severity: Error,
			What:     fmt.Sprintf("in %q: %v", f.ConfDir, f.ActiveErr),
			Why:      "whether pods start with podmark is not known, and 'podmarkd install' does not know where to put its entry",
			Fix:      ctl(f, "doctor"+located(f)+" --cni-conf-name FILE") + "  # the conflist of Multus' default network",
		}
	}
	found := Finding{
		Severity: Error,
		What:     fmt.Sprintf("in %q (%s): %v: the agent of the main plugin has not written it yet, or the runtime reads another directory", f.ConfDir, f.Place.How, f.ActiveErr),
		Why:      "pods start without podmark, or not at all",
		Fix:      ctl(f, "doctor --cni-conf-dir DIR --cni-bin-dir DIR") + "  # the runtime's directories",
	}
	if f.Place.From == runtimes.Reported {
		found.What = fmt.Sprintf("in %q (%s): %v: the agent of the main plugin has not written it yet", f.ConfDir, f.Place.How, f.ActiveErr)
		found.Fix = "# have the agent of the main plugin run on this node, which writes it; look at why it does not"
	}
	return found
}

// multus reports whether Multus is what the runtime calls: which files it calls in turn, it says
// by their names or networks.
func (f Facts) multus() bool {
	return f.Active.Multus != "" || errors.Is(f.ActiveErr, conflist.ErrMultus)
}

// chained is the command that puts podmark's entry into a list without.
func chained(f Facts, n Network) string {
	if version, ok := spoken(n.CNIVersion); !ok {
		return respoken(n, version) + " && " + installer(f)
	}
	return installer(f)
}

// chainable is the command that makes a list of a configuration of one plugin. Where Multus calls
// that it may do so by the name of the file, which stays.
func chainable(f Facts) string {
	if f.multus() {
		return fmt.Sprintf("# make a .conflist of %s, name its network to Multus, and run %s", quote(filepath.Join(f.ConfDir, f.Active.Name)), installer(f))
	}
	object := map[string]any{}
	if json.Unmarshal(f.Active.Content, &object) != nil {
		return installer(f)
	}
	old, _ := object["cniVersion"].(string)
	if version, ok := spoken(old); !ok {
		object["cniVersion"] = version
	}
	list := map[string]any{"name": object["name"], "cniVersion": object["cniVersion"], "plugins": []any{object}}
	delete(object, "name")
	delete(object, "cniVersion")
	b, _ := json.Marshal(list) // it came from JSON
	path := filepath.Join(f.ConfDir, f.Active.Name)
	// By this name it comes where the other came, and it takes nobody's place.
	return fmt.Sprintf("%s && mv %s %s && %s", write(path+".conflist", b), quote(path), quote(path+".off"), installer(f))
}

func checkOrder(f Facts) []Finding {
	var out []Finding
	for _, n := range f.Networks {
		at := slices.Index(n.Types, plugin)
		if n.Entry == nil || n.DropIn != "" || at < 0 ||
			at > 0 && !slices.ContainsFunc(n.Types[at+1:], func(p string) bool { return !conflist.AddsNoAddress(p) }) {
			continue
		}
		found := Finding{
			Severity: Warning,
			What:     fmt.Sprintf("in %q podmark comes before %s", n.File, strings.Join(n.Types[at+1:], ", ")),
			Why:      "podmark opens the pod's port when it is done: what a plugin behind it adds or changes comes to a pod that is open already, and addresses that it gives are not the endpoint's",
			Fix:      installer(f),
		}
		if at == 0 {
			found.Severity = Error
			found.What = fmt.Sprintf("in %q podmark comes first, with no main plugin before it", n.File)
			found.Why = "podmark needs the prevResult of the plugin that makes the interface: every ADD fails with error 7"
		}
		found.Fix = fmt.Sprintf("# put the plugin that makes the interface before podmark in %s", quote(n.File))
		if without, err := conflist.Remove(n.Content, plugin); err == nil {
			if content, err := conflist.Insert(without, n.Entry); err == nil {
				found.Fix = write(n.File, content)
			}
		}
		out = append(out, found)
	}
	return out
}

// checkWorks asks what podmarkd asks before it installs, and when it says whether it is ready:
// whether a pod that starts by the conflists could be policed.
func checkWorks(f Facts) []Finding {
	var out []Finding
	for _, n := range f.Networks {
		if _, err := conflist.Behind(n.Content); err != nil {
			out = append(out, Finding{
				Severity: Error,
				What:     fmt.Sprintf("in %q %v", n.File, err),
				Why:      "pods of this network do not start with podmark, or no policy is in force for them. podmarkd is not ready then, and installs nothing",
				Fix:      "# give the network a main plugin that podmark works behind: docs/install.md has those that are known; or take podmark off the node: podmarkd uninstall",
			})
		}
	}
	if len(f.Lacking) > 0 && f.ActiveErr == nil && len(f.Networks) > 0 {
		out = append(out, Finding{
			Severity: Error,
			What:     fmt.Sprintf("%q calls the plugins %q, which are not in %q, or cannot be executed there", f.Networks[0].File, f.Lacking, f.Place.Bins),
			Why:      "no pod starts: the runtime fails each ADD. podmarkd is not ready then",
			Fix:      "# have the agent or the package that they are of put them there; where the runtime reads another directory, doctor and podmarkd are told by --cni-bin-dir",
		})
	}
	if len(out) > 0 || f.Daemon == nil || !f.DaemonRuns || f.Daemon.Stale(f.Now) || f.Daemon.NotInstalled == "" {
		return out
	}
	for _, check := range []func(Facts) []Finding{
		checkRuntime, checkConflist, checkOrder, checkConfiguration,
		checkSettings, checkPlugin,
	} {
		if slices.ContainsFunc(check(f), func(x Finding) bool { return x.Severity == Error }) {
			return nil // which says it better
		}
	}
	return []Finding{{
		Severity: Error,
		What: fmt.Sprintf("podmarkd says since its last look, at %s: %s", f.Daemon.LastReconcile.Format(time.RFC3339),
			f.Daemon.NotInstalled),
		Why: fmt.Sprintf("podmarkd is not ready, and nothing of it is so in %q and %q, where doctor looked: it looks elsewhere, or in a container that has other directories", f.ConfDir, f.BinDir),
		Fix: "# give podmarkd the directories that the runtime reads, by --cni-conf-dir, --cni-bin-dir and --cni-conf-name, or the values of its chart",
	}}
}

func checkConfiguration(f Facts) []Finding {
	var out []Finding
	for _, n := range f.Networks {
		if n.Entry == nil {
			continue
		}
		if other, ok := spoken(n.CNIVersion); !ok {
			out = append(out, Finding{
				Severity: Error,
				What:     fmt.Sprintf("%q has cniVersion %q, and podmark speaks %s", n.File, n.CNIVersion, strings.Join(config.Versions.SupportedVersions(), ", ")),
				Why:      "every ADD fails with error 1, so no pod starts",
				Fix:      respoken(n, other),
			})
		}
		if unknown := config.Unknown(n.Entry); unknown != nil {
			out = append(out, Finding{
				Severity: Error,
				What:     fmt.Sprintf("podmark's entry in %q has unknown keys: %q", n.where(), unknown),
				Why:      "what they are to say is not in force: the keys that were meant have their defaults",
				Fix:      fmt.Sprintf("vi %s  # known are %s", quote(n.where()), strings.Join(config.Keys(), ", ")),
			})
		}
		if n.Err == nil {
			continue
		}
		out = append(out, Finding{
			Severity: Error,
			What:     fmt.Sprintf("podmark's entry in %q is refused: %v", n.where(), n.Err),
			Why:      "every ADD fails with error 6 or 7, so no pod starts. Without the keys that are wrong, their defaults hold",
			Fix:      n.repaired(f),
		})
	}
	return out
}

// spoken reports whether podmark speaks that version of CNI, and which one is nearest: of
// others a plugin of the list may know nothing.
func spoken(v string) (nearest string, ok bool) {
	if slices.Contains(config.Versions.SupportedVersions(), v) {
		return v, true
	}
	if newer, err := version.GreaterThanOrEqualTo(v, version.Current()); err == nil && newer {
		return version.Current(), false
	}
	return config.Versions.SupportedVersions()[0], false
}

// respoken is the command that gives a list that version.
func respoken(n Network, version string) string {
	edit := `s/("cniVersion"[[:space:]]*:[[:space:]]*)"[^"]*"/\1"` + version + `"/`
	if n.CNIVersion == "" || !strings.Contains(string(n.Content), `"cniVersion"`) {
		edit = `0,/[{]/s//{"cniVersion": "` + version + `",/`
	}
	return "sed -i -E " + quote(edit) + " " + quote(n.File)
}

// where is the file that has the entry.
func (n Network) where() string {
	if n.DropIn != "" {
		return n.DropIn
	}
	return n.File
}

// edit is the command that changes keys of the network's entry.
func (n Network) edit(f Facts, keys map[string]any) string {
	return n.edited(f, keys, func(entry []byte) string {
		if n.DropIn != "" {
			return write(n.DropIn, append(entry, '\n'))
		}
		content, err := conflist.Insert(n.Content, entry)
		if err != nil {
			return installer(f)
		}
		return write(n.File, content)
	})
}

// repaired is the command that gives the keys that are refused the values that the node has, or
// their defaults where these are as strict. Without a word on where policies come from pods
// would start with none, and without labels no policy would select them: that is for the
// operator to say.
func (n Network) repaired(f Facts) string {
	keys := map[string]any{}
	for _, key := range wrongKeys(n.Err) {
		switch mask, free := f.State.Layout, true; key {
		case "policy":
			policy, known := f.policySource()
			if !known {
				return n.advice(n.Err)
			}
			keys[key] = string(policy)
		case "iptablesMarkMask":
			if len(f.State.Records) == 0 {
				mask, free = f.Free()
			}
			if !free {
				return n.advice(n.Err)
			}
			keys[key] = fmt.Sprintf("%#x", mask.Mask())
		case "backend":
			if keys[key] = nil; f.State.Kind != "" {
				keys[key] = string(f.State.Kind.Backend())
			}
		case "stateDir":
			keys[key] = f.StateDir
		case "failOpen", "allowTunnels", "markCollision", "kubeNodePortRanges", "daemonSocket", "lockTimeoutSeconds",
			"logFile", "allowedSourcePrefixes":
			keys[key] = nil
		default:
			return n.advice(n.Err)
		}
	}
	return n.edit(f, keys)
}

// advice is for an entry that only the operator can correct.
func (n Network) advice(err error) string {
	return fmt.Sprintf("# fix podmark's entry in %s: %s", quote(n.where()), strings.Join(strings.Fields(err.Error()), " "))
}

// wrongKeys are the keys that an error of package config names.
func wrongKeys(err error) []string {
	var one *config.Error
	if all, ok := err.(interface{ Unwrap() []error }); ok {
		var out []string
		for _, e := range all.Unwrap() {
			out = append(out, wrongKeys(e)...)
		}
		return out
	}
	if errors.As(err, &one) {
		return []string{one.Key}
	}
	return []string{""}
}

func checkSettings(f Facts) []Finding {
	var out []Finding
	first, ok := f.active()
	if !ok || first.Err != nil {
		return nil
	}
	if dir := first.Config.StateDir; dir != f.StateDir {
		out = append(out, Finding{
			Severity: Error,
			What:     fmt.Sprintf("the state directory of %q is %q, and this looked into %q", first.where(), dir, f.StateDir),
			Why:      "podmarkctl and podmarkd look after another directory than the plugin writes to, and see none of its pods",
			Fix:      "podmarkctl doctor --state-dir " + quote(dir),
		})
	}
	if now := f.State.Layout.Mask(); now != 0 && !agree(now, first.Config.Layout.Mask()) && len(f.State.Records) > 0 {
		out = append(out, Finding{
			Severity: Error,
			What:     fmt.Sprintf("the conflist has iptablesMarkMask %#x, and the node's endpoints have IDs in %#x", first.Config.Layout.Mask(), now),
			Why:      "every ADD fails with error 7 until podmarkd has moved the endpoints, which it does when all networks want that mask and it is wide enough: its status says why it has not. This sets the mask back",
			Fix:      install(f, map[string]any{"iptablesMarkMask": fmt.Sprintf("%#x", now)}),
		})
	}
	for _, n := range f.Networks[1:] {
		if n.Entry == nil || n.Err != nil {
			continue
		}
		keys := map[string]any{}
		var differ []string
		for _, k := range []struct {
			key         string
			first, here any
		}{
			{"iptablesMarkMask", first.Config.Layout.Mask(), n.Config.Layout.Mask()},
			{"kubeNodePortRanges", first.Config.NodePorts, n.Config.NodePorts},
			{"backend", first.Config.Backend, n.Config.Backend},
			{"allowTunnels", first.Config.AllowTunnels, n.Config.AllowTunnels},
			{"stateDir", first.Config.StateDir, n.Config.StateDir},
		} {
			if a, ok := k.first.(uint32); ok && agree(a, k.here.(uint32)) {
				continue
			}
			if !reflect.DeepEqual(k.first, k.here) {
				keys[k.key] = valueOf(first.Entry, k.key)
				differ = append(differ, k.key)
			}
		}
		if len(differ) > 0 {
			out = append(out, Finding{
				Severity: Error,
				What: fmt.Sprintf("%q and %q give podmark different values of %s", first.where(), n.where(),
					strings.Join(differ, ", ")),
				Why: "these are settings of the node: each ADD takes the node to those of its own network, or fails",
				Fix: n.edit(f, keys),
			})
		}
	}
	return out
}

// agree reports whether two masks are no contradiction: one that the node chooses is 0,
// and is any that another network names.
func agree(a, b uint32) bool { return a == b || a == 0 || b == 0 }

// valueOf is the value of a key in an entry as it stands there; nil without one.
func valueOf(entry json.RawMessage, key string) any {
	object := map[string]json.RawMessage{}
	if json.Unmarshal(entry, &object) != nil || object[key] == nil {
		return nil
	}
	return object[key]
}

func checkPlugin(f Facts) []Finding {
	n, ok := f.active()
	if !ok || f.Plugin == nil {
		return nil
	}
	found := Finding{
		Severity: Error,
		What:     fmt.Sprintf("%q has podmark, and the plugin cannot be run: %v", n.where(), f.Plugin),
		Why:      "no pod starts: containerd fails each ADD, CRI-O passes the network over",
		Fix:      "chmod 0755 " + quote(filepath.Join(f.BinDir, plugin)),
	}
	if f.PluginMissing {
		found.Fix = installer(f)
	}
	return []Finding{found}
}
