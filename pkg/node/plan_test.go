package node

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/mark"
	"github.com/podmark/podmark/pkg/state"
)

func with[T any](v T, change func(*T)) T { change(&v); return v }

// planned is the node.json of a node that is in sync.
func planned(change func(*nodeFile)) nodeFile {
	f := nodeFile{
		Mask: 0xffff0000, Epoch: 3, Backend: config.NFTables, Log: logByNFLOG, Indexed: true, Synced: true, PoliciesHash: "1",
		Policies: webPolicy, Tunnels: &desired.Tunnels{}, NodePorts: []desired.PortRange{{First: 30000, Last: 32767}},
	}
	if change != nil {
		change(&f)
	}
	return f
}

func TestPlanSettings(t *testing.T) {
	was := planned(func(f *nodeFile) { f.Has = nil })
	same := Settings{NodePorts: was.NodePorts}
	for name, tt := range map[string]struct {
		next     nodeFile // what the choice of a backend has made of was
		settings Settings
		want     nodeFile
		changed  bool
	}{
		"the same":        {was, same, was, false},
		"tunnels":         {was, with(same, func(s *Settings) { s.AllowTunnels = true }), planned(func(f *nodeFile) { f.AllowTunnels = true }), true},
		"other NodePorts": {was, Settings{}, planned(func(f *nodeFile) { f.NodePorts = nil }), true},
		"another backend": {planned(func(f *nodeFile) { f.Backend = config.IPTablesNFT }), same, planned(func(f *nodeFile) { f.Backend, f.Log = config.IPTablesNFT, "" }), true},
		"auto was asked":  {planned(func(f *nodeFile) { f.Auto = config.NFTables }), same, planned(func(f *nodeFile) { f.Auto = config.NFTables }), true},
		"bridges can do":  {planned(func(f *nodeFile) { f.Bridge = bridgeByNFTables }), same, planned(func(f *nodeFile) { f.Bridge = bridgeByNFTables }), true},
		"what it logs is kept": {
			planned(func(f *nodeFile) { f.Auto, f.LogLacks = config.NFTables, "x" }), same,
			planned(func(f *nodeFile) { f.Auto, f.LogLacks = config.NFTables, "x" }), true,
		},
	} {
		got, changed := planSettings(was, tt.next, tt.settings)
		if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(nodeFile{}), cmpopts.EquateEmpty()); diff != "" || changed != tt.changed {
			t.Errorf("%s: changed %t\n%s", name, changed, diff)
		}
	}
}

func TestPlanAdd(t *testing.T) {
	layout := layoutOf(0x00070000)
	first, second := web.Addresses[:1], web.Addresses[1:]
	owner := func(r attachment.Record, id mark.ID, addrs ...[]netip.Addr) attachment.Record {
		r.ID, r.Committed, r.Addresses = id, true, nil
		for _, a := range addrs {
			r.Addresses = append(r.Addresses, a...)
		}
		return r
	}
	former := owner(web, 2, web.Addresses)
	moved := owner(web, 2, late.Addresses)
	none := owner(web, 2)
	damaged := owner(web, 200, web.Addresses)
	for name, tt := range map[string]struct {
		r       attachment.Record
		running bool
		former  *attachment.Record
		owners  []attachment.Record
		want    addPlan
	}{
		"routed":                        {r: web, want: addPlan{block: true, resetFirst: true}},
		"on a bridge":                   {r: bridgedWeb, want: addPlan{block: true}},
		"running":                       {r: web, running: true},
		"running on a bridge":           {r: bridgedWeb, running: true},
		"again":                         {r: bridgedWeb, former: &former, want: addPlan{before: []attachment.Record{former}, block: true}},
		"again with other addresses":    {r: bridgedWeb, former: &moved, want: addPlan{before: []attachment.Record{moved}, displaces: true, block: true}},
		"again, and it had lost all":    {r: bridgedWeb, former: &none, want: addPlan{block: true}},
		"again, and it was damaged":     {r: bridgedWeb, former: &damaged, want: addPlan{block: true}},
		"a damaged one has its address": {r: bridgedWeb, owners: []attachment.Record{damaged}, want: addPlan{block: true}},
		"takes all of another's": {
			r: bridgedWeb, owners: []attachment.Record{owner(other, 3, web.Addresses)},
			want: addPlan{before: []attachment.Record{owner(other, 3, web.Addresses)}, displaces: true, block: true},
		},
		"takes one of another's": {
			r:      with(bridgedWeb, func(r *attachment.Record) { r.Addresses = first }),
			owners: []attachment.Record{owner(other, 3, first, second)},
			want: addPlan{
				before: []attachment.Record{owner(other, 3, first, second)}, kept: []attachment.Record{owner(other, 3, second)},
				displaces: true, block: true,
			},
		},
		"takes one of another's whose ADD never ended": {
			r:      with(bridgedWeb, func(r *attachment.Record) { r.Addresses = first }),
			owners: []attachment.Record{with(owner(other, 3, first, second), func(r *attachment.Record) { r.Committed = false })},
			want: addPlan{
				before:    []attachment.Record{with(owner(other, 3, first, second), func(r *attachment.Record) { r.Committed = false })},
				displaces: true, block: true,
			},
		},
	} {
		got := planAdd(layout, tt.r, tt.running, tt.former, tt.owners)
		if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(addPlan{}), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Errorf("%s:\n%s", name, diff)
		}
	}
}

func TestSharersOf(t *testing.T) {
	prefix, another := netip.MustParsePrefix("172.30.0.0/16"), netip.MustParsePrefix("172.31.0.0/16")
	from := func(r attachment.Record, p ...netip.Prefix) attachment.Record { r.AllowedSources = p; return r }
	all := []attachment.Record{from(web, prefix), from(other, prefix, another), from(late, another)}
	for name, tt := range map[string]struct {
		leaving, known []attachment.Record
		want           []attachment.Record
	}{
		"one shares":          {all[:1], all[:1], all[1:2]},
		"who shares is known": {all[:1], all[:2], nil},
		"two share":           {all[1:2], all[1:2], []attachment.Record{all[0], all[2]}},
		"none to share":       {[]attachment.Record{web}, nil, nil},
	} {
		got := sharersOf(all, tt.leaving, tt.known)
		if diff := cmp.Diff(tt.want, got, cmpopts.EquateEmpty(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
			t.Errorf("%s:\n%s", name, diff)
		}
	}
}

func TestPlanPolicies(t *testing.T) {
	pods := []attachment.Record{with(web, func(r *attachment.Record) { r.ID = 2 }), with(other, func(r *attachment.Record) { r.ID = 3 })}
	relabelled := with(pods[0], func(r *attachment.Record) { r.Labels = map[string]string{"app": "other"} })
	wider := isolates("web", "other", "late")
	for name, tt := range map[string]struct {
		was        func(*nodeFile)
		update     PolicyUpdate
		restricted bool
		epoch      uint32
	}{
		"nothing":                  {update: PolicyUpdate{}, epoch: 3},
		"a rule comes":             {update: PolicyUpdate{Policies: &wider}, epoch: 3},
		"all go":                   {update: PolicyUpdate{Policies: &desired.Policies{}}, epoch: 3},
		"another isolates":         {update: PolicyUpdate{Policies: &otherPolicy}, restricted: true, epoch: 4},
		"labels that a policy has": {update: PolicyUpdate{Records: []attachment.Record{relabelled}}, epoch: 3},
		"a peer goes":              {update: PolicyUpdate{Removed: peersOf(webPolicy, elsewhere)}, restricted: true, epoch: 4},
		"a peer comes":             {update: PolicyUpdate{Added: peersOf(webPolicy, elsewhere)}, epoch: 3},
		"a peer comes as its rule goes": {
			update: PolicyUpdate{Policies: &desired.Policies{}, Added: peersOf(webPolicy, elsewhere)}, restricted: true, epoch: 4,
		},
		"nothing is known":            {update: PolicyUpdate{Unknown: true}, restricted: true, epoch: 4},
		"a change was not finished":   {was: func(f *nodeFile) { f.Synced = false }, update: PolicyUpdate{Policies: &wider}, restricted: true, epoch: 4},
		"the last epoch was in force": {was: func(f *nodeFile) { f.Epoch = 0xffff }, update: PolicyUpdate{Unknown: true}, restricted: true, epoch: 1},
		"the API takes over":          {update: PolicyUpdate{Policies: &webPolicy, kubernetes: true}, epoch: 3},
		"the API has taken over":      {was: func(f *nodeFile) { f.Kubernetes = true }, update: PolicyUpdate{Policies: &webPolicy}, epoch: 3},
	} {
		was := planned(tt.was)
		p, err := planPolicies(was, pods, tt.update)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if p.restricted != tt.restricted || p.file.Epoch != tt.epoch || p.to.Epoch != tt.epoch || p.from.Epoch != was.Epoch {
			t.Errorf("%s: restricted %t, epoch %d, to epoch %d", name, p.restricted, p.file.Epoch, p.to.Epoch)
		}
		if want := was.Kubernetes || tt.update.kubernetes; p.file.Kubernetes != want {
			t.Errorf("%s: from the API is %t", name, p.file.Kubernetes)
		}
		policies := webPolicy
		if tt.update.Policies != nil {
			policies = *tt.update.Policies
		}
		if diff := cmp.Diff(policies, p.file.Policies); diff != "" || p.policies != (tt.update.Policies != nil) {
			t.Errorf("%s: to be written %t\n%s", name, p.policies, diff)
		}
		if len(p.from.Endpoints) != len(pods) || len(p.to.Endpoints) != len(pods) {
			t.Errorf("%s: from %d endpoints to %d", name, len(p.from.Endpoints), len(p.to.Endpoints))
		}
	}
}

// An attachment that has lost an address does not get it back with its new labels.
func TestReplacedKeepsAddresses(t *testing.T) {
	is := with(web, func(r *attachment.Record) { r.Addresses = web.Addresses[:1] })
	got := replaced([]attachment.Record{is, other}, []attachment.Record{relabelled})
	if len(got) != 2 || len(got[0].Addresses) != 1 || got[0].Labels["app"] != "other" || got[1].Key != other.Key {
		t.Errorf("replaced: %v", got)
	}
}

func TestPlanSurroundings(t *testing.T) {
	vxlan := desired.Tunnels{UDPPorts: []uint16{4789}}
	off := desired.Unfiltered{IPv4: true}
	for name, tt := range map[string]struct {
		was   func(*nodeFile)
		found surroundings
		want  repairPlan // without its file
		epoch uint32
	}{
		"the same":                       {epoch: 3},
		"a tunnel comes":                 {found: surroundings{tunnels: vxlan}, want: repairPlan{changed: true, restricted: true, rewrite: true}, epoch: 4},
		"a tunnel goes":                  {was: func(f *nodeFile) { f.Tunnels = &vxlan }, want: repairPlan{changed: true, rewrite: true}, epoch: 3},
		"an older podmark knew none":     {was: func(f *nodeFile) { f.Tunnels = nil }, want: repairPlan{changed: true, rewrite: true}, epoch: 3},
		"a bridge passes frames unseen":  {found: surroundings{unfiltered: off}, want: repairPlan{changed: true, rewrite: true}, epoch: 3},
		"the bridge is filtered by now":  {was: func(f *nodeFile) { f.Unfiltered = off }, want: repairPlan{changed: true, rewrite: true}, epoch: 3},
		"a tunnel comes in the last one": {was: func(f *nodeFile) { f.Epoch = 0xffff }, found: surroundings{tunnels: vxlan}, want: repairPlan{changed: true, restricted: true, rewrite: true}, epoch: 1},
	} {
		p, err := planSurroundings(planned(tt.was), tt.found)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if p.changed != tt.want.changed || p.restricted != tt.want.restricted || p.rewrite != tt.want.rewrite || p.file.Epoch != tt.epoch {
			t.Errorf("%s: changed %t, restricted %t, rewrite %t, epoch %d", name, p.changed, p.restricted, p.rewrite, p.file.Epoch)
		}
		if p.file.Tunnels == nil || !sameTunnels(*p.file.Tunnels, tt.found.tunnels) || p.file.Unfiltered != tt.found.unfiltered || p.file.Synced == p.changed {
			t.Errorf("%s: %v, %v, synced %t", name, p.file.Tunnels, p.file.Unfiltered, p.file.Synced)
		}
	}
}

func TestPlanPorts(t *testing.T) {
	ranges := []desired.PortRange{{First: 80, Last: 90}}
	sctp := []desired.PortRange{{First: 30000, Last: 32767}}
	for name, tt := range map[string]struct {
		backend          config.Kind
		was, ports       *Ports
		changed, rewrite bool
	}{
		"not known":         {backend: config.IPTablesNFT},
		"the same":          {backend: config.IPTablesNFT, was: &Ports{Ranges: ranges}, ports: &Ports{Ranges: ranges}},
		"another source":    {backend: config.IPTablesNFT, was: &Ports{Ranges: ranges, SCTP: sctp}, ports: &Ports{Ranges: ranges, SCTP: sctp, Source: "kube-proxy"}, changed: true},
		"others of TCP":     {backend: config.IPTablesNFT, was: &Ports{SCTP: sctp}, ports: &Ports{Ranges: ranges, SCTP: sctp}, changed: true},
		"others of SCTP":    {backend: config.IPTablesNFT, was: &Ports{SCTP: sctp}, ports: &Ports{SCTP: ranges}, changed: true, rewrite: true},
		"SCTP in a set":     {backend: config.NFTables, was: &Ports{SCTP: sctp}, ports: &Ports{SCTP: ranges}, changed: true},
		"the first, as set": {backend: config.IPTablesLegacy, ports: &Ports{SCTP: sctp}, changed: true},
		"the first, others": {backend: config.IPTablesLegacy, ports: &Ports{SCTP: ranges}, changed: true, rewrite: true},
	} {
		p, err := planPorts(planned(func(f *nodeFile) { f.Backend, f.Ports = tt.backend, tt.was }), tt.ports)
		if err != nil || p.changed != tt.changed || p.rewrite != tt.rewrite || p.file.Synced == tt.rewrite {
			t.Errorf("%s: changed %t, rewrite %t, synced %t: %v", name, p.changed, p.rewrite, p.file.Synced, err)
		}
	}
}

// A way that cannot be gone to its end is not begun.
func TestPlanMask(t *testing.T) {
	records := func(ids ...mark.ID) (out []attachment.Record) {
		for i, id := range ids {
			out = append(out, with(routed("pod", byte(i)), func(r *attachment.Record) { r.ContainerID, r.ID = r.HostVeth, id }))
		}
		return out
	}
	for name, tt := range map[string]struct {
		former, layout uint32
		ids            []mark.ID
		steps          []uint32
		err            error
	}{
		"bits that nobody has":         {0x00070000, 0x00700000, []mark.ID{2, 3}, []uint32{0x00700000}, nil},
		"a mark comes to mean outside": {0x000f0000, 0x001e0000, []mark.ID{2, 3}, []uint32{0x000f0000, 0x001e0000}, nil},
		"too many":                     {0x000f0000, 0x00070000, []mark.ID{2, 3, 4, 5, 6, 7, 8, 9}, nil, state.ErrExhausted},
		"an ID that does not fit":      {0x00070000, 0x00700000, []mark.ID{9}, nil, state.ErrDamaged},
	} {
		plan, err := planMask(layoutOf(tt.former), layoutOf(tt.layout), records(tt.ids...))
		if !errors.Is(err, tt.err) || err != nil && plan != nil {
			t.Errorf("%s: %d steps, %v, want %v", name, len(plan), err, tt.err)
		}
		var steps []uint32
		for i, s := range plan {
			steps = append(steps, s.layout.Mask())
			for hash, id := range s.ids {
				if i > 0 && plan[i-1].ids[hash].To != id.From {
					t.Errorf("%s: step %d begins with ID %d, and the one before ends with %d", name, i, id.From, plan[i-1].ids[hash].To)
				}
			}
		}
		if tt.steps != nil && !cmp.Equal(tt.steps, steps) {
			t.Errorf("%s: steps %#x", name, steps)
		}
	}
}
