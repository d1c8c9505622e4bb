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
		"DEL": func(t *testing.T, old *pod) { old.Del().OK(t) },
		"DEL with prevResult": func(t *testing.T, old *pod) {
			old.n.Call("DEL", old.Conf(), old.Env()...).OK(t)
		},
		"GC": func(t *testing.T, old *pod) {
			old.n.gc(conf{"cni.dev/valid-attachments": []conf{{"containerID": "young", "ifname": "eth0"}}}).OK(t)
		},
		"podmarkctl gc": func(_ *testing.T, old *pod) { old.Unlink(); old.n.ctl("gc") },
	} {
		t.Run(name, func(t *testing.T) {
			eachBackend(t, func(t *testing.T, n *node) {
				n.withHost().Apply(webPolicy)
				old := n.addPod()
				old.Add().OK(t)
				young := n.addPodAt(old.V4, old.V6).listen()
				young.ID = "young"
				young.Add().OK(t)
				id := young.Record(t).ID
				if id == old.Record(t).ID {
					t.Fatalf("both have ID %d", id)
				}
				young.is(t, policed)
				late(t, old)
				if got := young.Record(t).ID; got != id {
					t.Errorf("ID changed from %d to %d", id, got)
				}
				young.Check().OK(t)
				young.is(t, policed)
				if known := n.known(); len(known) != 1 {
					t.Errorf("attachments %v, want the new one only", known)
				}
				if list := n.endpoints(); strings.Contains(strings.Join(list, "\n"), old.Veth) {
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
		n.withHost().Apply(webPolicy)
		old := n.addPod().listen()
		old.Add().OK(t)
		young := n.addPodAt(old.V4, "fd00:10::99").listen()
		young.Add().OK(t)
		both := []string{
			young.V4 + " " + young.Veth + " 0x30000",
			young.V6 + " " + young.Veth + " 0x30000",
		}
		if diff := cmp.Diff(slices.Sorted(slices.Values(append(both, old.V6+" "+old.Veth+" 0x20000"))), n.endpoints()); diff != "" {
			t.Errorf("endpoint elements:\n%s", diff)
		}
		young.Check().OK(t)
		young.is(t, policed)
		old.Check().Fails(t, 5, old.V4, young.ID)
		var left []flow
		for _, f := range old.flows(policed) {
			if f.to.Addr().Is6() {
				left = append(left, f)
			}
		}
		if err := problem(t, left...); err != nil {
			t.Errorf("by the old pod's own address: %v", err)
		}
		old.Del().OK(t)
		young.Check().OK(t)
		young.is(t, policed)
		if diff := cmp.Diff(both, n.endpoints()); diff != "" {
			t.Errorf("endpoint elements after the old pod's DEL:\n%s", diff)
		}
		young.Del().OK(t)
		if left := append(n.attachments(), n.endpoints()...); left != nil {
			t.Errorf("left behind: %v", left)
		}
	})
}

// An address is one interface's. What another network gives to a second pod is refused while the first
// is there, which stays as it is; afterwards it is free.
func TestOverlappingNetworks(t *testing.T) {
	eachKind(t, func(t *testing.T, n *node) {
		n.withHost().Apply(webPolicy)
		first := n.addPod().listen()
		first.Add().OK(t)
		kernel, files := n.kernel(), n.files()
		second := n.addPodAt(first.V4, "fd00:10::99").listen()
		other := conf{"name": "other"}
		second.Add(other).Fails(t, 7, first.V4, first.ID, `"net"`, `"other"`)
		second.Del(other).OK(t)
		second.Unlink() // and with it the routes
		n.Exec("", "ip", "route", "replace", first.V4, "dev", first.Veth)
		first.Check().OK(t)
		first.is(t, policed)
		if diff := cmp.Diff(kernel, n.kernel()) + cmp.Diff(files, n.files()); diff != "" {
			t.Errorf("the refused ADD changed something:\n%s", diff)
		}
		// What is gone without a DEL owns nothing.
		first.Unlink()
		third := n.addPodAt(first.V4, first.V6).listen()
		third.Add(other).OK(t)
		third.Check(other).OK(t)
		third.is(t, policed)
		third.Del(other).OK(t)
		first.Del().OK(t)
	})
}

// A freed ID is the last to be given out again.
func TestIDReuse(t *testing.T) {
	n := newNode(t, nftables)
	mask := conf{"iptablesMarkMask": "0x70000"} // IDs 2 to 7
	var got []int
	for range 8 {
		p := n.addPod()
		p.Add(mask).OK(t)
		got = append(got, int(p.Record(t).ID))
		p.Del(mask).OK(t)
	}
	want := []int{2, 3, 4, 5, 6, 7, 2, 3}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("IDs %v, want %v", got, want)
		}
	}
}
