package main_test

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/node"
	"github.com/podmark/podmark/pkg/version"
	"github.com/podmark/podmark/test/testnode"
)

// The verb, --version and the plugin name one version, which is that of the build.
func TestVersion(t *testing.T) {
	t.Parallel()
	dir := testnode.Programs(t)
	run := func(name string, args ...string) (stdout, stderr string, code int) {
		t.Helper()
		cmd := exec.Command(filepath.Join(dir, name), args...)
		var out, problems strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &problems
		_ = cmd.Run() // the code says it
		return out.String(), problems.String(), cmd.ProcessState.ExitCode()
	}
	reports := map[string]version.Report{}
	for _, name := range []string{"podmarkd", "podmarkctl"} {
		out, problems, code := run(name, "version", "-o", "json")
		var r version.Report
		if err := json.Unmarshal([]byte(out), &r); err != nil || code != 0 || problems != "" {
			t.Fatalf("%s version -o json: %v, exit %d, stderr %q:\n%s", name, err, code, problems, out)
		}
		if r.Program != name || r.Version == "" || r.Go != runtime.Version() || r.Platform != runtime.GOOS+"/"+runtime.GOARCH {
			t.Errorf("%s: %+v", name, r)
		}
		if r.State == nil || *r.State != node.StateFormat() || strings.Join(r.CNI, " ") != strings.Join(config.Versions.SupportedVersions(), " ") {
			t.Errorf("%s: state format %+v, CNI %q", name, r.State, r.CNI)
		}
		if text, _, code := run(name, "version"); text != r.Text() || code != 0 {
			t.Errorf("%s version: exit %d:\n%s\nand as JSON:\n%s", name, code, text, r.Text())
		}
		if flag, _, _ := run(name, "--version"); flag != name+" version "+r.Version+"\n" {
			t.Errorf("%s --version: %q, and the verb says %q", name, flag, r.Version)
		}
		reports[name] = r
	}
	if a, b := reports["podmarkd"].Build, reports["podmarkctl"].Build; a != b {
		t.Errorf("of one build podmarkd is %+v and podmarkctl %+v", a, b)
	}
	_, about, _ := run("podmark")
	if first, _, _ := strings.Cut(about, "\n"); first != "CNI podmark plugin "+reports["podmarkd"].Version {
		t.Errorf("the plugin says %q", about)
	}
	for _, args := range [][]string{{"version", "now"}, {"version", "-o", "yaml"}} {
		if out, problems, code := run("podmarkd", args...); code != 2 || out != "" || !strings.Contains(problems, args[len(args)-1]) {
			t.Errorf("podmarkd %q: exit %d, stdout %q, stderr %q", args, code, out, problems)
		}
	}
}

// The metric has the labels of the verb, empty ones too: a join on them finds each node.
func TestBuildInfo(t *testing.T) {
	t.Parallel()
	h := newHost(t, nftables)
	var r version.Report
	if err := json.Unmarshal([]byte(h.Exec("", testnode.Program(t, "podmarkd"), "version", "-o", "json")), &r); err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("podmark_build_info{goversion=%q,revision=%q,version=%q}", r.Go, r.Revision, r.Version)
	if values := h.start().values(); values[name] != 1 {
		t.Errorf("there is no %s 1 among %v", name, values)
	}
}

// A runtime that asks for versions gets what the CNI specification says, and nothing else.
func TestPluginVersion(t *testing.T) {
	t.Parallel()
	cmd := exec.Command(testnode.Program(t, "podmark"))
	cmd.Env = []string{"CNI_COMMAND=VERSION"}
	out, err := cmd.Output()
	want := `{"cniVersion":"1.1.0","supportedVersions":["0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]}` + "\n"
	if err != nil || string(out) != want {
		t.Errorf("%v: %s, want %s", err, out, want)
	}
}
