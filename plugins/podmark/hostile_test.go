package main_test

import (
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/test/testnode"
	"github.com/podmark/podmark/test/wait"
)

// Names that want out of a directory or into a rule.
var hostile = []string{
	"../../../../tmp/escaped", "/etc/passwd", "..", ".", "", "a/b",
	"x\nflush", "x -j ACCEPT\nCOMMIT\n*filter\n-F", "x y", "x\ty", "x\x00y", "eth0:1", "a,b c", "waytoolonginterfacename",
}

// A damaged or forged record never reaches the kernel or a path.
func TestForgedRecord(t *testing.T) {
	eachKind(t, func(t *testing.T, n *node) {
		n.Apply(webPolicy)
		victim := n.addPod()
		victim.Add().OK(t)
		outside := filepath.Join(filepath.Dir(n.Dir), "precious")
		if err := os.WriteFile(outside, []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
		p := n.addPod()
		p.Add().OK(t)
		var good map[string]any
		b, err := os.ReadFile(p.RecordFile())
		if err == nil {
			err = json.Unmarshal(b, &good)
		}
		if err != nil {
			t.Fatal(err)
		}
		p.Del().OK(t)
		kernel, files := n.kernel(), n.files()
		forge := map[string][]any{
			"interface": {}, "port": {}, "network": {"../net"}, "containerID": {}, "ifName": {},
			"addresses": {[]string{}, []string{"10.1.0.2/0"}, []string{"fe80::1%../../precious"}, []string{"::ffff:10.1.0.2"}, []string{"0.0.0.0"}, []string{"../../precious"}, []string{"10.1.0.2\nflush"}, "10.1.0.2", nil},
			"id":        {-1, 0, 1, 1.5, "2", 65536, 4294967295, 4294967296, "../../precious"},
		}
		for _, name := range hostile {
			for _, key := range []string{"interface", "port", "containerID", "ifName"} {
				forge[key] = append(forge[key], name)
			}
		}
		for key, values := range forge {
			for i, value := range values {
				forged := maps.Clone(good)
				forged[key] = value
				p.damage(t, forged)
				p.Check().Fails(t, 103, "podmarkctl gc")
				if i > 0 && value != 65536 {
					continue
				}
				p.Del().OK(t)
				p.damage(t, forged)
				p.Add().OK(t)
				p.Check().OK(t)
				p.Del().OK(t)
				if diff := cmp.Diff(kernel, n.kernel()) + cmp.Diff(files, n.files()); diff != "" {
					t.Fatalf("record with %s %q changed something:\n%s", key, value, diff)
				}
			}
		}
		if b, err := os.ReadFile(outside); err != nil || string(b) != "precious" {
			t.Errorf("a file outside the state directory: %q, %v", b, err)
		}
		victim.Check().OK(t)
	})
}

// odd are things that may be where podmark looks for a file of its own, which had that
// content; package state has a longer list.
var odd = map[string]func(path string, content []byte) error{
	"named pipe": func(path string, _ []byte) error { return unix.Mkfifo(path, 0o600) },
	"link": func(path string, content []byte) error {
		return errors.Join(os.WriteFile(path+".elsewhere", content, 0o600), os.Symlink(path+".elsewhere", path))
	},
	"huge": func(path string, content []byte) error {
		return errors.Join(os.WriteFile(path, content, 0o600), os.Truncate(path, 1<<30))
	},
	"later": func(path string, _ []byte) error { return os.WriteFile(path, []byte(`{"format":99}`), 0o600) },
	"for all": func(path string, content []byte) error {
		return errors.Join(os.WriteFile(path, content, 0o600), os.Chmod(path, 0o666))
	},
}

// Whatever is in the place of a file of the state directory: every call comes to an end well within its
// deadline, none panics, and the pod that is there stays policed, as does one that comes.
func TestWhateverAFileIs(t *testing.T) {
	eachKind(t, func(t *testing.T, n *node) {
		n.withHost().Apply(webPolicy)
		p, other := n.addPod().listen(), n.addPod().listen()
		p.Add().OK(t)
		for _, name := range []string{"node.json", "policies.json", "next", "lock", "calls", filepath.Join("attachments", p.Key().Hash())} {
			path := filepath.Join(n.Dir, name)
			for kind, place := range odd {
				n.Run(t, name+" is a "+kind, func(t *testing.T) {
					content, err := os.ReadFile(path)
					if err != nil {
						t.Fatal(err)
					}
					if err := errors.Join(os.Remove(path), place(path, content)); err != nil {
						t.Fatal(err)
					}
					start := time.Now()
					valid := []conf{{"containerID": p.ID, "ifname": "eth0"}, {"containerID": other.ID, "ifname": "eth0"}}
					for _, call := range []func() reply{
						func() reply { return other.Add() },
						func() reply { return p.Check() },
						func() reply { return n.status() },
						func() reply { return n.gc(conf{"cni.dev/valid-attachments": valid}) },
						func() reply { return other.Del() },
					} {
						if r := call(); r.Killed() || r.Code() == 999 {
							t.Errorf("%v: %s", r.State, r.Text())
						}
					}
					if took := time.Since(start); took > wait.Still {
						t.Errorf("it took %v", took)
					}
					other.Add()
					p.is(t, guarded)
					if b, err := os.ReadFile(path + ".elsewhere"); err == nil && string(b) != string(content) {
						t.Errorf("what the link leads to has %q", b)
					}
					if err := errors.Join(os.RemoveAll(path), os.RemoveAll(path+".elsewhere"), os.WriteFile(path, content, 0o600)); err != nil {
						t.Fatal(err)
					}
					n.ctl("gc")
					p.Add().OK(t) // a gc may have taken a damaged record's ID back
					p.Check().OK(t)
					p.is(t, policed)
					other.Add().OK(t)
					other.Check().OK(t)
					other.Del().OK(t)
				})
			}
		}
	})
}

// Files that name another file's attachment, or none.
func TestForgedOwner(t *testing.T) {
	eachKind(t, func(t *testing.T, n *node) {
		n.addPod().Add().OK(t)
		p := n.addPod()
		for _, content := range append([]string{"0123456789abcdef0123456789abcdef", strings.Repeat("../", 10) + "etc/passwd", "1", "-1", "99999999999999999999"}, hostile...) {
			owner := filepath.Join(n.Dir, "addresses", p.V4)
			if os.Symlink(content, owner) != nil { // no link can be that
				n.write(t, "addresses/"+p.V4, content)
			}
			n.write(t, "next", content)
			p.Add().OK(t)
			p.Check().OK(t)
			if id := p.Record(t).ID; id != 3 {
				t.Errorf("ID %d with cursor %q", id, content)
			}
			p.Del().OK(t)
			if left := len(n.attachments()); left != 4 { // the first pod's: record, ID, two addresses
				t.Errorf("left behind with owner %q: %v", content, n.attachments())
			}
		}
	})
}

// A prevResult is another plugin's word: what it says must not become a rule.
func TestHostilePrevResult(t *testing.T) {
	eachKind(t, func(t *testing.T, n *node) {
		n.Apply(webPolicy)
		first := n.addPod()
		first.Add().OK(t)
		p := n.addPod()
		kernel, files := n.kernel(), n.files()
		for _, name := range hostile {
			r := p.PrevResult()
			r["interfaces"].([]conf)[0]["name"] = name
			r["interfaces"].([]conf)[0]["mac"] = name
			r["interfaces"].([]conf)[0]["sandbox"] = name
			r["interfaces"] = append(r["interfaces"].([]conf), conf{"name": name, "sandbox": name})
			r["dns"] = conf{"nameservers": []string{name}}
			keys := conf{"prevResult": r, "args": conf{"cni": conf{"labels": map[string]string{"app": "web", name + "x": name}}}}
			p.Add(keys).OK(t)
			got := p.Record(t)
			if got.L3Interface != p.Veth || got.HostVeth != p.Veth {
				t.Errorf("interface %q, port %q after name %q", got.L3Interface, got.HostVeth, name)
			}
			env := append(p.Env(), "CNI_ARGS=K8S_POD_NAMESPACE="+strings.ReplaceAll(name, "\x00", "")+";K8S_POD_NAME="+strings.ReplaceAll(name, "\x00", "")+";=;;x")
			n.Call("ADD", p.Conf(keys), env...).OK(t)
			p.Del().OK(t)
		}
		if diff := cmp.Diff(kernel, n.kernel()) + cmp.Diff(files, n.files()); diff != "" {
			t.Fatalf("left behind:\n%s", diff)
		}
		first.Check().OK(t)
	})
}

// The interface's name in the node is the kernel's, and the kernel allows more
// than a restore input does.
func TestOddInterfaceName(t *testing.T) {
	eachKind(t, func(t *testing.T, n *node) {
		for _, name := range []string{`a"b`, `a'b\`, "a;b$c", "-j", "!x", "a,b", "#x", "a+", "[0-0]"} {
			p := n.addPod()
			n.Exec("", "ip", "link", "set", p.Veth, "down")
			n.Exec("", "ip", "link", "set", "dev", p.Veth, "name", name)
			p.Veth = name
			if err := testnode.Up(name); err != nil {
				t.Fatal(err)
			}
			p.Add().OK(t)
			p.Check().OK(t)
			n.ctl("gc")
			p.Check().OK(t)
			p.Del().OK(t)
		}
		if left := n.attachments(); left != nil {
			t.Errorf("left behind: %v", left)
		}
	})
}
