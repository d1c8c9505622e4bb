package doctor_test

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/podmark/podmark/pkg/agent"
	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/conflist"
	"github.com/podmark/podmark/pkg/dataplane/checksum"
	"github.com/podmark/podmark/pkg/dataplane/flowtable"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/doctor"
	"github.com/podmark/podmark/pkg/foreign"
	"github.com/podmark/podmark/pkg/mark"
	"github.com/podmark/podmark/pkg/runtimes"
)

// healthy are the facts of a node on which nothing is wrong, with this mask.
func healthy(t *testing.T, mask uint32) doctor.Facts {
	t.Helper()
	layout, err := mark.NewLayout(mask)
	if err != nil {
		t.Fatal(err)
	}
	entry := fmt.Appendf(nil, `{"type": "podmark", "iptablesMarkMask": "%#x", "policy": "files"}`, mask)
	list := fmt.Appendf(nil, `{"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "ptp", "ipam": {"type": "host-local"}}, %s]}`, entry)
	parsed, err := conflist.Parse(list)
	if err != nil {
		t.Fatal(err)
	}
	c, err := config.ParseEntry(entry, "net", "1.0.0")
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	return doctor.Facts{
		Now: now, StateDir: config.DefaultStateDir, Endpoint: runtimes.Auto, ConfDir: runtimes.Default().Conf, BinDir: runtimes.Default().Bins[0],
		State: doctor.State{
			Ran: true, Layout: layout, Kind: config.NFTables,
			NodePorts: []desired.PortRange{{First: 30000, Last: 32767}},
			Records:   []attachment.Record{{Key: attachment.Key{Network: "net", ContainerID: "one", IfName: "eth0"}, ID: mark.First, Policed: true, Committed: true}},
			IDs:       1,
		},
		Networks: []doctor.Network{{File: runtimes.Default().Conf + "/10-net.conflist", Network: parsed, Content: list, Entry: entry, Config: c}},
		Daemon:   &agent.Status{PID: 1, Interval: 10, LastReconcile: now.Add(-5 * time.Second)}, DaemonRuns: true,
		Mode: agent.Mode{IPVS: true, Link: true, Services: 3}, PortsInUse: []uint16{30000, 32767},
		Sysctls: []agent.Sysctl{{Name: "net.ipv4.vs.conntrack", Want: "1", Value: "1", Module: "ip_vs"}},
		Tracked: 10, Tracks: 100,
	}
}

// found lists the names of the checks that found something, each once.
func found(f doctor.Facts) []string {
	var names []string
	for _, x := range doctor.Examine(f) {
		names = append(names, x.Check)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// only fails the test unless exactly that check finds something, and says words.
func only(t *testing.T, f doctor.Facts, check string, words ...string) doctor.Finding {
	t.Helper()
	list := doctor.Examine(f)
	if len(list) != 1 || list[0].Check != check {
		t.Fatalf("want one finding of %s: %+v", check, list)
	}
	for _, w := range words {
		if !strings.Contains(list[0].What+list[0].Why+list[0].Fix, w) {
			t.Errorf("it does not say %q: %+v", w, list[0])
		}
	}
	return list[0]
}

// What is not logged is said with what is lacking, and what would bring it.
func TestDropLog(t *testing.T) {
	for kind, module := range map[config.Kind]string{config.NFTables: "nft_log", config.IPTablesLegacy: "xt_NFLOG"} {
		f := healthy(t, 0xffff0000)
		f.State.Kind, f.State.Unlogged = kind, "no such target"
		if found := only(t, f, "drop-log", "no such target", module, "gc"); found.Severity != doctor.Warning {
			t.Errorf("severity %s", found.Severity)
		}
	}
}

// A kernel that cannot is not fixed by what fixes others.
func TestChecksumsOfOldKernel(t *testing.T) {
	f := healthy(t, 0xffff0000)
	f.State.Alterable = "loading the program: no such member (" + checksum.Kernel + " can)"
	if x := only(t, f, "checksums", "CAP_NET_RAW"); !strings.HasPrefix(x.Fix, "# ") {
		t.Errorf("%s", x.Fix)
	}
}

// Where checksums go unlooked at, it is said what is open, and what it takes.
func TestChecksums(t *testing.T) {
	f := healthy(t, 0xffff0000)
	f.State.Alterable = "no bpffs"
	if found := only(t, f, "checksums", "no bpffs", "CAP_NET_RAW", "6.4", "/sys/fs/bpf", "gc"); found.Severity != doctor.Warning {
		t.Errorf("severity %s", found.Severity)
	}
}

func TestUnknownKeys(t *testing.T) {
	f := healthy(t, 0xffff0000)
	f.Networks[0].Entry = []byte(`{"type": "podmark", "polcy": "files", "_comment": "x"}`)
	if found := only(t, f, "configuration", `["polcy"]`, "10-net.conflist", "known are", "policy"); found.Severity != doctor.Error {
		t.Errorf("severity %s", found.Severity)
	}
}

func TestHealthy(t *testing.T) {
	if list := doctor.Examine(healthy(t, 0xffff0000)); len(list) != 0 {
		t.Errorf("%+v", list)
	}
}

// Each well-known user is found by each of its traces, where its bits are among the
// mask's, and not where they are not.
func TestUsers(t *testing.T) {
	for _, u := range foreign.Users() {
		var traces []func(*doctor.Facts)
		for _, name := range u.Chains {
			for _, origin := range []foreign.Origin{foreign.NFTables, foreign.Legacy} {
				traces = append(traces, func(f *doctor.Facts) {
					f.Chains = append(f.Chains, foreign.Chain{Origin: origin, Family: "ip", Table: "filter", Name: name + "X"})
				})
			}
		}
		for _, name := range u.Tables {
			traces = append(traces, func(f *doctor.Facts) {
				f.Chains = append(f.Chains, foreign.Chain{Origin: foreign.NFTables, Family: "inet", Table: name, Name: "x"})
			})
		}
		for _, name := range u.Links {
			traces = append(traces, func(f *doctor.Facts) { f.Links = append(f.Links, foreign.Link{Name: name}) })
		}
		over, beside := u.Bits&^mark.KubeProxy|0x3, ^u.Bits&^mark.KubeProxy
		for i, trace := range traces {
			f := healthy(t, over)
			trace(&f)
			if u.Name == "kube-proxy" { // no mask can have its bits
				if names := found(f); len(names) != 0 {
					t.Errorf("%s, trace %d: %q", u.Name, i, names)
				}
				continue
			}
			only(t, f, "mark-users", u.Name, fmt.Sprintf("%#x", u.Bits), fmt.Sprintf("%#x", over))
			f = healthy(t, beside)
			trace(&f)
			if names := found(f); len(names) != 0 {
				t.Errorf("%s beside mask %#x: %q", u.Name, beside, names)
			}
		}
	}
}

// In the chains of a user that says by rules which bits it has, those count: a
// FelixConfiguration may have given Calico others.
func TestUserWithOtherBits(t *testing.T) {
	chain := foreign.Chain{Origin: foreign.NFTables, Family: "ip", Table: "mangle", Name: "cali-PREROUTING"}
	for bits, mask := range map[uint32]uint32{0xff000000: 0x00ff0000, 0x00ff0000: 0xff000000} {
		f := healthy(t, mask)
		f.Chains = []foreign.Chain{chain}
		f.Rules = []foreign.Rule{{Chain: chain, Handle: 7, Writes: []foreign.Write{{Field: foreign.PacketMark, Bits: bits, Text: "MARK"}}}}
		if names := found(f); len(names) != 0 {
			t.Errorf("Calico with %#x beside %#x: %q", bits, mask, names)
		}
		f = healthy(t, bits)
		f.Chains = []foreign.Chain{chain}
		f.Rules = []foreign.Rule{{Chain: chain, Handle: 7, Writes: []foreign.Write{{Field: foreign.PacketMark, Bits: bits, Text: "MARK"}}}}
		only(t, f, "mark-users", "Calico", "rule 7 of chain ip mangle cali-PREROUTING")
	}
}

// The mask that is proposed has none of the bits of anybody who was seen.
func TestProposedMask(t *testing.T) {
	f := healthy(t, 0xffff0000)
	f.State.Records = nil
	f.Links = []foreign.Link{{Name: "tailscale0"}, {Name: "kubespan"}}
	fix := only(t, f, "mark-users", "Tailscale").Fix
	m := regexp.MustCompile(`"iptablesMarkMask":"(0x[0-9a-f]+)"`).FindStringSubmatch(fix)
	if m == nil {
		t.Fatal(fix)
	}
	mask, err := mark.ParseMask(m[1])
	if err != nil || mask&(0xff0000|0x60|mark.KubeProxy) != 0 {
		t.Errorf("%#x, %v", mask, err)
	}
	f.Links = append(f.Links, foreign.Link{Name: "cilium_host"})
	f.Chains = []foreign.Chain{{Origin: foreign.Legacy, Family: "ip", Table: "nat", Name: "CNI-HOSTPORT-DNAT"}}
	for _, x := range doctor.Examine(f) { // one bit is left
		if !strings.HasPrefix(x.Fix, "# no two bits are free") {
			t.Errorf("%+v", x)
		}
	}
}

// What a node cannot be brought to in a test.
func TestRare(t *testing.T) {
	f := healthy(t, 0x30000)
	f.State.IDs = 2
	runs := f.Daemon
	f.Daemon, f.DaemonRuns = nil, false
	if x := only(t, f, "ids", "2 of the 2", "kubectl drain", "iptablesMarkMask"); x.Severity != doctor.Error {
		t.Errorf("%+v", x)
	}
	f.Daemon, f.DaemonRuns = runs, true
	if x := only(t, f, "ids", "2 of the 2", "iptablesMarkMask"); strings.Contains(x.Fix, "drain") {
		t.Errorf("podmarkd moves the endpoints: %s", x.Fix)
	}
	f = healthy(t, 0x00ff0000) // 254 endpoints
	for ids, want := range map[int]int{1: 0, 228: 0, 229: 1, 254: 1} {
		f.State.IDs = ids
		if got := len(found(f)); got != want {
			t.Errorf("%d of 254 IDs: %d findings, want %d", ids, got, want)
		}
	}
	f = healthy(t, 0xffff0000)
	f.Tracked = 90
	only(t, f, "conntrack-table", "sysctl -w net.netfilter.nf_conntrack_max=200")
	f.Tracks = 0 // no limit
	if names := found(f); len(names) != 0 {
		t.Errorf("%q", names)
	}
	f = healthy(t, 0xffff0000)
	f.Daemon.LastReconcile = f.Now.Add(-61 * time.Second)
	only(t, f, "podmarkd", "fuser -k -KILL /run/podmark/daemon.lock", "every 10s")
	f = healthy(t, 0xffff0000)
	f.PortsInUse = append(f.PortsInUse, 40000)
	only(t, f, "node-ports", "40000", `"kubeNodePortRanges":["30000-32767","40000-40000"]`)
	f.Daemon.Ports = agent.Decision{Source: "--node-port-ranges", Configured: []desired.PortRange{{First: 30000, Last: 32767}}}
	if x := only(t, f, "node-ports", "# have --node-port-ranges say 30000-32767,40000-40000"); !strings.HasPrefix(x.Fix, "# ") {
		t.Errorf("a second podmarkd does not start beside one that runs: %s", x.Fix)
	}
	f = healthy(t, 0xffff0000)
	f.Sysctls[0].Value = ""
	only(t, f, "ipvs-conntrack", "modprobe ip_vs && sysctl -w net.ipv4.vs.conntrack=1")
	f = healthy(t, 0xffff0000)
	f.Sysctls = append(f.Sysctls, agent.Sysctl{Name: "net.ipv4.conf.all.accept_source_route", Want: "0", Value: "1"})
	only(t, f, "source-route", "sysctl -w net.ipv4.conf.all.accept_source_route=0")
}

// A parameter that lets an ID out is found where an ID is.
func TestReflects(t *testing.T) {
	const reflect4, reflect6, accept = "net.ipv4.fwmark_reflect", "net.ipv6.fwmark_reflect", "net.ipv4.tcp_fwmark_accept"
	for _, tt := range []struct {
		kind config.Kind
		ipvs bool
		want []string
	}{
		{config.NFTables, true, []string{reflect4, reflect6}},
		{config.NFTables, false, nil},
		{config.IPTablesNFT, true, []string{reflect4, reflect6, accept}},
		{config.IPTablesLegacy, false, []string{reflect4, reflect6, accept}},
	} {
		f := healthy(t, 0xffff0000)
		f.State.Kind, f.Mode.IPVS, f.Reflects = tt.kind, tt.ipvs, []string{reflect4, reflect6, accept}
		var got []string
		for _, x := range doctor.Examine(f) {
			if name, ok := strings.CutPrefix(x.Fix, "sysctl -w "); ok && x.Check == "mark-sysctls" && x.Severity == doctor.Warning {
				name, _, _ = strings.Cut(name, "=0")
				got = append(got, name)
			}
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s, IPVS %t: %q, want %q", tt.kind, tt.ipvs, got, tt.want)
		}
	}
}

// What could not be read is said, with the checks that needed it.
func TestUnread(t *testing.T) {
	for _, part := range []doctor.Part{
		doctor.PartState, doctor.PartLeaked, doctor.PartKernel, doctor.PartDaemon, doctor.PartConflists, doctor.PartServices,
		doctor.PartSysctls, doctor.PartLinks, doctor.PartNFTables, doctor.PartLegacy, doctor.PartLookups, doctor.PartConntrack,
	} {
		f := healthy(t, 0xffff0000)
		f.Unread = []doctor.Unread{{Part: part, Err: errors.New("for a reason"), Fix: "do this"}}
		x := only(t, f, doctor.NotChecked, string(part), "for a reason", "do this")
		if _, checks, _ := strings.Cut(x.Why, ": "); checks == "" || x.Severity != doctor.Unknown {
			t.Errorf("%s: no check needs it: %+v", part, x)
		}
	}
}

// Every finding says all it should, and no two checks have one name.
func TestChecks(t *testing.T) {
	names := map[string]bool{doctor.NotChecked: true}
	for _, c := range doctor.Checks() {
		if names[c.Name] || c.Finds == "" || !regexp.MustCompile(`^[a-z-]+$`).MatchString(c.Name) {
			t.Errorf("%+v", c)
		}
		names[c.Name] = true
	}
}

// Flows that were judged may be in flowtables; those that were not are found with whose
// flowtables may have them, and how their owners are told to have none.
func TestOffload(t *testing.T) {
	f := healthy(t, 0xffff0000)
	f.State.Records[0].HostVeth = "veth1"
	f.Flowtables = []flowtable.Flowtable{
		{Family: "inet", Table: "firewalld", Name: "fastpath", Devices: []string{"veth1", "eth0"}},
		{Family: "ip", Table: "calico", Name: "ft", Devices: []string{"veth1"}},
		{Family: "ip6", Table: "calico", Name: "ft", Devices: []string{"veth1"}},
		{Family: "inet", Table: "lan", Name: "f", Devices: []string{"eth1", "eth2"}},
	}
	if list := doctor.Examine(f); len(list) != 0 {
		t.Errorf("%+v", list)
	}
	f.Unjudged = 3
	found := only(t, f, "flowtable", "3 live connections", "inet firewalld fastpath, ip calico ft, ip6 calico ft", "NftablesFlowtable=off", "nftablesFlowTableOffload")
	if found.Severity != doctor.Error || strings.Contains(found.What+found.Fix, "lan") || strings.Count(found.Fix, "kubectl") != 1 {
		t.Errorf("%+v", found)
	}
	f.Flowtables = f.Flowtables[3:]
	only(t, f, "flowtable", "inet lan f", "nft list table inet lan")
}

// No fix opens the node, takes something of another program away, or is for a kernel that
// cannot: each finding whose plain fix would, with what must be in its fix, and what must not.
func TestNoHarm(t *testing.T) {
	kernel := errors.New("no nf_tables here")
	wrong := func(f *doctor.Facts, entry string) {
		n := &f.Networks[0]
		n.Entry = []byte(entry)
		n.Content = fmt.Appendf(nil, `{"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "ptp", "ipam": {"type": "host-local"}}, %s]}`, entry)
		n.Config, n.Err = config.ParseEntry(n.Entry, "net", "1.0.0")
	}
	theirs := foreign.Rule{
		Chain:    foreign.Chain{Origin: foreign.NFTables, Family: "ip", Table: "filter", Name: "INPUT"},
		Places:   []foreign.Place{{Hook: foreign.Input}},
		Compares: []foreign.Compare{{Field: foreign.PacketMark, Mask: foreign.All, Value: 100}},
	}
	for name, tt := range map[string]struct {
		do    func(*doctor.Facts)
		check string
		has   string
		not   string
	}{
		"node.json is damaged": {func(f *doctor.Facts) { f.State.NodeDamaged = kernel }, "state", "kubectl drain", ""},
		"the state is lost": {func(f *doctor.Facts) {
			f.State = doctor.State{}
			f.Chains = []foreign.Chain{{Origin: foreign.NFTables, Family: "inet", Table: "podmark", Name: "forward"}}
		}, "state", "kubectl drain", ""},
		"the only conflist cannot be read": {func(f *doctor.Facts) {
			f.Networks, f.ActiveErr = nil, conflist.ErrNone
			f.Skipped = []conflist.Skipped{{Name: "10-net.conflist", Reason: kernel}}
		}, "conflist", "# there is no other", "mv "},
		"another one can": {func(f *doctor.Facts) { f.Skipped = []conflist.Skipped{{Name: "00-x.conflist", Reason: kernel}} }, "conflist", "mv ", ""},
		"another one can, without podmark": {func(f *doctor.Facts) {
			f.Networks[0].Entry, f.Skipped = nil, []conflist.Skipped{{Name: "00-x.conflist", Reason: kernel}}
		}, "conflist", "# fix", "mv "},
		"the other one is of a single plugin": {func(f *doctor.Facts) {
			f.Networks, f.ActiveErr, f.Active.Name = nil, conflist.ErrPlain, "10-a.conf"
			f.Skipped = []conflist.Skipped{{Name: "00-x.conflist", Reason: kernel}}
		}, "conflist", "# fix", "mv "},
		"Multus' own cannot be read": {func(f *doctor.Facts) {
			f.Skipped = []conflist.Skipped{{Name: "00-multus.conf", Reason: kernel, Multus: true}}
		}, "conflist", "# fix", "mv "},
		"what Multus may call cannot be read": {func(f *doctor.Facts) {
			f.Active.Multus, f.Skipped = "10-multus.conf", []conflist.Skipped{{Name: "00-x.conflist", Reason: kernel}}
		}, "conflist", "# fix", "mv "},
		"what Multus calls cannot be read": {func(f *doctor.Facts) {
			f.Networks, f.ActiveErr = nil, conflist.ErrMultus
			f.Skipped = []conflist.Skipped{{Name: "00-x.conflist", Reason: kernel}}
		}, "conflist", "# fix", "mv "},
		"what Multus calls is of a single plugin": {func(f *doctor.Facts) {
			f.Networks, f.ActiveErr = nil, conflist.ErrPlain
			f.Active.Multus, f.Active.File = "00-multus.conf", conflist.File{Name: "10-a.conf", Content: []byte(`{"name": "a", "type": "ptp"}`)}
		}, "conflist", "# make a .conflist", "mv "},
		"Multus, whose network is not known": {func(f *doctor.Facts) {
			f.Networks, f.ActiveErr = nil, conflist.ErrMultus
		}, "conflist", "--cni-conf-name", "mv "},
		"policy is wrong": {func(f *doctor.Facts) {
			f.State.Records = nil
			wrong(f, `{"type": "podmark", "policy": "kubernets"}`)
		}, "configuration", "# fix", "printf"},
		"policy is wrong where the API was followed": {func(f *doctor.Facts) {
			f.State.Kubernetes = true
			wrong(f, `{"type": "podmark", "policy": "kubernets", "failOpen": true}`)
		}, "configuration", `{"failOpen": true, "policy": "kubernetes", "type": "podmark"}`, ""},
		"policy is wrong where pods are policed by files": {func(f *doctor.Facts) {
			f.State.Records[0].Policed = true
			wrong(f, `{"type": "podmark", "policy": "file"}`)
		}, "configuration", `"policy": "files"`, ""},
		"labels are wrong": {func(f *doctor.Facts) { wrong(f, `{"type": "podmark", "args": {"cni": {"labels": 7}}}`) }, "configuration", "# fix", "printf"},
		"the mask is wrong": {func(f *doctor.Facts) {
			f.State.Records[0].Policed = true
			wrong(f, `{"type": "podmark", "iptablesMarkMask": 1}`)
		}, "configuration", `"iptablesMarkMask": "0xffff0000"`, ""},
		"nftables cannot, the variant": {func(f *doctor.Facts) {
			f.State.Kind, f.State.NFTables = config.IPTablesLegacy, kernel
			f.Chains = []foreign.Chain{{Origin: foreign.NFTables, Family: "ip", Table: "mangle", Name: "KUBE-IPTABLES-HINT"}}
		}, "iptables-variant", "# drain", "printf"},
		"nftables can, the variant": {func(f *doctor.Facts) {
			f.State.Kind = config.IPTablesLegacy
			f.Chains = []foreign.Chain{{Origin: foreign.NFTables, Family: "ip", Table: "mangle", Name: "KUBE-IPTABLES-HINT"}}
		}, "iptables-variant", `"backend":"nftables"`, ""},
		"nftables cannot, a comparison": {func(f *doctor.Facts) {
			f.State.Kind, f.State.NFTables = config.IPTablesNFT, kernel
			f.Rules = []foreign.Rule{theirs}
		}, "mark-compares", "# have whoever wrote it", "printf"},
		"nftables can, a comparison": {func(f *doctor.Facts) {
			f.State.Kind = config.IPTablesNFT
			f.Rules = []foreign.Rule{theirs}
		}, "mark-compares", `"backend":"nftables"`, ""},
		"more IDs than others leave": {func(f *doctor.Facts) {
			f.State.IDs, f.Reserved = 65534, 0xf0000000
		}, "ids", "# no mask", "printf"},
	} {
		f := healthy(t, 0xffff0000)
		tt.do(&f)
		if names := found(f); !slices.Equal(names, []string{tt.check}) {
			t.Errorf("%s: found by %q", name, names)
			continue
		}
		if fix := doctor.Examine(f)[0].Fix; !strings.Contains(fix, tt.has) || tt.not != "" && strings.Contains(fix, tt.not) {
			t.Errorf("%s: %s", name, fix)
		}
	}
}

// The mask that is proposed has no bits that Calico or a plugin is configured to have, nor
// those that a program has by default whose rules have said less so far.
func TestProposedMaskOfConfigured(t *testing.T) {
	f := healthy(t, 0xff0000)
	f.State.Records = nil
	f.Links, f.Reserved = []foreign.Link{{Name: "tailscale0"}}, 0xf0000000
	m := regexp.MustCompile(`"iptablesMarkMask":"(0x[0-9a-f]+)"`).FindStringSubmatch(only(t, f, "mark-users", "Tailscale").Fix)
	if m == nil {
		t.Fatal("no mask is proposed")
	}
	if mask, err := mark.ParseMask(m[1]); err != nil || mask&0xf0ff0000 != 0 {
		t.Errorf("%#x, %v", mask, err)
	}
}

// Plugins of service meshes want to be last, and may: they give no address.
func TestOrder(t *testing.T) {
	for _, tt := range []struct {
		behind string
		found  bool
	}{
		{`{"type": "istio-cni"}`, false},
		{`{"type": "linkerd-cni"}, {"type": "istio-cni"}`, false},
		{`{"type": "portmap"}`, true},
		{`{"type": "istio-cni"}, {"type": "portmap"}`, true},
	} {
		f := healthy(t, 0xffff0000)
		n := &f.Networks[0]
		n.Content = fmt.Appendf(nil, `{"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "ptp", "ipam": {"type": "host-local"}}, %s, %s]}`, n.Entry, tt.behind)
		var err error
		if n.Network, err = conflist.Parse(n.Content); err != nil {
			t.Fatal(err)
		}
		if got := found(f); slices.Contains(got, "conflist-order") != tt.found || len(got) > 1 {
			t.Errorf("behind podmark %s: %q", tt.behind, got)
		}
	}
}
