package doctor_test

import (
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"github.com/podmark/podmark/pkg/conflist"
	"github.com/podmark/podmark/pkg/doctor"
	"github.com/podmark/podmark/pkg/runtimes"
)

// Where it is not known where the runtime looks, that is the finding, and nothing is said of
// configurations that nobody read.
func TestRuntime(t *testing.T) {
	at := func(conf string) runtimes.Place { return runtimes.NewPlace(conf, conf+"/bin") }
	for _, tt := range []struct {
		name  string
		given runtimes.Directories
		said  []runtimes.Place
		fix   string
		words []string
	}{
		{"several", runtimes.Directories{}, []runtimes.Place{at("/a"), at("/b")}, "podmarkctl doctor --cni-conf-dir DIR --cni-bin-dir DIR  # ", []string{"/a", "/b"}},
		{"elsewhere", runtimes.Directories{Conf: "/x"}, []runtimes.Place{at("/a")}, "podmarkctl doctor  # ", []string{"/a", "/x"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := healthy(t, 0xffff0000)
			f.Networks, f.Given, f.ConfDir, f.BinDir = nil, tt.given, tt.given.Conf, tt.given.Bin
			f.Place, f.PlaceErr = runtimes.Decide(tt.given, tt.said, nil)
			if x := only(t, f, "runtime", tt.words...); x.Severity != doctor.Error || !strings.HasPrefix(x.Fix, tt.fix) {
				t.Errorf("%+v", x)
			}
		})
	}
}

// A fix goes where doctor looked, and asks whom doctor asked.
func TestMendsGoThere(t *testing.T) {
	const install = "podmarkd install"
	for _, tt := range []struct {
		name      string
		given     runtimes.Directories
		conf, bin string
		endpoint  string
		want      string
	}{
		{"found where most look", runtimes.Directories{}, "/etc/cni/net.d", "/opt/cni/bin", runtimes.Auto, install},
		{"found elsewhere", runtimes.Directories{}, "/k3s/net.d", "/k3s/bin", runtimes.Auto, install + " --cni-conf-dir /k3s/net.d --cni-bin-dir /k3s/bin"},
		{"given, where most look", runtimes.Directories{Conf: "/etc/cni/net.d", Bin: "/opt/cni/bin"}, "/etc/cni/net.d", "/opt/cni/bin", runtimes.Auto, install + " --cni-conf-dir /etc/cni/net.d --cni-bin-dir /opt/cni/bin"},
		{"one of them given", runtimes.Directories{Bin: "/b"}, "/etc/cni/net.d", "/b", runtimes.Auto, install + " --cni-bin-dir /b"},
		{"another runtime", runtimes.Directories{}, "/etc/cni/net.d", "/opt/cni/bin", "/run/x.sock", install + " --runtime-endpoint /run/x.sock"},
		{"nobody asked", runtimes.Directories{}, "/etc/cni/net.d", "/opt/cni/bin", "", install + " --runtime-endpoint ''"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := healthy(t, 0xffff0000)
			f.Given, f.ConfDir, f.BinDir, f.Endpoint = tt.given, tt.conf, tt.bin, tt.endpoint
			f.Plugin, f.PluginMissing = fs.ErrNotExist, true
			if x := only(t, f, "plugin"); x.Fix != tt.want {
				t.Errorf("%q, want %q", x.Fix, tt.want)
			}
		})
	}
}

// What podmarkd says of where pods start is told where doctor sees nothing of it itself.
func TestAbsent(t *testing.T) {
	absent := func() doctor.Facts {
		f := healthy(t, 0xffff0000)
		f.Daemon.NotInstalled = "there is no plugin podmark"
		return f
	}
	if x := only(t, absent(), "conflist-plugins", "there is no plugin podmark", "--cni-bin-dir"); x.Severity != doctor.Error || !strings.HasPrefix(x.Fix, "# ") {
		t.Errorf("%+v", x)
	}
	for check, do := range map[string]func(*doctor.Facts){
		"plugin":           func(f *doctor.Facts) { f.Plugin, f.PluginMissing = fs.ErrNotExist, true },
		"conflist":         func(f *doctor.Facts) { f.Networks[0].Entry = nil },
		"podmarkd":         func(f *doctor.Facts) { f.DaemonRuns = false },
		"conflist-plugins": func(f *doctor.Facts) { f.Lacking = []string{"ptp"} },
	} {
		f := absent()
		do(&f)
		if x := only(t, f, check); strings.Contains(x.What, f.Daemon.NotInstalled) {
			t.Errorf("%s: %+v", check, x)
		}
	}
}

// A runtime that says which directory it reads reads no other: what is not there yet comes there.
func TestNoConflist(t *testing.T) {
	for from, advice := range map[runtimes.Source]bool{runtimes.Reported: true, runtimes.Known: false, runtimes.Assumed: false} {
		f := healthy(t, 0xffff0000)
		f.Networks, f.ActiveErr = nil, fmt.Errorf("%w: it is empty", conflist.ErrNone)
		f.Place = runtimes.Place{Conf: f.ConfDir, Bins: []string{f.BinDir}, How: "as somebody says", From: from}
		x := only(t, f, "conflist", f.ConfDir, "as somebody says", "it is empty")
		if strings.HasPrefix(x.Fix, "# ") != advice || strings.Contains(x.What, "another directory") == advice {
			t.Errorf("%v: %+v", from, x)
		}
	}
}
