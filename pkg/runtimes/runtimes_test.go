package runtimes_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/podmark/podmark/pkg/runtimes"
)

const list = `{"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "ptp", "ipam": {"type": "host-local"}}, {"type": "portmap"}, {"type": "podmark"}]}`

// lay puts a conflist into conf, and its plugins into bin.
func lay(t *testing.T, conf, bin string) {
	t.Helper()
	err := errors.Join(os.MkdirAll(conf, 0o755), os.MkdirAll(bin, 0o755), os.WriteFile(filepath.Join(conf, "10-net.conflist"), []byte(list), 0o600))
	for _, name := range []string{"ptp", "host-local", "portmap"} {
		err = errors.Join(err, os.WriteFile(filepath.Join(bin, name), nil, 0o755))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// docs/install.md has a table of distributions: on a node of each, what it says is
// found, and nothing that is known is missing there.
func TestDistributions(t *testing.T) {
	document, err := os.ReadFile("../../docs/install.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(document), "<!-- distributions:begin -->")
	table, _, _ = strings.Cut(table, "<!-- distributions:end -->")
	said := map[[2]string]bool{}
	for _, row := range strings.Split(strings.TrimSpace(table), "\n")[2:] {
		cells := strings.Split(strings.Trim(row, "|"), "|")
		if len(cells) != 4 {
			t.Fatalf("a row of %d cells: %s", len(cells), row)
		}
		name, conf := strings.TrimSpace(cells[0]), strings.Trim(cells[1], " `")
		for bin := range strings.SplitSeq(cells[2], ",") {
			bin = strings.Trim(bin, " `")
			said[[2]string{conf, bin}] = true
			root := t.TempDir()
			lay(t, filepath.Join(root, conf), filepath.Join(root, bin))
			got, err := runtimes.Decide(runtimes.Directories{}, nil, runtimes.OnNode(root))
			if err != nil || got.From != runtimes.Known || got.Conf != filepath.Join(root, conf) || !slices.Equal(got.Bins, []string{filepath.Join(root, bin)}) {
				t.Errorf("%s: %+v, %v", name, got, err)
			}
			if err := os.Remove(filepath.Join(root, bin, "portmap")); err != nil {
				t.Fatal(err)
			}
			if got := runtimes.OnNode(root); got != nil {
				t.Errorf("%s, with a plugin missing: %v", name, got)
			}
		}
	}
	for _, d := range runtimes.Distributions {
		for _, bin := range d.Bins {
			if !said[[2]string{d.Conf, bin}] {
				t.Errorf("docs/install.md does not have %s and %s of %s", d.Conf, bin, d.Name)
			}
		}
	}
}

func TestDecide(t *testing.T) {
	place := func(from runtimes.Source, conf string, bins ...string) runtimes.Place {
		p := runtimes.NewPlace(conf, bins...)
		p.From = from
		return p
	}
	const said, known = runtimes.Reported, runtimes.Known
	a, k3s := place(said, "/a", "/a/bin"), place(known, "/k3s", "/k3s/bin")
	for _, tt := range []struct {
		name        string
		given       runtimes.Directories
		said, known []runtimes.Place
		want        runtimes.Place
		err         error
	}{
		{"nothing", runtimes.Directories{}, nil, nil, place(runtimes.Assumed, "/etc/cni/net.d", "/opt/cni/bin"), nil},
		{"one directory given", runtimes.Directories{Conf: "/x"}, nil, nil, place(runtimes.Assumed, "/x", "/opt/cni/bin"), nil},
		{"both given", runtimes.Directories{Conf: "/x", Bin: "/y"}, nil, []runtimes.Place{k3s}, place(runtimes.Given, "/x", "/y"), nil},
		{"known", runtimes.Directories{}, nil, []runtimes.Place{k3s}, k3s, nil},
		{"known by what is given", runtimes.Directories{Conf: "/k3s"}, nil, []runtimes.Place{place(known, "/a", "/a/bin"), k3s}, k3s, nil},
		{"several are known", runtimes.Directories{}, nil, []runtimes.Place{k3s, place(known, "/a", "/a/bin")}, runtimes.Place{}, runtimes.ErrSeveral},
		{"said before known", runtimes.Directories{}, []runtimes.Place{a}, []runtimes.Place{k3s}, a, nil},
		{"two say the same", runtimes.Directories{}, []runtimes.Place{a, place(said, "/a", "/a/bin")}, nil, a, nil},
		{"two say different things", runtimes.Directories{}, []runtimes.Place{a, place(said, "/b", "/a/bin")}, nil, runtimes.Place{}, runtimes.ErrSeveral},
		{"two, and what is given", runtimes.Directories{Conf: "/b"}, []runtimes.Place{a, place(said, "/b", "/b/bin")}, nil, place(said, "/b", "/b/bin"), nil},
		{"given as said", runtimes.Directories{Conf: "/a", Bin: "/a/bin"}, []runtimes.Place{a}, nil, a, nil},
		{"given is one of several", runtimes.Directories{Bin: "/c"}, []runtimes.Place{place(said, "/a", "/b", "/c", "/d")}, nil, place(said, "/a", "/c", "/b", "/d"), nil},
		{"another conf given", runtimes.Directories{Conf: "/x", Bin: "/a/bin"}, []runtimes.Place{a}, nil, runtimes.Place{}, runtimes.ErrElsewhere},
		{"another bin given", runtimes.Directories{Bin: "/x"}, []runtimes.Place{a}, nil, runtimes.Place{}, runtimes.ErrElsewhere},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := runtimes.Decide(tt.given, tt.said, tt.known)
			got.How = ""
			if diff := cmp.Diff(tt.want, got); diff != "" || !errors.Is(err, tt.err) {
				t.Errorf("%v\n%s", err, diff)
			}
		})
	}
}

func TestGivenBy(t *testing.T) {
	for _, tt := range []struct {
		conf, bin string
		want      runtimes.Directories
		words     string // of an error
	}{
		{runtimes.Auto, runtimes.Auto, runtimes.Directories{}, ""},
		{"/c", runtimes.Auto, runtimes.Directories{Conf: "/c"}, ""},
		{runtimes.Auto, "/b", runtimes.Directories{Bin: "/b"}, ""},
		{"net.d", "/b", runtimes.Directories{}, "--cni-conf-dir"},
		{"/c", "", runtimes.Directories{}, "--cni-bin-dir"},
	} {
		got, err := runtimes.GivenBy(tt.conf, tt.bin)
		if got != tt.want || (err != nil) != (tt.words != "") || err != nil && !strings.Contains(err.Error(), tt.words) {
			t.Errorf("%q and %q: %+v, %v", tt.conf, tt.bin, got, err)
		}
	}
}

// A directory may be given by another path to it.
func TestSameDirectory(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "current")
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "v1"), 0o755), os.Symlink("v1", link)); err != nil {
		t.Fatal(err)
	}
	said := runtimes.NewPlace(filepath.Join(dir, "v1"), "/bin")
	if got, err := runtimes.Decide(runtimes.Directories{Conf: link}, []runtimes.Place{said}, nil); err != nil || got.Conf != link {
		t.Errorf("%+v, %v", got, err)
	}
}

// podmark goes to the directory that has the main plugin.
func TestSorted(t *testing.T) {
	dir := t.TempDir()
	conf, empty, bin := filepath.Join(dir, "conf"), filepath.Join(dir, "empty"), filepath.Join(dir, "bin")
	lay(t, conf, bin)
	if got := runtimes.NewPlace(conf, empty, bin, "/last").Sorted(); !slices.Equal(got.Bins, []string{bin, empty, "/last"}) {
		t.Errorf("%q", got.Bins)
	}
	if got := runtimes.NewPlace(empty, empty, bin).Sorted(); !slices.Equal(got.Bins, []string{empty, bin}) {
		t.Errorf("without a conflist: %q", got.Bins)
	}
}

// What a link leads to may be outside of what a container sees: k3s has its plugins so.
func TestExecutable(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	for _, err := range []error{
		os.WriteFile(path("program"), nil, 0o755), os.WriteFile(path("text"), nil, 0o644), os.Mkdir(path("directory"), 0o755),
		os.Symlink("program", path("link")), os.Symlink("text", path("link to text")), os.Symlink("../elsewhere/bin/cni", path("link out")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]bool{"program": true, "text": false, "directory": false, "link": true, "link to text": false, "link out": true, "none": false} {
		if got := runtimes.Executable(path(name)); got != want {
			t.Errorf("%s: %t", name, got)
		}
	}
}
