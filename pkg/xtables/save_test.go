package xtables

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/podmark/podmark/test/netns"
)

// Another program writes rules with sets and removes both, again and again. Without asking again
// one read in forty of the legacy variant fails.
func TestSaveDuringChanges(t *testing.T) {
	for _, variant := range []string{"nft", "legacy"} {
		t.Run(variant, func(t *testing.T) {
			netns.Enter(t)
			changes := exec.Command("sh", "-ec", changing, "sh", "iptables-"+variant+"-restore")
			var out strings.Builder
			changes.Stdout, changes.Stderr = &out, &out
			if err := changes.Start(); err != nil { // by this thread, so in this namespace
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- changes.Wait() }()
			for reads := 1; ; reads++ {
				if _, err := Save(t.Context(), "iptables-"+variant+"-save", "-t", "mangle"); err != nil {
					t.Errorf("read %d: %v", reads, err)
				}
				select {
				case err := <-ended:
					if err != nil {
						t.Fatalf("the changes: %v: %s", err, out.String())
					}
					return
				default:
				}
			}
		})
	}
}

// changing writes 500 rules with a set each and removes both, 60 times.
const changing = `
each() { for set in $(seq 500); do echo "$1 set$set $2"; done; }
rules() { echo "*mangle"; echo ":SETS - [0:0]"; "$@"; echo COMMIT; }
for round in $(seq 60); do
	each create hash:ip | ipset restore
	rules each "-A SETS -j RETURN -m set --match-set" src | "$1" --noflush
	rules echo "-F SETS" | "$1" --noflush
	each destroy | ipset restore
done`

// program writes a program that appends a line to a file each time it runs.
func program(t *testing.T, script string) (path string, runs func() int) {
	t.Helper()
	dir := t.TempDir()
	path = filepath.Join(dir, "iptables-save")
	if err := os.WriteFile(path, []byte("#!/bin/sh\necho >> "+dir+"/runs\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path, func() int {
		b, _ := os.ReadFile(dir + "/runs")
		return strings.Count(string(b), "\n")
	}
}

func TestSaveFails(t *testing.T) {
	for _, c := range []struct {
		name, script, want string
		runs               int
	}{
		{"always", "echo Set with index 27 in kernel doesn\\'t exist. >&2; exit 2", "exit status 2: Set with index 27", attempts},
		{"of something else", "echo Permission denied >&2; exit 4", "exit status 4: Permission denied", 1},
	} {
		path, runs := program(t, c.script)
		out, err := Save(t.Context(), path)
		if err == nil || !strings.Contains(err.Error(), c.want) || out != "" || runs() != c.runs {
			t.Errorf("%s: output %q, %d runs, want %d, error %v", c.name, out, runs(), c.runs, err)
		}
	}
	if _, err := Save(t.Context(), "no-such-program"); !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("a program that is not there: %v", err)
	}
	// What is killed on the way says nothing itself.
	path, runs := program(t, "exec sleep 1000")
	ended, cancel := context.WithCancel(t.Context())
	go func() {
		for runs() == 0 && ended.Err() == nil {
			time.Sleep(time.Millisecond) //nolint:forbidigo // looks again until the program runs
		}
		cancel()
	}()
	if _, err := Save(ended, path); !errors.Is(err, context.Canceled) {
		t.Errorf("ended on the way: %v", err)
	}
	path, runs = program(t, "exit 0")
	ended, cancel = context.WithCancel(t.Context())
	cancel()
	if _, err := Save(ended, path); !errors.Is(err, context.Canceled) || runs() != 0 {
		t.Errorf("after the end: %v, %d runs", err, runs())
	}
}
