package main_test

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/podmark/podmark/test/testnode"
)

var (
	nftables       = testnode.NFTables
	iptablesNFT    = testnode.IPTablesNFT
	iptablesLegacy = testnode.IPTablesLegacy
	// undecided is a node that tells podmark nothing.
	undecided = backend{}
)

// backends are what the suite runs for.
var backends = testnode.Backends

// kinds are one of each kind, for what cannot depend on the variant of iptables.
var kinds = slices.CompactFunc(slices.Clone(backends), func(a, b backend) bool { return a.Key == b.Key })

// eachBackend runs test once per backend, all at the same time.
func eachBackend(t *testing.T, test func(t *testing.T, n *node)) { on(t, backends, test) }

// eachKind runs test once per kind of backend.
func eachKind(t *testing.T, test func(t *testing.T, n *node)) { on(t, kinds, test) }

// on is eachBackend for what is about some of them.
func on(t *testing.T, list []backend, test func(t *testing.T, n *node)) {
	testnode.Each(t, list, newNode, test)
}

// inTurn is eachKind for a test that needs the machine for itself.
func inTurn(t *testing.T, test func(t *testing.T, n *node)) {
	for _, b := range kinds {
		t.Run(b.Name, func(t *testing.T) { test(t, newNode(t, b)) })
	}
}

// nft runs a command of nft's.
func (n *node) nft(command string) string { n.T.Helper(); return n.Exec("", "nft", command) }

var (
	counter  = regexp.MustCompile(`counter packets \d+ bytes \d+`)
	sizeLine = regexp.MustCompile(`^\s+size \d+\n$`)
	tuning   = regexp.MustCompile(` (hashsize|bucketsize|initval) \S+`)
)

// kernel is what podmark has in the kernel, in a form in which equal states are
// equal strings: the sets, the tables of nft, and the rules of the node's variant
// of iptables, or of both where it has no kubelet.
func (n *node) kernel() string {
	n.T.Helper()
	lines := append(n.sets(), n.tables()...)
	for _, v := range testnode.Variants {
		if n.Backend.Variant == "" || n.Backend.Variant == v {
			lines = append(lines, n.Rules(v)...)
		}
	}
	return testnode.AnyGeneration(strings.Join(lines, ""))
}

// sets lists the ipsets with their content, in order.
func (n *node) sets() []string {
	n.T.Helper()
	var lines []string
	for line := range strings.Lines(n.Exec("", "ipset", "save")) {
		switch {
		case strings.HasPrefix(line, "add podmark-port"): // thousands; see TestNodePortChange
		case strings.HasPrefix(line, "add podmark-host") && strings.Contains(line, " fe80:"): // of veths, as of the last sync
		default:
			lines = append(lines, tuning.ReplaceAllString(line, ""))
		}
	}
	slices.Sort(lines)
	return lines
}

// tables lists what nft shows of families inet and bridge, a text an object. The
// kernel lists objects by age, so they are put in order; rules stay in theirs. What
// families ip and ip6 hold is iptables-nft's, which shows it itself.
func (n *node) tables() []string {
	n.T.Helper()
	var objects []string
	var table, object string
	for line := range strings.Lines(n.nft("list ruleset")) {
		if sizeLine.MatchString(line) {
			continue // a set that had to grow stays so
		}
		if strings.Contains(line, " limit rate over ") && strings.Contains(line, " expires ") {
			continue // what pods have sent lately
		}
		line = counter.ReplaceAllString(line, "counter")
		switch {
		case line == "\n":
		case strings.HasPrefix(line, "table "):
			if table = line; strings.HasPrefix(line, "table ip") {
				table = ""
			}
			object = table
		case table == "":
		case line == "}\n":
			objects = append(objects, table)
		case line == "\t}\n":
			objects = append(objects, object)
			object = table
		default:
			object += line
		}
	}
	slices.Sort(objects)
	return objects
}

// present names the backends that have anything in the kernel, with "sets" where
// there are ipsets of podmark's, and "guard" where of nftables there is only what stands
// beside iptables.
func (n *node) present() string {
	n.T.Helper()
	var found []string
	has := func(text string) bool {
		return slices.ContainsFunc(n.tables(), func(s string) bool { return strings.Contains(s, text) })
	}
	switch {
	case has("\tchain forward "):
		found = append(found, "nftables")
	case has("table inet podmark") && has("table bridge podmark"):
		found = append(found, "guard")
	case has(" podmark {"):
		found = append(found, "half a guard")
	}
	for _, v := range testnode.Variants {
		if slices.ContainsFunc(n.Rules(v), func(s string) bool { return strings.Contains(s, "PODMARK-") }) {
			found = append(found, "iptables-"+v)
		}
	}
	if slices.ContainsFunc(n.sets(), func(s string) bool { return strings.Contains(s, " podmark-") }) {
		found = append(found, "sets")
	}
	return strings.Join(found, " ")
}

// alone is what present says of a node on which b alone enforces.
func alone(b backend) string {
	if b.Name == nftables.Name {
		return b.Name
	}
	return "guard " + b.Name + " sets"
}

var (
	setElement = regexp.MustCompile(`(?m)^add podmark-ep[46][ab] (\S+),(\S+) skbmark 0x([0-9a-f]+)/`)
	// Of nftables, who sends from where, and whose address has which ID.
	senderElement = regexp.MustCompile(`"?([\w.-]+)"? \. ([0-9a-f.:]+)`) // a number where the link is gone
	sourceElement = regexp.MustCompile(`([0-9a-f.:]+) : 0x0*([0-9a-f]+) `)
)

// endpoints lists the elements that give a packet its ID, each as "address
// interface mark".
func (n *node) endpoints() []string {
	n.T.Helper()
	var list []string
	for _, m := range setElement.FindAllStringSubmatch(n.Exec("", "ipset", "save"), -1) {
		list = append(list, m[1]+" "+m[2]+" 0x"+m[3])
	}
	marks := map[string]string{}
	for _, object := range n.tables() {
		if strings.Contains(object, "\tmap sources") {
			for _, m := range sourceElement.FindAllStringSubmatch(object, -1) {
				marks[m[1]] = m[2]
			}
		}
	}
	for _, object := range n.tables() {
		if strings.Contains(object, "\tset senders") {
			for _, m := range senderElement.FindAllStringSubmatch(object, -1) {
				if mark, ok := marks[m[2]]; ok { // beside iptables nothing is marked
					list = append(list, m[2]+" "+m[1]+" 0x"+mark)
				}
			}
		}
	}
	slices.Sort(list)
	return list
}

// wipe takes podmark's rules and sets away, as a reload of a firewall does.
func (n *node) wipe() {
	n.T.Helper()
	if n.Backend == nftables {
		n.nft("flush ruleset") // the kubelet's chain too
	} else {
		n.Iptables("-F")
		n.Iptables("-X")
		n.Exec("", "ipset", "destroy")
	}
	n.Hint()
}

// set names the set of the node's that is in use: "ep4" is podmark-ep4a or podmark-ep4b.
func (n *node) set(purpose string) string {
	n.T.Helper()
	for name := range strings.FieldsSeq(n.Exec("", "ipset", "list", "-n")) {
		if strings.HasPrefix(name, "podmark-"+purpose) {
			return name
		}
	}
	n.T.Fatalf("no set podmark-%s", purpose)
	return ""
}

// chain names the one chain that begins with prefix, in either backend's names.
func (n *node) chain(prefix string) string {
	n.T.Helper()
	for _, line := range append(n.tables(), n.Rules(n.Backend.Variant)...) {
		for word := range strings.FieldsSeq(line) {
			if word = strings.TrimPrefix(word, ":"); strings.HasPrefix(word, prefix) {
				return word
			}
		}
	}
	n.T.Fatalf("no chain %s*", prefix)
	return ""
}

// handles lists the handles of the rules of a chain of table inet podmark, or of
// another table.
func (n *node) handles(chain string) []string {
	n.T.Helper()
	var list []string
	for line := range strings.Lines(n.Exec("", "nft", "-a", "list chain "+chain)) {
		if rule, handle, ok := strings.Cut(strings.TrimSpace(line), " # handle "); ok && !strings.HasSuffix(rule, "{") {
			list = append(list, handle)
		}
	}
	return list
}
