package main_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// result is a prevResult of the pod as plugins of a spec version write it.
func (p *pod) result(version string) conf {
	r := p.PrevResult()
	r["cniVersion"] = version
	ips := r["ips"].([]conf)
	if strings.HasPrefix(version, "0.") {
		ips[0]["version"], ips[1]["version"] = "4", "6"
	}
	r["routes"] = []conf{{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}}
	r["dns"] = conf{"nameservers": []string{"10.96.0.10"}, "search": []string{"svc.cluster.local"}}
	r["unknown"] = conf{"kept": true}
	if version == "1.1.0" {
		r["interfaces"].([]conf)[1]["mtu"] = 1400
		r["routes"].([]conf)[0]["mtu"] = 1300
	}
	return r
}

func normal(t *testing.T, v any) any {
	t.Helper()
	var b []byte
	switch v := v.(type) {
	case string:
		b = []byte(v)
	default:
		var err error
		if b, err = json.Marshal(v); err != nil {
			t.Fatal(err)
		}
	}
	var out any
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatalf("%v in %s", err, b)
	}
	return out
}

func TestPrevResultIsReturned(t *testing.T) {
	n := newNode(t, nftables)
	for _, version := range versions {
		n.Run(t, version, func(t *testing.T) {
			p := n.addPod()
			keys := conf{
				"cniVersion": version, "prevResult": p.result(version),
				"unknown": conf{"a": []int{1}}, "runtimeConfig": conf{"x": 1}, "capabilities": conf{"x": true},
			}
			got := p.Add(keys).OK(t).Stdout
			if diff := cmp.Diff(normal(t, p.result(version)), normal(t, got)); diff != "" {
				t.Errorf("result differs from prevResult:\n%s", diff)
			}
			if version >= "0.4.0" {
				if out := p.Check(keys).OK(t).Stdout; out != "" {
					t.Errorf("CHECK printed %q", out)
				}
			}
			if out := p.Del(keys).OK(t).Stdout; out != "" {
				t.Errorf("DEL printed %q", out)
			}
		})
	}
}

// A prevResult that says another version than the runtime wants, or none, is
// returned as the runtime wants it.
func TestPrevResultOfAnotherVersion(t *testing.T) {
	n := newNode(t, nftables)
	for _, c := range []struct{ wants, says string }{{"1.0.0", ""}, {"0.4.0", ""}, {"1.1.0", "1.0.0"}, {"1.0.0", "0.4.0"}} {
		n.Run(t, c.wants+" and "+c.says, func(t *testing.T) {
			p := n.addPod()
			says, wants := p.result(c.says), p.result(c.wants)
			if c.says == "" {
				says = p.result(c.wants)
				delete(says, "cniVersion")
			}
			delete(wants, "unknown")
			got := p.Add(conf{"cniVersion": c.wants, "prevResult": says}).OK(t).Stdout
			if c.wants == "1.1.0" { // which knows more than the other says
				delete(wants["interfaces"].([]conf)[1], "mtu")
				delete(wants["routes"].([]conf)[0], "mtu")
			}
			if diff := cmp.Diff(normal(t, wants), normal(t, got)); diff != "" {
				t.Errorf("result differs:\n%s", diff)
			}
			p.Del(conf{"cniVersion": c.wants}).OK(t)
		})
	}
}

func TestVersion(t *testing.T) {
	n := newNode(t, undecided)
	t.Run("listed", func(t *testing.T) {
		got := normal(t, n.Call("VERSION", conf{"cniVersion": "1.1.0"}).OK(t).Stdout)
		want := normal(t, conf{"cniVersion": "1.1.0", "supportedVersions": versions})
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	})
	for _, version := range []string{"0.1.0", "0.2.0", "2.0.0", ""} {
		n.Run(t, "refused "+version, func(t *testing.T) {
			p := n.addPod()
			for _, verb := range []string{"ADD", "DEL"} {
				n.Call(verb, p.Conf(conf{"cniVersion": version}), p.Env()...).Fails(t, 1)
			}
		})
	}
	t.Run("about", func(t *testing.T) {
		r := n.Call("", "").OK(t)
		if r.Stdout != "" || !strings.HasPrefix(r.Stderr, "CNI podmark plugin ") || !strings.Contains(r.Stderr, "0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0") {
			t.Errorf("stdout %q, stderr %q", r.Stdout, r.Stderr)
		}
	})
}

func TestVerbsOfLaterVersions(t *testing.T) {
	n := newNode(t, nftables)
	p := n.addPod()
	for verb, since := range map[string]string{"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"} {
		for _, version := range versions[:len(versions)-1] {
			if version < since {
				n.Call(verb, p.Conf(conf{"cniVersion": version, "prevResult": p.result(version)}), p.Env()...).Fails(t, 1, fmt.Sprintf("does not allow %s", verb))
			}
		}
	}
}
