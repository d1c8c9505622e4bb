package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"

	"github.com/spf13/cobra"

	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/manifest"
	"github.com/podmark/podmark/pkg/policy"
)

// manifests are the flags that say where the manifests of a policy are, and how they are read.
type manifests struct {
	file      string // what the flag that names files is called
	files     []string
	kustomize string
	recursive bool
	options   policy.Options
}

// addFlags gives a command these flags; file is one of pflag's, a name or a name and a letter.
func (m *manifests) addFlags(cmd *cobra.Command, name, letter, usage string) {
	flags := cmd.Flags()
	flags.StringArrayVarP(&m.files, name, letter, nil, usage)
	flags.StringVarP(&m.kustomize, "kustomize", "k", "", "a directory that 'kustomize build' or 'kubectl kustomize', whichever is in PATH, makes the manifests of")
	flags.BoolVarP(&m.recursive, "recursive", "R", false, "read the subdirectories of directories too, but for hidden ones")
	flags.StringVarP(&m.options.Namespace, "namespace", "n", "",
		"namespace of the policies that name none, \"default\" without it; one that names another is refused")
	flags.BoolVar(&m.options.Strict, "strict", false, "refuse what is passed over with a note, or counts otherwise than it is written")
	manifestFiles(cmd, name)
	directories(cmd, "kustomize")
	if m.file = "--" + name; letter != "" {
		m.file = "-" + letter
	}
}

// named reports whether there are manifests to read.
func (m *manifests) named() bool { return len(m.files) > 0 || m.kustomize != "" }

// check judges the flags together.
func (m *manifests) check(cmd *cobra.Command) error {
	flags := cmd.Flags()
	switch {
	case len(m.files) > 0 && flags.Changed("kustomize"):
		return fmt.Errorf("-k %q beside %s: name one of them", m.kustomize, m.file)
	case flags.Changed("kustomize") && m.kustomize == "":
		return errors.New("-k \"\": want a directory")
	case flags.Changed("namespace") && m.options.Namespace == "":
		return errors.New("-n \"\": want the name of a namespace, or no -n")
	case m.recursive && len(m.files) == 0:
		return fmt.Errorf("-R goes with %s", m.file)
	case !m.named() && (m.options.Namespace != "" || m.options.Strict):
		return fmt.Errorf("-n and --strict go with %s or -k", m.file)
	}
	return nil
}

// read reads the manifests, and says on stderr what of them counts otherwise than it is
// written; nil where none are named.
func (m *manifests) read(cmd *cobra.Command) (*desired.Policies, error) {
	if err := m.check(cmd); err != nil || !m.named() {
		return nil, err
	}
	sources, err := m.sources(cmd)
	if err != nil {
		return nil, err
	}
	policies, notes, err := manifest.Compile(m.options, sources...)
	if err != nil {
		return nil, err
	}
	for _, note := range notes {
		fmt.Fprintf(cmd.ErrOrStderr(), "podmarkctl: note: %s\n", note)
	}
	return &policies, nil
}

// sources reads the files, or has the directory built.
func (m *manifests) sources(cmd *cobra.Command) ([]policy.Source, error) {
	if m.kustomize == "" {
		return manifest.Read(m.files, m.recursive, cmd.InOrStdin())
	}
	data, err := kustomize(cmd.Context(), m.kustomize, cmd.ErrOrStderr())
	return []policy.Source{{Name: m.kustomize, Data: data}}, err
}

// builders are the programs that make manifests of a directory.
var builders = [][]string{{"kustomize", "build"}, {"kubectl", "kustomize"}}

// kustomize has the first builder that is there make the manifests of a directory. To link one in
// would make podmarkctl larger by 7 MB, and bring its own git and HTTP clients.
func kustomize(ctx context.Context, dir string, warnings io.Writer) ([]byte, error) {
	for _, b := range builders {
		program, err := exec.LookPath(b[0])
		if errors.Is(err, exec.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		cmd := exec.CommandContext(ctx, program, b[1], "--", dir)
		var said strings.Builder
		cmd.Stderr = &said
		out, err := cmd.Output()
		if err != nil {
			return nil, fmt.Errorf("%s %s %s: %w: %s", program, b[1], dir, err, strings.TrimSpace(said.String()))
		}
		_, err = io.WriteString(warnings, said.String())
		return out, err
	}
	return nil, fmt.Errorf("-k %q: neither kustomize nor kubectl is in PATH: where one is, 'kustomize build DIR' or 'kubectl kustomize DIR' makes the manifests that -f reads", dir)
}
