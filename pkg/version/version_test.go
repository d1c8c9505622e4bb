package version_test

import (
	"encoding/json"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/podmark/podmark/pkg/version"
)

const (
	revision = "1f52e68da65f0123456789abcdef0123456789ab"
	date     = "2026-12-01T02:20:52Z"
)

func TestOf(t *testing.T) {
	platform := runtime.GOOS + "/" + runtime.GOARCH
	vcs := func(modified string) []debug.BuildSetting {
		return []debug.BuildSetting{
			{Key: "vcs", Value: "git"},
			{Key: "vcs.revision", Value: revision},
			{Key: "vcs.time", Value: date},
			{Key: "vcs.modified", Value: modified},
		}
	}
	for name, tt := range map[string]struct {
		info debug.BuildInfo
		want version.Build
	}{
		"nothing": {
			want: version.Build{Version: version.Unknown, Go: runtime.Version(), Platform: platform},
		},
		"outside of version control": {
			info: debug.BuildInfo{GoVersion: "go1.26.8", Main: debug.Module{Version: "(devel)"}},
			want: version.Build{Version: version.Unknown, Go: "go1.26.8", Platform: platform},
		},
		"a tag": {
			info: debug.BuildInfo{GoVersion: "go1.26.8", Main: debug.Module{Version: "v1.2.3"}, Settings: vcs("false")},
			want: version.Build{Version: "v1.2.3", Revision: revision, Date: date, Go: "go1.26.8", Platform: platform},
		},
		"with changes": {
			info: debug.BuildInfo{GoVersion: "go1.26.8", Main: debug.Module{Version: "v1.2.3+dirty"}, Settings: vcs("true")},
			want: version.Build{Version: "v1.2.3+dirty", Revision: revision, Modified: true, Date: date, Go: "go1.26.8", Platform: platform},
		},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, version.Of(&tt.info)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// A test is of no module's version, and of the Go that runs it.
func TestRead(t *testing.T) {
	if b := version.Read(); b.Version == "" || b.Go != runtime.Version() {
		t.Errorf("%+v", b)
	}
}

func TestReport(t *testing.T) {
	full := version.Report{
		Program: "podmarkd",
		Build:   version.Build{Version: "v1.2.3", Revision: revision, Date: date, Go: "go1.26.8", Platform: "linux/arm64"},
		State:   &version.StateFormat{Writes: 2, Reads: 1},
		CNI:     []string{"1.0.0", "1.1.0"},
	}
	changed, bare := full, version.Report{Program: "podmarkctl", Build: version.Build{Version: version.Unknown, Go: "go1.26.8", Platform: "darwin/arm64"}, CNI: []string{"1.0.0"}}
	changed.Modified = true
	for _, tt := range []struct {
		report     version.Report
		text, json string
	}{
		{
			full,
			`podmarkd v1.2.3
revision      ` + revision + `
date          2026-12-01T02:20:52Z, of the revision
go            go1.26.8 linux/arm64
state format  2, which programs of format 1 and later read
CNI versions  1.0.0, 1.1.0
`,
			`{"program":"podmarkd","version":"v1.2.3","revision":"` + revision + `","date":"` + date + `","go":"go1.26.8","platform":"linux/arm64",` +
				`"stateFormat":{"writes":2,"oldestReader":1},"cniVersions":["1.0.0","1.1.0"]}`,
		},
		{
			bare,
			`podmarkctl unknown
revision      unknown
go            go1.26.8 darwin/arm64
CNI versions  1.0.0
`,
			`{"program":"podmarkctl","version":"unknown","go":"go1.26.8","platform":"darwin/arm64","cniVersions":["1.0.0"]}`,
		},
	} {
		if diff := cmp.Diff(tt.text, tt.report.Text()); diff != "" {
			t.Error(diff)
		}
		got, err := json.Marshal(tt.report)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tt.json, string(got)); diff != "" {
			t.Error(diff)
		}
	}
	if text := changed.Text(); !strings.Contains(text, revision+", with changes\n") {
		t.Errorf("it does not say that files differ:\n%s", text)
	}
}
