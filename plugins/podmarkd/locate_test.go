package main_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/podmark/podmark/test/fakecri"
)

// The directories are those that the runtime says. What is given has to be among them.
func TestInstallAsks(t *testing.T) {
	const name = "10-a.conflist"
	for _, tt := range []struct {
		name  string
		given func(p *place) []string
		says  func(p *place) (conf string, bins []string)
		words []string
	}{
		{"nothing given", func(*place) []string { return []string{} }, func(p *place) (string, []string) { return p.conf, []string{p.bin} }, nil},
		{"several directories of plugins", func(*place) []string { return []string{} }, func(p *place) (string, []string) { return p.conf, []string{p.state, p.bin} }, nil},
		{"given as it says", func(p *place) []string { return []string{"--cni-conf-dir", p.conf, "--cni-bin-dir", p.bin} }, func(p *place) (string, []string) { return p.conf, []string{p.bin} }, nil},
		{"configurations elsewhere", func(p *place) []string { return []string{"--cni-conf-dir", p.conf} }, func(p *place) (string, []string) { return "/var/lib/k3s/net.d", []string{p.bin} }, []string{"/var/lib/k3s/net.d", "cniConfDir"}},
		{"plugins elsewhere", func(p *place) []string { return []string{"--cni-conf-dir", p.conf, "--cni-bin-dir", p.bin} }, func(p *place) (string, []string) { return p.conf, []string{"/var/lib/k3s/bin"} }, []string{"/var/lib/k3s/bin", "cniBinDir"}},
		{"not a path", func(*place) []string { return []string{"--cni-bin-dir", "bin"} }, func(p *place) (string, []string) { return p.conf, []string{p.bin} }, []string{"--cni-bin-dir", `"bin"`, "absolute"}},
		{"empty", func(*place) []string { return []string{"--cni-conf-dir", ""} }, func(p *place) (string, []string) { return p.conf, []string{p.bin} }, []string{"--cni-conf-dir", `""`, "absolute"}},
		{"it does not say", func(*place) []string { return []string{} }, func(*place) (string, []string) { return "", nil }, []string{"--runtime-endpoint", "--cni-conf-dir"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPlace(t)
			p.write(name, chain("net", "ptp", "portmap"))
			p.directories = tt.given(p)
			conf, bins := tt.says(p)
			r := fakecri.New(t, conf, bins...)
			args := []string{"install", "--runtime-endpoint", "unix://" + r.Socket}
			if tt.words != nil {
				p.fails(tt.words, args...)
				return
			}
			if out := p.run(args...); !strings.Contains(out, p.conf) || !strings.Contains(out, r.Socket) {
				t.Errorf("it does not say where, and how it knows: %s", out)
			}
			p.hasTypes(name, "ptp", "portmap", "podmark")
			p.hasPlugin()
		})
	}
	t.Run("nobody there", func(t *testing.T) {
		p := newPlace(t)
		p.write(name, chain("net", "ptp"))
		p.fails([]string{"/does/not/exist"}, "install", "--runtime-endpoint", "/does/not/exist")
	})
}

// podmarkd follows a runtime that reads other directories after a restart, and holds to what it
// said while it is away.
func TestGuardAsks(t *testing.T) {
	t.Parallel()
	const name = "10-a.conflist"
	p, other := newPlace(t), newPlace(t)
	h := newHost(t, nftables)
	p.state, other.state = h.Dir, h.Dir
	p.write(name, chain("net", "ptp"))
	r := fakecri.New(t, p.conf, p.bin)
	d := h.start("--keep-installed", "--policy", "none", "--cni-conf-dir", "auto", "--runtime-endpoint", r.Socket)
	h.eventually("installed where the runtime says", func() error { return p.has(name, "ptp", "podmark") })
	r.Stop()
	p.write(name, chain("net", "bridge"))
	h.eventually("put back while it is away", func() error { return p.has(name, "bridge", "podmark") })
	other.write(name, chain("net", "ptp"))
	r.Reads(other.conf, other.bin)
	r.Listen()
	p.write(name, chain("net", "ptp")) // something to look at
	h.eventually("installed where it says now", func() error { return other.has(name, "ptp", "podmark") })
	other.hasPlugin()
	h.eventually("it says so", func() error {
		if !strings.Contains(d.Log.String(), fmt.Sprintf("configurations=%s", other.conf)) {
			return errors.New("it does not")
		}
		return nil
	})
}
