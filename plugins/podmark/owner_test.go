package main_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A runtime may delete an old sandbox after it has added the new one with the
// same address: the new one keeps all that it has.
func TestLateDel(t *testing.T) {
	for name, late := range map[string]func(t *testing.T, old *pod){
		"DEL": func(t *testing.T, old *pod) { old.del().ok(t) },
		"DEL with prevResult": func(t *testing.T, old *pod) {
			old.n.call("DEL", old.conf(), old.env()...).ok(t)
		},
		"GC": func(t *testing.T, old *pod) {
			old.n.gc(conf{"cni.dev/valid-attachments": []conf{{"containerID": "young", "ifname": "eth0"}}}).ok(t)
		},
		"podmarkctl gc": func(_ *testing.T, old *pod) { old.unlink(); old.n.ctl("gc") },
	} {
		t.Run(name, func(t *testing.T) {
			eachBackend(t, func(t *testing.T, n *node) {
				n.withHost().apply(webPolicy)
				old := n.addPod()
				old.add().ok(t)
				young := n.addPodAt(old.v4, old.v6).listen()
				young.id = "young"
				young.add().ok(t)
				id := young.record(t).ID
				if id == old.record(t).ID {
					t.Fatalf("both have ID %d", id)
				}
				young.is(t, policed)
				late(t, old)
				if got := young.record(t).ID; got != id {
					t.Errorf("ID changed from %d to %d", id, got)
				}
				young.check().ok(t)
				young.is(t, policed)
				if known := n.known(); len(known) != 1 {
					t.Errorf("attachments %v, want the new one only", known)
				}
				if list := n.endpoints(); strings.Contains(strings.Join(list, "\n"), old.veth) {
					t.Errorf("the old one still has its element: %q", list)
				}
			})
		})
	}
}

// Of two addresses only the one that was taken over is the new pod's. The other
// is the old one's as before.
func TestHalfTakenOver(t *testing.T) {
	eachKind(t, func(t *testing.T, n *node) {
		n.withHost().apply(webPolicy)
		old := n.addPod().listen()
		old.add().ok(t)
		young := n.addPodAt(old.v4, "fd00:10::99").listen()
		young.add().ok(t)
		both := []string{
			young.v4 + " " + young.veth + " 0x30000",
			young.v6 + " " + young.veth + " 0x30000",
		}
		if diff := cmp.Diff(slices.Sorted(slices.Values(append(both, old.v6+" "+old.veth+" 0x20000"))), n.endpoints()); diff != "" {
			t.Errorf("endpoint elements:\n%s", diff)
		}
		young.check().ok(t)
		young.is(t, policed)
		old.check().fails(t, 5, old.v4, young.id)
		var left []flow
		for _, f := range old.flows(policed) {
			if f.to.Addr().Is6() {
				left = append(left, f)
			}
		}
		if err := problem(t, left...); err != nil {
			t.Errorf("by the old pod's own address: %v", err)
		}
		old.del().ok(t)
		young.check().ok(t)
		young.is(t, policed)
		if diff := cmp.Diff(both, n.endpoints()); diff != "" {
			t.Errorf("endpoint elements after the old pod's DEL:\n%s", diff)
		}
		young.del().ok(t)
		if left := append(n.attachments(), n.endpoints()...); left != nil {
			t.Errorf("left behind: %v", left)
		}
	})
}

// An address is one interface's. What another network gives to a second pod is refused while the first
// is there, which stays as it is; afterwards it is free.
func TestOverlappingNetworks(t *testing.T) {
	eachKind(t, func(t *testing.T, n *node) {
		n.withHost().apply(webPolicy)
		first := n.addPod().listen()
		first.add().ok(t)
		kernel, files := n.kernel(), n.files()
		second := n.addPodAt(first.v4, "fd00:10::99").listen()
		other := conf{"name": "other"}
		second.add(other).fails(t, 7, first.v4, first.id, `"net"`, `"other"`)
		second.del(other).ok(t)
		second.unlink() // and with it the routes
		n.exec("", "ip", "route", "replace", first.v4, "dev", first.veth)
		first.check().ok(t)
		first.is(t, policed)
		if diff := cmp.Diff(kernel, n.kernel()) + cmp.Diff(files, n.files()); diff != "" {
			t.Errorf("the refused ADD changed something:\n%s", diff)
		}
		// What is gone without a DEL owns nothing.
		first.unlink()
		third := n.addPodAt(first.v4, first.v6).listen()
		third.add(other).ok(t)
		third.check(other).ok(t)
		third.is(t, policed)
		third.del(other).ok(t)
		first.del().ok(t)
	})
}

// A freed ID is the last to be given out again.
func TestIDReuse(t *testing.T) {
	n := newNode(t, nftables)
	mask := conf{"iptablesMarkMask": "0x70000"} // IDs 2 to 7
	var got []int
	for range 8 {
		p := n.addPod()
		p.add(mask).ok(t)
		got = append(got, int(p.record(t).ID))
		p.del(mask).ok(t)
	}
	want := []int{2, 3, 4, 5, 6, 7, 2, 3}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("IDs %v, want %v", got, want)
		}
	}
}
