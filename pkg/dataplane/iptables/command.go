package iptables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	goiptables "github.com/coreos/go-iptables/iptables"

	"github.com/podmark/podmark/pkg/dataplane/counters"
	"github.com/podmark/podmark/pkg/dataplane/ipset"
	"github.com/podmark/podmark/pkg/xtables"
)

// Variant is one of the two kernels' worth of iptables that a node can have.
type Variant string

// The variants, named as their commands end.
const (
	NFT    Variant = "nft"
	Legacy Variant = "legacy"
)

// Detect finds the variant that the node's kubelet uses; without a kubelet, the
// one that the command "iptables" stands for. It executes several commands: ask once and remember.
func Detect() (Variant, error) {
	for _, hint := range xtables.KubeletHints() {
		for _, v := range []Variant{NFT, Legacy} {
			ipt, err := v.open(v4, time.Second)
			if err != nil {
				continue
			}
			if found, err := ipt.ChainExists(mangle, hint); err == nil && found {
				return v, nil
			}
		}
	}
	out, err := exec.Command("iptables", "--version").Output()
	if err != nil {
		return "", fmt.Errorf("running iptables --version: %w: install iptables", err)
	}
	if strings.Contains(string(out), "nf_tables") {
		return NFT, nil
	}
	return Legacy, nil
}

// command names the variant's command for f: iptables-nft, ip6tables-legacy-restore.
func (v Variant) command(f family, suffix string) string {
	name := f.command + "-" + string(v) + suffix
	if _, err := exec.LookPath(name); err == nil {
		return name
	}
	return f.command + suffix // an image with one variant only
}

// open makes a go-iptables handle; it runs "--version" once.
func (v Variant) open(f family, wait time.Duration) (*goiptables.IPTables, error) {
	proto := goiptables.ProtocolIPv4
	if f == v6 {
		proto = goiptables.ProtocolIPv6
	}
	return goiptables.New(goiptables.IPFamily(proto), goiptables.Timeout(waitSeconds(wait)),
		goiptables.Path(v.command(f, "")))
}

// waitSeconds is how long a command may wait for the xtables lock, at least 1.
func waitSeconds(d time.Duration) int { return max(1, int(d/time.Second)) }

// restoreLine finds the line number in iptables-restore's complaint: "line 4: ...",
// "Error occurred at line: 4".
var restoreLine = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`line:? ([0-9]+)`) })

// restore applies input, each table in one step, leaving alone what it does not name.
func (v Variant) restore(ctx context.Context, f family, wait time.Duration, input string) error {
	cmd := exec.CommandContext(ctx, v.command(f, "-restore"), "--noflush", "-w", strconv.Itoa(waitSeconds(wait)))
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stderr = strings.NewReader(input), &stderr
	cmd.Env = append(cmd.Environ(), "LC_ALL=C")
	err := cmd.Run()
	if err == nil {
		return nil
	}
	msg := strings.TrimSpace(stderr.String())
	if m := restoreLine().FindStringSubmatch(msg); m != nil {
		n, _ := strconv.Atoi(m[1])
		if lines := strings.Split(input, "\n"); n >= 1 && n <= len(lines) {
			return fmt.Errorf("running %s: %w: %s: our line %d is %q", cmd.Args[0], err, msg, n, lines[n-1])
		}
	}
	return absent(xtables.Failed(ctx, cmd.Args[0], err, msg))
}

// absent says what it means that a program is not there: the plugin runs on the node,
// podmarkd perhaps in a container.
func absent(err error) error {
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("%w: the node's backend is iptables, so its programs must be here too: install iptables, in a container in its image, or let the conflist say \"nftables\"", err)
	}
	return err
}

// listing are the chains of each table with their rules, as iptables-save writes them.
type listing map[string]map[string][]string

// own names our chains in a table, sorted.
func (l listing) own(table string) []string {
	var names []string
	for name := range l[table] {
		if strings.HasPrefix(name, ChainPrefix) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// leads reports whether the hook is the first rule of its chain, and once there.
func (l listing) leads(h hook) bool {
	rules := l[h.table][h.chain]
	return slices.Index(rules, h.rule) == 0 && !slices.Contains(rules[1:], h.rule)
}

// save reads a table as iptables-save writes it.
func (v Variant) save(ctx context.Context, f family, table string, args ...string) (string, error) {
	out, err := xtables.Save(ctx, v.command(f, "-save"), append(args, "-t", table)...)
	return out, absent(err)
}

// list reads the tables that may have rules of ours. Of the legacy variant a table that
// nobody has used is not there, and not every kernel can make it.
func (v Variant) list(ctx context.Context, f family) (listing, error) {
	l := listing{}
	for _, table := range tables {
		if table == security && v == Legacy && !f.used(table) {
			continue
		}
		out, err := v.save(ctx, f, table)
		if err != nil {
			return nil, err
		}
		l[table] = chainsIn(out)
	}
	return l, nil
}

// used reports whether the kernel has a table of the legacy variant.
func (f family) used(table string) bool {
	names, err := os.ReadFile("/proc/thread-self/net/" + strings.Replace(f.command, "tables", "_tables_names", 1))
	return err == nil && slices.Contains(strings.Fields(string(names)), table)
}

// chainsIn reads what iptables-save writes of a table.
func chainsIn(saved string) map[string][]string {
	chains := map[string][]string{}
	for line := range strings.Lines(saved) {
		line = strings.TrimSpace(line)
		if rest, ok := strings.CutPrefix(line, ":"); ok {
			chain, _, _ := strings.Cut(rest, " ")
			chains[chain] = nil
		}
		if rest, ok := strings.CutPrefix(line, "-A "); ok {
			chain, rule, _ := strings.Cut(rest, " ")
			chains[chain] = append(chains[chain], rule)
		}
	}
	return chains
}

// probe is a chain that nobody is led to.
const probe = ChainPrefix + "PROBE"

// try writes the chain with a rule into table mangle, and removes it. lacking says why the
// kernel or the command cannot have the rule; err is that of something else.
func (v Variant) try(ctx context.Context, wait time.Duration, rule string) (lacking, err error) {
	restore := func(line string) error {
		return v.restore(ctx, v4, wait, fmt.Sprintf("*%s\n:%s - [0:0]\n%s\nCOMMIT\n", mangle, probe, line))
	}
	lacking = restore("-A " + probe + " " + rule)
	return lacking, restore("-X " + probe)
}

// Logs reports what is lacking to log packets, in the kernel or in the command; an err is
// that of something else.
func Logs(ctx context.Context, v Variant, wait time.Duration) (lacking, err error) {
	return v.try(ctx, wait, logged(counters.Key{Reason: counters.Spoofed}, false)[0])
}

// Feature is what not every kernel has, and rules do without where they must.
type Feature string

// The features.
const (
	// Security is the table. Without it what others make of the ID in INPUT is not seen, and
	// it stays on what IPVS has sent on.
	Security Feature = "security"
	// BPF is the match. Without it the error of an endpoint is judged as a packet like others,
	// also where it is an end of the flow.
	BPF Feature = "bpf"
)

// Features lists them all.
func Features() []Feature { return []Feature{Security, BPF} }

// Lacking reports why the kernel or the command lacks the feature; an err is that of
// something else.
func Lacking(ctx context.Context, v Variant, wait time.Duration, feature Feature) (lacking, err error) {
	if feature == BPF {
		return v.try(ctx, wait, fromReceiver(v4)+"-j RETURN")
	}
	for _, f := range families() {
		if lacking = v.restore(ctx, f, wait,
			fmt.Sprintf("*%s\n:%s - [0:0]\n-X %s\nCOMMIT\n", security, probe, probe)); lacking != nil {
			break
		}
	}
	return lacking, nil
}

// Usable reports why the variant cannot be used: a kernel without sets, a command
// that is not installed. It starts no process.
func Usable(v Variant) error {
	conn, err := ipset.Dial()
	if err != nil {
		return err
	}
	conn.Close()
	for _, f := range families() {
		for _, command := range []string{v.command(f, ""), v.command(f, "-save"), v.command(f, "-restore")} {
			if _, err := exec.LookPath(command); err != nil {
				return fmt.Errorf("%w: install iptables", err)
			}
		}
	}
	return nil
}
