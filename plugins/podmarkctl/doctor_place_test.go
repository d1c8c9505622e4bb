package main_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/doctor"
	"github.com/podmark/podmark/test/fakecri"
)

// looksAt fails the test unless the table says all of words of where the runtime looks.
func (p *patient) looksAt(words ...string) {
	p.T.Helper()
	table := p.ctl(append([]string{"doctor"}, p.directories...)...).Stdout
	for _, w := range words {
		if !strings.Contains(table, w) {
			p.T.Errorf("doctor does not say %q:\n%s", w, table)
		}
	}
}

// Doctor looks where the runtime says, and says so. Its fixes go there too.
func TestDoctorAsks(t *testing.T) {
	p := newPatient(t, nftables, 1)
	r := fakecri.New(t, p.conf, p.bin)
	asked := []string{"--runtime-endpoint", "unix://" + r.Socket}
	given := append([]string{"--cni-conf-dir", p.conf, "--cni-bin-dir", p.bin}, asked...)
	p.directories = asked
	p.well()
	p.looksAt(p.conf, p.bin, r.Socket)
	p.directories = given
	p.well()

	// podmark's plugin may be in another directory than the main plugin.
	p.directories = asked
	other := t.TempDir()
	r.Reads(p.conf, other, p.bin)
	p.well()
	p.Exec("", "mv", filepath.Join(p.bin, "podmark"), other)
	p.well()
	p.Exec("", "rm", filepath.Join(other, "podmark"))
	if f := p.finds("plugin", filepath.Join(p.bin, "podmark")); !strings.Contains(f.Fix, r.Socket) {
		t.Errorf("it asks another runtime: %s", f.Fix)
	}
	p.fix("plugin")
	p.well()

	// It looks elsewhere: what is in the other directories is nothing.
	elsewhere := t.TempDir()
	r.Reads(elsewhere, p.bin)
	p.directories = given
	f := p.finds("runtime", elsewhere)
	if f.Severity != doctor.Error || !strings.Contains(f.What, p.conf) {
		t.Errorf("%+v", f)
	}
	p.directories = asked
	if f := p.finds("conflist", elsewhere); !strings.HasPrefix(f.Fix, "# ") {
		t.Errorf("the runtime has said which directory it is: %s", f.Fix)
	}

	// Who is named and does not say is told, and the rest is looked at.
	r.Reads("")
	p.directories = given
	if f := p.finds("could-not-look", r.Socket); f.Severity != doctor.Unknown || !strings.Contains(f.Why, "conflist") {
		t.Errorf("%+v", f)
	}
	p.ctl("doctor", "--cni-bin-dir", "bin").fails(t, "--cni-bin-dir", "absolute")
}

// What nobody says is known of distributions: of k3s here, whose runtime is away. Two runtimes
// that say different things are for the operator.
func TestDoctorKnown(t *testing.T) {
	p := newPatient(t, nftables, 1)
	// A mount namespace of the test's own, in which no runtime and no distribution is there.
	for _, err := range []error{
		unix.Unshare(unix.CLONE_NEWNS),
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("tmpfs", "/var/lib", "tmpfs", 0, ""),
		unix.Mount("tmpfs", "/run", "tmpfs", 0, ""),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat("/etc/cni"); err == nil {
		if err := unix.Mount("tmpfs", "/etc/cni", "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
	}
	p.directories = nil
	p.looksAt("/etc/cni/net.d", "/opt/cni/bin", "where most runtimes look")
	p.finds("conflist", "/etc/cni/net.d")

	const conf, bin = "/var/lib/rancher/k3s/agent/etc/cni/net.d", "/var/lib/rancher/k3s/data/cni"
	if err := errors.Join(os.MkdirAll(conf, 0o755), os.MkdirAll(bin, 0o755)); err != nil {
		t.Fatal(err)
	}
	p.Exec("", "cp", "-a", p.conf+"/.", conf)
	p.Exec("", "cp", "-a", p.bin+"/.", bin)
	p.conf, p.bin = conf, bin
	p.well()
	p.looksAt(conf, bin, "k3s")
	p.plugins("10-net.conflist", "net", "1.0.0", mainPlugin("ptp"))
	p.Exec("", "rm", filepath.Join(bin, "podmark"))
	f := p.finds("conflist", conf)
	if !strings.Contains(f.Fix, conf) || !strings.Contains(f.Fix, bin) {
		t.Errorf("fix: %s", f.Fix)
	}
	p.shell(f.Fix)
	p.well()

	for _, dir := range []string{"/run/containerd", "/run/crio"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	fakecri.At(t, "/run/containerd/containerd.sock", conf, bin)
	p.well()
	p.looksAt(conf, bin, "/run/containerd/containerd.sock")
	other := t.TempDir()
	fakecri.At(t, "/run/crio/crio.sock", other, bin)
	if f := p.finds("runtime", other); f.Severity != doctor.Error || !strings.Contains(f.What, conf) {
		t.Errorf("%+v", f)
	}
	p.directories = []string{"--cni-conf-dir", conf}
	p.well()
}
