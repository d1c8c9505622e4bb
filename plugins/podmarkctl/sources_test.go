package main_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

// sources are those that podmarkctl list shows, by pod.
func (p *patient) sources() map[string]string {
	p.T.Helper()
	var list []struct {
		Pod     string
		Sources []netip.Prefix
	}
	if err := json.Unmarshal([]byte(p.ctl("list", "-o", "json").ok(p.T).Stdout), &list); err != nil {
		p.T.Fatal(err)
	}
	out := map[string]string{}
	for _, l := range list {
		out[l.Pod] = strings.Trim(fmt.Sprint(l.Sources), "[]")
	}
	return out
}

// asking is a pod of the API that asks for sources.
func asking(pod, annotation string) string {
	return fmt.Sprintf(`
---
{apiVersion: v1, kind: Pod, metadata: {name: %s, namespace: default, labels: {app: web}, annotations: {podmark.dev/allowed-source-prefixes: %q}}, spec: {nodeName: node}}
`, pod, annotation)
}

// With policies from files every pod of a network has its sources, and they are shown.
func TestSourcesOfNetwork(t *testing.T) {
	for _, b := range backends {
		t.Run(b.Name, func(t *testing.T) {
			t.Parallel()
			p := newPatient(t, b, 1)
			p.Keys = map[string]any{"allowedSourcePrefixes": []string{"fd00:30::/64", "172.30.0.0/16"}}
			p.addPod(nil)
			if got := p.sources(); got["web-1"] != "" || got["web-2"] != "172.30.0.0/16 fd00:30::/64" {
				t.Errorf("sources %v", got)
			}
			if table := p.ctl("list").ok(t).Stdout; !strings.Contains(table, "172.30.0.0/16,fd00:30::/64") {
				t.Errorf("the table does not show them:\n%s", table)
			}
		})
	}
}

// With the Kubernetes API a pod has the sources that its annotation names, inside of what
// its network allows. While it runs a change is taken over, and one that asks for more is
// not: it keeps what it had.
func TestSourcesOfPod(t *testing.T) {
	p := newPatient(t, nftables, 0)
	p.Keys = map[string]any{"policy": "kubernetes", "allowedSourcePrefixes": []string{"172.16.0.0/12", "fd00:30::/32"}}
	p.list("10-net.conflist", "net", p.Keys)
	api, flags := p.serveAPI(inAPI + asking("web-1", "172.30.0.5/32"))
	p.podmarkd(flags...)
	p.addPod(nil)
	p.addPod(nil)
	if got := p.sources(); got["web-1"] != "172.30.0.5/32" || got["web-2"] != "" {
		t.Errorf("sources %v", got)
	}
	becomes := func(annotation, want string) {
		t.Helper()
		if err := api.Apply(asking("web-1", annotation)); err != nil {
			t.Fatal(err)
		}
		p.eventually(annotation, func() bool { return p.sources()["web-1"] == want })
	}
	epoch := func() string {
		t.Helper()
		return p.ctl("status").ok(t).Stdout
	}
	becomes("fd00:30:7::/64, 172.30.0.0/16", "172.30.0.0/16 fd00:30:7::/64")
	becomes("172.30.0.0/16", "172.30.0.0/16")
	narrowed := epoch()
	// Out of bounds, and wrong: what is in force stays. The other pod's change shows that
	// it was seen.
	for i, annotation := range []string{"172.30.0.0/16,192.0.2.0/24", "10.1.0.0/24", "anything"} {
		if err := api.Apply(asking("web-1", annotation)); err != nil {
			t.Fatal(err)
		}
		other := fmt.Sprintf("172.29.%d.0/24", i)
		if err := api.Apply(asking("web-2", other)); err != nil {
			t.Fatal(err)
		}
		p.eventually("the other pod's", func() bool { return p.sources()["web-2"] == other })
		if got := p.sources()["web-1"]; got != "172.30.0.0/16" {
			t.Errorf("with %q it may send from %s", annotation, got)
		}
	}
	becomes("", "")
	if before, after := row(narrowed, "mask"), row(epoch(), "mask"); before == after {
		t.Errorf("without its sources, no new epoch: %s", after)
	}
}

// row is that of podmarkctl status.
func row(status, name string) string {
	for line := range strings.Lines(status) {
		if strings.HasPrefix(line, name) {
			return line
		}
	}
	return ""
}
