package iptables

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/podmark/podmark/pkg/dataplane/ipset"
	"github.com/podmark/podmark/pkg/desired"
)

// A node without a kernel: sets in memory, and this test's own binary for iptables-nft and its
// kin, with the rules of a family in a file.
type node struct {
	t   *testing.T
	dir string
	// sets are their elements, by key.
	sets  map[string]map[ipset.Element]ipset.Element
	kinds map[string]ipset.Set
	// did are the changes, of which the one of the number at fails, the first being 1. It fails
	// behind what it does where late is set.
	did  []string
	at   int
	late bool
	look func()
	// rules are those of each family, and uses counts those that name each set; nil where they
	// are to be read again.
	rules map[family]map[string]map[string][]string
	uses  map[string]uint32
	// drained is how many changes there were when packets in flight were last waited for.
	drained int
}

const directory = "PODMARK_TEST_IPTABLES" // of the node, for the commands

var errHarmed = errors.New("as the test wants it")

func TestMain(m *testing.M) {
	if name := filepath.Base(os.Args[0]); os.Getenv(directory) != "" && strings.Contains(name, "-nft") {
		if err := command(os.Getenv(directory), name, os.Args[1:], os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func newNode(t *testing.T) *node {
	t.Helper()
	n := &node{t: t, dir: t.TempDir(), sets: map[string]map[ipset.Element]ipset.Element{}, kinds: map[string]ipset.Set{}}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"iptables", "ip6tables"} {
		for _, suffix := range []string{"", "-save", "-restore"} {
			if err := os.Symlink(self, filepath.Join(n.dir, name+"-nft"+suffix)); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Setenv("PATH", n.dir)
	t.Setenv(directory, n.dir)
	t.Setenv("GORACE", "atexit_sleep_ms=0") // a second for each command, else
	n.harm(0, false)
	return n
}

func (n *node) backend() Backend { return Backend{Variant: NFT, Wait: time.Second, fake: n} }

// harm has the change of a number fail from now on, 0 for none.
func (n *node) harm(at int, late bool) {
	n.t.Helper()
	n.did, n.at, n.late, n.drained = nil, at, late, 0
	if err := os.WriteFile(filepath.Join(n.dir, "log"), nil, 0o600); err != nil {
		n.t.Fatal(err)
	}
	n.plan()
}

// plan tells the commands how many changes are left before the one that fails.
func (n *node) plan() {
	n.t.Helper()
	names := slices.Sorted(maps.Keys(n.sets))
	b, err := json.Marshal(plan{Left: n.at - len(n.did), Late: n.late, Sets: names})
	if err == nil {
		err = os.WriteFile(filepath.Join(n.dir, "plan"), b, 0o600)
	}
	if err != nil {
		n.t.Fatal(err)
	}
}

// plan is what a command has to know.
type plan struct {
	// Left is 1 where the next restore fails.
	Left int
	Late bool
	Sets []string
}

// does is a change of a set.
func (n *node) does(name string, change func() error) error {
	n.restored()
	n.did = append(n.did, name)
	fails := len(n.did) == n.at
	if fails && !n.late {
		return fmt.Errorf("%s: %w", name, errHarmed)
	}
	err := change()
	if n.look != nil {
		n.look()
	}
	n.plan()
	if fails {
		return fmt.Errorf("%s: %w", name, errHarmed)
	}
	return err
}

// restored takes over what commands have done since the last change of a set.
func (n *node) restored() {
	n.t.Helper()
	log := filepath.Join(n.dir, "log")
	b, err := os.ReadFile(log)
	if err == nil && len(b) > 0 {
		n.did = append(n.did, strings.Fields(string(b))...)
		err = os.WriteFile(log, nil, 0o600)
		n.rules = nil
		n.plan()
	}
	if err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) dial() (setConn, error) { n.restored(); return n, nil }

func (n *node) drain() error {
	n.drained = len(n.did)
	return nil
}

func (n *node) Close() error { return nil }

func (n *node) Create(s ipset.Set) error {
	if n.sets[s.Name] != nil {
		return nil
	}
	return n.does("create "+s.Name, func() error {
		n.sets[s.Name], n.kinds[s.Name] = map[ipset.Element]ipset.Element{}, s
		return nil
	})
}

func (n *node) Destroy(name string) error {
	if n.sets[name] == nil {
		return nil
	}
	return n.does("destroy "+name, func() error {
		if n.references(name) > 0 {
			n.t.Errorf("set %s is destroyed, and rules use it", name)
			return ipset.ErrNotExist
		}
		delete(n.sets, name)
		delete(n.kinds, name)
		return nil
	})
}

func (n *node) Swap(a, b string) error {
	return n.does("swap "+a, func() error {
		n.sets[a], n.sets[b] = n.sets[b], n.sets[a]
		return nil
	})
}

func (n *node) Add(s ipset.Set, e ipset.Element) error {
	return n.does("add to "+s.Name, func() error {
		if n.sets[s.Name] == nil {
			return ipset.ErrNotExist
		}
		n.sets[s.Name][e.Key()] = e
		return nil
	})
}

func (n *node) Del(s ipset.Set, e ipset.Element) error {
	if n.sets[s.Name] == nil {
		return ipset.ErrNotExist
	}
	return n.does("delete from "+s.Name, func() error {
		delete(n.sets[s.Name], e.Key())
		return nil
	})
}

func (n *node) AddAll(s ipset.Set, list []ipset.Element) error {
	for _, e := range list {
		if err := n.Add(s, e); err != nil {
			return err
		}
	}
	return nil
}

func (n *node) DelAll(s ipset.Set, list []ipset.Element) error {
	for _, e := range list {
		if err := n.Del(s, e); err != nil {
			return err
		}
	}
	return nil
}

func (n *node) Elements(s ipset.Set, visit func(ipset.Element)) error {
	if n.sets[s.Name] == nil {
		return ipset.ErrNotExist
	}
	for e := range n.sets[s.Name] {
		visit(e)
	}
	return nil
}

func (n *node) Test(s ipset.Set, e ipset.Element) (bool, error) {
	set := n.sets[s.Name]
	if set == nil {
		return false, ipset.ErrNotExist
	}
	if n.kinds[s.Name].Type == ipset.BitmapPort {
		for _, has := range set {
			if has.First <= e.First && e.Last <= has.Last {
				return true, nil
			}
		}
		return false, nil
	}
	_, there := set[e.Key()]
	return there, nil
}

func (n *node) Header(name string) (ipset.Header, error) {
	set := n.sets[name]
	if set == nil {
		return ipset.Header{}, ipset.ErrNotExist
	}
	size := 0
	for e := range set {
		size += int(e.Last) - int(e.First) + 1
		if e.Protocol != 0 {
			size += int(e.First)
		}
	}
	return ipset.Header{References: n.references(name), Elements: uint32(size)}, nil
}

func (n *node) Names() ([]string, error) { return slices.Sorted(maps.Keys(n.sets)), nil }

// tables are the rules of a family.
func (n *node) tables(f family) map[string]map[string][]string {
	n.t.Helper()
	if n.restored(); n.rules != nil {
		return n.rules[f]
	}
	n.rules, n.uses = map[family]map[string]map[string][]string{}, map[string]uint32{}
	for _, f := range []family{v4, v6} {
		tables, err := read(n.dir, f.command)
		if err != nil {
			n.t.Fatal(err)
		}
		n.rules[f] = tables
		for _, chains := range tables {
			for _, rules := range chains {
				for _, m := range setWord.FindAllStringSubmatch(strings.Join(rules, "\n"), -1) {
					n.uses[m[1]]++
				}
			}
		}
	}
	return n.rules[f]
}

// references counts the rules that name a set.
func (n *node) references(name string) uint32 {
	n.tables(v4)
	return n.uses[name]
}

// copy is another node with the same on it.
func (n *node) copy() *node {
	c := newNode(n.t)
	for name, set := range n.sets {
		c.sets[name], c.kinds[name] = maps.Clone(set), n.kinds[name]
	}
	for _, f := range []family{v4, v6} {
		b, err := os.ReadFile(filepath.Join(n.dir, f.command+".json"))
		if err == nil {
			err = os.WriteFile(filepath.Join(c.dir, f.command+".json"), b, 0o600)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			n.t.Fatal(err)
		}
	}
	c.plan()
	return c
}

// read is what a family has: the rules of the chains of its tables.
func read(dir, command string) (map[string]map[string][]string, error) {
	tables := map[string]map[string][]string{
		mangle:   {"PREROUTING": nil, "INPUT": {"-j KUBE-FIREWALL"}, "FORWARD": nil, "OUTPUT": nil, "POSTROUTING": nil, "KUBE-FIREWALL": nil},
		security: {"INPUT": nil, "FORWARD": nil, "OUTPUT": nil},
	}
	b, err := os.ReadFile(filepath.Join(dir, command+".json"))
	if errors.Is(err, os.ErrNotExist) {
		return tables, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &tables)
	}
	return tables, err
}

// command is what iptables-nft and its kin do.
func command(dir, name string, args []string, in io.Reader, out io.Writer) error {
	family, kind, _ := strings.Cut(name, "-nft")
	tables, err := read(dir, family)
	if err != nil {
		return err
	}
	switch kind {
	case "-save":
		table := args[slices.Index(args, "-t")+1]
		fmt.Fprintf(out, "# Generated by a test\n*%s\n", table)
		for _, chain := range slices.Sorted(maps.Keys(tables[table])) {
			fmt.Fprintf(out, ":%s - [0:0]\n", chain)
		}
		for _, chain := range slices.Sorted(maps.Keys(tables[table])) {
			for _, r := range tables[table][chain] {
				fmt.Fprintf(out, "-A %s %s\n", chain, r)
			}
		}
		fmt.Fprintln(out, "COMMIT")
		return nil
	case "-restore":
	default:
		return fmt.Errorf("%s is not expected", name)
	}
	if !slices.Contains(args, "--noflush") {
		return errors.New("a restore that flushes")
	}
	var p plan
	b, err := os.ReadFile(filepath.Join(dir, "plan"))
	if err == nil {
		err = json.Unmarshal(b, &p)
	}
	if err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(dir, "log"), os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	before, err := io.ReadAll(log)
	if err != nil {
		return err
	}
	fails := len(strings.Fields(string(before)))+1 == p.Left
	fmt.Fprintf(log, "restore:%s\n", family)
	if fails && !p.Late {
		return errHarmed
	}
	input, err := io.ReadAll(in)
	if err != nil {
		return err
	}
	if err := restore(tables, string(input), p.Sets); err != nil {
		return err
	}
	if b, err = json.Marshal(tables); err == nil {
		err = os.WriteFile(filepath.Join(dir, family+".json"), b, 0o600)
	}
	if err == nil && fails {
		err = errHarmed
	}
	return err
}

var setWord = regexp.MustCompile(`--(?:match|map)-set (\S+)`)

// restore is iptables-restore --noflush, as far as podmark uses it.
func restore(tables map[string]map[string][]string, input string, sets []string) error {
	var chains map[string][]string
	for i, line := range strings.Split(input, "\n") {
		wrong := func(format string, args ...any) error {
			return fmt.Errorf("iptables-restore: line %d failed: %s", i+1, fmt.Sprintf(format, args...))
		}
		if m := setWord.FindStringSubmatch(line); m != nil && !strings.HasPrefix(line, "-D") && !slices.Contains(sets, m[1]) {
			return wrong("set %s does not exist", m[1])
		}
		words := strings.SplitN(line, " ", 3)
		chain := words[min(1, len(words)-1)]
		rules, there := chains[chain]
		switch do := words[0]; {
		case line == "" || line == "COMMIT":
		case line[0] == '*':
			chains = tables[line[1:]]
		case line[0] == ':':
			chains[do[1:]] = nil
		case !there:
			return wrong("there is no chain %s", chain)
		case do == "-A":
			chains[chain] = append(rules, words[2])
		case do == "-I":
			_, rule, _ := strings.Cut(words[2], " ")
			chains[chain] = slices.Insert(slices.Clone(rules), 0, rule)
		case do == "-D":
			at := slices.Index(rules, words[2])
			if at < 0 {
				return wrong("there is no such rule")
			}
			chains[chain] = slices.Delete(slices.Clone(rules), at, at+1)
		case do == "-F":
			chains[chain] = nil
		case do == "-X":
			for name, rules := range chains {
				if slices.ContainsFunc(rules, func(r string) bool { return strings.HasSuffix(r, "-j "+chain) || strings.HasSuffix(r, "-g "+chain) }) {
					return wrong("%s leads to it", name)
				}
			}
			if len(rules) > 0 {
				return wrong("it has rules")
			}
			delete(chains, chain)
		default:
			return wrong("what is %q?", line)
		}
	}
	for name, chains := range tables {
		for chain, rules := range chains {
			for _, r := range rules {
				if m := regexp.MustCompile(`-[jg] (PODMARK-\S+)$`).FindStringSubmatch(r); m != nil {
					if _, there := chains[m[1]]; !there {
						return fmt.Errorf("%s %s leads to %s, which is not there", name, chain, m[1])
					}
				}
			}
		}
	}
	return nil
}

// everyGeneration is the name of a set, or a rule with some, of either generation.
var everyGeneration = regexp.MustCompile(`(podmark-[a-z]+[46])[ab]\b`)

// has is all that there is of podmark's on the node, whatever generation it is of.
func (n *node) has() map[string]string {
	n.t.Helper()
	out := map[string]string{}
	for name, set := range n.sets {
		var list []string
		for _, e := range set {
			list = append(list, e.String())
		}
		slices.Sort(list)
		out[everyGeneration.ReplaceAllString(name, "$1")] = strings.Join(list, "\n")
	}
	for _, f := range []family{v4, v6} {
		for table, chains := range n.tables(f) {
			for chain, rules := range chains {
				text := everyGeneration.ReplaceAllString(strings.Join(rules, "\n"), "$1")
				if strings.HasSuffix(chain, "GRESS") || strings.HasSuffix(chain, "GRESSNET") || strings.Contains(chain, "-CLIENT") || strings.Contains(chain, "-SERVER") {
					sorted := strings.Split(text, "\n")
					slices.Sort(sorted) // in the order in which profiles came
					text = strings.Join(sorted, "\n")
				}
				out[f.digit+table+chain] = text
			}
		}
	}
	return out
}

// closed complains about an endpoint that is known and that no profile judges of those that
// may by now.
func (n *node) closed(states ...desired.State) func() {
	return func() {
		n.t.Helper()
		for _, f := range families() {
			tables := n.tables(f)
			for _, gen := range []generation{genA, genB} {
				names := naming{f, gen}
				if !slices.ContainsFunc(tables[mangle][chainMark], func(r string) bool { return strings.Contains(r, names.endpoints().Name+" ") }) {
					continue // no rule looks there
				}
				for e := range n.sets[names.endpoints().Name] {
					for _, d := range desired.Directions {
						if !slices.ContainsFunc(states, func(s desired.State) bool { return n.judges(s, e, d, names, tables[mangle]) }) {
							n.t.Errorf("after %s: nothing judges the %s of %s", n.did[len(n.did)-1], d, e)
						}
					}
				}
			}
		}
	}
}

// judges reports whether who has the element is judged as s says.
func (n *node) judges(s desired.State, e ipset.Element, d desired.Direction, names naming, chains map[string][]string) bool {
	for _, of := range s.Endpoints {
		if !slices.Contains(of.Addresses, e.Prefix.Addr()) {
			continue
		}
		id := of.Profiles[d]
		if id == "" {
			return true
		}
		p := s.Profiles[id]
		_, member := n.sets[names.members(d, id).Name][ipset.Element{Prefix: e.Prefix}]
		for _, w := range ways {
			byAddress, _ := dispatches(d, w)
			if !slices.Contains(chains[byAddress], dispatchRules(p, w, names)[0]) || len(chains[chainOf(p, w)]) == 0 {
				return false
			}
		}
		return member
	}
	return false
}
