package main_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/podmark/podmark/test/testnode"
)

// What a shell offers is asked for as its script does, by the hidden verb __complete: one
// candidate a line, and a colon with cobra's directive at the end.
const (
	noFiles        = ":4"
	noFilesNoSpace = ":6"
	extensions     = ":8"
	onlyFolders    = ":16"
)

func TestCompletion(t *testing.T) {
	n := newNode(t, nftables)
	n.addPod(nil)
	n.addPod(nil)
	backends := []string{"auto", "nftables", "iptables"}
	manifests := []string{"yaml", "yml", "json"}
	for _, tt := range []struct {
		args []string
		want []string
		end  string
	}{
		{[]string{"list", "-o", ""}, []string{"table", "json"}, noFiles},
		{[]string{"render", "--backend", ""}, backends, noFiles},
		{[]string{"render", "-f", ""}, manifests, extensions},
		{[]string{"apply", "-f", ""}, manifests, extensions},
		{[]string{"apply", "-k", ""}, nil, onlyFolders},
		{[]string{"explain", "--policy", ""}, manifests, extensions},
		{[]string{"doctor", "--cni-bin-dir", ""}, nil, onlyFolders},
		{[]string{"gc", "--state-dir", ""}, nil, onlyFolders},
		{[]string{"explain", ""}, []string{"default/web-1", "default/web-2", "host", "outside"}, noFiles},
		{[]string{"explain", "def"}, []string{"default/web-1", "default/web-2"}, noFiles},
		{[]string{"explain", "nobody"}, nil, noFiles},
		{[]string{"explain", "host", "o"}, []string{"outside"}, noFilesNoSpace},
		{[]string{"explain", "host", "outside", ""}, nil, noFiles},
	} {
		words := append([]string{"__complete"}, tt.args...)
		// The directory is what the user has typed before, and not yet part of the word.
		got := strings.Fields(n.Output("", testnode.Program(t, "podmarkctl"), slices.Insert(words, 1, "--state-dir", n.Dir)...).Stdout)
		if len(got) == 0 {
			t.Errorf("%q: nothing", tt.args)
			continue
		}
		if diff := cmp.Diff(append(slices.Clone(tt.want), tt.end), got); diff != "" {
			t.Errorf("%q:\n%s", tt.args, diff)
		}
	}
	// Of a state directory that is damaged there are no pods, and no error between the words.
	write(t, filepath.Join(n.Dir, "node.json"), "{")
	got := n.Output("", testnode.Program(t, "podmarkctl"), "__complete", "--state-dir", n.Dir, "explain", "")
	if want := "host\noutside\n" + noFiles + "\n"; got.Stdout != want || got.Exit() != 0 {
		t.Errorf("of a damaged directory: exit %d: %q, want %q", got.Exit(), got.Stdout, want)
	}
}

// The scripts are those of their shells: each can be read by the one that is there.
func TestCompletionScripts(t *testing.T) {
	t.Parallel()
	dir := testnode.Programs(t)
	for _, program := range []string{"podmarkctl", "podmarkd"} {
		for _, shell := range []string{"bash", "zsh", "fish"} {
			t.Run(program+"/"+shell, func(t *testing.T) {
				t.Parallel()
				out, err := exec.Command(filepath.Join(dir, program), "completion", shell).Output()
				if err != nil || !strings.Contains(string(out), "__complete") || !strings.Contains(string(out), program) {
					t.Fatalf("%v:\n%.300s", err, out)
				}
				path, err := exec.LookPath(shell)
				if err != nil {
					return // that it is printed is all that can be known here
				}
				file := filepath.Join(t.TempDir(), "script")
				if err := os.WriteFile(file, out, 0o600); err != nil {
					t.Fatal(err)
				}
				if said, err := exec.Command(path, "-n", file).CombinedOutput(); err != nil {
					t.Errorf("%s cannot read it: %v\n%s", shell, err, said)
				}
			})
		}
	}
}
