package config_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/mark"
)

// with is a minimal configuration with one more key.
func with(key, value string) string {
	return fmt.Sprintf(`{"cniVersion": "1.1.0", "name": "net", %q: %s}`, key, value)
}

func parse(t *testing.T, stdin string) config.Config {
	t.Helper()
	c, err := config.Parse([]byte(stdin))
	if err != nil {
		t.Fatalf("Parse(%s): %v", stdin, err)
	}
	return c
}

func TestDefaults(t *testing.T) {
	layout, err := mark.NewLayout(0xffff0000)
	if err != nil {
		t.Fatal(err)
	}
	want := config.Config{
		CNIVersion: "1.1.0",
		Network:    "net",
		Layout:     layout, MarkCollision: config.CollisionRefuse,
		NodePorts:    []config.PortRange{{First: 30000, Last: 32767}},
		Backend:      config.BackendAuto,
		Policy:       config.PolicyNone,
		StateDir:     "/run/podmark",
		DaemonSocket: "/run/podmark/podmarkd.sock",
		LockTimeout:  10 * time.Second,
	}
	for _, stdin := range []string{
		`{"cniVersion": "1.1.0", "name": "net"}`,
		`{"cniVersion": "1.1.0", "name": "net", "type": 7, "prevResult": null, "unknown": {}, "args": {"other": 1}, "runtimeConfig": null}`,
		`{"cniVersion": "1.1.0", "name": "net", "args": {"cni": {"labels": null}}}`,
		`{"cniVersion": "1.1.0", "name": "net", "args": {"cni": 7}}`,
		`{"cniVersion": "1.1.0", "name": "net", "args": 7}`,
		`{"cniVersion": "1.1.0", "name": "net", "logFile": ""}`,
	} {
		if diff := cmp.Diff(want, parse(t, stdin), cmp.AllowUnexported(mark.Layout{}), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s:\n%s", stdin, diff)
		}
	}
}

func TestAccepted(t *testing.T) {
	ranges := func(c config.Config) any { return c.NodePorts }
	mask := func(c config.Config) any { return c.Layout.Mask() }
	timeout := func(c config.Config) any { return c.LockTimeout }
	stateDir := func(c config.Config) any { return c.StateDir }
	logFile := func(c config.Config) any { return c.LogFile }
	sources := func(c config.Config) any { return fmt.Sprint(c.Sources) }
	network := func(c config.Config) any { return c.Network }
	long := strings.Repeat("n", 255)
	for _, tt := range []struct {
		key, value string
		get        func(config.Config) any
		want       any
	}{
		{"cniVersion", `"0.3.1"`, func(c config.Config) any { return c.CNIVersion }, "0.3.1"},
		{"cniVersion", `""`, func(c config.Config) any { return c.CNIVersion }, ""},
		{"name", `"k8s-pod.network_1"`, network, "k8s-pod.network_1"},
		{"name", `"` + long + `"`, network, long},
		{"iptablesMarkMask", `"0xffff0000"`, mask, uint32(0xffff0000)},
		{"iptablesMarkMask", `"0XFF000000"`, mask, uint32(0xff000000)},
		{"iptablesMarkMask", `"4278190080"`, mask, uint32(0xff000000)},
		{"iptablesMarkMask", `4278190080`, mask, uint32(0xff000000)},
		{"iptablesMarkMask", `3`, mask, uint32(3)},
		{"iptablesMarkMask", `"0x80000001"`, mask, uint32(0x80000001)},
		{"iptablesMarkMask", `"0xffff3fff"`, mask, uint32(0xffff3fff)},
		{"iptablesMarkMask", `"auto"`, mask, uint32(0)},
		{"markCollision", `"refuse"`, func(c config.Config) any { return c.MarkCollision }, config.CollisionRefuse},
		{"markCollision", `"warn"`, func(c config.Config) any { return c.MarkCollision }, config.CollisionWarn},
		{"kubeNodePortRanges", `["30000:32767"]`, ranges, []config.PortRange{{30000, 32767}}},
		{"kubeNodePortRanges", `["30000-32767", 80, "443", "1:65535", "7:7"]`, ranges, []config.PortRange{{30000, 32767}, {80, 80}, {443, 443}, {1, 65535}, {7, 7}}},
		{"kubeNodePortRanges", `[]`, ranges, []config.PortRange{}},
		{"backend", `"auto"`, func(c config.Config) any { return c.Backend }, config.BackendAuto},
		{"backend", `"nftables"`, func(c config.Config) any { return c.Backend }, config.BackendNFTables},
		{"backend", `"iptables"`, func(c config.Config) any { return c.Backend }, config.BackendIPTables},
		{"policy", `"none"`, func(c config.Config) any { return c.Policy }, config.PolicyNone},
		{"policy", `"files"`, func(c config.Config) any { return c.Policy }, config.PolicyFiles},
		{"policy", `"kubernetes"`, func(c config.Config) any { return c.Policy }, config.PolicyKubernetes},
		{"failOpen", `false`, func(c config.Config) any { return c.FailOpen }, false},
		{"allowTunnels", `true`, func(c config.Config) any { return c.AllowTunnels }, true},
		{"allowTunnels", `false`, func(c config.Config) any { return c.AllowTunnels }, false},
		{"daemonSocket", `"/run/other.sock"`, func(c config.Config) any { return c.DaemonSocket }, "/run/other.sock"},
		{"stateDir", `"/var/run/podmark"`, stateDir, "/var/run/podmark"},
		{"stateDir", `"/a//b/./c/"`, stateDir, "/a/b/c"},
		{"stateDir", `"/..a/b.."`, stateDir, "/..a/b.."},
		{"lockTimeoutSeconds", `1`, timeout, time.Second},
		{"lockTimeoutSeconds", `0.5`, timeout, 500 * time.Millisecond},
		{"lockTimeoutSeconds", `600`, timeout, 10 * time.Minute},
		{"lockTimeoutSeconds", `6e1`, timeout, time.Minute},
		{"lockTimeoutSeconds", `1e-9`, timeout, time.Millisecond},
		{"allowedSourcePrefixes", `[]`, sources, "[]"},
		{"allowedSourcePrefixes", `["172.30.0.0/16", "fd00:30::/64", "10.9.9.9/32"]`, sources, "[10.9.9.9/32 172.30.0.0/16 fd00:30::/64]"},
		{"allowedSourcePrefixes", `["10.1.0.0/16", "10.0.0.0/8", "10.0.0.0/8", "128.0.0.0/1", "0.0.0.0/1"]`, sources, "[0.0.0.0/1 128.0.0.0/1]"},
		{"logFile", `"/var/log/podmark.log"`, logFile, "/var/log/podmark.log"},
	} {
		if diff := cmp.Diff(tt.want, tt.get(parse(t, with(tt.key, tt.value)))); diff != "" {
			t.Errorf("%s %s:\n%s", tt.key, tt.value, diff)
		}
	}
}

func TestLabels(t *testing.T) {
	for value, want := range map[string]map[string]string{
		`[]`:                               {},
		`{}`:                               {},
		`[{"key": "app", "value": "web"}]`: {"app": "web"},
		`[{"key": "a", "value": ""}, {"key": "b", "value": "c", "other": 1}]`: {"a": "", "b": "c"},
		`{"app": "web", "tier": ""}`:                                          {"app": "web", "tier": ""},
	} {
		got := parse(t, with("args", `{"cni": {"labels": `+value+`}}`)).Labels
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s:\n%s", value, diff)
		}
	}
}

// rejected holds, for each key, values that are wrong and what the error says of
// what is accepted.
var rejected = map[string]struct {
	want   string
	values []string
}{
	"cniVersion": {`"1.0.0"`, []string{`1`, `"1.0"`, `"v1.0.0"`, `"1.0.0 "`, `"1.0.0\n"`, `null`, `[]`}},
	"name":       {"letters, digits", []string{`""`, `null`, `7`, `".net"`, `"../net"`, `"a/b"`, `"a b"`, `"a\nb"`, `"\u0000"`, `"é"`, `"` + strings.Repeat("n", 256) + `"`}},
	"iptablesMarkMask": {"at least two bits", []string{
		`"0x1"`, `1`, `0`, `"0x80000000"`, `"0x0"`, `""`, `"0x"`, `"mask"`, `"0xc000"`, `"0xffffffff"`, `"0x4000"`, `"0xff00"`, `49152`, `4294967295`,
		`"0x1ffff0000"`, `4294967296`, `1e30`, `-1`, `"-0xff"`, `1.5`, `4278190080.0`, `true`, `false`, `null`, `[]`, `["0xff000000"]`, `{}`, `" 0xff000000"`, `"0xff000000\n"`, `"0xff00_0000x"`,
	}},
	"kubeNodePortRanges": {"ports and ranges from 1 to 65535", []string{
		`"30000:32767"`, `30000`, `null`, `{}`, `true`, `["2:1"]`, `["0"]`, `[0]`, `["0:1"]`, `["1:0"]`, `["65536"]`, `[65536]`, `["1:65536"]`, `["99999"]`, `["100000"]`,
		`[""]`, `[" "]`, `["1:2:3"]`, `["1,2"]`, `["1..2"]`, `["1/2"]`, `["1:"]`, `[":1"]`, `["-1"]`, `[-1]`, `[1.5]`, `[1e3]`, `["1 : 2"]`, `["0x10"]`, `["http"]`,
		`[["1:2"]]`, `[null]`, `[true]`, `[{}]`, `["1:2\n"]`, `["30000:32767", "bad"]`,
	}},
	"backend":            {`"auto", "nftables", "iptables"`, []string{`"nft"`, `"iptables-nft"`, `"iptables-legacy"`, `""`, `"AUTO"`, `"NFTables"`, `null`, `1`, `["auto"]`}},
	"policy":             {`"none", "files", "kubernetes"`, []string{`"Kubernetes"`, `""`, `"None"`, `null`, `true`, `{}`}},
	"stateDir":           {"an absolute path", []string{`"run/podmark"`, `""`, `"/"`, `"//"`, `"/./"`, `"/run/../etc"`, `"/run/.."`, `".."`, `"/run/\u0000"`, `null`, `7`, `"/` + strings.Repeat("x", 4000) + `"`}},
	"failOpen":           {"true or false", []string{`"true"`, `1`, `null`, `[]`}},
	"allowTunnels":       {"true or false", []string{`"true"`, `1`, `null`, `[]`}},
	"daemonSocket":       {"an absolute path", []string{`"podmarkd.sock"`, `"/"`, `null`, `7`}},
	"lockTimeoutSeconds": {"a number of seconds above 0, at most 600", []string{`0`, `-1`, `-0.0001`, `600.001`, `1e300`, `1e400`, `"10"`, `"10s"`, `null`, `true`, `[10]`}},
	"logFile":            {"an absolute path", []string{`"podmark.log"`, `"/"`, `"/var/../x"`, `"/\u0000"`, `null`, `7`, `false`}},
	"allowedSourcePrefixes": {"prefixes such as", []string{
		`"10.0.0.0/8"`, `null`, `7`, `{}`, `[7]`, `[null]`, `[[]]`, `[""]`, `["10.0.0.0"]`, `["10.0.0.0/"]`, `["10.0.0.0/33"]`, `["10.0.0.1/8"]`, `["fd00::1/64"]`,
		`["0.0.0.0/0"]`, `["::/0"]`, `["::ffff:10.0.0.0/104"]`, `["::ffff:0.0.0.0/96"]`, `["127.0.0.0/8"]`, `["::1/128"]`, `["::/128"]`, `["0.0.0.0/32"]`, `["169.254.1.0/24"]`,
		`["fe80::/64"]`, `["fe80::%eth0/64"]`, `["224.0.0.0/4"]`, `["ff02::/16"]`, `["10.0.0.0/8 "]`, `["10.0.0.0/8,11.0.0.0/8"]`, `["010.0.0.0/8"]`, `["10.0.0.0/08"]`, `["10.0.0.0/+8"]`,
		`["10.0.0.0/8", "bad"]`, `[` + strings.Repeat(`"10.0.0.0/8",`, 64) + `"10.0.0.0/8"]`,
	}},
	"args.cni.labels": {"a list such as", []string{
		`"app=web"`, `7`, `true`, `["app"]`, `[{}]`, `[{"key": "app"}]`, `[{"value": "web"}]`, `[{"key": "", "value": "x"}]`, `[{"key": 1, "value": "x"}]`, `[{"key": "a", "value": 1}]`, `[null]`,
		`{"app": 1}`, `{"app": null}`, `{"": "x"}`, `[["app", "web"]]`,
	}},
}

// A pod may start without its policy only where that is to be asked for.
func TestFailOpen(t *testing.T) {
	for policy, ok := range map[string]bool{`"kubernetes"`: true, `"files"`: false, `"none"`: false} {
		c, err := config.Parse([]byte(`{"cniVersion": "1.1.0", "name": "net", "failOpen": true, "policy": ` + policy + `}`))
		if (err == nil) != ok || c.FailOpen != ok {
			t.Errorf("failOpen with policy %s: %+v, %v", policy, c, err)
		}
	}
	c, err := config.Parse([]byte(`{"cniVersion": "1.1.0", "name": "net", "stateDir": "/run/x"}`))
	if err != nil || c.DaemonSocket != "/run/x/podmarkd.sock" {
		t.Errorf("the socket is %q (%v), want it in the state directory", c.DaemonSocket, err)
	}
}

func TestRejected(t *testing.T) {
	for key, tt := range rejected {
		for _, value := range tt.values {
			stdin := with(key, value)
			switch key {
			case "args.cni.labels":
				stdin = with("args", `{"cni": {"labels": `+value+`}}`)
			case "name":
				stdin = `{"cniVersion": "1.1.0", "name": ` + value + `}`
			}
			_, err := config.Parse([]byte(stdin))
			var wrong *config.Error
			if !errors.As(err, &wrong) {
				t.Errorf("%s %s: error is %v, want a *config.Error", key, value, err)
				continue
			}
			if wrong.Key != key {
				t.Errorf("%s %s: error names key %q", key, value, wrong.Key)
			}
			for _, part := range []string{`"` + key + `"`, wrong.Value, tt.want} {
				if part == "" || !strings.Contains(err.Error(), part) {
					t.Errorf("%s %s: error %q does not say %q", key, value, err, part)
				}
			}
		}
	}
}

// Every wrong key is told at once.
func TestAllErrors(t *testing.T) {
	_, err := config.Parse([]byte(`{"policy": "x", "backend": "y", "iptablesMarkMask": 1}`))
	for _, key := range []string{`"name"`, `"policy"`, `"backend"`, `"iptablesMarkMask"`} {
		if err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("error %v does not name %s", err, key)
		}
	}
}

func TestSyntax(t *testing.T) {
	for _, stdin := range []string{"", "{", "[]", "7", `"x"`, "{}x", "\x00", `{"name": "net",}`} {
		if _, err := config.Parse([]byte(stdin)); !errors.Is(err, config.ErrSyntax) {
			t.Errorf("Parse(%q) = %v, want a syntax error", stdin, err)
		}
	}
}

func TestAttachments(t *testing.T) {
	one := `[{"containerID": "a", "ifname": "eth0", "other": 1}]`
	list := []config.Attachment{{ContainerID: "a", IfName: "eth0"}}
	for _, tt := range []struct {
		name, keys string
		want       config.Attachments
	}{
		{"absent", ``, config.Attachments{}},
		{"null", `, "cni.dev/valid-attachments": null`, config.Attachments{Given: true}},
		{"empty", `, "cni.dev/valid-attachments": []`, config.Attachments{Given: true}},
		{"list", `, "cni.dev/valid-attachments": ` + one, config.Attachments{Given: true, List: list}},
		{"legacy", `, "cni.dev/attachments": ` + one, config.Attachments{Given: true, List: list}},
		{"legacy null", `, "cni.dev/attachments": null`, config.Attachments{Given: true}},
		{"both", `, "cni.dev/attachments": [], "cni.dev/valid-attachments": ` + one, config.Attachments{Given: true, List: list}},
		{"both, one null", `, "cni.dev/attachments": ` + one + `, "cni.dev/valid-attachments": null`, config.Attachments{Given: true}},
	} {
		got := parse(t, `{"name": "net"`+tt.keys+`}`).Attachments
		if diff := cmp.Diff(tt.want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s:\n%s", tt.name, diff)
		}
	}
	for _, value := range []string{`7`, `"all"`, `{}`, `[7]`, `["a"]`, `[{"containerID": 7}]`} {
		_, err := config.Parse([]byte(with("cni.dev/valid-attachments", value)))
		var wrong *config.Error
		if !errors.As(err, &wrong) || wrong.Key != "cni.dev/valid-attachments" || wrong.Value != value || !strings.Contains(wrong.Want, "containerID") {
			t.Errorf("%s: error is %v", value, err)
		}
	}
}

// FuzzParse: nothing makes it panic, and what it accepts keeps its promises.
func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"cniVersion": "1.1.0", "name": "net"}`))
	for key, tt := range rejected {
		for _, value := range tt.values {
			f.Add([]byte(with(key, value)))
		}
	}
	f.Add([]byte(with("kubeNodePortRanges", `["1-2", 3, "4:5"]`)))
	f.Add([]byte(with("args", `{"cni": {"labels": {"a": "b"}}}`)))
	f.Fuzz(func(t *testing.T, stdin []byte) {
		c, err := config.Parse(stdin)
		if err != nil {
			var wrong *config.Error
			if !errors.Is(err, config.ErrSyntax) && (!errors.As(err, &wrong) || wrong.Want == "") {
				t.Errorf("error %v is of no kind that callers know", err)
			}
			return
		}
		if c.Network == "" || len(c.Network) > 255 || strings.ContainsAny(c.Network, "/ \n\x00") || c.Network[0] == '.' {
			t.Errorf("network %q", c.Network)
		}
		if c.Layout.Mask() != 0 && c.Layout.Capacity() < 2 || c.Layout.Mask()&mark.KubeProxy != 0 {
			t.Errorf("mask %#x", c.Layout.Mask())
		}
		for _, r := range c.NodePorts {
			if r.First == 0 || r.First > r.Last {
				t.Errorf("range %v", r)
			}
		}
		for _, path := range []string{c.StateDir, c.LogFile} {
			if path == "" && path != c.StateDir {
				continue
			}
			if !strings.HasPrefix(path, "/") || path == "/" || strings.Contains(path+"/", "/../") || strings.Contains(path, "\x00") {
				t.Errorf("path %q", path)
			}
		}
		if c.LockTimeout < time.Millisecond || c.LockTimeout > 10*time.Minute {
			t.Errorf("timeout %v", c.LockTimeout)
		}
		if !slices.Contains(config.Backends, c.Backend) || c.Policy != config.PolicyNone && c.Policy != config.PolicyFiles && c.Policy != config.PolicyKubernetes {
			t.Errorf("backend %q, policy %q", c.Backend, c.Policy)
		}
		if _, ok := c.Labels[""]; ok {
			t.Error("an empty label")
		}
	})
}

// An entry of a list is read with the name and the version of that list, which it
// cannot change, and is refused as the plugin would refuse it.
func TestParseEntry(t *testing.T) {
	c, err := config.ParseEntry([]byte(`{"type": "podmark", "name": "other", "cniVersion": "0.1.0", "policy": "files"}`), "net", "1.0.0")
	if err != nil || c.Network != "net" || c.CNIVersion != "1.0.0" || c.Policy != config.PolicyFiles {
		t.Errorf("%+v, %v", c, err)
	}
	var wrong *config.Error
	if _, err := config.ParseEntry([]byte(`{"iptablesMarkMask": "0xc000"}`), "net", "1.0.0"); !errors.As(err, &wrong) || wrong.Key != "iptablesMarkMask" {
		t.Errorf("a wrong mask: %v", err)
	}
	if _, err := config.ParseEntry([]byte(`[]`), "net", "1.0.0"); !errors.Is(err, config.ErrSyntax) {
		t.Errorf("no object: %v", err)
	}
}
