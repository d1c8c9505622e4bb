package conflist_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/google/go-cmp/cmp"

	"github.com/podmark/podmark/pkg/conflist"
)

const plain = `{"type": "podmark"}`

// lists are written as the agents write them.
var lists = []struct {
	name, list, want string
}{
	{"calico", `{
  "name": "k8s-pod-network",
  "cniVersion": "0.3.1",
  "plugins": [
    {
      "type": "calico",
      "log_level": "info",
      "nodename": "node-1",
      "mtu": 0,
      "ipam": {"type": "calico-ipam"},
      "policy": {"type": "k8s"},
      "kubernetes": {"kubeconfig": "/etc/cni/net.d/calico-kubeconfig"}
    },
    {
      "type": "portmap",
      "snat": true,
      "capabilities": {"portMappings": true}
    },
    {
      "type": "bandwidth",
      "capabilities": {"bandwidth": true}
    }
  ]
}`, `,
    {
      "type": "podmark"
    }`},
	{"flannel", `{
  "name": "cbr0",
  "cniVersion": "0.3.1",
  "plugins": [
    {
      "type": "flannel",
      "delegate": {
        "hairpinMode": true,
        "isDefaultGateway": true
      }
    },
    {
      "type": "portmap",
      "capabilities": {
        "portMappings": true
      }
    }
  ]
}
`, `,
    {
      "type": "podmark"
    }`},
	{"cilium", `
{
  "cniVersion": "0.3.1",
  "name": "cilium",
  "plugins": [
    {
       "type": "cilium-cni",
       "enable-debug": false,
       "log-file": "/var/run/cilium/cilium-cni.log"
    }
  ]
}
`, `,
    {
       "type": "podmark"
    }`},
	{"kindnet", `
{
	"cniVersion": "0.3.1",
	"name": "kindnet",
	"plugins": [
	{
		"type": "ptp",
		"ipMasq": false,
		"ipam": {
			"type": "host-local",
			"dataDir": "/run/cni-ipam-state",
			"routes": [
				{ "dst": "0.0.0.0/0" }
			],
			"ranges": [
				[ { "subnet": "10.244.0.0/24" } ]
			]
		}
		,
		"mtu": 1500
	},
	{
		"type": "portmap",
		"capabilities": {
			"portMappings": true
		}
	}
	]
}
`, `,
	{
		"type": "podmark"
	}`},
	{"k3s", `{
  "name":"cbr0",
  "cniVersion":"1.0.0",
  "plugins":[
    {
      "type":"flannel",
      "delegate":{
        "hairpinMode":true,
        "forceAddress":true,
        "isDefaultGateway":true
      }
    },
    {
      "type":"portmap",
      "capabilities":{
        "portMappings":true
      }
    },
    {
      "type":"bandwidth",
      "capabilities":{
        "bandwidth":true
      }
    }
  ]
}
`, `,
    {
      "type": "podmark"
    }`},
	{"compact", `{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"ptp"}],"unknown":1.0}`, `,{"type":"podmark"}`},
	{"spaced", `{"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "ptp"}, {"type": "portmap"}]}`, `, {"type": "podmark"}`},
	{"one a line", "{\"name\": \"net\", \"plugins\": [\n  {\"type\": \"ptp\"}\n]}", ",\n  {\"type\": \"podmark\"}"},
	{"from Windows", "{\r\n\"name\": \"net\",\r\n\"plugins\": [\r\n  {\r\n    \"type\": \"ptp\"\r\n  }\r\n]}", ",\r\n  {\r\n    \"type\": \"podmark\"\r\n  }"},
	{"key twice", `{"plugins": [{"type": "old"}], "name": "net", "plugins": [{"type": "ptp"}]}`, `,{"type": "podmark"}`},
	{"key twice, once of no use", `{"plugins": null, "name": "net", "plugins": [{"type": "ptp"}]}`, `,{"type": "podmark"}`},
	{"plugins elsewhere", `{"x": {"plugins": [{"type": "no"}]}, "name": "net", "plug\u0069ns": [{"type": "ptp", "plugins": []}]}`, `,{"type": "podmark"}`},
}

func types(t *testing.T, list []byte) []string {
	t.Helper()
	n, err := conflist.Parse(list)
	if err != nil {
		t.Fatalf("libcni does not take this: %v\n%s", err, list)
	}
	return n.Types
}

func TestInsert(t *testing.T) {
	for _, tt := range lists {
		t.Run(tt.name, func(t *testing.T) {
			got, err := conflist.Insert([]byte(tt.list), []byte(plain))
			if err != nil {
				t.Fatal(err)
			}
			before, after := types(t, []byte(tt.list)), types(t, got)
			if diff := cmp.Diff(append(before, "podmark"), after); diff != "" {
				t.Error(diff)
			}
			// What was added is one piece, and it looks like what stands around it.
			i := strings.LastIndex(string(got), tt.want)
			if i < 0 || string(got[:i])+string(got[i+len(tt.want):]) != tt.list {
				t.Errorf("not the list with %q added:\n%s", tt.want, got)
			}
			again, err := conflist.Insert(got, []byte(`{ "type":"podmark" }`))
			if err != nil || !bytes.Equal(again, got) {
				t.Errorf("inserted again: %v\n%s", err, again)
			}
			back, err := conflist.Remove(got, "podmark")
			if err != nil || string(back) != tt.list {
				t.Errorf("removed again: %v\n%s", err, back)
			}
		})
	}
}

func TestReplace(t *testing.T) {
	const head, tail = `{"cniVersion": "1.0.0", "name": "net", "plugins": [`, `], "disableCheck": true}`
	for _, tt := range []struct{ name, plugins, entry, want string }{
		{"same in another order", `{"type": "a"}, {"policy": "files", "type": "podmark"}`, `{"type":"podmark","policy":"files"}`, `{"type": "a"}, {"policy": "files", "type": "podmark"}`},
		{"other value, not last", `{"type": "a"}, {"type": "podmark", "policy": "none"}, {"type": "b"}`, `{"type":"podmark","policy":"files"}`, `{"type": "a"}, {"type": "podmark", "policy": "files"}, {"type": "b"}`},
		{"number that no float holds", `{"type": "a"}, {"type": "podmark", "iptablesMarkMask": 9007199254740993}`, `{"type":"podmark","iptablesMarkMask":9007199254740992}`, `{"type": "a"}, {"type": "podmark", "iptablesMarkMask": 9007199254740992}`},
		{"twice", `{"type": "a"}, {"type": "podmark"}, {"type": "b"}, {"type": "podmark"}`, `{"type":"podmark"}`, `{"type": "a"}, {"type": "podmark"}, {"type": "b"}`},
		{"thrice in a row", `{"type": "a"}, {"type": "podmark"}, {"type": "podmark"}, {"type": "podmark"}`, `{"type":"podmark","x":[1,2]}`, `{"type": "a"}, {"type": "podmark", "x": [1, 2]}`},
		{"strings stay", `{"type": "a"}`, `{"type":"podmark","x":"<&>, \u00e9 \n"}`, `{"type": "a"},{"type": "podmark", "x": "<&>, \u00e9 \n"}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := conflist.Insert([]byte(head+tt.plugins+tail), []byte(tt.entry))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(head+tt.want+tail, string(got)); diff != "" {
				t.Error(diff)
			}
			entry, err := conflist.Entry(got, "podmark")
			if err != nil || !conflist.Equal(entry, []byte(tt.entry)) {
				t.Errorf("Entry: %s, %v", entry, err)
			}
		})
	}
}

func TestRemove(t *testing.T) {
	const head, tail = `{"name": "net", "plugins": [ `, ` ]}`
	for _, tt := range []struct{ name, plugins, want string }{
		{"not there", `{"type": "a"}`, `{"type": "a"}`},
		{"first", `{"type": "podmark"}, {"type": "a"}`, `{"type": "a"}`},
		{"middle", `{"type": "a"} , {"type": "podmark"}, {"type": "b"}`, `{"type": "a"}, {"type": "b"}`},
		{"first two and last", `{"type": "podmark"}, {"type": "podmark"}, {"type": "a"}, {"type": "podmark"}`, `{"type": "a"}`},
		{"all over", `{"type": "podmark"},{"type": "a"},{"type": "podmark"},{"type": "b"},{"type": "podmark"}`, `{"type": "a"},{"type": "b"}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := conflist.Remove([]byte(head+tt.plugins+tail), "podmark")
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(head+tt.want+tail, string(got)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	insert := func(list, entry string) error {
		_, err := conflist.Insert([]byte(list), []byte(entry))
		return err
	}
	_, only := conflist.Remove([]byte(`{"name": "net", "plugins": [{"type": "podmark"}]}`), "podmark")
	for _, tt := range []struct {
		name      string
		got, want error
	}{
		{"no JSON", insert(`{"name": "net", "plugins": [{"type": "a"}]`, plain), conflist.ErrSyntax},
		{"more behind it", insert(`{"name": "net", "plugins": [{"type": "a"}]}}`, plain), conflist.ErrSyntax},
		{"no name", insert(`{"plugins": [{"type": "a"}]}`, plain), conflist.ErrSyntax},
		{"empty", insert(``, plain), conflist.ErrSyntax},
		{"no plugin in the list", insert(`{"name": "net", "plugins": []}`, plain), conflist.ErrSyntax},
		{"no plugins", insert(`{"name": "net"}`, plain), conflist.ErrNoPlugins},
		{"entry without type", insert(`{"name": "net", "plugins": [{"type": "a"}]}`, `{}`), conflist.ErrEntry},
		{"entry is a list", insert(`{"name": "net", "plugins": [{"type": "a"}]}`, `[]`), conflist.ErrEntry},
		{"only entry removed", only, conflist.ErrOnly},
	} {
		if !errors.Is(tt.got, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, tt.got, tt.want)
		}
	}
}

func TestChoose(t *testing.T) {
	const list, single = `{"name": "net", "plugins": [{"type": "a"}]}`, `{"name": "net", "type": "a"}`
	const other = `{"name": "other", "plugins": [{"type": "b"}]}`
	multus := func(keys string) string {
		if keys != "" {
			keys = ", " + keys
		}
		return `{"name": "multus", "type": "multus-shim"` + keys + `}`
	}
	file := func(name, content string) conflist.File {
		return conflist.File{Name: name, Content: []byte(content)}
	}
	for _, tt := range []struct {
		name    string
		files   []conflist.File
		want    string
		skipped []string
		err     error
		asked   string
	}{
		{"none", nil, "", nil, conflist.ErrNone, ""},
		{"nothing of use", []conflist.File{file("README", "x"), file("10-a.conflist.cilium_bak", list), file(".x.tmp", list)}, "", nil, conflist.ErrNone, ""},
		{"first by name", []conflist.File{file("20-b.conflist", list), file("10-a.conflist", list)}, "10-a.conflist", nil, nil, ""},
		{"broken ones before it", []conflist.File{file("10-a.conflist", ""), file("15-b.conf", list), file("20-b.conflist", list)}, "20-b.conflist", []string{"10-a.conflist", "15-b.conf"}, nil, ""},
		{"broken one behind it", []conflist.File{file("10-a.conflist", list), file("20-b.conflist", "")}, "10-a.conflist", nil, nil, ""},
		{"plain", []conflist.File{file("10-a.conf", single), file("20-b.conflist", list)}, "10-a.conf", nil, conflist.ErrPlain, ""},
		{"plain .json", []conflist.File{file("00-a.json", single)}, "00-a.json", nil, conflist.ErrPlain, ""},
		{"plain behind it", []conflist.File{file("10-a.conf", single), file("05-b.conflist", list)}, "05-b.conflist", nil, nil, ""},
		{"all plugins in files", []conflist.File{file("05-b.conflist", `{"name": "net"}`)}, "05-b.conflist", nil, nil, ""},
		{"named", []conflist.File{file("10-a.conflist", list), file("20-b.conflist", list)}, "20-b.conflist", nil, nil, "20-b.conflist"},
		{"named behind a plain one", []conflist.File{file("00-a.conf", single), file("20-b.conflist", list)}, "20-b.conflist", nil, nil, "20-b.conflist"},
		{"named and not there", []conflist.File{file("10-a.conflist", list)}, "", nil, conflist.ErrNone, "20-b.conflist"},
		{"named and plain", []conflist.File{file("10-a.conf", single)}, "10-a.conf", nil, conflist.ErrPlain, "10-a.conf"},
		{"named and broken", []conflist.File{file("10-a.conflist", "{")}, "", nil, conflist.ErrSyntax, "10-a.conflist"},
		{"named and Multus'", []conflist.File{file("00-m.conf", multus("")), file("10-a.conflist", list)}, "", nil, conflist.ErrMultus, "00-m.conf"},
		{"Multus that names nothing", []conflist.File{file("00-m.conf", multus("")), file("20-b.conflist", list), file("10-a.conflist", list)}, "10-a.conflist", nil, nil, ""},
		{"Multus alone", []conflist.File{file("00-m.conf", multus(""))}, "", nil, conflist.ErrNone, ""},
		{"Multus' network", []conflist.File{file("00-m.conf", multus(`"clusterNetwork": "other"`)), file("10-a.conflist", list), file("20-b.conflist", other)}, "20-b.conflist", nil, nil, ""},
		{"Multus' file", []conflist.File{file("00-m.conf", multus(`"clusterNetwork": "20-b"`)), file("10-a.conflist", list), file("20-b.conflist", other)}, "20-b.conflist", nil, nil, ""},
		{"Multus' path", []conflist.File{file("00-m.conf", multus(`"clusterNetwork": "/host/etc/cni/net.d/20-b.conflist"`)), file("10-a.conflist", list), file("20-b.conflist", other)}, "20-b.conflist", nil, nil, ""},
		{"Multus' network elsewhere", []conflist.File{file("00-m.conf", multus(`"clusterNetwork": "crd"`)), file("10-a.conflist", list)}, "", nil, conflist.ErrMultus, ""},
		{"Multus' network is plain", []conflist.File{file("00-m.conf", multus(`"clusterNetwork": "10-a.conf"`)), file("10-a.conf", single)}, "10-a.conf", nil, conflist.ErrPlain, ""},
		{"Multus' delegate", []conflist.File{file("00-m.conf", multus(`"delegates": [`+other+`]`)), file("10-a.conflist", list), file("20-b.conflist", other)}, "20-b.conflist", nil, nil, ""},
		{"Multus' delegate without a name", []conflist.File{file("00-m.conf", multus(`"delegates": [{"type": "a"}]`)), file("10-a.conflist", list)}, "", nil, conflist.ErrMultus, ""},
		{"Multus in a list", []conflist.File{file("00-m.conflist", `{"name": "m", "plugins": [`+multus(`"clusterNetwork": "other"`)+`]}`), file("20-b.conflist", other)}, "20-b.conflist", nil, nil, ""},
		{"broken one before Multus", []conflist.File{file("00-a.conf", ""), file("05-m.conf", multus("")), file("10-a.conflist", list)}, "10-a.conflist", []string{"00-a.conf"}, nil, ""},
		{"Multus' own is empty", []conflist.File{file("00-Multus.conf", ""), file("10-a.conflist", list)}, "10-a.conflist", []string{"00-Multus.conf"}, nil, ""},
		{"Multus' own is cut off", []conflist.File{file("00-m.conf", multus("")[:40]), file("10-a.conflist", list)}, "10-a.conflist", []string{"00-m.conf"}, nil, ""},
		{"Multus behind it", []conflist.File{file("00-a.conflist", list), file("05-m.conf", multus("")), file("10-a.conflist", other)}, "00-a.conflist", nil, nil, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, skipped, err := conflist.Choose(tt.files, conflist.Wanted{Name: tt.asked})
			if got.Name != tt.want || !errors.Is(err, tt.err) {
				t.Errorf("%q, %v; want %q, %v", got.Name, err, tt.want, tt.err)
			}
			var names []string
			for _, s := range skipped {
				names = append(names, s.Name)
				if s.Multus != strings.Contains(tt.name, "Multus' own") {
					t.Errorf("%s is Multus': %t", s.Name, s.Multus)
				}
			}
			if strings.HasPrefix(tt.name, "Multus' network is") && got.Multus != "00-m.conf" {
				t.Errorf("called by %q", got.Multus)
			}
			if diff := cmp.Diff(tt.skipped, names); diff != "" {
				t.Errorf("skipped: %s", diff)
			}
		})
	}
}

// What runtimes take follows from what they were told, and from where Multus says the file is;
// that something else was asked for by name is told.
func TestChooseWanted(t *testing.T) {
	const podmark = `, {"type": "podmark", "policy": "files"}`
	list := func(network, more string) string {
		return `{"cniVersion": "1.0.0", "name": "` + network + `", "plugins": [{"type": "ptp"}` + more + `]}`
	}
	multus := func(keys string) string { return `{"name": "multus", "type": "multus", ` + keys + `}` }
	const dir = "/etc/cni/net.d"
	for _, tt := range []struct {
		name   string
		files  map[string]string
		wanted conflist.Wanted
		// want is the file, unused a part of why runtimes do not take it, and copied whether
		// Multus has another copy.
		want, unused string
		copied       bool
		err          error
	}{
		{"the runtime's network", map[string]string{"10-a.conflist": list("a", ""), "20-b.conflist": list("b", "")}, conflist.Wanted{Network: "b"}, "20-b.conflist", "", false, nil},
		{"the first of the runtime's network", map[string]string{"20-b.conflist": list("b", ""), "30-b.conflist": list("b", "")}, conflist.Wanted{Network: "b"}, "20-b.conflist", "", false, nil},
		{"nobody has the runtime's network", map[string]string{"10-a.conflist": list("a", "")}, conflist.Wanted{Network: "b"}, "", "", false, conflist.ErrNone},
		{"the runtime's network is Multus'", map[string]string{"10-a.conflist": list("a", ""), "20-m.conf": multus(`"clusterNetwork": "b"`), "30-b.conflist": list("b", "")}, conflist.Wanted{Network: "multus"}, "30-b.conflist", "", false, nil},
		{"asked for, and first", map[string]string{"10-a.conflist": list("a", ""), "20-b.conflist": list("b", "")}, conflist.Wanted{Name: "10-a.conflist"}, "10-a.conflist", "", false, nil},
		{"asked for, behind another", map[string]string{"10-a.conflist": list("a", ""), "20-b.conflist": list("b", "")}, conflist.Wanted{Name: "20-b.conflist"}, "20-b.conflist", `runtimes take "10-a.conflist"`, false, nil},
		{"asked for, behind a plain one", map[string]string{"10-a.conf": `{"name": "a", "type": "ptp"}`, "20-b.conflist": list("b", "")}, conflist.Wanted{Name: "20-b.conflist"}, "20-b.conflist", `runtimes take "10-a.conf"`, false, nil},
		{"asked for, and of the runtime's network", map[string]string{"10-a.conflist": list("a", ""), "20-b.conflist": list("b", "")}, conflist.Wanted{Name: "20-b.conflist", Network: "b"}, "20-b.conflist", "", false, nil},
		{"asked for, and of another than the runtime's network", map[string]string{"10-a.conflist": list("a", ""), "20-b.conflist": list("b", "")}, conflist.Wanted{Name: "10-a.conflist", Network: "b"}, "10-a.conflist", `network "b"`, false, nil},
		{"asked for, behind one that is broken", map[string]string{"10-a.conflist": "{", "20-b.conflist": list("b", "")}, conflist.Wanted{Name: "20-b.conflist"}, "20-b.conflist", "", false, nil},
		{"asked for, behind Multus", map[string]string{"00-m.conf": multus(`"clusterNetwork": "crd"`), "20-b.conflist": list("b", "")}, conflist.Wanted{Name: "20-b.conflist"}, "20-b.conflist", "", false, nil},
		{"Multus' path here", map[string]string{"00-m.conf": multus(`"clusterNetwork": "/etc/cni/net.d/20-b.conflist"`), "20-b.conflist": list("b", "")}, conflist.Wanted{Dir: dir}, "20-b.conflist", "", false, nil},
		{"Multus' path here, by its container", map[string]string{"00-m.conf": multus(`"clusterNetwork": "/host/etc/cni/net.d/20-b.conflist"`), "20-b.conflist": list("b", "")}, conflist.Wanted{Dir: dir}, "20-b.conflist", "", false, nil},
		{"Multus' path there, by its container", map[string]string{"00-m.conf": multus(`"clusterNetwork": "/host/etc/cni/net.d/20-b.conflist"`), "20-b.conflist": list("b", "")}, conflist.Wanted{Dir: "/srv/net.d"}, "20-b.conflist", "", false, nil},
		{"Multus' copy from before podmark's entry", map[string]string{"00-m.conf": multus(`"delegates": [` + list("b", podmark) + `]`), "20-b.conflist": list("b", "")}, conflist.Wanted{}, "20-b.conflist", "", false, nil},
		{"Multus' path elsewhere", map[string]string{"00-m.conf": multus(`"clusterNetwork": "/etc/cni/multus/net.d/20-b.conflist"`), "20-b.conflist": list("b", "")}, conflist.Wanted{Dir: dir}, "", "", false, conflist.ErrMultus},
		{"Multus' copy is the same", map[string]string{"00-m.conf": multus(`"delegates": [` + list("b", podmark) + `]`), "20-b.conflist": list("b", podmark)}, conflist.Wanted{}, "20-b.conflist", "", false, nil},
		{"Multus' copy has other spaces", map[string]string{"00-m.conf": multus(`"delegates": [` + list("b", `, {"policy": "files",  "type":"podmark"}`) + `]`), "20-b.conflist": list("b", podmark)}, conflist.Wanted{}, "20-b.conflist", "", false, nil},
		{"Multus' copy is without podmark", map[string]string{"00-m.conf": multus(`"delegates": [` + list("b", "") + `]`), "20-b.conflist": list("b", podmark)}, conflist.Wanted{}, "20-b.conflist", "", true, nil},
		{"Multus' copy has another policy", map[string]string{"00-m.conf": multus(`"delegates": [` + list("b", `, {"type": "podmark", "policy": "none"}`) + `]`), "20-b.conflist": list("b", podmark)}, conflist.Wanted{}, "20-b.conflist", "", true, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var files []conflist.File
			for name, content := range tt.files {
				files = append(files, conflist.File{Name: name, Content: []byte(content)})
			}
			got, _, err := conflist.Choose(files, tt.wanted)
			if got.Name != tt.want || got.StaleCopy != tt.copied || !errors.Is(err, tt.err) {
				t.Errorf("%q, copied %t, %v; want %q, %t, %v", got.Name, got.StaleCopy, err, tt.want, tt.copied, tt.err)
			}
			if said := fmt.Sprint(got.Unused); tt.unused == "" && got.Unused != nil || !strings.Contains(said, tt.unused) {
				t.Errorf("unused: %s, want %q", said, tt.unused)
			}
		})
	}
}

// Whatever libcni takes, it takes with one entry more, and without it again.
func FuzzInsert(f *testing.F) {
	for _, l := range lists {
		f.Add([]byte(l.list), []byte(plain))
	}
	f.Add([]byte(`{"name": "n", "plugins": [{"type": "podmark", "x": 1}, {"TYPE": "podmark"}, {"type": "a"}]}`), []byte(`{"type": "podmark", "y": {"z": []}}`))
	f.Fuzz(func(t *testing.T, list, entry []byte) {
		l, err := libcni.NetworkConfFromBytes(list)
		if err != nil || len(l.Plugins) == 0 {
			if _, err := conflist.Insert(list, []byte(plain)); err == nil {
				t.Fatal("a list was taken that libcni does not take")
			}
			return
		}
		if plugin, err := conflist.EntryType(entry); err != nil || plugin != "podmark" {
			entry = []byte(plain)
		}
		var want []string
		there := false
		for _, p := range l.Plugins {
			if p.Network.Type != "podmark" {
				want = append(want, string(p.Bytes))
			}
			there = there || p.Network.Type == "podmark"
		}
		got, err := conflist.Insert(list, entry)
		if err != nil {
			t.Fatal(err)
		}
		after, err := libcni.NetworkConfFromBytes(got)
		if err != nil {
			t.Fatalf("%v:\n%s", err, got)
		}
		var others []string
		var ours []json.RawMessage
		for _, p := range after.Plugins {
			if p.Network.Type == "podmark" {
				ours = append(ours, p.Bytes)
			} else {
				others = append(others, string(p.Bytes))
			}
		}
		if len(ours) != 1 || !slices.Equal(want, others) {
			t.Fatalf("%d entries, others %q, want %q", len(ours), others, want)
		}
		if after.Name != l.Name || after.CNIVersion != l.CNIVersion || after.DisableCheck != l.DisableCheck {
			t.Fatal("the rest of the list changed")
		}
		if again, err := conflist.Insert(got, entry); err != nil || !bytes.Equal(again, got) {
			t.Fatalf("inserted again: %v:\n%s\n%s", err, got, again)
		}
		back, err := conflist.Remove(got, "podmark")
		switch {
		case len(want) == 0 && errors.Is(err, conflist.ErrOnly):
		case err != nil:
			t.Fatal(err)
		case !there && !bytes.Equal(back, list):
			t.Fatalf("not as before:\n%s\n%s", list, back)
		}
	})
}

// Who comes to call podmark by a file.
func TestCalls(t *testing.T) {
	for conf, want := range map[string]bool{
		`{"name": "net", "plugins": [{"type": "ptp"}, {"type": "podmark"}]}`:                                           true,
		`{"type": "multus", "delegates": [{"name": "net", "plugins": [{"type": "ptp"}, {"Type": "podmark"}]}]}`:        true,
		`{"plugins": [{"type": "multus", "delegates": [{"plugins": [{"type": "podmark"}]}]}]}`:                         true,
		`{"name": "net", "plugins": [{"type": "ptp", "x": "podmark", "podmark": {"types": ["podmark"]}}], "type": {}}`: false,
		`{"name": "podmark", "type": "podmark"}`:                                                                       false,
		`{"name": "podmark", "plugins": [{"type": "podmark"}`:                                                          false,
		`[{"type": "podmark"}]`: false,
		``:                      false,
	} {
		if got := conflist.Calls([]byte(conf), "podmark"); got != want {
			t.Errorf("%s: %t", conf, got)
		}
	}
}
