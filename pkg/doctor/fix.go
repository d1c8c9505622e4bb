package doctor

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/runtimes"
	"github.com/podmark/podmark/pkg/state"
)

// ctl is a podmarkctl command for the node's state directory.
func ctl(f Facts, command string) string {
	return withState(f, "podmarkctl "+command)
}

func withState(f Facts, command string) string {
	if f.StateDir != config.DefaultStateDir {
		command += " --state-dir " + quote(f.StateDir)
	}
	return command
}

// located are the flags by which a command of podmarkd or podmarkctl looks where doctor did. What
// was found, and is where most look, it finds by itself.
func located(f Facts) (flags string) {
	usual := runtimes.Default()
	if f.ConfDir != usual.Conf && f.ConfDir != "" || f.Given.Conf != "" {
		flags += " --cni-conf-dir " + quote(f.ConfDir)
	}
	if f.BinDir != usual.Bins[0] && f.BinDir != "" || f.Given.Bin != "" {
		flags += " --cni-bin-dir " + quote(f.BinDir)
	}
	if f.Endpoint != runtimes.Auto {
		flags += " --runtime-endpoint " + quote(f.Endpoint)
	}
	return flags
}

// installer is podmarkd install for the node's directories.
func installer(f Facts) string {
	command := "podmarkd install" + located(f)
	if f.ConfName != "" {
		command += " --cni-conf-name " + quote(f.ConfName)
	}
	if n, ok := f.active(); ok && n.DropIn != "" {
		command += " --drop-in"
	} else if !ok {
		command += " --policy " + string(f.source())
	}
	return withState(f, command)
}

// install is the command that changes keys of podmark's entry in the conflist that
// the node uses. A nil value takes the key away.
func install(f Facts, keys map[string]any) string {
	n, ok := f.active()
	command := func(entry []byte) string {
		return fmt.Sprintf("printf '%%s\\n' %s | %s --entry /proc/self/fd/0", quote(string(entry)), installer(f))
	}
	if !ok {
		return command(changed(f, nil, keys))
	}
	return n.edited(f, keys, command)
}

// changed is podmark's entry with other values.
func changed(f Facts, entry json.RawMessage, keys map[string]any) []byte {
	object := map[string]any{"type": "podmark"}
	if f.StateDir != config.DefaultStateDir {
		object["stateDir"] = f.StateDir
	}
	if entry != nil {
		object = map[string]any{}
		d := json.NewDecoder(strings.NewReader(string(entry)))
		d.UseNumber()
		_ = d.Decode(&object) // it is an object: libcni took it
	}
	for key, value := range keys {
		if object[key] = value; value == nil {
			delete(object, key)
		}
	}
	b, _ := json.Marshal(object) // it came from JSON
	return b
}

// remasked is a command that gives the conflist another mask. A podmarkd that runs
// moves the endpoints to it; without one the node must have none.
func remasked(f Facts, command string) string {
	if len(f.State.Records) == 0 || f.DaemonRuns {
		return command
	}
	return drained(command)
}

// drained is a command that is run when the node's pods are gone.
func drained(command string) string {
	return `kubectl drain "$(hostname)" --ignore-daemonsets && ` + command
}

// afresh takes podmark's state and rules away, which polices nobody any more: so no pod may be
// there, and none comes before the policies are back.
func afresh(f Facts) string {
	return drained(ctl(f, "uninstall --yes")) + `  # then apply the policies again, and kubectl uncordon "$(hostname)"`
}

// end is the command that ends podmarkd by the lock that it holds: the process number that it
// knows of itself is another one outside of its container, and may be anybody's there.
func end(f Facts, signal string) string {
	return fmt.Sprintf("fuser -k -%s %s", signal, quote(filepath.Join(f.StateDir, state.DaemonLock)))
}

// edited is the command that changes keys of podmark's entry; a line of advice where the entry
// would be refused.
func (n Network) edited(f Facts, keys map[string]any, command func(entry []byte) string) string {
	entry := changed(f, n.Entry, keys)
	if _, err := config.ParseEntry(entry, n.Name, n.CNIVersion); err != nil {
		return n.advice(err)
	}
	return command(entry)
}

// toNFTables is the command that has nftables enforce, where the kernel can.
func toNFTables(f Facts, otherwise string) string {
	if f.State.NFTables != nil {
		return otherwise
	}
	return install(f, map[string]any{"backend": "nftables"})
}

// write is the command that replaces a configuration as runtimes want it: by a
// file beside it, whose name they do not read, and a rename.
func write(path string, content []byte) string {
	tmp := filepath.Join(filepath.Dir(path), ".podmark-doctor.tmp")
	return fmt.Sprintf("(umask 077; printf %%s %s >%s) && mv %s %s", quote(string(content)), quote(tmp), quote(tmp),
		quote(path))
}

// quote makes s one word of a shell.
func quote(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_-./:,=+@%!", r)
	}
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool { return !plain(r) }) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
