// Package mutant takes static rules of podmark's out of the kernel, one at a time, for tests
// that find out which of their packets shows it.
package mutant

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Rule is a rule of a static chain.
type Rule struct {
	// Table is that of nft, such as "inet podmark", or the command and table of iptables,
	// such as "ip6tables-legacy mangle".
	Table, Chain string
	// Number is its place in the chain, from 1.
	Number int
	// Text is what nft or iptables prints of it.
	Text string
}

func (r Rule) String() string { return fmt.Sprintf("%s %s %d", r.Table, r.Chain, r.Number) }

// Run starts a program on the node and returns what it prints.
type Run func(name string, args ...string) (string, error)

// variable tells a process which rule to take out.
const variable = "PODMARK_WITHOUT"

// Env is an assignment for a process, which FromEnv there reads.
func (r Rule) Env() string {
	return fmt.Sprintf("%s=%s|%s|%d|%s", variable, r.Table, r.Chain, r.Number, r.Text)
}

// FromEnv is the rule that this process is to take out; false if there is none.
func FromEnv() (r Rule, ok bool) {
	parts := strings.SplitN(os.Getenv(variable), "|", 4)
	if len(parts) != 4 {
		return r, false
	}
	number, err := strconv.Atoi(parts[2])
	return Rule{parts[0], parts[1], number, parts[3]}, err == nil
}

// Static lists the rules of a backend's static chains. Of what stands beside iptables it lists
// the chain that nftables alone does not have.
func Static(run Run, backend string) (list []Rule, err error) {
	tables := []string{"inet podmark", "bridge podmark"}
	wanted := func(table, chain string) bool { return !ofProfile.MatchString(chain) }
	if backend != "nftables" {
		tables = []string{"inet podmark"}
		wanted = func(table, chain string) bool {
			return !ofProfile.MatchString(chain) && (chain == "remark" || table != "inet podmark")
		}
		for _, command := range []string{"iptables", "ip6tables"} {
			for _, table := range []string{"mangle", "security"} {
				tables = append(tables, command+strings.TrimPrefix(backend, "iptables")+" "+table)
			}
		}
	}
	for _, table := range tables {
		chains, err := read(run, table)
		if err != nil {
			return nil, err
		}
		for chain, rules := range chains {
			for i, r := range rules {
				if wanted(table, chain) {
					list = append(list, Rule{table, chain, i + 1, r.text})
				}
			}
		}
	}
	slices.SortFunc(list, func(a, b Rule) int { return strings.Compare(a.String(), b.String()) })
	return list, nil
}

// TakeOut removes the rule, if it is there: the epoch, the mask and the members of constant
// sets may be others. Of a rule of iptables the match stays, so that the sets which it names
// have as many references as before.
func (r Rule) TakeOut(run Run) error {
	chains, err := read(run, r.Table)
	if err != nil {
		return err
	}
	rules := chains[r.Chain]
	same := func(o rule) bool { return canon(o.text) == canon(r.Text) }
	at := r.Number - 1
	if len(rules) <= at || !same(rules[at]) { // there may be a rule that logs in front
		if at = slices.IndexFunc(rules, same); at < 0 {
			return nil
		}
	}
	first, table, _ := strings.Cut(r.Table, " ")
	if handle := rules[at].handle; handle != "" {
		_, err = run("nft", "delete", "rule", first, table, r.Chain, "handle", handle)
		return err
	}
	_, err = run("sh", "-c", fmt.Sprintf("%s -w 30 -t %s -R %s %d %s", first, table, r.Chain, at+1, target.ReplaceAllString(rules[at].text, "")))
	return err
}

var (
	chainLine = regexp.MustCompile(`^\tchain (\S+) \{`)
	ruleLine  = regexp.MustCompile(`^\t\t(.*) # handle (\d+)$`)
	counter   = regexp.MustCompile(`counter packets \d+ bytes \d+`)
	ofProfile = regexp.MustCompile(`^[ei][46]-|^PODMARK-[EI]A?-`)
	values    = regexp.MustCompile(` & 0x[0-9a-f]+|== |0x[0-9a-f]+(/0x[0-9a-f]+|/\d+)?|\{[^}]*\}|--dports \S+`)
	target    = regexp.MustCompile(`-[jg] .*$`)
)

// canon is a rule without what differs from node to node. Of a mask in one piece nft writes how
// long it is.
func canon(text string) string { return values.ReplaceAllString(text, "") }

type rule struct{ text, handle string }

// read lists the rules of a table by chain: of iptables those that lead to a chain of
// podmark's, or are in one.
func read(run Run, table string) (map[string][]rule, error) {
	first, name, _ := strings.Cut(table, " ")
	out := map[string][]rule{}
	if strings.Contains(first, "tables") {
		text, err := run(first, "-w", "30", "-t", name, "-S")
		for line := range strings.Lines(text) {
			if words := strings.SplitN(strings.TrimSpace(line), " ", 3); words[0] == "-A" && strings.Contains(line, "PODMARK-") {
				out[words[1]] = append(out[words[1]], rule{text: words[2]})
			}
		}
		return out, err
	}
	text, err := run("nft", "-a", "list", "table", first, name)
	chain := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if m := chainLine.FindStringSubmatch(line); m != nil {
			chain = m[1]
		}
		if m := ruleLine.FindStringSubmatch(line); m != nil && chain != "" {
			out[chain] = append(out[chain], rule{counter.ReplaceAllString(m[1], "counter"), m[2]})
		}
	}
	return out, err
}
