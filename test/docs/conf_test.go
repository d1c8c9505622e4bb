package docs_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/mark"
	"github.com/podmark/podmark/pkg/policy"
)

// Each conflist is one that a runtime can load by its name, with podmark last and
// in a form that podmark accepts.
func TestConflists(t *testing.T) {
	dir := filepath.Join(root, "conf")
	files, err := filepath.Glob(filepath.Join(dir, "*.conflist"))
	if err != nil || len(files) < 4 {
		t.Fatalf("conflists %q, %v; want four", files, err)
	}
	names := map[string]string{}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			list, err := libcni.NetworkConfFromFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if other, taken := names[list.Name]; taken {
				t.Errorf("%s has the name %q too", other, list.Name)
			}
			names[list.Name] = file
			// As cnitool and runtimes find it.
			if _, err := libcni.LoadNetworkConf(dir, list.Name); err != nil {
				t.Error(err)
			}
			last := list.Plugins[len(list.Plugins)-1]
			if last.Network.Type != "podmark" {
				t.Fatalf("the last plugin is %s", last.Network.Type)
			}
			// What libcni puts in before it calls a plugin.
			last, err = libcni.InjectConf(last, map[string]any{"name": list.Name, "cniVersion": list.CNIVersion})
			if err != nil {
				t.Fatal(err)
			}
			c, err := config.Parse(last.Bytes)
			if err != nil {
				t.Fatal(err)
			}
			want := config.PolicyFiles // without it podmarkctl apply would do nothing
			if strings.HasSuffix(list.Name, "-kubernetes") {
				want = config.PolicyKubernetes
			}
			if c.Policy != want {
				t.Errorf("policy is %q, want %q", c.Policy, want)
			}
		})
	}
}

// compileExamples compiles conf/policies as podmarkctl apply does.
func compileExamples(t *testing.T) desired.Policies {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, "conf/policies/*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var sources []policy.Source
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		// Each is valid by itself too.
		source := policy.Source{Name: filepath.Base(f), Data: b}
		if _, _, err := (policy.Options{}).Compile(source); err != nil {
			t.Error(err)
		}
		sources = append(sources, source)
	}
	policies, _, err := policy.Options{}.Compile(sources...)
	if err != nil {
		t.Fatal(err)
	}
	return policies
}

// The example policies allow what their comments say.
func TestPolicies(t *testing.T) {
	policies := compileExamples(t)
	layout, err := mark.NewLayout(config.DefaultMask)
	if err != nil {
		t.Fatal(err)
	}
	pods := map[string]netip.Addr{
		"shop/web":              netip.MustParseAddr("10.22.0.2"),
		"shop/client":           netip.MustParseAddr("10.22.0.3"),
		"shop/other":            netip.MustParseAddr("10.22.0.4"),
		"monitoring/prometheus": netip.MustParseAddr("10.22.0.5"),
		"kube-system/dns":       netip.MustParseAddr("10.22.0.6"),
	}
	var records []attachment.Record
	for name, addr := range pods {
		namespace, pod, _ := strings.Cut(name, "/")
		records = append(records, attachment.Record{ID: mark.First + mark.ID(len(records)), Policed: true, Committed: true, Endpoint: attachment.Endpoint{
			Namespace: namespace, Pod: pod, Labels: map[string]string{"app": pod},
			L3Interface: pod, HostVeth: pod, Addresses: []netip.Addr{addr},
		}})
	}
	state := desired.Build(desired.Node{Layout: layout, Epoch: 1}, policies, records)
	outside := netip.MustParseAddr("192.0.2.1")
	for _, tt := range []struct {
		from, to string
		protocol desired.Protocol
		port     uint16
		want     bool
	}{
		{"shop/client", "shop/web", desired.TCP, 8080, true},
		{"shop/client", "shop/web", desired.TCP, 9090, false},
		{"shop/client", "shop/web", desired.UDP, 8080, false},
		{"shop/other", "shop/web", desired.TCP, 8080, false},
		{"shop/other", "", desired.TCP, 443, false},
		{"shop/client", "", desired.TCP, 443, false},
		{"shop/client", "kube-system/dns", desired.UDP, 53, true},
		{"shop/client", "kube-system/dns", desired.TCP, 80, false},
		{"monitoring/prometheus", "shop/web", desired.TCP, 9090, true},
		{"monitoring/prometheus", "shop/web", desired.TCP, 8080, false},
		{"monitoring/prometheus", "shop/client", desired.TCP, 9090, false},
		{"monitoring/prometheus", "", desired.TCP, 443, true},
		{"", "shop/web", desired.TCP, 8080, false},
		{"", "kube-system/dns", desired.UDP, 53, true},
	} {
		p := desired.Packet{In: "eth0", Out: "eth0", Src: outside, Dst: outside, Protocol: tt.protocol, DstPort: tt.port}
		if tt.from != "" {
			_, p.In, _ = strings.Cut(tt.from, "/")
			p.Src = pods[tt.from]
		}
		if tt.to != "" {
			_, p.Out, _ = strings.Cut(tt.to, "/")
			p.Dst = pods[tt.to]
		}
		if v := state.Evaluate(p); v.Allowed != tt.want {
			t.Errorf("%q to %q, %v %d: allowed is %v (%s)", tt.from, tt.to, tt.protocol, tt.port, v.Allowed, v.By)
		}
	}
}
