package main_test

import (
	"fmt"
	"testing"

	"github.com/podmark/podmark/pkg/podapi"
)

// A pod has what its network allows, or with the Kubernetes API what it asks for inside of
// that. One that asks for more does not start.
func TestAllowedSources(t *testing.T) {
	n := newNode(t, nftables)
	allow := conf{"allowedSourcePrefixes": []string{"172.16.0.0/12", "fd00:30::/32"}}
	kubernetes := conf{"policy": "kubernetes"}
	files := n.addPod()
	files.Add(allow).OK(t)
	if r := files.Record(t); fmt.Sprint(r.AllowedSources) != "[172.16.0.0/12 fd00:30::/32]" {
		t.Errorf("by files: %v", r.AllowedSources)
	}
	files.Check(allow).OK(t)
	files.Check().Fails(t, 5, "allowedSourcePrefixes")
	files.Add(conf{"allowedSourcePrefixes": []string{"172.16.0.1/12"}}).Fails(t, 7, "allowedSourcePrefixes", "172.16.0.0/12")

	annotation := ""
	n.answers(func(podapi.Request) podapi.Response { return podapi.Response{Sources: annotation} })

	p := n.addPod()
	for _, tt := range []struct {
		annotation, want string
		refused          []string
		more             []conf
	}{
		{"", "[]", nil, []conf{allow}},
		{"172.30.0.5/32", "[172.30.0.5/32]", nil, []conf{allow}},
		{"172.30.0.5/32,10.1.0.0/24", "", []string{"10.1.0.0/24", "podmark.dev/allowed-source-prefixes"}, []conf{allow}},
		{"172.30.0.5/32", "", []string{"172.30.0.5/32", "allowedSourcePrefixes"}, nil},
		{"172.30.0.5", "", []string{"172.30.0.5"}, []conf{allow}},
	} {
		annotation = tt.annotation
		r := p.Add(append(tt.more, kubernetes)...)
		if tt.refused != nil {
			r.Fails(t, 7, tt.refused...)
			p.Del().OK(t)
			continue
		}
		r.OK(t)
		if got := p.Record(t); fmt.Sprint(got.AllowedSources) != tt.want {
			t.Errorf("%q: %v, want %s", tt.annotation, got.AllowedSources, tt.want)
		}
		p.Check(append(tt.more, kubernetes)...).OK(t)
	}
}

// Pods that share a bridge come in by one interface, so a further prefix is one pod's there.
// Routed ones have an interface each.
func TestContendedSources(t *testing.T) {
	eachKind(t, func(t *testing.T, n *node) {
		n.bridge()
		allow := func(prefixes ...string) conf { return conf{"allowedSourcePrefixes": prefixes} }
		first, second, routed := n.addPod(), n.addPod(), n.addPod()
		first.plug()
		second.plug()
		first.Add(allow("172.30.0.0/24", "fd00:30::/64")).OK(t)
		first.Add(allow("172.30.0.0/24", "fd00:30::/64")).OK(t)
		routed.Add(allow("172.30.0.0/24")).OK(t)
		for _, prefix := range []string{"172.30.0.0/24", "172.30.0.5/32", "172.16.0.0/12", "fd00:30::5/128"} {
			second.Add(allow("172.29.0.0/24", prefix)).Fails(t, 7, prefix, first.ID, "cni0", "podmark.dev/allowed-source-prefixes", "podmarkctl gc")
			second.Del().OK(t)
		}
		second.Add(allow("172.29.0.0/24")).OK(t)
		second.Del().OK(t)
		first.Del().OK(t)
		second.Add(allow("172.30.0.0/16")).OK(t)
	})
}
