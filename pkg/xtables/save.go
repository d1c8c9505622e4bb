// Package xtables runs the programs of iptables that show rules.
package xtables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
)

// attempts bounds how often Save asks again: one in forty asks failed where 500 sets and
// their rules came and went without a pause (TestSaveDuringChanges).
const attempts = 10

// Save runs iptables-save or one of its kind, and returns what it prints. The kernel tells
// such a program the number of a rule's ipset and, asked again, the set's name: between the
// two others may have removed both the rule and the set, for which the program fails. Save
// runs it again then. Other failures, and one that stays, are returned with what the program
// wrote to stderr; exec.ErrNotFound stands for a program that is not there.
func Save(ctx context.Context, program string, args ...string) (string, error) {
	for left := attempts - 1; ; left-- {
		cmd := exec.CommandContext(ctx, program, args...)
		var out, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &stderr
		cmd.Env = append(cmd.Environ(), "LC_ALL=C")
		err := cmd.Run()
		if err == nil {
			return out.String(), nil
		}
		if left == 0 || !strings.Contains(stderr.String(), "in kernel doesn't exist") { // libxt_set.h
			return "", Failed(ctx, program, err, stderr.String())
		}
	}
}

// Failed says that a program failed, and what it wrote to stderr if anything. One that was killed
// because ctx was done says nothing itself; the error is that of ctx too then.
func Failed(ctx context.Context, program string, err error, stderr string) error {
	if done := ctx.Err(); done != nil && !errors.Is(err, done) {
		err = fmt.Errorf("%w: %w", done, err)
	}
	if said := strings.TrimSpace(stderr); said != "" {
		return fmt.Errorf("running %s: %w: %s", program, err, said)
	}
	return fmt.Errorf("running %s: %w", program, err)
}
