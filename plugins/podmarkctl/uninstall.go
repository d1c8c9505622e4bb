//go:build linux

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/podmark/podmark/pkg/desired"
)

func newUninstall(o *options) *cobra.Command {
	var yes, dryRun bool
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Remove every trace of podmark: rules, sets, device groups, state",
		Long: `Uninstall removes every chain, set, hook, device group and file of podmark. Pods
keep running, unmarked and unpoliced: where some are policed it asks first, and
where there is no terminal to ask at it wants --yes. 'podmarkd uninstall' waits for
these pods instead.

End podmarkd first: it would bring all of it back. Take podmark out of the conflist,
or the next pod does. Leave the plugin binary where it is while pods live that were
added with it: the runtime still calls it to delete them.`,
		Example: `  podmarkctl uninstall --dry-run
  podmarkctl uninstall --yes`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			n := o.node()
			opens, err := n.Coverage(nil)
			if errors.Is(err, fs.ErrNotExist) {
				err = nil
			}
			what := opened(opens, err)
			if dryRun {
				_, err := fmt.Fprintf(cmd.OutOrStdout(), "would remove every rule, set and device group of podmark, and %s: %s\n", o.stateDir, what)
				return err
			}
			release, errClaim := n.Store.Claim()
			if errClaim != nil {
				return fmt.Errorf("%w; end it first: it would adopt the pods again", errClaim)
			}
			defer release()
			if (losing(opens) > 0 || err != nil) && !yes {
				if err := ask(cmd.InOrStdin(), cmd.ErrOrStderr(), what); err != nil {
					return err
				}
			}
			if err := n.Uninstall(cmd.Context()); err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), "podmark is removed from this node")
			return err
		},
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask, although pods are policed that will not be")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "say what would be removed and which pods would be open, and change nothing")
	return cmd
}

// opened says which pods lose their policy with podmark, and which could get none any more.
func opened(c desired.Coverage, err error) string {
	if err != nil {
		return fmt.Sprintf("who is policed cannot be read (%v): each of these pods is open then", err)
	}
	var texts []string
	if c.Policed > 0 {
		texts = append(texts, fmt.Sprintf("%d pods are policed, and will be open", c.Policed))
	}
	if waiting := c.Of(desired.Unapplied); waiting > 0 {
		texts = append(texts, fmt.Sprintf("%d pods are open until policies are applied, and will stay open then", waiting))
	}
	if texts == nil {
		return "no pod is policed"
	}
	return strings.Join(texts, "; ")
}

// losing counts the pods that no policy would hold for any more, also one that is applied later.
func losing(c desired.Coverage) int { return c.Policed + c.Of(desired.Unapplied) }

// ask wants a yes at the terminal.
func ask(in io.Reader, out io.Writer, what string) error {
	if f, ok := in.(*os.File); !ok || !term.IsTerminal(int(f.Fd())) {
		return fmt.Errorf("%s: give --yes if that is meant, or let 'podmarkd uninstall --wait' wait for them", what)
	}
	fmt.Fprintf(out, "%s. Remove podmark all the same? (yes/no) ", what)
	answer := bufio.NewScanner(in)
	if answer.Scan(); answer.Text() != "yes" {
		return errors.New("nothing was removed: the answer was not yes")
	}
	return nil
}
