package main_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// silent are entries that do not say what they should, each with what is said of it.
var silent = []struct{ keys, word string }{
	{`, "polcy": "files"`, `"polcy"`},
	{`, "policy": "files", "iptableMarkMask": "auto"`, `"iptableMarkMask"`},
	{``, `no "policy"`},
}

// An entry that does not say what it should is no reason to be ready, with the reason; what
// runtimes and others put into one is.
func TestPresentEntry(t *testing.T) {
	t.Parallel()
	h := newHost(t, nftables)
	p := at(t, h)
	p.plugins("podmark")
	const name = "10-a.conflist"
	write := func(keys string) {
		t.Helper()
		if err := p.rename(name, chain("net", "ptp", fmt.Sprintf(`{"type": "podmark", "stateDir": %q%s}`, p.state, keys))); err != nil {
			t.Fatal(err)
		}
	}
	const good = `, "policy": "files", "capabilities": {"bandwidth": true}, "example.com/x": 1, "_comment": "x"`
	write(good)
	d := h.start("--cni-conf-dir", p.conf, "--cni-bin-dir", p.bin)
	for _, tt := range silent {
		h.eventually("it is ready", d.ready)
		write(tt.keys)
		h.eventually("it is not ready with "+tt.keys, func() error {
			code, why := d.get("/readyz")
			if code != 503 || !strings.Contains(why, tt.word) || !strings.Contains(why, name) || strings.Contains(why, "not installed") {
				return fmt.Errorf("/readyz %d %s", code, why)
			}
			if !strings.Contains(d.Log.String(), strings.ReplaceAll(tt.word, `"`, `\"`)) {
				return errors.New("it is not in the log")
			}
			return nil
		})
		if got := d.metric("podmark_installed"); got != "0" {
			t.Errorf("%s: podmark_installed %s", tt.keys, got)
		}
		write(good)
	}
	// The entry in a file of its own is judged as well.
	if err := p.rename(name, chain("net", "ptp")); err != nil {
		t.Fatal(err)
	}
	dropIn := filepath.Join(p.conf, "net", "50-podmark.conf")
	err := os.Mkdir(filepath.Dir(dropIn), 0o755)
	if err = errors.Join(err, os.WriteFile(dropIn, fmt.Appendf(nil, `{"type": "podmark", "stateDir": %q}`, p.state), 0o600)); err != nil {
		t.Fatal(err)
	}
	h.eventually("it is not ready with a drop-in", func() error {
		if code, why := d.get("/readyz"); code != 503 || !strings.Contains(why, `no "policy"`) {
			return fmt.Errorf("/readyz %d %s", code, why)
		}
		return nil
	})
}

// Where pods would start without podmark, or who did is not known, it is not ready, with the reason.
func TestPresentOnlyWhereItWorks(t *testing.T) {
	t.Parallel()
	h := newHost(t, nftables)
	p := at(t, h)
	p.plugins("podmark")
	const name = "10-a.conflist"
	entry := fmt.Sprintf(`{"type": "podmark", "stateDir": %q, "policy": "files"}`, p.state)
	good, plugin := chain("net", "ptp", entry), filepath.Join(p.bin, "podmark")
	cache := filepath.Join(t.TempDir(), "cache")
	h.addPod() // by no runtime, so it is in no cache
	if err := errors.Join(p.rename(name, good), os.MkdirAll(filepath.Join(cache, "results"), 0o755)); err != nil {
		t.Fatal(err)
	}
	d := h.start("--cni-conf-dir", p.conf, "--cni-bin-dir", p.bin, "--cni-conf-name", name, "--cni-cache-dir", cache)
	for _, tt := range []struct {
		name      string
		harm, fix func() error
		word      string
	}{
		{"podmark is first", func() error { return p.rename(name, chain("net", entry, "ptp")) }, func() error { return p.rename(name, good) }, "calls podmark first"},
		{"the plugin is a link to nothing", func() error {
			return errors.Join(os.Rename(plugin, plugin+".away"), os.Symlink("nothing", plugin))
		}, func() error { return os.Rename(plugin+".away", plugin) }, "can be executed"},
		{"another list comes first", func() error { return p.rename("05-b.conflist", chain("b", "ptp", entry)) }, func() error { return os.Remove(filepath.Join(p.conf, "05-b.conflist")) }, `runtimes take "05-b.conflist"`},
		{"the cache is not the runtime's", func() error { return os.Remove(filepath.Join(cache, "results")) }, func() error { return os.Mkdir(filepath.Join(cache, "results"), 0o755) }, "--cni-cache-dir"},
	} {
		h.eventually("it is ready before "+tt.name, d.ready)
		if err := tt.harm(); err != nil {
			t.Fatal(err)
		}
		h.eventually("it is not ready where "+tt.name, func() error {
			if code, why := d.get("/readyz"); code != 503 || !strings.Contains(why, tt.word) {
				return fmt.Errorf("/readyz %d %s", code, why)
			}
			return nil
		})
		if err := tt.fix(); err != nil {
			t.Fatal(err)
		}
	}
	h.eventually("it is ready in the end", d.ready)
}

// Install refuses unknown keys of the entry that is there, and notes that it has no policy, unless --policy
// gives one. A podmarkd that keeps podmark installed does so all the same.
func TestInstallSilentEntry(t *testing.T) {
	const name = "10-a.conflist"
	for _, args := range [][]string{{"install"}, {"install", "--drop-in"}} {
		for _, tt := range silent {
			p := newPlace(t)
			entry := fmt.Sprintf(`{"type": "podmark", "stateDir": %q%s}`, p.state, tt.keys)
			file := filepath.Join(p.conf, name)
			p.write(name, chain("net", "ptp", entry))
			if len(args) > 1 {
				file = filepath.Join(p.conf, "net", "50-podmark.conf")
				p.write(name, chain("net", "ptp"))
				if err := errors.Join(os.Mkdir(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(entry), 0o600)); err != nil {
					t.Fatal(err)
				}
			}
			if tt.keys != "" {
				p.fails([]string{file, tt.word, "known are"}, args...)
				continue
			}
			p.policy = ""
			if out := p.run(args...); !strings.Contains(out, "note: ") || !strings.Contains(out, tt.word) || !strings.Contains(out, "--policy") {
				t.Errorf("it does not say that nothing is policed: %s", out)
			}
			p.policy = "files"
			if out := p.run(args...); strings.Contains(out, "note: ") {
				t.Errorf("with --policy it says %s", out)
			}
			if b, err := os.ReadFile(file); err != nil || !strings.Contains(string(b), `"policy": "files"`) {
				t.Errorf("no policy: %v\n%s", err, b)
			}
		}
	}
	p, h, d := guarded(t)
	p.write(name, chain("net", "ptp", fmt.Sprintf(`{"type": "podmark", "stateDir": %q, "polcy": "files"}`, p.state)))
	h.eventually("the plugin is there", func() error {
		_, err := os.Stat(filepath.Join(p.bin, "podmark"))
		return err
	})
	h.eventually("it is not ready", func() error {
		if code, why := d.get("/readyz"); code != 503 || !strings.Contains(why, `"polcy"`) {
			return fmt.Errorf("/readyz %d %s", code, why)
		}
		return nil
	})
}
