package main_test

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/podmark/podmark/test/testnode"
)

type rendered struct {
	Backend  string
	Ruleset  string
	Families []struct{ Family, Sets, Rules string }
}

// render is what 'render -o json' prints, whose keys must be these and no others.
func (n *node) render(args ...string) (r rendered) {
	n.T.Helper()
	d := json.NewDecoder(strings.NewReader(n.ctl(append([]string{"render", "-o", "json"}, args...)...).ok(n.T).Stdout))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		n.T.Fatal(err)
	}
	return r
}

// What render prints is what is in the kernel, and the tools it names load it.
func TestRender(t *testing.T) {
	for _, b := range backends {
		t.Run(b.Name, func(t *testing.T) {
			t.Parallel()
			var out rendered
			var applied string
			t.Run("render", func(t *testing.T) {
				n := newNode(t, b)
				n.addPod(map[string]string{"app": "web"})
				n.addPod(map[string]string{"app": "client"})
				n.addPod(nil)
				n.ctlIn(manyRules, "apply", "-f", "-").ok(t)
				kernel, files := n.kernel(), n.files()
				out = n.render()
				if out.Backend != b.Key {
					t.Errorf("auto is %q, want %q", out.Backend, b.Key)
				}
				for _, backend := range []string{"nftables", "iptables"} {
					r := n.render("--backend", backend)
					if backend == b.Key {
						if diff := cmp.Diff(out, r); diff != "" {
							t.Errorf("auto is not what enforces:\n%s", diff)
						}
					}
					if r.Backend != backend || !strings.Contains(r.Ruleset, "table bridge") || !strings.Contains(r.Ruleset, "chain sender") || strings.Contains(r.Ruleset, "chain forward") != (backend == "nftables") || (len(r.Families) == 2) != (backend == "iptables") {
						t.Errorf("--backend %s prints %+v", backend, r)
					}
					text := n.ctl("render", "--backend", backend).ok(t).Stdout
					want := r.Ruleset
					for _, f := range r.Families {
						want += "# " + f.Family + ": ipset restore\n" + f.Sets + "# " + f.Family + ": iptables-restore --noflush\n" + f.Rules
					}
					if diff := cmp.Diff(want, text); diff != "" {
						t.Errorf("text and JSON differ for %s:\n%s", backend, diff)
					}
					preview := n.ctlIn(webPolicy, "render", "-f", "-", "--backend", backend).ok(t).Stdout
					if strings.Contains(preview, "a-name-of-sixty") || !strings.Contains(preview, "default/web") {
						t.Errorf("render -f does not show the policy that was given for %s", backend)
					}
				}
				if diff := cmp.Diff(kernel, n.kernel()) + cmp.Diff(files, n.files()); diff != "" {
					t.Errorf("render changed something:\n%s", diff)
				}
				applied = n.applied()
			})
			t.Run("load", func(t *testing.T) {
				n := newNode(t, b)
				n.load(out, b.Variant)
				if diff := cmp.Diff(applied, n.applied()); diff != "" {
					t.Errorf("what was rendered is not what was applied:\n%s", diff)
				}
			})
		})
	}
}

// load puts what was rendered into the kernel with the tools that it is for.
func (n *node) load(r rendered, variant string) {
	n.T.Helper()
	if r.Ruleset != "" {
		n.Exec(readable(r.Ruleset), "nft", "-f", "-")
	}
	for _, f := range r.Families {
		command := map[string]string{"IPv4": "iptables", "IPv6": "ip6tables"}[f.Family] + "-" + variant + "-restore"
		n.Exec(f.Sets, "ipset", "restore")
		n.Exec(f.Rules, command, "--noflush", "--test")
		n.Exec(f.Rules, command, "--noflush")
	}
}

var (
	targetLine = regexp.MustCompile(`(?m)^.*(?:@th,64,|@nh,|igmp type|change places).*\n`)
	linkLine   = regexp.MustCompile(`(?m)^(\d+): ([^:@]+)`)
	byMap      = regexp.MustCompile(`(?m)^.* (comment "by the (?:number|ID) in map \S+")$`)
)

// readable makes of a rendered ruleset one that nft reads, as alike as it gets.
//
// No nft knows rules that look something up and go on from there: of them the
// comment is left. And nft does not read what it shows of a look-up of 128 bits of
// the payload, which is what a neighbour advertisement speaks of: that line is left
// out.
func readable(ruleset string) string {
	return targetLine.ReplaceAllString(byMap.ReplaceAllString(ruleset, "continue $1"), "")
}

// alike makes what nft shows of such a ruleset the same as what it shows of
// podmark's own.
func alike(listed string) string {
	listed = byMap.ReplaceAllString(changing.ReplaceAllString(listed, ""), "\t\tcontinue $1")
	return targetLine.ReplaceAllString(listed, "")
}

// applied lists what the node's backend has: the tables of nft, or the rules of
// both families, whichever generation of sets they use.
func (n *node) applied() string {
	n.T.Helper()
	var lines []string
	if n.Backend == nftables {
		out := n.Exec("", "nft", "list", "table", "inet", "podmark") + n.Exec("", "nft", "list", "table", "bridge", "podmark")
		// nft has names where there are such links, and numbers where there are none.
		for _, m := range linkLine.FindAllStringSubmatch(n.Exec("", "ip", "-o", "link"), -1) {
			out = strings.ReplaceAll(out, fmt.Sprintf("%q", m[2]), m[1])
		}
		return alike(out)
	}
	for _, line := range n.Rules(n.Backend.Variant) {
		if !strings.Contains(line, "KUBE-IPTABLES-HINT") {
			lines = append(lines, testnode.AnyGeneration(line))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}

// A node that podmark has never run on can be looked at, and a backend that does
// not enforce on it too.
func TestRenderOnVirginNode(t *testing.T) {
	n := newNode(t, nftables)
	kernel := n.kernel()
	for _, tt := range []struct {
		args []string
		want []string
	}{
		{nil, []string{"table inet podmark {", "table bridge podmark {", "map sources4 {", "type filter hook forward priority mangle;"}},
		{[]string{"--backend", "auto"}, []string{"table inet podmark {"}},
		{[]string{"--backend", "nftables"}, []string{"table inet podmark {"}},
		{[]string{"--backend", "iptables"}, []string{"table bridge podmark {", "create podmark-ep4a hash:net,iface", "-A PODMARK-FORWARD"}},
	} {
		out := n.ctlIn(webPolicy, append([]string{"render", "-f", "-"}, tt.args...)...).ok(t).Stdout
		for _, want := range tt.want {
			if !strings.Contains(out, want) {
				t.Errorf("render %q does not say %q: %s", tt.args, want, out)
			}
		}
	}
	if _, err := lstat(n.Dir); err == nil || kernel != n.kernel() {
		t.Error("render changed something")
	}
}
