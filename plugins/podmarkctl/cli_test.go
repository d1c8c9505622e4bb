package main_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/podmark/podmark/pkg/dataplane/checksum"
	"github.com/podmark/podmark/test/needs"
)

func TestUsage(t *testing.T) {
	n := newNode(t, nftables)
	kernel := n.kernel()
	t.Run("wrong", func(t *testing.T) {
		for _, tt := range []struct {
			args  []string
			words []string
		}{
			{[]string{"nonsense"}, []string{"nonsense"}},
			{[]string{"list", "extra"}, []string{"extra"}},
			{[]string{"list", "--nonsense"}, []string{"--nonsense"}},
			{[]string{"list", "-o", "yaml"}, []string{"yaml", "table", "json"}},
			{[]string{"list", "--lock-timeout", "soon"}, []string{"soon"}},
			{[]string{"list", "--lock-timeout", "-1s"}, []string{"--lock-timeout -1s"}},
			{[]string{"apply"}, []string{"-f", "--delete"}},
			{[]string{"apply", "-f", "x", "--delete"}, []string{"-f", "--delete"}},
			{[]string{"apply", "-f"}, []string{"-f"}},
			{[]string{"apply", "-f", "x", "-k", "y"}, []string{"-k", "-f"}},
			{[]string{"apply", "-k", "x", "--delete"}, []string{"-k", "--delete"}},
			{[]string{"apply", "-k", ""}, []string{"-k"}},
			{[]string{"apply", "-k", "x", "-R"}, []string{"-R", "-f"}},
			{[]string{"apply", "--delete", "-n", "shop"}, []string{"-n", "-f"}},
			{[]string{"apply", "--delete", "--strict"}, []string{"--strict", "-f"}},
			{[]string{"apply", "-f", "x", "-n", ""}, []string{"-n"}},
			{[]string{"render", "-R"}, []string{"-R", "-f"}},
			{[]string{"explain", "host", "outside", "-n", "shop"}, []string{"-n", "--policy"}},
			{[]string{"apply", "policy.yaml"}, []string{"policy.yaml"}},
			{[]string{"apply", "-f", "/does/not/exist"}, []string{"/does/not/exist"}},
			{[]string{"render", "--backend", "nft"}, []string{"nft", "auto", "nftables", "iptables"}},
			{[]string{"render", "--backend", "iptables-nft"}, []string{"iptables-nft", "auto", "nftables", "iptables"}},
			{[]string{"render", "--backend", ""}, []string{"auto", "nftables", "iptables"}},
			{[]string{"render", "-f", "/does/not/exist"}, []string{"/does/not/exist"}},
			{[]string{"explain", "web"}, []string{"2 arg"}},
			{[]string{"explain", "web", "db:http"}, []string{"DST", "http"}},
			{[]string{"explain", "nobody", "db:80"}, []string{"nobody", "podmarkctl list"}},
			{[]string{"explain", "host", "outside", "--policy", "/does/not/exist"}, []string{"/does/not/exist"}},
			{[]string{"gc", "now"}, []string{"now"}},
			{[]string{"check"}, []string{"-f"}},
			{[]string{"check", "-f", "/does/not/exist"}, []string{"/does/not/exist"}},
			{[]string{"drops", "now"}, []string{"now"}},
			{[]string{"doctor", "all"}, []string{"all"}},
			{[]string{"uninstall", "-f"}, []string{"-f"}},
		} {
			n.T = t
			n.ctl(tt.args...).fails(t, tt.words...)
		}
	})
	n.T = t
	for _, command := range []string{"list", "apply", "check", "drops", "doctor", "explain", "render", "gc", "uninstall", "version"} {
		help := n.ctl(command, "--help").ok(t).Stdout
		for _, want := range []string{"Examples:\n  podmarkctl " + command, "Usage:", "--state-dir", "/run/podmark", "--output", "--lock-timeout"} {
			if !strings.Contains(help, want) {
				t.Errorf("help of %s does not say %q:\n%s", command, want, help)
			}
		}
	}
	help := n.ctl("--help").ok(t).Stdout
	for _, want := range []string{"list", "apply", "drops", "doctor", "explain", "render", "gc", "uninstall", "Exit status: 0 ok"} {
		if !strings.Contains(help, want) {
			t.Errorf("help does not say %q:\n%s", want, help)
		}
	}
	n.ctl("--version").ok(t)
	if files := n.files(); len(files) > 0 || kernel != n.kernel() {
		t.Errorf("wrong usage changed something: %v", files)
	}
}

func TestList(t *testing.T) {
	n := newNode(t, nftables)
	if got := n.ctl("list", "-o", "json").ok(t).Stdout; got != "[]\n" {
		t.Errorf("list of a new node is %q", got)
	}
	if got := n.ctl("list").ok(t).Stdout; strings.Count(got, "\n") != 1 || !strings.HasPrefix(got, "ID ") {
		t.Errorf("list of a new node is %q", got)
	}
	n.ctlIn(webPolicy, "apply", "-f", "-").ok(t)
	n.addPod(map[string]string{"app": "web"})
	n.addPod(nil)
	var got []map[string]any
	if err := json.Unmarshal([]byte(n.ctl("list", "-o", "json").ok(t).Stdout), &got); err != nil {
		t.Fatal(err)
	}
	for _, l := range got {
		for _, d := range []string{"ingress", "egress"} {
			if p, ok := l[d].(map[string]any); ok {
				delete(p, "id") // a hash
			}
		}
	}
	profile := map[string]any{"policies": []any{"default/web"}}
	want := []map[string]any{
		{
			"id": 2., "mark": "0x20000/0xffff0000", "namespace": "default", "pod": "web-1", "interface": "veth1", "hostVeth": "veth1",
			"addresses": []any{"10.1.0.2", "fd00:10::2"}, "labels": map[string]any{"app": "web"},
			"ingress": profile, "egress": profile, "network": "net", "containerID": "container-1", "ifName": "eth0",
		},
		{
			"id": 3., "mark": "0x30000/0xffff0000", "namespace": "default", "pod": "web-2", "interface": "veth2", "hostVeth": "veth2",
			"addresses": []any{"10.1.0.3", "fd00:10::3"},
			"ingress":   nil, "egress": nil, "network": "net", "containerID": "container-2", "ifName": "eth0",
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	table := [][]string{}
	for line := range strings.Lines(n.ctl("list").ok(t).Stdout) {
		table = append(table, strings.Fields(line))
	}
	wantTable := [][]string{
		{"ID", "MARK", "POD", "INTERFACE", "ADDRESSES", "SOURCES", "INGRESS", "EGRESS"},
		{"2", "0x20000/0xffff0000", "default/web-1", "veth1", "10.1.0.2,fd00:10::2", "-", "default/web", "default/web"},
		{"3", "0x30000/0xffff0000", "default/web-2", "veth2", "10.1.0.3,fd00:10::3", "-", "-", "-"},
		strings.Fields("2 of 2 pods policed" + unseen),
	}
	if diff := cmp.Diff(wantTable, table); diff != "" {
		t.Error(diff)
	}
}

func TestGC(t *testing.T) {
	eachBackend(t, func(t *testing.T, n *node) {
		if got := n.ctl("gc").ok(t).Stdout; got != "collected 0 attachments and 0 files\n" || len(n.files()) > 0 {
			t.Errorf("gc of a new node says %q", got)
		}
		n.ctlIn(webPolicy, "apply", "-f", "-").ok(t)
		n.addPod(map[string]string{"app": "web"})
		before := n.names()
		gone := n.addPod(nil)
		n.Exec("", "ip", "link", "del", n.veth(2))
		write(t, n.Dir+"/ids/77", "0123456789abcdef0123456789abcdef")
		write(t, n.Dir+"/addresses/10.9.9.9", "nobody")
		write(t, n.Dir+"/attachments/0123456789abcdef0123456789abcdef", "{")
		kernel, files := n.kernel(), n.files()
		var did, would struct {
			Attachments []struct{ ContainerID string }
			Files       []string
		}
		for _, step := range []struct {
			args []string
			into any
		}{{[]string{"gc", "--dry-run", "-o", "json"}, &would}, {[]string{"gc", "-o", "json"}, &did}} {
			if err := json.Unmarshal([]byte(n.ctl(step.args...).ok(t).Stdout), step.into); err != nil {
				t.Fatal(err)
			}
			if step.into == any(&would) {
				if diff := cmp.Diff(files, n.files()) + cmp.Diff(kernel, n.kernel()); diff != "" {
					t.Errorf("a dry run changed something:\n%s", diff)
				}
			}
		}
		if diff := cmp.Diff(would, did); diff != "" {
			t.Errorf("a dry run tells another story:\n%s", diff)
		}
		if len(did.Attachments) != 1 || did.Attachments[0].ContainerID != gone || len(did.Files) != 3 {
			t.Errorf("collected %+v", did)
		}
		if diff := cmp.Diff(before, n.names()); diff != "" {
			t.Errorf("files after gc:\n%s", diff)
		}
		if got := n.ctl("gc").ok(t).Stdout; got != "collected 0 attachments and 0 files\n" {
			t.Errorf("the second gc says %q", got)
		}
	})
}

func TestUninstall(t *testing.T) {
	for name, before := range map[string]func(n *node){
		"known node":           func(*node) {},
		"lost state directory": func(n *node) { n.lose() },
		"tables gone": func(n *node) {
			for _, family := range []string{"inet", "bridge"} {
				n.Exec("", "nft", fmt.Sprintf("add table %s podmark; delete table %s podmark", family, family))
			}
		},
		"interrupted switch": func(n *node) {
			// As where the process ended when both were in the kernel.
			file := n.files()["node.json"]
			other := map[backend]string{nftables: "iptables-nft", iptablesNFT: "nftables", iptablesLegacy: "nftables"}[n.Backend]
			n.another(other)
			write(n.T, n.Dir+"/node.json", strings.Replace(file, `"synced":true`, fmt.Sprintf(`"former":[%q],"synced":false`, other), 1))
		},
		"damaged state": func(n *node) {
			write(n.T, n.Dir+"/node.json", "{")
			write(n.T, n.Dir+"/attachments/0123456789abcdef0123456789abcdef", "{")
		},
	} {
		t.Run(name, func(t *testing.T) {
			eachBackend(t, func(t *testing.T, n *node) { testUninstall(t, n, before) })
		})
	}
}

// another puts into the kernel what another node has of the backend, besides what
// there is.
func (n *node) another(name string) {
	n.T.Helper()
	out := n.ctl("render", "--backend", strings.TrimSuffix(name, "-nft"), "-o", "json").ok(n.T).Stdout
	var r rendered
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		n.T.Fatal(err)
	}
	n.load(r, strings.TrimPrefix(name, "iptables-"))
}

func (n *node) lose() {
	if err := os.RemoveAll(n.Dir); err != nil {
		n.T.Fatal(err)
	}
}

func testUninstall(t *testing.T, n *node, harm func(n *node)) {
	// What is not podmark's is not touched.
	n.Iptables("-A", "FORWARD", "-j", "KUBE-IPTABLES-HINT")
	n.Exec("", "ipset", "create", "podman-x", "hash:ip")
	n.Exec("", "ip", "link", "add", "other", "type", "bridge")
	n.Exec("", "ip", "link", "set", "other", "group", "7")
	before := n.kernel()
	n.ctl("uninstall", "--yes").ok(t) // nothing there
	n.ctlIn(webPolicy, "apply", "-f", "-").ok(t)
	n.addPod(map[string]string{"app": "web"})
	n.addPod(nil)
	// A veth that a lost state directory has forgotten.
	n.Exec("", "ip", "link", "add", "lost", "type", "veth", "peer", "name", "lost0")
	n.Exec("", "ip", "link", "set", "lost", "group", "1886")
	harm(n)
	if err := checksum.Check(); err != nil && needs.Checksums() == nil {
		t.Errorf("before it is uninstalled: %v", err)
	}
	n.ctl("uninstall", "--yes").ok(t)
	if err := checksum.Check(); err == nil {
		t.Error("it looks where checksums go, and is uninstalled")
	}
	for pod := 1; pod <= 2; pod++ {
		if out := n.Exec("", "ip", "-o", "link", "show", n.veth(pod)); !strings.Contains(out, "group default") {
			t.Errorf("still in the group: %s", out)
		}
		n.Exec("", "ip", "link", "del", n.veth(pod))
	}
	if out := n.Exec("", "ip", "-o", "link", "show", "lost"); !strings.Contains(out, "group default") {
		t.Errorf("still in the group: %s", out)
	}
	n.Exec("", "ip", "link", "del", "lost")
	if diff := cmp.Diff(before, n.kernel()); diff != "" {
		t.Errorf("left in the kernel:\n%s", diff)
	}
	if _, err := lstat(n.Dir); err == nil {
		t.Errorf("state directory is left: %v", n.files())
	}
	n.ctl("uninstall", "--yes").ok(t)
	n.addPod(nil) // comes back by itself
}

// Nobody opens pods without having said so.
func TestUninstallAsks(t *testing.T) {
	n := newNode(t, nftables)
	n.addPod(nil)
	n.ctl("uninstall").fails(t, "1 pods are open until policies are applied, and will stay open then", "--yes")
	n.ctl("apply", "--delete").ok(t)
	before, kernel := n.files(), n.kernel()
	n.ctl("uninstall").fails(t, "1 pods are policed, and will be open", "--yes", "podmarkd uninstall")
	if said := n.ctl("uninstall", "--dry-run").ok(t).Stdout; !strings.Contains(said, "would remove") || !strings.Contains(said, "1 pods are policed") {
		t.Errorf("%s", said)
	}
	if diff := cmp.Diff(before, n.files()) + cmp.Diff(kernel, n.kernel()); diff != "" {
		t.Errorf("something is gone:\n%s", diff)
	}
	write(t, filepath.Join(n.Dir, "node.json"), "{")
	n.ctl("uninstall").fails(t, "who is policed cannot be read", "--yes")
	n.ctl("uninstall", "--yes").ok(t)
	n.Keys = map[string]any{"policy": "none"}
	n.addPod(nil)
	n.ctl("uninstall").ok(t) // opens nobody
}
