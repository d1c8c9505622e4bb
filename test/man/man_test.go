package man_test

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"github.com/podmark/podmark/test/man"
)

// example is a program whose texts have all that roff would read as its own.
func example() *cobra.Command {
	root := &cobra.Command{Use: "tool", Short: "Do things", Long: "Tool does things.\n\n.TH is text,\nas is 'this'\nand C:\\.\n\n  a  table\n  of two"}
	root.PersistentFlags().StringP("output", "o", "table", "table or json")
	verb := &cobra.Command{Use: "do WHAT", Short: "Do one thing", Example: "  tool do it", Run: func(*cobra.Command, []string) {}}
	verb.Flags().Bool("dry-run", false, "only say so")
	verb.Flags().Int("times", 2, "how often (default twice)")
	secret := &cobra.Command{Use: "secret", Hidden: true, Run: func(*cobra.Command, []string) {}}
	root.AddCommand(verb, secret)
	return root
}

const rootPage = `.TH TOOL 8 "" podmark
.SH NAME
tool \- Do things
.SH SYNOPSIS
\fBtool\fR
.SH DESCRIPTION
Tool does things.
.PP
\&.TH is text,
as is 'this'
and C:\e.
.PP
.nf
  a  table
  of two
.fi
.SH COMMANDS
.TP
\fBcompletion\fR
Generate the autocompletion script for the specified shell
.TP
\fBdo\fR
Do one thing
.SH OPTIONS
.TP
\fB\-o\fR, \fB\-\-output\fR \fIstring\fR
table or json (default table)
.SH SEE ALSO
\fBtool\-completion\fR(8),
\fBtool\-do\fR(8)
`

const verbPage = `.TH TOOL\-DO 8 "" podmark
.SH NAME
tool\-do \- Do one thing
.SH SYNOPSIS
\fBtool do\fR WHAT [flags]
.SH DESCRIPTION
Do one thing.
.SH OPTIONS
.TP
\fB\-\-dry\-run\fR
only say so
.TP
\fB\-\-times\fR \fIint\fR
how often (default twice)
.SH OPTIONS OF EVERY COMMAND
.TP
\fB\-o\fR, \fB\-\-output\fR \fIstring\fR
table or json (default table)
.SH EXAMPLES
.nf
  tool do it
.fi
.SH SEE ALSO
\fBtool\fR(8)
`

func TestPages(t *testing.T) {
	pages := man.Pages(example())
	for name, want := range map[string]string{"tool.8": rootPage, "tool-do.8": verbPage} {
		if diff := cmp.Diff(want, string(pages[name])); diff != "" {
			t.Errorf("%s:\n%s", name, diff)
		}
	}
	if pages["tool-secret.8"] != nil || pages["tool-help.8"] != nil {
		t.Errorf("pages %q", slices.Sorted(maps.Keys(pages)))
	}
}

func TestWrite(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "bin", "man")
	if err := man.Write(dir, map[string][]byte{"a.8": []byte("a")}); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "a.8")); err != nil || string(b) != "a" {
		t.Errorf("%q, %v", b, err)
	}
	if err := man.Write(filepath.Join(dir, "a.8"), nil); err == nil {
		t.Error("a file is taken for a directory")
	}
}
