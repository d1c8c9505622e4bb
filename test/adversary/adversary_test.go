package adversary_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/podmark/podmark/test/bpffs"
	"github.com/podmark/podmark/test/lab"
	"github.com/podmark/podmark/test/needs"
	"github.com/podmark/podmark/test/share"
)

func TestMain(m *testing.M) {
	bpffs.Main()
	os.Exit(m.Run())
}

// attack is one way to get something past a policy, with the traffic of the same shape
// that must pass.
type attack struct {
	name string
	// at are the attachments it is for; all of them when nil.
	at []attachment
	// family is the only one it is for; when 0 it is for each. With atOnce it is run once, and
	// looks at both itself: for what takes long to prepare.
	family lab.Family
	atOnce bool
	// lab is what it needs that only the lab's kernel is sure to have; empty for any kernel.
	lab string
	run func(*scene)
}

// attachment is how the pods of a node are attached.
type attachment string

const (
	routed  attachment = "routed"  // a veth each, with a route to it
	bridged attachment = "bridged" // a bridge
	vlan    attachment = "vlan"    // a bridge that filters VLANs
	vrf     attachment = "vrf"     // routed, with everything in a VRF
)

var (
	attachments = []attachment{routed, bridged, vlan, vrf}
	onBridge    = []attachment{bridged, vlan}
	outOfVRF    = []attachment{routed, bridged, vlan}
)

// inLab reports whether only the lab's kernel is sure to have what the attachment needs.
func (a attachment) inLab() bool { return a == vlan || a == vrf }

// attacks are all there are.
var attacks = slices.Concat(controls, sources, changes, bridgeChanges, filtering, bridgePorts, discovery, tunnels, streams, marks, services, headers, checksums)

// runs reports whether an attack is one for an attachment, in the lab or out of it.
func (a attack) runs(at attachment, inLab bool) bool {
	return (a.at == nil || slices.Contains(a.at, at)) && (a.lab != "" || at.inLab()) == inLab
}

// TestAttacks is for every kernel.
func TestAttacks(t *testing.T) {
	t.Parallel()
	if needs.Lab() {
		t.Skip("this takes any kernel: go test runs it out of the lab")
	}
	needs.All(t, needs.Root, needs.Netns, needs.BridgeNetfilter, needs.Command("nft", "list", "ruleset"), needs.VXLAN)
	onNodes(t, attachments...)
}

// TestAttacksInLab and TestVRFInLab are for what TestAttacks leaves out.
func TestAttacksInLab(t *testing.T) {
	t.Parallel()
	needLab(t)
	onNodes(t, routed, bridged, vlan)
}

func TestVRFInLab(t *testing.T) {
	t.Parallel()
	needLab(t)
	onNodes(t, vrf)
}

func needLab(t *testing.T) {
	t.Helper()
	if !needs.Lab() {
		t.Skip("this takes the lab's kernel: scripts/lab-test.sh has it")
	}
	needs.All(t, needs.VRF, needs.VLANFiltering, needs.VXLAN)
}

// onNodes makes one node for each backend and attachment that has attacks, and attacks it.
func onNodes(t *testing.T, attachments ...attachment) {
	lab.Backends(t, func(t *testing.T, backend lab.Backend) {
		for _, at := range attachments {
			these := slices.DeleteFunc(slices.Clone(attacks), func(a attack) bool { return !a.runs(at, needs.Lab()) })
			if len(these) == 0 {
				continue
			}
			t.Run(string(at), func(t *testing.T) {
				t.Parallel()
				c := newCast(t, backend, at)
				for _, a := range these {
					t.Run(strings.ReplaceAll(a.name, " ", "-"), func(t *testing.T) {
						if a.atOnce {
							c.play(t, lab.V4, a)
							return
						}
						families := lab.Families[:]
						if a.family != 0 {
							families = []lab.Family{a.family}
						}
						for _, f := range share.OneOf(t, families) {
							t.Run(fmt.Sprint(f), func(t *testing.T) { c.play(t, f, a) })
						}
					})
				}
			})
		}
	})
}

// Each attack has a name of its own, and runs once wherever it is for: out of the lab or in
// it.
func TestTable(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, a := range attacks {
		if a.name == "" || a.run == nil || seen[a.name] {
			t.Errorf("attack %q is incomplete, or there are two", a.name)
		}
		seen[a.name] = true
		for _, at := range attachments {
			wanted := a.at == nil || slices.Contains(a.at, at)
			if here, there := a.runs(at, false), a.runs(at, true); wanted != (here != there) {
				t.Errorf("attack %q, %s: on any kernel %v, in the lab %v", a.name, at, here, there)
			}
		}
	}
}
