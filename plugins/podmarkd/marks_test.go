package main_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/podmark/podmark/test/rules"
)

// Who uses bits of the mask is said once: in the log, the status, the metrics and an event on
// the Node, with what comes of it, until it is gone.
func TestCollisions(t *testing.T) {
	eachBackend(t, func(t *testing.T, h *host) {
		h.addPod()
		a := &apiServer{nodePort: 30080, mask: "4294901760"}
		d := h.start("--kubeconfig", h.serveAPI(a), "--node-name", "worker-1")
		const bits = `podmark_mark_collision_bits{user="kube-router"}`
		const others = `podmark_mark_collision_bits{user="other"}`
		d.become("nothing is found", map[string]float64{bits: 0, others: 0})
		h.Exec(rules.KubeRouter, "iptables-nft-restore", "--noflush")
		h.Exec("", "iptables-nft", "-t", "mangle", "-A", "POSTROUTING", "-j", "CONNMARK", "--set-xmark", "0x700000/0x700000")
		d.become("both are in the metrics", map[string]float64{bits: 2, others: 3})
		h.eventually("there is an event", func() error {
			_, events := a.said()
			if len(events) == 0 {
				return fmt.Errorf("no event yet")
			}
			e := events[len(events)-1]
			for _, w := range []string{"kube-router", "0x30000", "0x700000", "iptablesMarkMask"} {
				if e.Reason != "MarkBitsShared" || e.InvolvedObject.Name != "worker-1" || !strings.Contains(e.Message, w) {
					return fmt.Errorf("event %s does not say %q: %s", e.Reason, w, e.Message)
				}
			}
			return nil
		})
		h.eventually("both are in the status", func() error {
			if s, err := d.status(); err != nil || len(s.Collisions) != 2 {
				return fmt.Errorf("status %+v, %w", s, err)
			}
			return nil
		})
		if text := h.Ctl("", "status"); !strings.Contains(text, "kube-router") {
			t.Errorf("podmarkctl status:\n%s", text)
		}
		looks := d.values()[`podmark_reconciles_total{trigger="interval"}`]
		h.eventually("it has looked some more", func() error {
			if n := d.values()[`podmark_reconciles_total{trigger="interval"}`]; n < looks+5 {
				return fmt.Errorf("%v looks", n)
			}
			return nil
		})
		harm := "harm=shared"
		if h.Backend.Key == "iptables" {
			harm = "harm=misled"
		}
		said := slices.DeleteFunc(strings.Split(d.Log.String(), "\n"), func(line string) bool {
			return !strings.Contains(line, "level=WARN") || !strings.Contains(line, "user=kube-router") || !strings.Contains(line, harm)
		})
		if len(said) != 1 {
			t.Errorf("want one line with %s: %q\n%s", harm, said, d.Log.String())
		}
		h.Exec("", "iptables-nft", "-t", "filter", "-F")
		h.Exec("", "iptables-nft", "-t", "filter", "-X")
		h.Exec("", "iptables-nft", "-t", "mangle", "-D", "POSTROUTING", "-j", "CONNMARK", "--set-xmark", "0x700000/0x700000")
		d.become("both are gone", map[string]float64{bits: 0, others: 0})
	})
}

// podmarkd warns on a node that has no pod yet, too.
func TestCollisionsBeforeTheFirstPod(t *testing.T) {
	t.Parallel()
	h := newHost(t, nftables)
	h.Exec("", "ip", "link", "add", "tailscale0", "type", "bridge")
	p := newPlace(t)
	p.state = h.Dir
	p.write("10-a.conflist", chain("net", "ptp", fmt.Sprintf(`{"type": "podmark", "stateDir": %q}`, h.Dir)))
	d := h.start("--cni-conf-dir", p.conf)
	d.become("it is in the metrics", map[string]float64{`podmark_mark_collision_bits{user="Tailscale"}`: 8})
}

// Install refuses what the first ADD would, and writes nothing; what it need not refuse is
// a note.
func TestInstallMarks(t *testing.T) {
	h := newHost(t, nftables)
	h.Exec(rules.KubeRouter, "iptables-nft-restore", "--noflush")
	entry := func(keys string) string { return fmt.Sprintf(`{"type": "podmark", "stateDir": %q%s}`, h.Dir, keys) }
	for _, tt := range []struct{ name, keys, note string }{
		{"nftables", `, "backend": "nftables"`, "note: kube-router"},
		{"another mask", `, "backend": "iptables", "iptablesMarkMask": "0xff000000"`, ""},
		{"auto", `, "backend": "iptables", "iptablesMarkMask": "auto"`, ""},
		{"a warning will do", `, "backend": "iptables", "markCollision": "warn"`, "note: what a router in a pod wraps can pass for what comes from outside: kube-router"},
	} {
		p := newPlace(t)
		p.state = h.Dir
		p.write("10-a.conflist", chain("net", "ptp", entry(tt.keys)))
		if out := p.run("install"); strings.Contains(out, "kube-router") != (tt.note != "") || !strings.Contains(out, tt.note) {
			t.Errorf("%s: %s", tt.name, out)
		}
		p.hasPlugin()
	}
	p := newPlace(t)
	p.state = h.Dir
	p.write("10-a.conflist", chain("net", "ptp", entry(`, "backend": "iptables"`)))
	before := p.tree(true)
	p.fails([]string{"kube-router", "0x30000", "0xfffc1800", "iptablesMarkMask", "markCollision"}, "install")
	if diff := cmp.Diff(before, p.tree(true)); diff != "" {
		t.Errorf("it changed:\n%s", diff)
	}
	// Where pods have their IDs already, nothing is gained by a refusal.
	h.Backend = backends[1]
	h.Exec("", "iptables-nft", "-t", "filter", "-F")
	h.Exec("", "iptables-nft", "-t", "filter", "-X")
	h.addPod()
	h.Exec(rules.KubeRouter, "iptables-nft-restore", "--noflush")
	if out := p.run("install"); !strings.Contains(out, "note: what a router in a pod wraps can pass for what comes from outside: kube-router") {
		t.Errorf("%s", out)
	}
}
