// Package runtimes knows in which directories container runtimes look for network
// configurations and plugins: where Kubernetes distributions have them, and what follows
// from what a runtime says of itself.
//
//	place, err := runtimes.Decide(runtimes.Directories{}, said, known)
package runtimes

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/podmark/podmark/pkg/conflist"
)

// Errors of Decide.
var (
	// ErrSeveral: there are several places, and nothing says which one counts.
	ErrSeveral = errors.New("several places are possible")
	// ErrElsewhere: the runtime does not look where podmark is to be installed.
	ErrElsewhere = errors.New("the runtime looks elsewhere")
)

// Place is where a runtime looks.
type Place struct {
	// Conf is its directory of network configurations, Bins are those of plugins.
	Conf string
	Bins []string
	// Network is what the runtime takes of Conf; empty for the first file by name.
	Network string
	// How and From say how it is known.
	How  string
	From Source
}

// Source is how a place is known, the surer the higher.
type Source int

// The sources: nothing, what is on the node, the operator, the runtime.
const (
	Assumed Source = iota
	Known
	Given
	Reported
)

// NewPlace is a place with clean paths, each directory of plugins once.
func NewPlace(conf string, bins ...string) Place {
	p := Place{}
	if conf != "" {
		p.Conf = filepath.Clean(conf)
	}
	for _, b := range bins {
		if b != "" && !slices.Contains(p.Bins, filepath.Clean(b)) {
			p.Bins = append(p.Bins, filepath.Clean(b))
		}
	}
	return p
}

func (p Place) String() string {
	return fmt.Sprintf("network configurations in %q and plugins in %q (%s)", p.Conf, p.Bins, p.How)
}

// Default is where most runtimes look.
func Default() Place {
	return Place{Conf: "/etc/cni/net.d", Bins: []string{"/opt/cni/bin"}, How: "where most runtimes look; nothing complete was found", From: Assumed}
}

// Distribution is a distribution of Kubernetes, or several, and where its runtime looks.
type Distribution struct {
	Name string
	Conf string
	Bins []string
}

// Distributions are those that are known.
var Distributions = []Distribution{
	{"kubeadm, kubespray, kind, minikube, Talos, RKE2, k0s, EKS, AKS", "/etc/cni/net.d", []string{"/opt/cni/bin"}},
	{"CRI-O with the plugins of a distribution's packages", "/etc/cni/net.d", []string{"/usr/libexec/cni"}},
	{"GKE", "/etc/cni/net.d", []string{"/home/kubernetes/bin"}},
	{
		"k3s", "/var/lib/rancher/k3s/agent/etc/cni/net.d",
		[]string{"/var/lib/rancher/k3s/data/cni", "/var/lib/rancher/k3s/data/current/bin"},
	},
	{"MicroK8s", "/var/snap/microk8s/current/args/cni-network", []string{"/var/snap/microk8s/current/opt/cni/bin"}},
	{"OpenShift", "/etc/kubernetes/cni/net.d", []string{"/var/lib/cni/bin"}},
}

// Sockets are where runtimes are asked.
var Sockets = []string{
	"/run/containerd/containerd.sock",
	"/run/crio/crio.sock",
	"/run/k3s/containerd/containerd.sock",
	"/var/snap/microk8s/common/run/containerd.sock",
}

// OnNode lists the places of distributions that are on this node, below root: those that
// have a network configuration and its plugins.
func OnNode(root string) []Place {
	var out []Place
	for _, d := range Distributions {
		conf := filepath.Join(root, d.Conf)
		for _, b := range d.Bins {
			if bin := filepath.Join(root, b); complete(conf, bin) {
				out = append(out, Place{Conf: conf, Bins: []string{bin}, How: "what " + d.Name + " has is there", From: Known})
				break
			}
		}
	}
	return out
}

// complete reports whether a directory has a configuration that a runtime would take, and
// another its plugins.
func complete(conf, bin string) bool {
	chosen, _, err := conflist.Choose(read(conf), conflist.Wanted{Dir: conf})
	if err != nil {
		return false
	}
	programs, err := conflist.Programs(chosen.Content, "podmark")
	return err == nil && !slices.ContainsFunc(programs, func(p string) bool { return !Executable(filepath.Join(bin, p)) })
}

func read(dir string) []conflist.File {
	var out []conflist.File
	entries, _ := os.ReadDir(dir) // what cannot be read is no place
	for _, e := range entries {
		if b, err := os.ReadFile(filepath.Join(dir, e.Name())); err == nil && conflist.IsConfiguration(e.Name()) {
			out = append(out, conflist.File{Name: e.Name(), Content: b})
		}
	}
	return out
}

// Executable reports whether path is a program, or a link to one. So is a link that leads to
// nothing: k3s has its plugins in another directory, which a container does not see, and where a
// plugin really is missing no pod starts.
func Executable(path string) bool {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		info, err = os.Lstat(path)
		return err == nil && info.Mode()&fs.ModeSymlink != 0
	}
	return err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0
}

// Auto is the value of flags for what is to be found.
const Auto = "auto"

// Directories are those that were given; empty for one that is to be found.
type Directories struct{ Conf, Bin string }

// GivenBy are the directories by the values of --cni-conf-dir and --cni-bin-dir.
func GivenBy(confDir, binDir string) (Directories, error) {
	given := Directories{}
	for _, f := range []struct {
		flag, value string
		to          *string
	}{{"cni-conf-dir", confDir, &given.Conf}, {"cni-bin-dir", binDir, &given.Bin}} {
		if f.value == Auto {
			continue
		}
		if !filepath.IsAbs(f.value) {
			return Directories{}, fmt.Errorf("--%s %q: want an absolute path or %s", f.flag, f.value, Auto)
		}
		*f.to = f.value
	}
	return given, nil
}

// Decide picks the place: what the runtimes say comes before what is known of distributions,
// and neither before what was given, but that has to be where a runtime looks, if any says
// so. Where nothing is known it is where most look. Errors: ErrSeveral, ErrElsewhere.
func Decide(given Directories, said, known []Place) (Place, error) {
	if len(said) > 0 {
		return among(given, said)
	}
	if given.Conf != "" && given.Bin != "" {
		return Place{Conf: given.Conf, Bins: []string{given.Bin}, How: "given", From: Given}, nil
	}
	var places []Place
	for _, p := range known {
		if p.has(given) && !slices.ContainsFunc(places, p.same) {
			places = append(places, p)
		}
	}
	switch len(places) {
	case 0:
		return Default().with(given), nil
	case 1:
		return places[0].with(given), nil
	}
	return Place{}, several(places)
}

// among picks one of the places that runtimes say.
func among(given Directories, said []Place) (Place, error) {
	fitting := slices.DeleteFunc(slices.Clone(said), func(p Place) bool { return !p.has(given) })
	switch {
	case len(fitting) == 0:
		return Place{}, fmt.Errorf("%w: %s; give --cni-conf-dir and --cni-bin-dir (cniConfDir and cniBinDir of Helm's values) that are there, not %q and %q", ErrElsewhere, listed(said), given.Conf, given.Bin)
	case slices.ContainsFunc(fitting, func(p Place) bool { return !p.same(fitting[0]) }):
		return Place{}, several(fitting)
	}
	return fitting[0].with(given), nil
}

func several(places []Place) error {
	return fmt.Errorf("%w: %s: give --cni-conf-dir and --cni-bin-dir, or with --runtime-endpoint the runtime that the kubelet uses", ErrSeveral, listed(places))
}

func listed(places []Place) string {
	var out []string
	for _, p := range places {
		out = append(out, p.String())
	}
	return strings.Join(out, "; ")
}

// has reports whether the given directories are those of the place.
func (p Place) has(given Directories) bool {
	return (given.Conf == "" || same(given.Conf, p.Conf)) &&
		(given.Bin == "" || slices.ContainsFunc(p.Bins, func(b string) bool { return same(b, given.Bin) }))
}

// same reports whether both places are one.
func (p Place) same(q Place) bool {
	return same(p.Conf, q.Conf) && p.Network == q.Network && slices.EqualFunc(p.Bins, q.Bins, same)
}

// with is the place with the given directories as they were given, podmark's own first.
func (p Place) with(given Directories) Place {
	if given.Conf != "" {
		p.Conf = given.Conf
	}
	if given.Bin != "" {
		others := slices.DeleteFunc(slices.Clone(p.Bins), func(b string) bool { return same(b, given.Bin) })
		p.Bins = append([]string{given.Bin}, others...)
	}
	return p
}

// Sorted is the place with that directory of plugins first, which podmark's goes to, that has
// the main plugin.
func (p Place) Sorted() Place {
	chosen, _, err := conflist.Choose(read(p.Conf), conflist.Wanted{Network: p.Network, Dir: p.Conf})
	if err != nil {
		return p
	}
	programs, err := conflist.Programs(chosen.Content, "podmark")
	if err != nil || len(programs) == 0 {
		return p
	}
	first := slices.IndexFunc(p.Bins, func(b string) bool { return Executable(filepath.Join(b, programs[0])) })
	if first > 0 {
		p.Bins = slices.Concat(p.Bins[first:first+1], p.Bins[:first], p.Bins[first+1:])
	}
	return p
}

// same reports whether two paths lead to one directory.
func same(a, b string) bool {
	if filepath.Clean(a) == filepath.Clean(b) {
		return true
	}
	x, errX := os.Stat(a)
	y, errY := os.Stat(b)
	return errX == nil && errY == nil && os.SameFile(x, y)
}
