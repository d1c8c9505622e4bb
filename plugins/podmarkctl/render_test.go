package main_test

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

type rendered struct{ Family, Sets, Rules string }

// hold takes a lock file as another podmark process would.
func hold(t *testing.T, name string) (release func()) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		t.Fatal(err)
	}
	return func() { f.Close() }
}

// What render prints is what is in the kernel, and the tools it names load it.
func TestRender(t *testing.T) {
	for _, variant := range variants {
		t.Run(variant, func(t *testing.T) {
			var out []rendered
			var rules string
			t.Run("render", func(t *testing.T) {
				n := newNode(t, variant)
				n.addPod(map[string]string{"app": "web"})
				n.addPod(map[string]string{"app": "client"})
				n.addPod(nil)
				n.ctlIn(manyRules, "apply", "-f", "-").ok(t)
				kernel, files := n.kernel(), n.files()
				if err := json.Unmarshal([]byte(n.ctl("render", "-o", "json").ok(t).stdout), &out); err != nil {
					t.Fatal(err)
				}
				text := n.ctl("render").ok(t).stdout
				for _, r := range out {
					for _, want := range []string{"# " + r.Family + ": ipset restore\n" + r.Sets, "# " + r.Family + ": iptables-restore --noflush\n" + r.Rules} {
						if !strings.Contains(text, want) {
							t.Errorf("text and JSON differ for %s", r.Family)
						}
					}
				}
				preview := n.ctlIn(webPolicy, "render", "-f", "-", "--backend", "iptables").ok(t).stdout
				if strings.Contains(preview, "a-name-of-sixty") || !strings.Contains(preview, "default/web") {
					t.Error("render -f does not show the policy that was given")
				}
				if diff := cmp.Diff(kernel, n.kernel()) + cmp.Diff(files, n.files()); diff != "" {
					t.Errorf("render changed something:\n%s", diff)
				}
				rules = mangle(n)
			})
			t.Run("load", func(t *testing.T) {
				n := newNode(t, variant)
				for _, r := range out {
					command := map[string]string{"IPv4": "iptables", "IPv6": "ip6tables"}[r.Family] + "-" + variant + "-restore"
					n.exec(r.Sets, "ipset", "restore")
					n.exec(r.Rules, command, "--noflush", "--test")
					n.exec(r.Rules, command, "--noflush")
				}
				if diff := cmp.Diff(rules, mangle(n)); diff != "" {
					t.Errorf("what was rendered is not what was applied:\n%s", diff)
				}
			})
		})
	}
}

// mangle lists the rules of both families, whichever generation of sets they use.
func mangle(n *node) string {
	var lines []string
	for _, f := range []string{"iptables", "ip6tables"} {
		for line := range strings.Lines(n.exec("", f+"-"+n.variant+"-save", "-t", "mangle")) {
			if !strings.HasPrefix(line, "#") && !strings.Contains(line, "KUBE-IPTABLES-HINT") {
				lines = append(lines, f+" "+generation.ReplaceAllString(changing.ReplaceAllString(line, ""), "$1*"))
			}
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}

// A node that podmark has never run on can be looked at.
func TestRenderOnVirginNode(t *testing.T) {
	n := newNode(t, "nft")
	kernel := n.kernel()
	out := n.ctlIn(webPolicy, "render", "-f", "-").ok(t).stdout
	if !strings.Contains(out, "create podmark-ep4a hash:net,iface") || !strings.Contains(out, "-A PODMARK-FORWARD") {
		t.Errorf("it says %s", out)
	}
	if _, err := lstat(n.dir); err == nil || kernel != n.kernel() {
		t.Error("render changed something")
	}
}
