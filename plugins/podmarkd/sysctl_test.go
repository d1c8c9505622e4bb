package main_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/podmark/podmark/pkg/agent"
	"github.com/podmark/podmark/test/needs"
	"github.com/podmark/podmark/test/testnode"
)

const bridgeFour, bridgeSix = "net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables"

// onBridge is a node whose conflist makes bridge ports and polices them, with both
// parameters off. podmark has run there.
func onBridge(t *testing.T) (h *host, confDir string) {
	t.Helper()
	needs.All(t, needs.BridgeNetfilter)
	h = newHost(t, nftables)
	h.Ctl(policy, "apply", "-f", "-")
	h.off(bridgeFour, bridgeSix)
	return h, h.bridgeList()
}

// bridgeList makes a directory with such a conflist.
func (h *host) bridgeList() string {
	h.T.Helper()
	dir := h.T.TempDir()
	list := fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "bridge"}, {"type": "podmark", "policy": "files", "stateDir": %q}]}`, h.Dir)
	if err := os.WriteFile(filepath.Join(dir, "10-net.conflist"), []byte(list), 0o600); err != nil {
		h.T.Fatal(err)
	}
	return dir
}

func (h *host) off(names ...string) {
	h.T.Helper()
	for _, name := range names {
		h.Exec("", "sysctl", "-qw", name+"=0")
	}
}

func (h *host) sysctl(name string) string {
	h.T.Helper()
	return strings.TrimSpace(h.Exec("", "sysctl", "-n", name))
}

// is waits until the status says that the parameters are on or off.
func (d *daemon) is(value string) {
	d.h.T.Helper()
	d.h.eventually("both parameters are "+value, func() error {
		s, err := d.status()
		ours := slices.DeleteFunc(s.Sysctls, func(p agent.Sysctl) bool { return p.Name != bridgeFour && p.Name != bridgeSix })
		if err != nil || len(ours) != 2 {
			return fmt.Errorf("%+v, %w", s.Sysctls, err)
		}
		for _, p := range ours {
			if p.Value != value {
				return fmt.Errorf("%+v", p)
			}
		}
		return nil
	})
}

// Without --set-sysctls, what is wrong is said and left as it is.
func TestSysctlsAreLeft(t *testing.T) {
	t.Parallel()
	h, conf := onBridge(t)
	d := h.start("--cni-conf-dir", conf)
	d.is("0")
	if got := d.metric(`podmark_sysctl_ok{name="` + bridgeFour + `"}`); got != "0" {
		t.Errorf("podmark_sysctl_ok %s", got)
	}
	first, err := d.status()
	if err != nil {
		t.Fatal(err)
	}
	h.eventually("it looks again", func() error {
		if s, err := d.status(); err != nil || !s.LastReconcile.After(first.LastReconcile) {
			return fmt.Errorf("%v, %w", s.LastReconcile, err)
		}
		return nil
	})
	if h.sysctl(bridgeFour) != "0" || h.sysctl(bridgeSix) != "0" {
		t.Error("a parameter was set")
	}
	if n := strings.Count(d.Log.String(), "sysctl -w "+bridgeFour+"=1"); n != 1 {
		t.Errorf("it is said %d times how to fix it", n)
	}
	h.Exec("", "sysctl", "-qw", bridgeFour+"=1", bridgeSix+"=1")
	d.is("1")
	if got := d.metric(`podmark_sysctl_ok{name="` + bridgeFour + `"}`); got != "1" {
		t.Errorf("podmark_sysctl_ok %s", got)
	}
}

// With --set-sysctls, they are set, and what they were is said; and once more when
// another program changes them.
func TestSysctlsAreSet(t *testing.T) {
	t.Parallel()
	h, conf := onBridge(t)
	d := h.start("--cni-conf-dir", conf, "--set-sysctls")
	d.is("1")
	if h.sysctl(bridgeFour) != "1" || h.sysctl(bridgeSix) != "1" {
		t.Error("a parameter was not set")
	}
	if !strings.Contains(d.Log.String(), "sysctl="+bridgeFour+" before=0 now=1") {
		t.Errorf("it does not say what it was")
	}
	// At once, or when the pause behind the first time is over.
	h.off(bridgeSix)
	h.eventually("it is set again", func() error {
		if h.sysctl(bridgeSix) != "1" {
			return errors.New("not yet")
		}
		return nil
	})
	h.eventually("it is said a second time", func() error {
		if n := strings.Count(d.Log.String(), "sysctl="+bridgeSix+" before=0 now=1"); n != 2 {
			return fmt.Errorf("%d times", n)
		}
		return nil
	})
}

// They are set ahead of the first pod, on a node that podmark has never run on.
func TestSysctlsBeforeTheFirstPod(t *testing.T) {
	t.Parallel()
	needs.All(t, needs.BridgeNetfilter)
	h := newHost(t, nftables)
	h.off(bridgeFour, bridgeSix)
	h.Exec("", "sysctl", "-qw", sourceRoute+"=1")
	d := h.start("--cni-conf-dir", h.bridgeList(), "--set-sysctls")
	d.is("1")
	if s := h.sysctl(sourceRoute); s != "0" {
		t.Errorf("%s is %s", sourceRoute, s)
	}
}

const sourceRoute = "net.ipv4.conf.all.accept_source_route"

// What the node does not need is not touched.
func TestSysctlsThatAreNotNeeded(t *testing.T) {
	t.Parallel()
	h, conf := onBridge(t)
	list := filepath.Join(conf, "10-net.conflist")
	b, err := os.ReadFile(list)
	if err == nil {
		err = os.WriteFile(list, []byte(strings.ReplaceAll(string(b), `"bridge"`, `"ptp"`)), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	d := h.start("--cni-conf-dir", conf, "--set-sysctls")
	if s, err := d.status(); err != nil || len(s.Sysctls) != 1 || s.Sysctls[0].Name != sourceRoute || h.sysctl(bridgeFour) != "0" {
		t.Errorf("%+v, %v", s.Sysctls, err)
	}
	if _, body := d.get("/metrics"); strings.Contains(body, `podmark_sysctl_ok{name="net.bridge`) {
		t.Error("there is a metric of what is not needed")
	}
}

// While frames between ports are kept from IP, a bridge drops them where a policy would have
// been asked, and doctor says why. Neither that nor its end is a repair.
func TestFramesKeptFromIP(t *testing.T) {
	needs.All(t, needs.BridgeNetfilter)
	eachBackend(t, func(t *testing.T, h *host) {
		h.Exec("", "sysctl", "-qw", bridgeFour+"=1", bridgeSix+"=1")
		h.Exec("", "ip", "link", "add", "cni0", "type", "bridge")
		h.Exec("", "ip", "link", "set", "cni0", "up")
		h.Ctl(policy, "apply", "-f", "-")
		h.addPodOn("cni0")
		d := h.start()
		drops := func(want ...string) {
			t.Helper()
			h.eventually(fmt.Sprintf("%q are dropped", want), func() error {
				rules := h.Exec("", "nft", "list chain bridge podmark between-ports")
				for _, proto := range []string{"ip", "ip6"} {
					for _, end := range []string{"oif @isolated", "iif @confined"} {
						rule := fmt.Sprintf("meta protocol %s %s jump stray-frames", proto, end)
						if strings.Contains(rules, rule) != slices.Contains(want, proto) {
							return errors.New(rules)
						}
					}
				}
				return nil
			})
		}
		drops()
		h.off(bridgeFour)
		drops("ip")
		h.off(bridgeSix)
		drops("ip", "ip6")
		doctor := h.TryCtl("", "doctor").Stdout
		for _, word := range []string{bridgeFour + " is 0", bridgeSix + " is 0", "dropped, whatever the policy allows"} {
			if !strings.Contains(doctor, word) {
				t.Errorf("doctor does not say %q:\n%s", word, doctor)
			}
		}
		h.Exec("", "sysctl", "-qw", bridgeFour+"=1", bridgeSix+"=1")
		drops()
		h.eventually("the log says so", func() error {
			if d.lines("level=WARN", "bypass the IP hooks", "ipv4=true") == 0 || d.lines("level=INFO", "pass the IP hooks again") != 1 {
				return errors.New(d.Log.String())
			}
			return nil
		})
		if s, err := d.status(); err != nil || s.Repairs != 0 || s.Error != "" {
			t.Errorf("%+v, %v", s, err)
		}
	})
}

// addPodOn adds a pod whose veth is a port of a bridge.
func (h *host) addPodOn(bridge string) {
	h.T.Helper()
	p := h.NewPod(testnode.NewSpace(h.T))
	p.Do(h.T, func() error { return testnode.Up("eth0") })
	h.Exec("", "ip", "link", "set", p.Veth, "master", bridge, "up")
	h.Exec("", "ip", "route", "add", p.V4, "dev", bridge)
	h.Exec("", "ip", "route", "add", p.V6, "dev", bridge)
	h.come(p)
}
