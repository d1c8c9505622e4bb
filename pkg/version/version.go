// Package version says which podmark a program is: of which commit, by which Go, and what it
// speaks with others. All three programs have it, so it stays small.
package version

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"
)

// Unknown is the version of a program that was not built as part of its module, as a test is.
const Unknown = "unknown"

// Build says what a program was built from. What the linker did not record is empty.
type Build struct {
	// Version is a tag as v1.2.3, a pseudo-version of a commit with +dirty where files differed
	// from it, or [Unknown].
	Version string `json:"version"`
	// Revision is the commit in full.
	Revision string `json:"revision,omitempty"`
	// Modified is set where files differed from that commit.
	Modified bool `json:"modified,omitempty"`
	// Date is that of the commit, in RFC 3339. Builds are reproducible, so they have none of their own.
	Date string `json:"date,omitempty"`
	// Go is the release of Go, as go1.26.8.
	Go string `json:"go"`
	// Platform is OS and architecture, as linux/amd64.
	Platform string `json:"platform"`
}

// Read returns what this program was built from.
func Read() Build {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		info = &debug.BuildInfo{}
	}
	return Of(info)
}

// Of reads info, which is of a program for the platform that this one runs on.
func Of(info *debug.BuildInfo) Build {
	b := Build{Version: info.Main.Version, Go: info.GoVersion, Platform: runtime.GOOS + "/" + runtime.GOARCH}
	if b.Version == "" || b.Version == "(devel)" {
		b.Version = Unknown
	}
	if b.Go == "" {
		b.Go = runtime.Version()
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Revision = s.Value
		case "vcs.time":
			b.Date = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		}
	}
	return b
}

// StateFormat is how a program writes the state directory.
type StateFormat struct {
	// Writes is the format that it writes.
	Writes int `json:"writes"`
	// Reads is the oldest format whose programs can go on from what it writes.
	Reads int `json:"oldestReader"`
}

// Report is what the verb version prints.
type Report struct {
	Program string `json:"program"`
	Build
	// State is nil where the program touches no state directory, as away from Linux.
	State *StateFormat `json:"stateFormat,omitempty"`
	// CNI are the versions of CNI's configuration that the plugin of this build speaks, oldest first.
	CNI []string `json:"cniVersions"`
}

// Text is the report as a person reads it: the program and its version, then one fact a line.
func (r Report) Text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s\n", r.Program, r.Version)
	row := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-13s %s\n", name, fmt.Sprintf(format, args...))
	}
	switch {
	case r.Revision == "":
		row("revision", Unknown)
	case r.Modified:
		row("revision", "%s, with changes", r.Revision)
	default:
		row("revision", "%s", r.Revision)
	}
	if r.Date != "" {
		row("date", "%s, of the revision", r.Date)
	}
	row("go", "%s %s", r.Go, r.Platform)
	if r.State != nil {
		row("state format", "%d, which programs of format %d and later read", r.State.Writes, r.State.Reads)
	}
	row("CNI versions", "%s", strings.Join(r.CNI, ", "))
	return b.String()
}
