//go:build linux

package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/podmark/podmark/pkg/dataplane/counters"
	"github.com/podmark/podmark/pkg/desired"
)

// Verdicts, as 'drops' says them.
const (
	verdictDropped = "dropped"
	verdictAudit   = "audit"
)

// judge is what dropped a packet, or let it pass in an audit.
type judge struct {
	// Direction is empty where no policy was asked.
	Direction string          `json:"direction,omitempty"`
	Verdict   string          `json:"verdict"`
	Reason    counters.Reason `json:"reason"`
	// Profile stands for Policies together.
	Profile  desired.ProfileID `json:"profile,omitempty"`
	Policies []string          `json:"policies,omitempty"`
}

func judgeOf(k counters.Key, s desired.State) judge {
	j := judge{Verdict: verdictDropped, Reason: k.Reason}
	if k.Reason == counters.Audit {
		j.Verdict, j.Reason = verdictAudit, counters.Policy
	}
	if k.Profile != "" {
		j.Direction, j.Profile, j.Policies = k.Direction.String(), k.Profile, s.Profiles[k.Profile].Policies()
	}
	return j
}

// by names the policies, or the reason where there are none. A profile that is gone has
// its ID only.
func (j judge) by() string {
	switch {
	case j.Profile == "":
		return string(j.Reason)
	case len(j.Policies) == 0:
		return "profile " + string(j.Profile)
	default:
		return strings.Join(j.Policies, ",")
	}
}

func (j judge) direction() string { return cmp.Or(j.Direction, "-") }

// counted is one row of 'drops'.
type counted struct {
	judge
	Packets uint64 `json:"packets"`
	// Rules are those of the policies, with what they allowed.
	Rules []countedRule `json:"rules,omitempty"`
}

type countedRule struct {
	Rule    string `json:"rule"`
	Packets uint64 `json:"packets"`
}

func newDrops(o *options) *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use:   "drops",
		Short: "Show what was dropped: packets by direction and policy, or each as it happens",
		Long: `Drops shows how many packets were dropped since the rules were written, by direction
and policies, what audited policies would have dropped, and how many packets of new
connections each rule allowed. Rules are written again when their policy changes.

With --follow it shows packets as they are dropped: time, direction, verdict, protocol,
source, destination, the policies that did not allow it, and how many packets those have
not allowed by now. The kernel tells of 10 packets a second, and of 50 at once after a
silence, for each direction, set of policies and IP version; what it does not tell of is
counted, and shown as a number. podmarkd is not needed.`,
		Example: `  podmarkctl drops
  podmarkctl drops --follow
  podmarkctl drops --follow -o json | jq 'select(.destination.pod == "shop/web")'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if follow {
				return followDrops(cmd, o)
			}
			list, err := readDrops(cmd, o)
			if err != nil {
				return err
			}
			return o.print(cmd.OutOrStdout(), list, func(w io.Writer) error { return dropsTable(w, list) })
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "show each packet as it is dropped, until interrupted")
	return cmd
}

// readDrops reads the counters, and adds up those of a profile's two families and of
// the kernel's rules that one rule of a policy became.
func readDrops(cmd *cobra.Command, o *options) ([]counted, error) {
	list := []counted{}
	state, err := o.node().State()
	if errors.Is(err, fs.ErrNotExist) {
		return list, nil
	}
	if err != nil {
		return nil, err
	}
	rules, err := o.node().Counters(cmd.Context())
	if err != nil {
		return nil, err
	}
	type of struct {
		profile   desired.ProfileID
		direction desired.Direction
	}
	allowed := map[of][]countedRule{}
	packets := map[counters.Key]uint64{}
	for _, r := range rules {
		switch r.Reason {
		case counters.Allowed:
		case counters.Passed: // another rule decides about these
			continue
		default:
			packets[r.Key] += r.Packets
			continue
		}
		k := of{r.Profile, r.Direction}
		i := slices.IndexFunc(allowed[k], func(c countedRule) bool { return c.Rule == r.Origin })
		if i < 0 {
			i, allowed[k] = len(allowed[k]), append(allowed[k], countedRule{Rule: r.Origin})
		}
		allowed[k][i].Packets += r.Packets
	}
	for k, n := range packets {
		list = append(list, counted{judgeOf(k, state), n, allowed[of{k.Profile, k.Direction}]})
	}
	slices.SortFunc(list, func(a, b counted) int {
		return cmp.Or(cmp.Compare(a.Direction, b.Direction), cmp.Compare(a.by(), b.by()), cmp.Compare(a.Profile, b.Profile))
	})
	return list, nil
}

func dropsTable(w io.Writer, list []counted) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "DIRECTION\tVERDICT\tBY\tPACKETS")
	for _, c := range list {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%d\n", c.direction(), c.Verdict, c.by(), c.Packets)
		for _, r := range c.Rules {
			fmt.Fprintf(tw, "%s\tallowed\t%s\t%d\n", c.direction(), r.Rule, r.Packets)
		}
	}
	return tw.Flush()
}
