package foreign

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	"github.com/podmark/podmark/pkg/xtables"
)

// readLegacy reads what iptables-legacy has. The kernel says which tables there
// are, so that without any no command is run and no module is loaded for it.
func readLegacy(ctx context.Context) ([]Chain, []Rule, error) {
	var chains []Chain
	var rules []Rule
	for _, f := range []struct{ family, command, tables string }{
		{"ip", "iptables", "/proc/thread-self/net/ip_tables_names"},
		{"ip6", "ip6tables", "/proc/thread-self/net/ip6_tables_names"},
	} {
		names, err := os.ReadFile(f.tables)
		if errors.Is(err, fs.ErrNotExist) || err == nil && len(bytes.TrimSpace(names)) == 0 {
			continue
		}
		if err != nil {
			return chains, rules, err
		}
		out, err := save(ctx, f.command)
		if err != nil {
			return chains, rules, fmt.Errorf("the kernel has tables %q: %w", strings.Fields(string(names)), err)
		}
		c, r := ParseLegacy(f.family, out)
		chains, rules = append(chains, c...), append(rules, r...)
	}
	return chains, rules, nil
}

// save runs the command that prints the rules of iptables-legacy: by its own name,
// or by the short one where that is not the other variant's.
func save(ctx context.Context, command string) (string, error) {
	name := command + "-legacy-save"
	if _, err := exec.LookPath(name); err != nil {
		name = command + "-save"
		version, err := exec.CommandContext(ctx, name, "--version").Output()
		if err != nil || strings.Contains(string(version), "nf_tables") {
			return "", fmt.Errorf("there is no %s-legacy-save to show them", command)
		}
	}
	return xtables.Save(ctx, name)
}

// ParseLegacy reads what iptables-save or, for family ip6, ip6tables-save prints. Of
// the rules it returns those that write or compare a mark or keep packets out of
// conntrack, and are not podmark's. Lines that it does not know say nothing.
func ParseLegacy(family, text string) ([]Chain, []Rule) {
	var chains []Chain
	var rules []Rule
	ways := newPassages()
	table := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "*"); ok {
			table = name
			continue
		}
		if rest, ok := strings.CutPrefix(line, ":"); ok {
			name, _, _ := strings.Cut(rest, " ")
			c := Chain{Origin: Legacy, Family: family, Table: table, Name: name}
			chains, ways.chains = append(chains, c), append(ways.chains, c)
			if h := Hook(name); slices.Contains(hooks, h) {
				ways.bases[c] = Place{h, tablePriority(table, h)}
			}
			continue
		}
		words := Words(line)
		if len(words) < 2 || words[0] != "-A" {
			continue
		}
		i := slices.IndexFunc(chains, func(c Chain) bool { return c.Table == table && c.Name == words[1] })
		if i < 0 {
			continue
		}
		r := Rule{Chain: chains[i], Spec: words[2:]}
		target, _ := r.option("-j")
		if to, ok := r.option("-g"); ok {
			target = to
		}
		ways.jumps[r.id()] = append(ways.jumps[r.id()], r.sibling(target))
		if leads(target) {
			continue
		}
		chains[i].Rules++
		if r.read(); r.interesting() && !r.Own() {
			rules = append(rules, r)
		}
	}
	places := ways.places()
	for i, r := range rules {
		rules[i].Places = places[r.id()]
	}
	return chains, rules
}

// Words cuts a line of iptables-save into words. Those with a space in them are in
// double quotes, with a backslash before quotes and backslashes.
func Words(line string) []string {
	var words []string
	var word strings.Builder
	quoted, escaped, inside := false, false, false
	for _, r := range line {
		switch {
		case escaped:
			word.WriteRune(r)
			escaped = false
		case r == '\\' && quoted:
			escaped = true
		case r == '"':
			quoted, inside = !quoted, true
		case r == ' ' && !quoted:
			if inside {
				words = append(words, word.String())
			}
			word.Reset()
			inside = false
		default:
			word.WriteRune(r)
			inside = true
		}
	}
	if inside {
		words = append(words, word.String())
	}
	return words
}

// option is the value of an option of the rule, and whether it is there, not
// negated.
func (r Rule) option(name string) (string, bool) {
	i := slices.Index(r.Spec, name)
	if i < 0 || i > 0 && r.Spec[i-1] == "!" {
		return "", false
	}
	if i+1 < len(r.Spec) {
		return r.Spec[i+1], true
	}
	return "", true
}

// has reports whether the option is there, not negated.
func (r Rule) has(name string) bool {
	_, ok := r.option(name)
	return ok
}

// number reads the value of an option; without it, or where it cannot be read, it
// is every bit.
func (r Rule) number(name string) uint32 {
	text, _ := r.option(name)
	n, err := strconv.ParseUint(text, 0, 32)
	if err != nil {
		return All
	}
	return uint32(n)
}

// read finds out what the rule does. iptables-save writes --or-mark, --and-mark and
// the like as --set-xmark.
func (r *Rule) read() {
	for name, prefix := range map[string]*netip.Prefix{"-s": &r.Source, "-d": &r.Destination} {
		if text, ok := r.option(name); ok {
			*prefix, _ = netip.ParsePrefix(text)
		}
	}
	in, _ := r.option("-i")
	out, _ := r.option("-o")
	r.Loopback = in == "lo" || out == "lo"
	r.readCompares()
	r.readTarget()
}

// readTarget reads what the rule does to marks and to conntrack.
func (r *Rule) readTarget() {
	target, _ := r.option("-j")
	switch target {
	case "NOTRACK":
		r.NoTrack = true
	case "CT":
		r.NoTrack = r.NoTrack || r.has("--notrack")
	case "MARK":
		value, mask := r.xmark()
		r.Writes = append(r.Writes, setXmark(PacketMark, value, mask))
	case "CONNMARK":
		r.Writes = append(r.Writes, r.connmark())
	case "SET":
		if r.has("--map-mark") {
			r.Writes = append(r.Writes, setMark)
		}
	case "TPROXY":
		text, there := r.option("--tproxy-mark")
		if value, mask, _ := masked(text); there {
			r.Writes = append(r.Writes, tproxy(value, mask))
		}
	default:
		r.computes(target)
	}
}

// connmark is what CONNMARK writes.
func (r Rule) connmark() Write {
	shift := r.shift()
	switch {
	case r.has("--save-mark"):
		return connmark(0, r.number("--ctmask"), r.number("--nfmask"), connmarkSave, shift)
	case r.has("--restore-mark"):
		return connmark(0, r.number("--ctmask"), r.number("--nfmask"), connmarkRestore, shift)
	}
	value, mask := r.xmark()
	return connmark(value, mask, 0, connmarkSet, shift)
}

// shift is how far CONNMARK shifts to the left; below 0 it is to the right.
func (r Rule) shift() int {
	if text, ok := r.option("--right-shift-mark"); ok {
		n, _ := strconv.Atoi(text)
		return -n
	}
	text, _ := r.option("--left-shift-mark")
	n, _ := strconv.Atoi(text)
	return n
}

// readCompares reads "-m mark ! --mark VALUE/MASK", and that of connmark: both options
// have one name, and belong to the match before them.
func (r *Rule) readCompares() {
	field := Field("")
	for i, word := range r.Spec {
		switch {
		case word == "-m" && i+1 < len(r.Spec):
			field = map[string]Field{"mark": PacketMark, "connmark": ConntrackMark}[r.Spec[i+1]]
		case word == "-j", word == "-g":
			return
		case word == "--mark" && field != "" && i+1 < len(r.Spec):
			value, mask, ok := masked(r.Spec[i+1])
			r.Compares = append(r.Compares, Compare{
				Field: field, Mask: mask, Value: value, Among: !ok,
				Not: i > 0 && r.Spec[i-1] == "!",
			})
		}
	}
}

// xmark reads --set-xmark VALUE[/MASK].
func (r Rule) xmark() (value, mask uint32) {
	text, _ := r.option("--set-xmark")
	value, mask, _ = masked(text)
	return value, mask
}

// masked reads VALUE[/MASK]; what it cannot read is every bit.
func masked(text string) (value, mask uint32, ok bool) {
	first, second, masked := strings.Cut(text, "/")
	v, errV := strconv.ParseUint(first, 0, 32)
	m, errM := uint64(All), error(nil)
	if masked {
		m, errM = strconv.ParseUint(second, 0, 32)
	}
	if errors.Join(errV, errM) != nil {
		return 0, All, false
	}
	return uint32(v), uint32(m), true
}
