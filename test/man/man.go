// Package man writes the manual pages of podmark's programs, for man(1): what --help says, with
// the flags that a command has of those above it. The programs' own tests call it, because they
// alone reach the commands; 'make man' has them keep what they write.
package man

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Section is that of programs for administrators.
const Section = 8

// Pages returns the pages of root and of all commands below it by the names of their files, as
// podmarkctl-explain.8. Without are what has no help of its own, and the verb help.
func Pages(root *cobra.Command) map[string][]byte {
	root.InitDefaultCompletionCmd()
	pages := map[string][]byte{}
	add(pages, root)
	return pages
}

// Write writes pages into the directory dir, which it makes.
func Write(dir string, pages map[string][]byte) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, page := range pages {
		if err := os.WriteFile(filepath.Join(dir, name), page, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func add(pages map[string][]byte, cmd *cobra.Command) {
	pages[name(cmd)+fmt.Sprintf(".%d", Section)] = page(cmd)
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() && c.Name() != "help" {
			add(pages, c)
		}
	}
}

// name is what the page of a command is asked for by.
func name(cmd *cobra.Command) string { return strings.ReplaceAll(cmd.CommandPath(), " ", "-") }

func page(cmd *cobra.Command) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, ".TH %s %d \"\" podmark\n", escape(strings.ToUpper(name(cmd))), Section)
	fmt.Fprintf(&b, ".SH NAME\n%s \\- %s\n", escape(name(cmd)), escape(cmd.Short))
	fmt.Fprintf(&b, ".SH SYNOPSIS\n%s\n", synopsis(cmd))
	b.WriteString(".SH DESCRIPTION\n")
	paragraphs(&b, cmp.Or(cmd.Long, cmd.Short+"."))
	var below []string
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() && c.Name() != "help" {
			if below == nil {
				b.WriteString(".SH COMMANDS\n")
			}
			below = append(below, name(c))
			fmt.Fprintf(&b, ".TP\n\\fB%s\\fR\n%s\n", escape(c.Name()), escape(c.Short))
		}
	}
	options(&b, "OPTIONS", cmd.NonInheritedFlags())
	options(&b, "OPTIONS OF EVERY COMMAND", cmd.InheritedFlags())
	if cmd.Example != "" {
		fmt.Fprintf(&b, ".SH EXAMPLES\n.nf\n%s\n.fi\n", escape(cmd.Example))
	}
	if cmd.HasParent() {
		below = append(below, name(cmd.Parent()))
	}
	if len(below) > 0 {
		b.WriteString(".SH SEE ALSO\n")
		for i, other := range below {
			fmt.Fprintf(&b, "\\fB%s\\fR(%d)%s\n", escape(other), Section, map[bool]string{true: ","}[i < len(below)-1])
		}
	}
	return b.Bytes()
}

// synopsis has the command in bold, and what it takes behind it.
func synopsis(cmd *cobra.Command) string {
	path := cmd.CommandPath()
	return fmt.Sprintf("\\fB%s\\fR%s", escape(path), escape(strings.TrimPrefix(cmd.UseLine(), path)))
}

// paragraphs writes text, whose paragraphs have an empty line between them. What begins with
// white space is a table or an example, and keeps its lines.
func paragraphs(b *bytes.Buffer, text string) {
	for i, paragraph := range strings.Split(strings.TrimSpace(text), "\n\n") {
		if i > 0 {
			b.WriteString(".PP\n")
		}
		if strings.HasPrefix(paragraph, " ") || strings.HasPrefix(paragraph, "\t") {
			fmt.Fprintf(b, ".nf\n%s\n.fi\n", escape(strings.TrimRight(paragraph, "\n")))
		} else {
			fmt.Fprintf(b, "%s\n", escape(paragraph))
		}
	}
}

func options(b *bytes.Buffer, title string, flags *pflag.FlagSet) {
	begun := false
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		if !begun {
			fmt.Fprintf(b, ".SH %s\n", title)
			begun = true
		}
		value, usage := pflag.UnquoteUsage(f)
		b.WriteString(".TP\n")
		if f.Shorthand != "" {
			fmt.Fprintf(b, "\\fB\\-%s\\fR, ", f.Shorthand)
		}
		fmt.Fprintf(b, "\\fB%s\\fR", escape("--"+f.Name))
		if value != "" {
			fmt.Fprintf(b, " \\fI%s\\fR", escape(value))
		}
		fmt.Fprintf(b, "\n%s\n", escape(usage+preset(f, usage)))
	})
}

// preset is the default of a flag where it says something that its usage does not.
func preset(f *pflag.Flag, usage string) string {
	switch {
	case f.DefValue == "", f.DefValue == "false", f.DefValue == "0", f.DefValue == "0s", f.DefValue == "[]", strings.Contains(usage, "(default "):
		return ""
	}
	return fmt.Sprintf(" (default %s)", f.DefValue)
}

// escape keeps roff from reading text as its own: backslashes, hyphens, which would become
// typographic ones, and what begins a line like a request.
func escape(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(text)
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
			lines[i] = `\&` + line
		}
	}
	return strings.Join(lines, "\n")
}
