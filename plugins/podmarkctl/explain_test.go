package main_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/podmark/podmark/pkg/explain"
)

// explain asks, and fails the test unless the exit status says what the answer says.
func (n *node) explain(args ...string) explain.Answer {
	n.T.Helper()
	o := n.ctl(append([]string{"explain", "-o", "json"}, args...)...)
	var a explain.Answer
	if err := json.Unmarshal([]byte(o.Stdout), &a); err != nil {
		n.T.Fatalf("%q: exit %d, %s: %v", args, o.Exit(), o.Stderr, err)
	}
	if want := map[bool]int{true: 0, false: 1}[a.Allowed]; o.Exit() != want || o.Stderr != "" {
		n.T.Errorf("%q: exit %d, stderr %q, and allowed is %t", args, o.Exit(), o.Stderr, a.Allowed)
	}
	return a
}

// route leads to the pods, as a main plugin does, and gives the node an address.
func (n *node) route() {
	n.T.Helper()
	n.Exec("", "ip", "address", "add", "192.0.2.9/32", "dev", "lo")
	for _, p := range n.Pods {
		n.Exec("", "ip", "link", "set", p.Veth, "up")
		n.Exec("", "ip", "route", "add", p.V4, "dev", p.Veth)
		n.Exec("", "ip", "-6", "route", "add", p.V6, "dev", p.Veth)
	}
}

// A policy is explained as it is enforced, and before it is applied.
func TestExplain(t *testing.T) {
	eachBackend(t, func(t *testing.T, n *node) {
		n.addPod(map[string]string{"app": "web"})
		n.addPod(map[string]string{"app": "client"})
		n.route()
		file := manifests(t, map[string]string{"web.yaml": webPolicy})
		if a := n.explain("web-2", "web-1:81"); !a.Allowed || len(a.Walks) != 2 {
			t.Errorf("without a policy: %+v", a)
		}
		kernel, files := n.kernel(), n.files()
		before := n.explain("web-2", "web-1:81", "--policy", file)
		if diff := cmp.Diff(files, n.files()) + cmp.Diff(kernel, n.kernel()); diff != "" {
			t.Errorf("it changed something:\n%s", diff)
		}
		n.ctl("apply", "-f", file).ok(t)
		for _, tt := range []struct {
			src, dst string
			allowed  bool
			by       string
		}{
			{"web-2", "web-1:80", true, "default/web ingress[0]"},
			{"default/web-2", "10.1.0.2:80/udp", false, "ingress of default/web-1: isolated by default/web, and no rule allows this"},
			{"fd00:10::3", "[fd00:10::2]:80", true, "default/web ingress[0]"},
			{"web-1", "web-2:80", false, "egress of default/web-1: isolated by default/web, and no rule allows this"},
			{"host", "web-1:1", true, "sent by the node"},
		} {
			a := n.explain(tt.src, tt.dst)
			if a.Allowed != tt.allowed || a.Walks[0].By != tt.by {
				t.Errorf("%s to %s: %+v, want allowed %t by %s", tt.src, tt.dst, a, tt.allowed, tt.by)
			}
		}
		after := n.explain("web-2", "web-1:81")
		asText := func(a explain.Answer) string { return a.Text() }
		if diff := cmp.Diff(asText(after), asText(before)); diff != "" || after.Allowed {
			t.Errorf("once it is applied (-) and before (+):\n%s", diff)
		}
		if out := n.ctl("explain", "web-2", "web-1:81"); out.Exit() != 1 || out.Stdout != after.Text() {
			t.Errorf("exit %d, and the text is another than the value's: %s", out.Exit(), out.Stdout)
		}
		if n.explain("web-2", "10.1.0.99:1").Walks[0].By == "" {
			t.Error("nobody decided about an address without a route")
		}
	})
}

// The node is asked about IPv4 link-local addresses as about any: what it has and what it
// routes gives a walk and a verdict.
func TestExplainLinkLocal(t *testing.T) {
	eachBackend(t, func(t *testing.T, n *node) {
		n.addPod(map[string]string{"app": "web"})
		n.route()
		n.Exec("", "ip", "address", "add", "169.254.20.10/32", "dev", "lo")
		n.Exec("", "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0-far")
		n.Exec("", "ip", "link", "set", "eth0", "up")
		n.Exec("", "ip", "route", "add", "169.254.169.254/32", "dev", "eth0")
		dns, cloud := "169.254.20.10:53/udp", "169.254.169.254:80"
		for _, dst := range []string{dns, cloud} {
			if a := n.explain("web-1", dst); !a.Allowed || len(a.Walks[0].Steps) == 0 {
				t.Errorf("to %s without a policy: %+v", dst, a)
			}
		}
		n.ctl("apply", "-f", manifests(t, map[string]string{"dns.yaml": `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: dns, namespace: default}
spec:
  podSelector: {}
  policyTypes: [Egress]
  egress:
  - to: [{ipBlock: {cidr: 169.254.20.10/32}}]
    ports: [{protocol: UDP, port: 53}]
`})).ok(t)
		if a := n.explain("web-1", dns); !a.Allowed || a.Walks[0].To.Name != explain.Host {
			t.Errorf("to %s, which is allowed: %+v", dns, a)
		}
		if a := n.explain("web-1", cloud); a.Allowed || !strings.Contains(a.Walks[0].By, "default/dns") {
			t.Errorf("to %s, which is denied: %+v", cloud, a)
		}
		if o := n.ctl("explain", "web-1", "[fe80::1]:53/udp"); o.Exit() != 2 || !strings.Contains(o.Stderr, "fe80::1") {
			t.Errorf("to an IPv6 link-local address: exit %d, %s", o.Exit(), o.Stderr)
		}
	})
}

// What a node without podmark, and a kernel without IPVS, cannot tell is said; and that
// kernel does not get IPVS by asking.
func TestExplainKnowsLittle(t *testing.T) {
	n := newNode(t, nftables)
	if a := n.explain("10.9.9.9", "10.1.0.2:80"); a.Allowed {
		t.Errorf("%+v", a)
	}
	n.Exec("", "ip", "address", "add", "192.0.2.9/32", "dev", "lo")
	a := n.explain("10.9.9.9", "host:30080")
	if !a.Allowed || a.Walks[0].To.Address.String() != "192.0.2.9" {
		t.Errorf("%+v", a)
	}
	if _, err := lstat("/proc/net/ip_vs"); err != nil && !strings.Contains(strings.Join(a.Unknown, " "), "no IPVS") {
		t.Errorf("it does not say that IPVS is missing: %q", a.Unknown)
	}
	if len(n.files()) > 0 {
		t.Errorf("it made %v", n.files())
	}
}
