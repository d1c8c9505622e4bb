package docs_test

import (
	"flag"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/dataplane/iptables"
	"github.com/podmark/podmark/pkg/dataplane/nftables"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/mark"
	"github.com/podmark/podmark/pkg/policy"
)

var update = flag.Bool("update", false, "write the rendered rules into docs/rules.md")

const (
	packetPath = "docs/packet-path.md"
	rulesPage  = "docs/rules.md"
)

// manifests are the policies of the node that docs/rules.md shows.
const manifests = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress]
  ingress:
  - from: [{podSelector: {matchLabels: {app: db}}}, {ipBlock: {cidr: 192.0.2.0/24}}]
    ports: [{port: 8080}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  policyTypes: [Egress]
  egress:
  - to: [{podSelector: {matchLabels: {app: web}}}]
    ports: [{port: 8080}]
`

// named is a policy with a named port, for names that the document does not show.
const named = `
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: named, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress]
  ingress: [{ports: [{port: http}]}]
`

// example is that node's state.
func example(t *testing.T) desired.State {
	t.Helper()
	return exampleOf(t, manifests)
}

func exampleOf(t *testing.T, manifests string) desired.State {
	t.Helper()
	policies, _, err := policy.Options{}.Compile(policy.Source{Name: "example", Data: []byte(manifests)})
	if err != nil {
		t.Fatal(err)
	}
	layout, err := mark.NewLayout(config.DefaultMask)
	if err != nil {
		t.Fatal(err)
	}
	addrs := func(list ...string) []netip.Addr {
		var out []netip.Addr
		for _, a := range list {
			out = append(out, netip.MustParseAddr(a))
		}
		return out
	}
	node := desired.Node{
		Layout: layout, Epoch: 1,
		NodePorts:     []desired.PortRange{{First: 30000, Last: 32767}},
		SCTPPorts:     []desired.PortRange{{First: 30000, Last: 32767}},
		HostAddresses: addrs("192.168.50.1", "fd00:50::1"),
		Tunnels:       desired.Tunnels{UDPPorts: []uint16{4789, 6081, 8472}, Protocols: []uint8{4, 41, 47}},
	}
	records := []attachment.Record{
		{ID: 2, Policed: true, Committed: true, Endpoint: attachment.Endpoint{
			Namespace: "shop", Pod: "web", Labels: map[string]string{"app": "web"},
			L3Interface: "veth1a2b3c4d", HostVeth: "veth1a2b3c4d", L3InterfaceIndex: 7, HostVethIndex: 7,
			Addresses: addrs("10.22.0.2", "fd00:22::2"),
		}},
		{ID: 3, Policed: true, Committed: true, Endpoint: attachment.Endpoint{
			Namespace: "shop", Pod: "db", Labels: map[string]string{"app": "db"},
			L3Interface: "cni0", HostVeth: "veth5e6f7a8b", L3InterfaceIndex: 5, HostVethIndex: 8, MAC: "0a:58:0a:17:00:02",
			Addresses: addrs("10.23.0.2", "fd00:23::2"),
		}},
	}
	return desired.Build(node, policies, records)
}

// rendered is that node for iptables, IPv4 and IPv6.
func rendered(t *testing.T) (v4, v6 iptables.Rendered) {
	t.Helper()
	both := iptables.Render(example(t))
	if len(both) != 2 {
		t.Fatalf("%d families are rendered, want 2", len(both))
	}
	return both[0], both[1]
}

// The rules of the document are those that the code renders.
func TestRules(t *testing.T) {
	v4, v6 := rendered(t)
	var onlyV6 strings.Builder
	names := regexp.MustCompile(`(podmark-[a-z]+)6(a?)`)
	for line := range strings.Lines(v6.Rules) {
		if !strings.Contains(v4.Rules, names.ReplaceAllString(line, "${1}4${2}")) {
			onlyV6.WriteString(line)
		}
	}
	want := fmt.Sprintf("Sets:\n\n```\n%s```\n\nRules:\n\n```\n%s```\n\n"+
		"The rules for IPv6 are the same, on sets with a 6 in their names and without the IPv4 prefix.\n"+
		"IPv6 has these rules in addition:\n\n```\n%s```\n", v4.Sets, v4.Rules, onlyV6.String())
	showsIn(t, rulesPage, "rules", want)
	showsIn(t, rulesPage, "nft-rules", "```\n"+strings.ReplaceAll(nftables.Render(example(t)), "\t", "    ")+"```\n")
}

// showsIn compares a marked block of a document with what the code renders.
func showsIn(t *testing.T, file, name, want string) {
	t.Helper()
	document := read(t, file)
	got := marked(t, document, name)
	if got == want {
		return
	}
	if !*update {
		t.Errorf("%s shows other %s (-) than the code renders (+); run go test ./test/docs -update:\n%s", file, name, cmp.Diff(got, want))
		return
	}
	begin, end := "<!-- "+name+":begin -->\n", "<!-- "+name+":end -->\n"
	document = strings.Replace(document, begin+got+end, begin+want+end, 1)
	if err := os.WriteFile(filepath.Join(root, file), []byte(document), 0o644); err != nil {
		t.Fatal(err)
	}
}

var (
	profileName = regexp.MustCompile(`(PODMARK-[IE]A?)-[0-9a-f]{16}`)
	chainName   = regexp.MustCompile(`PODMARK-[A-Z]+(?:-<profile>)?`)
)

// tree maps each chain to the chains it leads to, in order.
type tree map[string][]string

func (tr tree) add(from, to string) {
	if !slices.Contains(tr[from], to) {
		tr[from] = append(tr[from], to)
	}
}

// treeOf reads the tree off rules, with the chains that are declared.
func treeOf(rules string) (tr tree, chains []string) {
	tr = tree{}
	for line := range strings.Lines(profileName.ReplaceAllString(rules, "$1-<profile>")) {
		f := strings.Fields(line)
		if name, ok := strings.CutPrefix(f[0], ":"); ok {
			chains = append(chains, name)
			continue
		}
		if len(f) > 3 && strings.HasPrefix(f[len(f)-1], "PODMARK-") {
			tr.add(f[1], f[len(f)-1])
		}
	}
	return tr, chains
}

var (
	nftChain   = regexp.MustCompile(`(?m)^\tchain (\S+) \{$`)
	nftLeads   = regexp.MustCompile(`(?:jump|goto) (\S+)|vmap @(\S+)`)
	nftProfile = regexp.MustCompile(`\b([ei])[46]-[0-9a-f]{16}\b`)
)

// nftTree reads the tree off the rules of nftables, with the chains that are
// declared; the profiles' chains for IPv6 stand where those for IPv4 do.
func nftTree(rules string) (tr tree, chains []string) {
	rules = nftProfile.ReplaceAllString(rules, "${1}4-<profile>")
	through := tree{} // what the maps lead to
	for _, m := range regexp.MustCompile(`(?s)\tmap (\S+) \{(.*?)\n\t\}`).FindAllStringSubmatch(rules, -1) {
		for _, to := range nftLeads.FindAllStringSubmatch(m[2], -1) {
			through.add(m[1], strings.TrimSuffix(to[1], ","))
		}
	}
	tr = tree{}
	chain := ""
	for line := range strings.Lines(rules) {
		if m := nftChain.FindStringSubmatch(line); m != nil {
			chain = m[1]
			if !slices.Contains(chains, chain) {
				chains = append(chains, chain)
			}
			continue
		}
		for _, m := range nftLeads.FindAllStringSubmatch(strings.TrimSpace(line), -1) {
			for _, to := range append(through[m[2]], strings.TrimSuffix(m[1], ",")) {
				if to != "" && chain != "" {
					tr.add(chain, to)
				}
			}
		}
	}
	return tr, chains
}

// drawn reads the tree off the document, with the names at its roots.
func drawnTree(t *testing.T, name string) (drawn tree, roots []string) {
	t.Helper()
	drawn = tree{}
	var path []string
	for line := range strings.Lines(blocks(marked(t, read(t, packetPath), name))[0]) {
		depth := (len(line) - len(strings.TrimLeft(line, " "))) / 4
		name := strings.Fields(line)[0]
		if depth > len(path) {
			t.Fatalf("%q stands too far to the right", line)
		}
		path = append(path[:depth], name)
		if depth == 0 {
			roots = append(roots, name)
		} else {
			drawn.add(path[depth-1], name)
		}
	}
	return drawn, roots
}

// The trees of chains are the ones that the rules make: the same chains, each led
// to from where it stands, in this order.
func TestChains(t *testing.T) {
	compare := func(backend string, real, drawn tree, chains, roots []string) {
		if diff := cmp.Diff(real, drawn); diff != "" {
			t.Errorf("%s: the rules lead (-) and %s draws (+):\n%s", backend, packetPath, diff)
		}
		for _, c := range chains {
			if !reached(drawn, c) && !slices.Contains(roots, c) {
				t.Errorf("%s: nothing in %s leads to chain %s", backend, packetPath, c)
			}
		}
	}
	drawn, _ := drawnTree(t, "chains")
	v4, v6 := rendered(t)
	for _, r := range []iptables.Rendered{v4, v6} {
		real, chains := treeOf(r.Rules)
		compare(r.Family, real, drawn, chains, nil)
	}
	drawn, roots := drawnTree(t, "nft-chains")
	real, chains := nftTree(nftables.Render(example(t)))
	compare("nftables", real, drawn, chains, roots)
}

func reached(tr tree, chain string) bool {
	for _, to := range tr {
		if slices.Contains(to, chain) {
			return true
		}
	}
	return false
}

// Every chain that a document names is one of podmark's.
func TestChainNames(t *testing.T) {
	v4, _ := rendered(t)
	_, chains := treeOf(v4.Rules)
	for _, name := range documents(t) {
		// A name with a star stands for the profiles' chains.
		text := regexp.MustCompile(`(PODMARK-[IE]A?)-\*`).ReplaceAllString(profileName.ReplaceAllString(read(t, name), "$1-<profile>"), "$1-<profile>")
		for _, chain := range chainName.FindAllString(text, -1) {
			if !slices.Contains(chains, chain) {
				t.Errorf("%s names chain %s, which there is not", name, chain)
			}
		}
	}
}

// CHANGELOG.md lists every chain and every kind of set, and no other.
func TestNames(t *testing.T) {
	all := exampleOf(t, manifests+named)
	v4 := iptables.Render(all)[0]
	_, chains := treeOf(v4.Rules)
	sets := regexp.MustCompile(`(?m)^create (podmark-[a-z]+4)a?`).FindAllStringSubmatch(v4.Sets, -1)
	want := map[string][]string{"chains in table mangle": chains}
	ruleset := nftables.Render(all)
	_, want["chains of nftables"] = nftTree(ruleset)
	_, guards := nftTree(nftables.RenderGuard(all))
	want["chains of nftables"] = append(want["chains of nftables"], guards...)
	for _, m := range regexp.MustCompile(`(?m)^\t(?:set|map) (\S+) \{$`).FindAllStringSubmatch(ruleset, -1) {
		want["sets of nftables"] = append(want["sets of nftables"], regexp.MustCompile(`[0-9a-f]{16}$`).ReplaceAllString(m[1], "<id>"))
	}
	for _, m := range regexp.MustCompile(`(?m)^table (.*) \{$`).FindAllStringSubmatch(ruleset, -1) {
		want["tables of nftables"] = append(want["tables of nftables"], m[1])
	}
	for _, s := range sets {
		want["ipsets"] = append(want["ipsets"], s[1])
	}
	for _, row := range table(t, read(t, "CHANGELOG.md"), "what") {
		for what, names := range want {
			if !strings.HasPrefix(row[0], what) {
				continue
			}
			got := spans(row[1])
			slices.Sort(got)
			slices.Sort(names)
			if diff := cmp.Diff(slices.Compact(names), got); diff != "" {
				t.Errorf("%s that there are (-) and that CHANGELOG.md lists (+):\n%s", what, diff)
			}
			delete(want, what)
		}
	}
	if len(want) > 0 {
		t.Errorf("CHANGELOG.md has no row for %v", want)
	}
}

var testName = regexp.MustCompile(`Test[A-Z][A-Za-z]+`)

// Every test that a document names exists: in the directory that the document says, if it
// says one, else anywhere.
func TestTestsExist(t *testing.T) {
	declared := regexp.MustCompile(`(?m)^func (Test[A-Z][A-Za-z]+)\(t \*testing\.T\)`)
	in := map[string][]string{} // the directories of a test
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		dir, err := filepath.Rel(root, filepath.Dir(path))
		for _, m := range declared.FindAllStringSubmatch(string(b), -1) {
			in[m[1]] = append(in[m[1]], filepath.ToSlash(dir))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	placed := regexp.MustCompile("((?:Test[A-Z][A-Za-z]+(?:, | and )?)+) in `((?:pkg|plugins|test)/[^`]+)`")
	records := 0
	for _, name := range documents(t) {
		text := strings.ReplaceAll(read(t, name), "\n", " ")
		for _, test := range testName.FindAllString(text, -1) {
			if in[test] == nil {
				t.Errorf("%s names %s, which does not exist", name, test)
			}
			if strings.HasPrefix(name, "docs/design/") {
				records++
			}
		}
		for _, m := range placed.FindAllStringSubmatch(text, -1) {
			for _, test := range testName.FindAllString(m[1], -1) {
				if !slices.Contains(in[test], m[2]) {
					t.Errorf("%s says %s is in %s; it is in %q", name, test, m[2], in[test])
				}
			}
		}
	}
	if records == 0 {
		t.Error("no design record names a test")
	}
}

// Every flow and every attack of docs/packet-path.md and docs/threat-model.md has a test or an
// entry of test/adversary that exists.
func TestNamedTests(t *testing.T) {
	var all strings.Builder
	for _, pattern := range []string{"test/lab/*_test.go", "test/verdict/*_test.go", "test/adversary/*_test.go", "plugins/*/*_test.go", "pkg/node/*_test.go", "pkg/dataplane/checksum/*_test.go"} {
		files, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			all.Write(b)
		}
	}
	exists := func(name string) {
		if !strings.Contains(all.String(), "\nfunc "+name+"(t *testing.T)") {
			t.Errorf("there is no %s", name)
		}
	}
	for _, row := range table(t, read(t, packetPath), "flow") {
		names := testName.FindAllString(row[3], -1)
		if names == nil && !strings.Contains(row[3], "`make demo`") {
			t.Errorf("no test for %q", row[0])
		}
		for _, name := range names {
			exists(name)
		}
	}
	var rows [][]string
	for _, section := range strings.Split(read(t, "docs/threat-model.md"), "\n## ") {
		for _, first := range []string{"it tries", "it does"} {
			if strings.Contains(section, "| "+first+" |") {
				rows = append(rows, table(t, section+"\n\n", first)...)
			}
		}
	}
	if len(rows) < 20 {
		t.Errorf("%d rows of docs/threat-model.md were read", len(rows))
	}
	_, chains := nftTree(nftables.Render(example(t)))
	for _, row := range rows {
		// Those of iptables are TestChainNames' to find.
		for _, chain := range spans(row[2]) {
			if !slices.Contains(chains, chain) {
				t.Errorf("%q is held by chain %s, which there is not", row[0], chain)
			}
		}
		if row[2] == "" {
			t.Errorf("nothing holds %q", row[0])
		}
		for _, name := range strings.Split(row[3], "; ") {
			if test := testName.FindString(name); test != "" {
				exists(test)
			} else if !strings.Contains(all.String(), fmt.Sprintf("{name: %q,", name)) {
				t.Errorf("there is no attack %q", name)
			}
		}
	}
}
