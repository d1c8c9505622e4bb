package main_test

import (
	"encoding/json"
	"math/bits"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/podmark/podmark/pkg/mark"
	"github.com/podmark/podmark/test/rules"
	"github.com/podmark/podmark/test/wait"
)

func (n *node) kubeRouter() {
	n.T.Helper()
	n.Exec(rules.KubeRouter, "iptables-nft-restore", "--noflush")
}

// mask is the node's, 0 where nothing has begun.
func (n *node) mask(t *testing.T) uint32 {
	t.Helper()
	var file struct{ Mask uint32 }
	b, err := os.ReadFile(filepath.Join(n.Dir, "node.json"))
	if os.IsNotExist(err) {
		return 0
	}
	if err == nil {
		err = json.Unmarshal(b, &file)
	}
	if err != nil {
		t.Fatal(err)
	}
	return file.Mask
}

// The first ADD refuses a mask with bits that kube-router rewrites between podmark's mark and
// IPVS, and names a way out: each of them is one. On nftables nothing comes between, and it
// is told.
func TestTaken(t *testing.T) {
	eachBackend(t, func(t *testing.T, n *node) {
		n.kubeRouter()
		p := n.addPod()
		said := func(r reply) {
			t.Helper()
			if r.OK(t); !strings.Contains(r.Stderr, "kube-router") {
				t.Errorf("stderr: %q", r.Stderr)
			}
			p.Check().OK(t)
			p.Del().OK(t)
			n.ctl("uninstall", "--yes")
		}
		if n.Backend.Key == "nftables" || n.Backend.Variant == "" {
			said(p.Add())
			return
		}
		p.Add().Fails(t, 7, "kube-router", "0x30000", "0xfffc1800", "iptablesMarkMask", "markCollision", `"auto"`)
		if mask, left := n.mask(t), n.attachments(); mask != 0 || len(left) > 0 {
			t.Errorf("it began with mask %#x and left %q", mask, left)
		}
		said(p.Add(conf{"markCollision": "warn"}))
		for _, mask := range []string{"0xfffc1800", "auto"} {
			if r := p.Add(conf{"iptablesMarkMask": mask}).OK(t); strings.Contains(r.Stderr, "kube-router") {
				t.Errorf("%s: %q", mask, r.Stderr)
			}
			p.Del().OK(t)
			n.ctl("uninstall", "--yes")
		}
	})
}

// With "auto" the node has bits that nobody uses, and keeps them: whatever comes later, and
// with any network that names the same ones.
func TestAuto(t *testing.T) {
	eachBackend(t, func(t *testing.T, n *node) {
		auto := conf{"iptablesMarkMask": "auto"}
		n.status(auto).OK(t)
		n.kubeRouter()
		n.Exec("", "ip", "link", "add", "tailscale0", "type", "bridge")
		p, q := n.addPod(), n.addPod()
		p.Add(auto).OK(t)
		mask := n.mask(t)
		if mask == 0 || mask&(0xff0000|mark.KubeProxy) != 0 || bits.OnesCount32(mask) != 16 {
			t.Fatalf("mask %#x", mask)
		}
		n.Exec("", "iptables-nft", "-t", "mangle", "-A", "PREROUTING", "-j", "MARK", "--set-xmark", "0x80000000/0x80000000")
		n.status(auto).OK(t)
		q.Add(auto).OK(t)
		p.Check(auto).OK(t)
		q.Check(auto).OK(t)
		q.Del(auto).OK(t)
		q.Add(conf{"iptablesMarkMask": mask}).OK(t)
		q.Del().OK(t)
		q.Add(conf{"iptablesMarkMask": "0xff000000"}).Fails(t, 7, "0xff000000")
		n.Apply(webPolicy)
		if now := n.mask(t); now != mask {
			t.Errorf("mask %#x, and was %#x", now, mask)
		}
	})
}

// A policy that is applied before the first pod names no mask: the network's begins.
func TestAutoAfterApply(t *testing.T) {
	n := newNode(t, backends[0])
	n.Apply(webPolicy)
	p := n.addPod()
	p.Add(conf{"iptablesMarkMask": "0xff000000"}).OK(t)
	if mask := n.mask(t); mask != 0xff000000 {
		t.Errorf("%#x", mask)
	}
}

// First ADDs that come at once agree.
func TestAutoTogether(t *testing.T) {
	n := newNode(t, backends[0])
	n.Exec("", "ip", "link", "add", "tailscale0", "type", "bridge")
	var pods []*pod
	for range 8 {
		pods = append(pods, n.addPod())
	}
	n.each(pods, func(p *pod) {
		if r := p.Add(conf{"iptablesMarkMask": "auto"}); r.Code() != 0 {
			t.Errorf("%d: %s", r.Code(), r.Text())
		}
	})
	if mask := n.mask(t); mask == 0 || mask&0xff0000 != 0 {
		t.Errorf("mask %#x", mask)
	}
	got, want := n.marks(t, n.mask(t), pods...)
	for _, w := range want {
		if !strings.Contains(strings.Join(got, "\n"), w) {
			t.Errorf("no endpoint %s in %q", w, got)
		}
	}
}

// podmarkd moves the node to free bits when another program comes to use those that it has
// chosen, and not where a network has named them: then it says so.
func TestAutoMoves(t *testing.T) {
	eachBackend(t, func(t *testing.T, n *node) {
		p := n.withHost().addPod().listen()
		n.Apply(webPolicy)
		auto := conf{"iptablesMarkMask": "auto"}
		p.Add(auto).OK(t)
		first := n.mask(t)
		n.configure(conf{"iptablesMarkMask": first})
		k := n.keeper()
		n.kubeRouter()
		wait.For(t, "podmarkd has warned", func() bool { return strings.Contains(k.Log.String(), "user=kube-router") })
		if now := n.mask(t); now != first {
			t.Errorf("it moved to %#x from %#x, which the network names", now, first)
		}
		n.configure(auto)
		wait.For(t, "the node has moved", func() bool { return n.mask(t) != first && n.settledOn(n.mask(t)) })
		now := n.mask(t)
		if now&0x30000 != 0 {
			t.Errorf("mask %#x", now)
		}
		p.Check(auto).OK(t)
		p.is(t, policed)
		n.addPod().Add(auto).OK(t)
		wait.For(t, "podmarkd is content", func() bool { return strings.Contains(k.Log.String(), "No other program uses bits") })
		if n.mask(t) != now || strings.Count(k.Log.String(), "user=kube-router") != 1 {
			t.Errorf("mask %#x, and was %#x", n.mask(t), now)
		}
	})
}
