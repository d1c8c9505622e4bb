package main

import (
	"crypto/sha512"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// dialect is what rules are read and written with. A rule is a line that says
// which table it belongs to.
type dialect interface {
	list(node space) ([]line, error)
	write(node space, lines []line) error
}

// line is a chain or a rule of a table, in the words of its dialect.
type line struct{ table, text string }

// iptablesDialect is a table of a variant of iptables, of both families.
type iptablesDialect struct{ variant, table string }

func (d iptablesDialect) command(family, suffix string) string {
	return family + "-" + d.variant + suffix
}

func (d iptablesDialect) list(node space) ([]line, error) {
	var out []line
	for _, family := range []string{"iptables", "ip6tables"} {
		text, err := node.command("", d.command(family, "-save"), "-t", d.table)
		if err != nil {
			return nil, err
		}
		for l := range strings.Lines(text) {
			if l = strings.TrimSpace(l); strings.HasPrefix(l, "-A ") {
				out = append(out, line{family, l})
			} else if name, _, ok := strings.Cut(l, " "); ok && strings.HasPrefix(l, ":") {
				out = append(out, line{family, name + " - [0:0]"})
			}
		}
	}
	return out, nil
}

func (d iptablesDialect) write(node space, lines []line) error {
	for _, family := range []string{"iptables", "ip6tables"} {
		var chains, rules strings.Builder
		for _, l := range lines {
			switch {
			case l.table != family:
			case strings.HasPrefix(l.text, ":"):
				chains.WriteString(l.text + "\n")
			default:
				rules.WriteString(l.text + "\n")
			}
		}
		text := "*" + d.table + "\n" + chains.String() + rules.String() + "COMMIT\n"
		if _, err := node.command(text, d.command(family, "-restore"), "--noflush", "-w", "60"); err != nil {
			return err
		}
	}
	return nil
}

// nftDialect is tables of nftables.
type nftDialect struct{ tables []string }

func (d nftDialect) list(node space) ([]line, error) {
	var out []line
	for _, table := range d.tables {
		text, err := node.command("", "nft", "list", "table", table)
		if err != nil {
			if strings.Contains(err.Error(), "No such file") {
				continue // before the first ADD
			}
			return nil, err
		}
		chain := ""
		for l := range strings.Lines(text) {
			l = strings.TrimSpace(l)
			switch {
			case strings.HasPrefix(l, "chain "):
				chain = strings.Fields(l)[1]
			case l == "}" || l == "":
				chain = ""
			case chain != "" && !strings.HasPrefix(l, "type "):
				out = append(out, line{table, "add rule " + table + " " + chain + " " + l})
			}
		}
	}
	return out, nil
}

func (d nftDialect) write(node space, lines []line) error {
	var text strings.Builder
	for _, l := range lines {
		text.WriteString(l.text + "\n")
	}
	_, err := node.command(text.String(), "nft", "-f", "-")
	return err
}

// portmapChain is the name that portmap gives to the chain of an attachment.
func portmapChain(a attached) string {
	const maxName = 28 // of iptables
	return fmt.Sprintf("CNI-DN-%x", sha512.Sum512([]byte(network+a.id)))[:maxName]
}

// words are what in the rules of an attachment is its own, each with what stands
// for it in a template.
func words(a attached) *strings.Replacer {
	return strings.NewReplacer(
		portmapChain(a), "<chain>",
		`"`+a.id+`"`, `"<id>"`, // nft
		`\"`+a.id+`\"`, `\"<id>\"`, // iptables
		a.v4.String()+"/32", "<v4>/32", a.v4.String()+":80", "<v4>:80", a.v4.String()+" ", "<v4> ",
		a.v6.String()+"/128", "<v6>/128", "["+a.v6.String()+"]", "[<v6>]", a.v6.String()+" ", "<v6> ",
		fmt.Sprintf("port %d", a.hostPort), "port <port>", fmt.Sprintf("ports %d", a.hostPort), "ports <port>",
	)
}

// instance writes the rules of an attachment from the template.
func instance(template []line, a attached) []line {
	r := strings.NewReplacer(
		"<chain>", portmapChain(a),
		"<id>", a.id, "<v4>", a.v4.String(), "<v6>", a.v6.String(), "<port>", fmt.Sprint(a.hostPort))
	out := make([]line, len(template))
	for i, l := range template {
		out[i] = line{l.table, r.Replace(l.text)}
	}
	return out
}

// leaves are the lines that a call of the plugin adds, or for a DEL removes.
func (p *plugin) leaves(verb string, a attached) ([]line, error) {
	before, err := p.writes.list(p.node)
	if err != nil {
		return nil, err
	}
	if _, err := p.call(verb, a); err != nil {
		return nil, err
	}
	after, err := p.writes.list(p.node)
	if verb == "DEL" {
		before, after = after, before
	}
	had := map[line]bool{}
	for _, l := range before {
		had[l] = true
	}
	return slices.DeleteFunc(after, func(l line) bool { return had[l] }), err
}

// reach brings the plugin's node to this many endpoints. podmark's are added.
// For the others that would take hours: of theirs the first ones are added, and
// what they leave is written for the others.
func (p *plugin) reach(size int) error {
	switch {
	case p.writes != nil:
		return p.reachInBulk(size)
	case !p.isPodmark():
		p.there = size // they would change nothing
		return nil
	}
	for ; p.there < size; p.there++ {
		a, err := p.attach()
		if err != nil {
			return err
		}
		if _, err := p.call("ADD", a); err != nil {
			return err
		}
	}
	return nil
}

func (p *plugin) reachInBulk(size int) error {
	if p.there >= size {
		return nil
	}
	template, err := p.learn()
	if err != nil {
		return fmt.Errorf("%s: learning its rules: %w", p.name, err)
	}
	var lines []line
	var last attached
	for ; p.there < size; p.there++ {
		last = p.another()
		lines = append(lines, instance(template, last)...)
	}
	if err := p.writes.write(p.node, lines); err != nil {
		return err
	}
	// The plugin itself finds them as if it had written them, and removes them all.
	if _, err := p.call("CHECK", last); err != nil {
		return err
	}
	removed, err := p.leaves("DEL", last)
	if err != nil {
		return err
	}
	if !sameLines(removed, instance(template, last)) {
		return fmt.Errorf("%s: a DEL removes %q of what stands for an endpoint, %q", p.name, removed, instance(template, last))
	}
	return p.writes.write(p.node, instance(template, last))
}

// learn adds three endpoints and makes a template of the rules of the second,
// because the first finds nothing there. The third proves it.
func (p *plugin) learn() (template []line, err error) {
	var list [3]attached
	var left [3][]line
	for i := range list {
		if list[i], err = p.attach(); err != nil {
			return nil, err
		}
		if left[i], err = p.leaves("ADD", list[i]); err != nil {
			return nil, err
		}
	}
	r := words(list[1])
	for _, l := range left[1] {
		template = append(template, line{l.table, r.Replace(l.text)})
	}
	if len(template) == 0 || !sameLines(left[2], instance(template, list[2])) {
		err = fmt.Errorf("an endpoint's rules are %q, and %q was expected", left[2], instance(template, list[2]))
	}
	for _, a := range list {
		_, errDel := p.call("DEL", a)
		err = errors.Join(err, errDel)
	}
	return template, err
}

// sameLines compares without order.
func sameLines(a, b []line) bool {
	sorted := func(list []line) []line {
		return slices.SortedFunc(slices.Values(list), func(x, y line) int {
			return strings.Compare(x.table+x.text, y.table+y.text)
		})
	}
	return slices.Equal(sorted(a), sorted(b))
}
