package view

import (
	"testing"
	"time"
	"unsafe"
)

// What a watch tells again is known by what it has told, and nothing else is.
func TestKnown(t *testing.T) {
	mine, other := Watch{Kind: Pods, Node: "node"}, Watch{Kind: Pods, Namespace: "shop"}
	is := func(changed func(p *Pod)) *Pod {
		p := pod("web", "1", "a", "10.0.0.1")
		p.Version = 7
		if changed != nil {
			changed(p)
		}
		return p
	}
	v := New("node", nil)
	for _, w := range []Watch{mine, other} {
		v.watches[w] = &watchState{Watch: w}
	}
	if p := is(nil); v.Known(mine, p) != p {
		t.Error("one is known that was never told")
	}
	first := is(nil)
	v.Listed(mine, []Object{first}, 7, time.Time{})
	if v.Known(mine, is(nil)) != first {
		t.Error("what is told again is not known")
	}
	if p := is(nil); v.Known(other, p) != p {
		t.Error("a watch knows what another has told")
	}
	for name, changed := range map[string]func(p *Pod){
		"version":  func(p *Pod) { p.Version++ },
		"UID":      func(p *Pod) { p.UID = UIDOf("2") },
		"rank":     func(p *Pod) { p.Rank++ },
		"labels":   func(p *Pod) { p.Labels = pod("web", "1", "b").Labels },
		"no label": func(p *Pod) { p.Labels = nil },
		"address":  func(p *Pod) { p.Addresses = pod("web", "1", "a", "10.0.0.2").Addresses },
		"end":      func(p *Pod) { p.Peer = false },
		"node":     func(p *Pod) { p.Own = nil },
		"sources":  func(p *Pod) { p.Own.Sources = "10.0.0.0/8" },
		"name":     func(p *Pod) { p.Name = "db" },
	} {
		if p := is(changed); v.Known(mine, p) != p {
			t.Errorf("%s: one that is another is taken for the one that is known", name)
		}
	}
	v.Listed(mine, []Object{v.Known(mine, is(nil))}, 8, time.Time{})
	if v.pods.get(first.name()) != first {
		t.Error("it is not there after it was told again")
	}
}

// There may be hundreds of thousands of pods: each takes no more room than the Go runtime gives it
// in a class of sizes.
func TestRoomOfAPod(t *testing.T) {
	const class = 96
	if size := unsafe.Sizeof(Pod{}); size > class {
		t.Errorf("a pod takes %d bytes, want %d at most", size, class)
	}
}
