//go:build mutants

package verdict_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/podmark/podmark/pkg/apply"
	"github.com/podmark/podmark/pkg/desired"
)

// Whoever takes out any one of the static rules is found out: the random packets of
// TestVerdicts differ from the model then. A rule whose loss they do not show is named with
// what does.
func TestMutants(t *testing.T) {
	for _, backend := range []string{"nftables", "iptables-legacy"} {
		t.Run(backend, func(t *testing.T) {
			for _, r := range staticRules(t, backend) {
				t.Run(r.name(), func(t *testing.T) {
					found := func(rounds int) bool {
						child := exec.Command(os.Args[0], "-test.run", "^TestMutant$", "-test.v")
						child.Env = append(os.Environ(), "PODMARK_BACKEND="+backend, "PODMARK_WITHOUT="+r.String(), "PODMARK_ROUNDS="+strconv.Itoa(rounds))
						out, err := child.CombinedOutput()
						if err != nil && !strings.Contains(string(out), "--- FAIL") {
							t.Fatalf("%v\n%s", err, out)
						}
						return err != nil
					}
					if found(2) || found(24) {
						return
					}
					t.Errorf("nobody misses %s: %s", r.name(), r.text)
				})
			}
		})
	}
}

// TestMutant is what TestMutants runs, with a backend that lacks a rule.
func TestMutant(t *testing.T) {
	without, ok := parseStatic(os.Getenv("PODMARK_WITHOUT"))
	if !ok {
		t.Skip("runs below TestMutants")
	}
	name := os.Getenv("PODMARK_BACKEND")
	b := newBench(t, podCount)
	drive(t, rand.New(rand.NewPCG(seed(t), 0)), b, name, &mutant{Backend: backends()[name], b: b, without: without})
}

// static is a rule of a static chain: its number in the chain, from 1.
type static struct {
	table, chain string
	number       int
	text         string
}

func (s static) String() string { return fmt.Sprintf("%s|%s|%d", s.table, s.chain, s.number) }

func (s static) name() string { return fmt.Sprintf("%s %s %d", s.table, s.chain, s.number) }

func parseStatic(text string) (s static, ok bool) {
	parts := strings.Split(text, "|")
	if len(parts) != 3 {
		return s, false
	}
	n, err := strconv.Atoi(parts[2])
	return static{table: parts[0], chain: parts[1], number: n}, err == nil
}

// mutant takes the rule away after each change.
type mutant struct {
	apply.Backend
	b       *bench
	without static
}

func (m *mutant) Sync(ctx context.Context, want desired.State) error {
	if err := m.Backend.Sync(ctx, want); err != nil || want.Layout.Mask() == 0 {
		return err
	}
	family, table, _ := strings.Cut(m.without.table, " ")
	if strings.HasPrefix(family, "ip") && strings.HasSuffix(family, "tables-legacy") {
		// The match stays, so that the sets which it names have as many references as before.
		list, err := exec.Command(family, "-w", "30", "-t", table, "-S", m.without.chain, strconv.Itoa(m.without.number)).Output()
		if err != nil {
			return err
		}
		match := iptablesTarget.ReplaceAllString(strings.SplitN(strings.TrimSpace(string(list)), " ", 3)[2]+" ", "")
		m.b.run("sh", "-c", fmt.Sprintf("%s -w 30 -t %s -R %s %d %s", family, table, m.without.chain, m.without.number, match))
		return nil
	}
	handle := rulesOf(m.b, m.without.table)[m.without.chain][m.without.number-1][0]
	m.b.run("nft", "delete", "rule", family, table, m.without.chain, "handle", handle)
	return nil
}

// Check would find it out.
func (m *mutant) Check(context.Context, desired.State) error { return nil }

var (
	chainLine      = regexp.MustCompile(`^\tchain (\S+) \{`)
	ruleLine       = regexp.MustCompile(`^\t\t(.*) # handle (\d+)$`)
	iptablesTarget = regexp.MustCompile(`-[jg] .*$`)
	profile        = regexp.MustCompile(`^[ei][46]-|^PODMARK-[EI]A?-`)
)

// rulesOf lists the rules of a table of nftables by chain, each as its handle and text.
func rulesOf(b *bench, table string) map[string][][2]string {
	family, name, _ := strings.Cut(table, " ")
	out, err := exec.Command("nft", "-a", "list", "table", family, name).Output()
	if err != nil {
		b.t.Fatal(err)
	}
	rules, chain := map[string][][2]string{}, ""
	for _, line := range strings.Split(string(out), "\n") {
		if m := chainLine.FindStringSubmatch(line); m != nil {
			chain = m[1]
		}
		if m := ruleLine.FindStringSubmatch(line); m != nil && chain != "" {
			rules[chain] = append(rules[chain], [2]string{m[2], m[1]})
		}
	}
	return rules
}

// staticRules lists those of a backend.
func staticRules(t *testing.T, backend string) (out []static) {
	b := newBench(t, podCount)
	node := nodeOf(t, b)
	node.Unlogged = true
	if err := backends()[backend].Sync(t.Context(), desired.Build(node, desired.Policies{}, records(b))); err != nil {
		t.Fatal(err)
	}
	if backend == "nftables" {
		for _, table := range []string{"inet podmark", "bridge podmark"} {
			for chain, list := range rulesOf(b, table) {
				for i, r := range list {
					if !profile.MatchString(chain) {
						out = append(out, static{table, chain, i + 1, r[1]})
					}
				}
			}
		}
	} else {
		for _, command := range []string{"iptables-legacy", "ip6tables-legacy"} {
			for _, table := range []string{"mangle", "security"} {
				text, err := exec.Command(command, "-w", "30", "-t", table, "-S").Output()
				if err != nil {
					t.Fatal(err)
				}
				number := map[string]int{}
				for _, line := range strings.Split(string(text), "\n") {
					words := strings.SplitN(line, " ", 3)
					if words[0] != "-A" || !strings.Contains(line, "PODMARK-") {
						continue
					}
					number[words[1]]++
					if !profile.MatchString(words[1]) {
						out = append(out, static{command + " " + table, words[1], number[words[1]], words[2]})
					}
				}
			}
		}
	}
	slices.SortFunc(out, func(a, b static) int { return strings.Compare(a.name(), b.name()) })
	return out
}
