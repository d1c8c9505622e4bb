//go:build mutants

package verdict_test

import (
	"context"
	"math/rand/v2"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/podmark/podmark/pkg/dataplane"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/test/mutant"
)

// Whoever takes out any one of the static rules is found out, by random packets that differ
// from the model then, of iptables also without what nf_tables does beside it, or by an attack of
// test/adversary, whose binary PODMARK_ADVERSARY is.
func TestMutants(t *testing.T) {
	for _, backend := range []string{"nftables", "iptables-legacy"} {
		t.Run(backend, func(t *testing.T) {
			for _, r := range staticRules(t, backend) {
				t.Run(r.String(), func(t *testing.T) {
					fails := func(c *exec.Cmd, env ...string) bool {
						c.Env = append(append(os.Environ(), r.Env()), env...)
						out, err := c.CombinedOutput()
						if err != nil && !strings.Contains(string(out), "--- FAIL") {
							t.Fatalf("%v\n%s", err, out)
						}
						return err != nil
					}
					differs := func(backend string, rounds int) bool {
						return fails(exec.Command(os.Args[0], "-test.run", "^TestMutant$"), "PODMARK_BACKEND="+backend, "PODMARK_ROUNDS="+strconv.Itoa(rounds))
					}
					attack := exec.Command(os.Getenv("PODMARK_ADVERSARY"), "-test.run", "^TestAttacks$/^"+backend+"$")
					attack.Dir = "../adversary"
					switch {
					case differs(backend, 2) || differs(backend, 6):
						t.Log("random packets")
					case strings.HasPrefix(r.Table, "ip") && differs(alone, 6):
						t.Log("random packets, without nf_tables")
					case fails(attack):
						t.Log("an attack")
					case slices.ContainsFunc(unseen, func(p *regexp.Regexp) bool { return p.MatchString(r.Chain + " " + r.Text) }):
						t.Log("no packet can tell")
					default:
						t.Errorf("nobody misses %s: %s", r, r.Text)
					}
				})
			}
		})
	}
}

// unseen are rules without which a packet gets the same verdict: later, because it is judged
// although that is known, or unless an endpoint goes while the packet is on its way. And rules
// about bridges that filter VLANs, which the lab has packets for.
var unseen = []*regexp.Regexp{
	regexp.MustCompile(`^tagged .* @untagged[46] goto stray-frames$`),
	regexp.MustCompile(`^between-ports iif @confined ether type `),
	regexp.MustCompile(`^forward ct state new jump opening$`),
	regexp.MustCompile(`^(forward|input) ct mark .* established accept$`),
	regexp.MustCompile(`^opening accept$`),
	regexp.MustCompile(`^(origin|classify) (iif @veths|iifgroup 1886) goto spoofed$`),
}

// TestMutant is what TestMutants runs, with a backend that lacks a rule.
func TestMutant(t *testing.T) {
	without, ok := mutant.FromEnv()
	if !ok {
		t.Skip("runs below TestMutants")
	}
	name, r := os.Getenv("PODMARK_BACKEND"), rand.New(rand.NewPCG(seed(t), 0))
	if name == alone {
		driveAlone(t, r, broken{legacy, without})
		return
	}
	b := newBench(t, podCount)
	drive(t, r, b, name, broken{backends()[name], without})
	olderFlows(t, b, broken{backends()[name], without})
}

// broken takes the rule away after each change of the whole node.
type broken struct {
	dataplane.Backend
	without mutant.Rule
}

func (m broken) Sync(ctx context.Context, want desired.State) error {
	if err := m.Backend.Sync(ctx, want); err != nil {
		return err
	}
	return m.without.TakeOut(run)
}

// Check would find it out.
func (m broken) Check(context.Context, desired.State) error { return nil }

func run(name string, args ...string) (string, error) {
	out, err := exec.Command(name, args...).CombinedOutput()
	return string(out), err
}

// staticRules lists those of a backend that logs: what stands in the chains where it does not
// is the same but for what logs.
func staticRules(t *testing.T, backend string) []mutant.Rule {
	b := newBench(t, podCount)
	node := nodeOf(t, b)
	node.Unlogged = true
	if err := backends()[backend].Sync(t.Context(), desired.Build(node, desired.Policies{}, records(b))); err != nil {
		t.Fatal(err)
	}
	list, err := mutant.Static(run, backend)
	if err != nil {
		t.Fatal(err)
	}
	return list
}
