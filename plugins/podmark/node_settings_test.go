package main_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// rulesIn reports which variants hold rules of podmark's.
func (n *node) rulesIn(t *testing.T) string {
	t.Helper()
	var in []string
	for _, v := range variants {
		out, err := exec.Command("iptables-"+v+"-save", "-t", "mangle").Output()
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(out), "PODMARK-") {
			in = append(in, v)
		}
	}
	return strings.Join(in, " ")
}

func TestVariant(t *testing.T) {
	tests := []struct {
		name           string
		hint, in       string // the hint chain and the variant it is in
		command        string // the variant that the command "iptables" stands for
		want, wantFile string
	}{
		{name: "hint in legacy", hint: "KUBE-IPTABLES-HINT", in: "legacy", command: "nft", want: "legacy"},
		{name: "hint in nft", hint: "KUBE-IPTABLES-HINT", in: "nft", command: "legacy", want: "nft"},
		{name: "canary in legacy", hint: "KUBE-KUBELET-CANARY", in: "legacy", command: "nft", want: "legacy"},
		{name: "canary in nft", hint: "KUBE-KUBELET-CANARY", in: "nft", command: "legacy", want: "nft"},
		{name: "no kubelet, nft", command: "nft", want: "nft"},
		{name: "no kubelet, legacy", command: "legacy", want: "legacy"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t, "")
			n.command(tt.command)
			if tt.hint != "" {
				n.exec("", "iptables-"+tt.in, "-w", "30", "-t", "mangle", "-N", tt.hint)
			}
			p := n.addPod()
			p.add().ok(t)
			if got := n.rulesIn(t); got != tt.want {
				t.Errorf("rules are in %q, want %q", got, tt.want)
			}
			if file := n.files()["node.json"]; !strings.Contains(file, `"backend":"`+tt.want+`"`) {
				t.Errorf("node.json does not say %q: %s", tt.want, file)
			}
			// Once decided, it stays: rules in both would be judged twice.
			other := map[string]string{"nft": "legacy", "legacy": "nft"}[tt.want]
			n.command(other)
			n.exec("", "iptables-"+other, "-w", "30", "-t", "mangle", "-N", "KUBE-OTHER")
			p.add(conf{"kubeNodePortRanges": []int{31000}}).ok(t)
			if got := n.rulesIn(t); got != tt.want {
				t.Errorf("rules are in %q after the command changed, want %q", got, tt.want)
			}
		})
	}
}

// command makes "iptables" and its kin a variant for what the node runs.
func (n *node) command(variant string) {
	n.t.Helper()
	dir := n.t.TempDir()
	for _, f := range []string{"iptables", "ip6tables"} {
		for _, s := range []string{"", "-save", "-restore"} {
			target, err := exec.LookPath(f + "-" + variant + s)
			if err == nil {
				err = os.Symlink(target, filepath.Join(dir, f+s))
			}
			if err != nil {
				n.t.Fatal(err)
			}
		}
	}
	n.path = dir + ":" + os.Getenv("PATH")
}

func TestMaskChange(t *testing.T) {
	n := newNode(t, "nft")
	narrow := conf{"iptablesMarkMask": "0x00ff0000"}
	a, b := n.addPod(), n.addPod()
	a.add().ok(t)
	b.add(narrow).fails(t, 7, "0xff0000", "0xffff0000", "drain")
	a.add(narrow).fails(t, 7)
	a.check().ok(t)
	a.del().ok(t)
	b.add(narrow).ok(t)
	if out := n.exec("", "ipset", "list", n.set("ep4")); !strings.Contains(out, "/0xff0000") {
		t.Errorf("element has another mask: %s", out)
	}
	if out := n.exec("", "iptables-nft", "-t", "mangle", "-S"); strings.Contains(out, "0xffff0000") {
		t.Errorf("rules still have the old mask: %s", out)
	}
	b.check(narrow).ok(t)
}

func TestNodePortChange(t *testing.T) {
	n := newNode(t, "nft")
	a, b := n.addPod(), n.addPod()
	ports := func() string {
		_, members, _ := strings.Cut(n.exec("", "ipset", "list", n.set("port4")), "Members:\n")
		return strings.Join(strings.Fields(members), " ")
	}
	a.add(conf{"kubeNodePortRanges": []string{"30000:30002"}}).ok(t)
	if got := ports(); got != "30000 30001 30002" {
		t.Errorf("ports %q", got)
	}
	b.add(conf{"kubeNodePortRanges": []any{"30001-30002", 80}}).ok(t)
	if got := ports(); got != "80 30001 30002" {
		t.Errorf("ports %q after the change", got)
	}
	a.check().ok(t)
	b.check().ok(t)
	b.add(conf{"kubeNodePortRanges": []any{}}).ok(t)
	if got := ports(); got != "" {
		t.Errorf("ports %q, want none", got)
	}
}
