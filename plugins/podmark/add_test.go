package main_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestAddPolices(t *testing.T) {
	eachBackend(t, func(t *testing.T, n *node) {
		n.withHost()
		p := n.addPod().listen()
		open := p.flows(policed)
		for i := range open {
			open[i].pass = true
		}
		if err := problem(t, open...); err != nil {
			t.Fatalf("before ADD: %v", err)
		}
		n.Apply(webPolicy)
		p.Add().OK(t)
		p.is(t, policed)
		p.Del().OK(t)
		p.is(t, closed)
		if left := n.attachments(); left != nil {
			t.Errorf("left behind: %v", left)
		}
	})
}

func TestAddTwice(t *testing.T) {
	eachKind(t, func(t *testing.T, n *node) {
		p := n.addPod()
		p.Add().OK(t)
		kernel, files := n.kernel(), n.files()
		p.Add().OK(t)
		if diff := cmp.Diff(kernel, n.kernel()); diff != "" {
			t.Errorf("second ADD changed the kernel:\n%s", diff)
		}
		if diff := cmp.Diff(files, n.files()); diff != "" {
			t.Errorf("second ADD changed the state:\n%s", diff)
		}
	})
}
