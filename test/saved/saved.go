// Package saved reads the rules of iptables while another program changes them.
package saved

import (
	"bytes"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/podmark/podmark/test/wait"
)

// Rules is what tables mangle and security hold, as a variant's command, "iptables-nft" or
// "ip6tables-legacy", saves it in the calling thread's network namespace. The program reads
// the rules, then asks for the name of each set that they mention, and ends when one is
// gone meanwhile: it is asked again.
func Rules(t testing.TB, command string) string {
	t.Helper()
	return table(t, command, "mangle") + table(t, command, "security")
}

func table(t testing.TB, command, name string) string {
	t.Helper()
	var saved string
	wait.Until(t, command, func() error {
		cmd := exec.Command(command+"-save", "-t", name)
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		err := cmd.Run()
		switch {
		case err == nil:
			saved = stdout.String()
		case strings.Contains(stderr.String(), "doesn't exist"):
			return fmt.Errorf("%w: %s", err, stderr.String())
		default:
			t.Fatalf("%s-save: %v: %s", command, err, stderr.String())
		}
		return nil
	})
	return saved
}
