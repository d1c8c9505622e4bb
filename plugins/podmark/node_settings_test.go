package main_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Where iptables enforces, it is the variant that the kubelet uses.
func TestVariant(t *testing.T) {
	iptables := conf{"backend": "iptables"}
	tests := []struct {
		name     string
		hint, in string // the hint chain and the variant it is in
		command  string // the variant that the command "iptables" stands for
		want     string
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
			n := newNode(t, undecided)
			n.command(tt.command)
			if tt.hint != "" {
				n.Exec("", "iptables-"+tt.in, "-w", "30", "-t", "mangle", "-N", tt.hint)
			}
			p := n.addPod()
			p.Add(iptables).OK(t)
			if got, want := n.present(), alone(backend{Name: "iptables-" + tt.want}); got != want {
				t.Errorf("there is %q, want %q", got, want)
			}
			if file := n.files()["node.json"]; !strings.Contains(file, `"backend":"iptables-`+tt.want+`"`) {
				t.Errorf("node.json does not say %q: %s", tt.want, file)
			}
			// Once decided, it stays: rules in both would be judged twice.
			other := map[string]string{"nft": "legacy", "legacy": "nft"}[tt.want]
			n.command(other)
			n.Exec("", "iptables-"+other, "-w", "30", "-t", "mangle", "-N", "KUBE-OTHER")
			p.Add(iptables, conf{"kubeNodePortRanges": []int{31000}}).OK(t)
			if got, want := n.present(), alone(backend{Name: "iptables-" + tt.want}); got != want {
				t.Errorf("there is %q after the command changed, want %q", got, want)
			}
		})
	}
}

// command makes "iptables" and its kin a variant for what the node runs.
func (n *node) command(variant string) {
	n.T.Helper()
	dir := n.T.TempDir()
	for _, f := range []string{"iptables", "ip6tables"} {
		for _, s := range []string{"", "-save", "-restore"} {
			target, err := exec.LookPath(f + "-" + variant + s)
			if err == nil {
				err = os.Symlink(target, filepath.Join(dir, f+s))
			}
			if err != nil {
				n.T.Fatal(err)
			}
		}
	}
	n.Path = dir + ":" + os.Getenv("PATH")
}

func TestMaskChange(t *testing.T) {
	eachKind(t, func(t *testing.T, n *node) {
		n.withHost()
		other := conf{"iptablesMarkMask": "0xff000000"}
		a, b := n.addPod(), n.addPod().listen()
		a.Add().OK(t)
		b.Add(other).Fails(t, 7, "0xff000000", "0xffff0000", "drain")
		a.Add(other).Fails(t, 7)
		a.Check().OK(t)
		a.Del().OK(t)
		b.Add(other).OK(t)
		want := []string{b.V4 + " " + b.Veth + " 0x3000000", b.V6 + " " + b.Veth + " 0x3000000"}
		if diff := cmp.Diff(want, n.endpoints()); diff != "" {
			t.Errorf("endpoint elements:\n%s", diff)
		}
		if strings.Contains(n.kernel(), "0xffff0000") {
			t.Errorf("rules still have the old mask: %s", n.kernel())
		}
		b.Check(other).OK(t)
		n.Apply(webPolicy)
		b.is(t, policed)
	})
}

// A mask holds as many endpoints as it can count, wherever its bits are, each
// with policies of its own in both directions.
func TestSmallMasks(t *testing.T) {
	for bits, in := range map[string][]backend{
		"0x80010000": kinds, "0x80000001": inNFTables, "0x3": inNFTables, "0xc0000000": inNFTables, "0x30000": kinds,
	} {
		t.Run(bits, func(t *testing.T) {
			on(t, in, func(t *testing.T, n *node) {
				mask := conf{"iptablesMarkMask": bits}
				n.withHost()
				web, db := n.addPod().listen(), n.addPod().listen()
				db.Labels = map[string]string{"app": "db"}
				web.Add(mask).OK(t)
				n.Apply(dbPolicy)
				db.Add(mask).OK(t)
				web.is(t, policed)
				db.isDB(t)
				n.addPod().Add(mask).Fails(t, 100, bits)
				web.is(t, policed)
				db.isDB(t)
				// Each takes the other's place, one after the other.
				web.Labels, db.Labels = db.Labels, web.Labels
				web.Add(mask).OK(t)
				web.isDB(t)
				db.isDB(t)
				db.Add(mask).OK(t)
				web.isDB(t)
				db.is(t, policed)
				web.Del().OK(t)
				db.is(t, policed)
				db.Check(mask).OK(t)
			})
		})
	}
}

// Only iptables has to know the NodePorts: nftables judges what is for a host
// process where IPVS has taken the rest.
func TestNodePortChange(t *testing.T) {
	n := newNode(t, iptablesNFT)
	a, b := n.addPod(), n.addPod()
	ports := func() string {
		_, members, _ := strings.Cut(n.Exec("", "ipset", "list", n.set("port4")), "Members:\n")
		return strings.Join(strings.Fields(members), " ")
	}
	a.Add(conf{"kubeNodePortRanges": []string{"30000:30002"}}).OK(t)
	if got := ports(); got != "30000 30001 30002" {
		t.Errorf("ports %q", got)
	}
	b.Add(conf{"kubeNodePortRanges": []any{"30001-30002", 80}}).OK(t)
	if got := ports(); got != "80 30001 30002" {
		t.Errorf("ports %q after the change", got)
	}
	a.Check().OK(t)
	b.Check().OK(t)
	b.Add(conf{"kubeNodePortRanges": []any{}}).OK(t)
	if got := ports(); got != "" {
		t.Errorf("ports %q, want none", got)
	}
}
