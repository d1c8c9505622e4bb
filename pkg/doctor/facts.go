package doctor

import (
	"encoding/json"
	"time"

	"github.com/podmark/podmark/pkg/agent"
	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/conflist"
	"github.com/podmark/podmark/pkg/dataplane/flowtable"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/foreign"
	"github.com/podmark/podmark/pkg/mark"
	"github.com/podmark/podmark/pkg/node"
	"github.com/podmark/podmark/pkg/runtimes"
)

// Part is something that is read as a whole, or not.
type Part string

// The parts.
const (
	PartState     Part = "the state directory"
	PartLeaked    Part = "what pods have left"
	PartKernel    Part = "podmark's share of the kernel"
	PartDaemon    Part = "podmarkd's status"
	PartRuntime   Part = "which directories the runtime reads"
	PartConflists Part = "the network configurations"
	PartServices  Part = "IPVS and the node's addresses"
	PartSysctls   Part = "kernel parameters"
	PartLinks     Part = Part(foreign.PartLinks)
	PartNFTables  Part = Part(foreign.PartNFTables)
	PartLegacy    Part = Part(foreign.PartLegacy)
	PartLookups   Part = Part(foreign.PartLookups)
	PartConntrack Part = "the size of conntrack"
	PartOffload   Part = "flows in flowtables"
)

// Unread is a part that could not be read, or not all of it.
type Unread struct {
	Part Part
	Err  error
	// Fix is the command that may help.
	Fix string
}

// Facts are what was read of a node. Where a part is in Unread, what it gives is
// zero or incomplete.
type Facts struct {
	Now      time.Time
	StateDir string
	// Given are the directories that were asked for, Endpoint the runtime: see cri.Said.
	Given    runtimes.Directories
	Endpoint string
	// Place is where the runtime looks, or PlaceErr why that is not known. Of it are ConfDir,
	// and BinDir, in which podmark's plugin is or would be; without it they are those that
	// were given.
	Place           runtimes.Place
	PlaceErr        error
	ConfDir, BinDir string
	ConfName        string // the conflist that was asked for; empty for the one that runtimes take
	Unread          []Unread
	State           State
	Daemon          *agent.Status // nil where none has ever run
	DaemonRuns      bool
	Sockets         map[string]error // where the plugin asks podmarkd, and why nobody answers
	Mode            agent.Mode
	PortsInUse      []uint16
	Sysctls         []agent.Sysctl
	Reflects        []string        // those of the marks of what the node sends that are on
	Active          conflist.Choice // the conflist that the node uses; with ErrPlain what it uses instead
	ActiveErr       error           // why there is none
	Skipped         []conflist.Skipped
	Networks        []Network // those with podmark, the active one first
	Lacking         []string  // plugins of the active conflist that none of the runtime's directories has
	Plugin          error     // why the plugin's file cannot be executed
	PluginMissing   bool
	// What others do to marks; what could not be read of it is in Unread of the facts.
	foreign.Report
	Tracked, Tracks uint64 // entries of conntrack, and how many there may be; 0 for no limit
	// Flowtables are those of the node, and Unjudged is how many flows they carry past the
	// hooks of which the policy in force may forbid some.
	Flowtables []flowtable.Flowtable
	Unjudged   int
	// configured are bits that plugins of the runtime's directory will use.
	configured uint32
}

// State is what is in the state directory, and what follows from it.
type State struct {
	// Ran is set where podmark has run.
	Ran       bool
	Layout    mark.Layout
	Kind      config.Kind
	NodePorts []desired.PortRange
	Records   []attachment.Record
	// Idle are the policies that select none of the Records.
	Idle []desired.IdlePolicy
	// Unapplied is set where pods want policies of files, and nobody has applied any.
	Unapplied bool
	// Kubernetes is set where the node has followed the Kubernetes API.
	Kubernetes bool
	IDs        int
	// NodeDamaged is about node.json, Damaged about attachments.
	NodeDamaged, Damaged error
	Leaked               node.Collected
	// Drifts is what others did to links of endpoints.
	Drifts []node.EndpointDrift
	// Missing is what the kernel lacks, Backend why nothing can enforce, NFTables why nftables
	// could not where iptables does.
	Missing, Backend, NFTables error
	// Unlogged is why what is dropped is not logged; empty where it is.
	Unlogged string
	// Alterable is why checksums are written where a pod likes; empty where they are not.
	Alterable string
}

// Network is a network whose pods podmark marks, or should.
type Network struct {
	// File is the path of the list, DropIn that of podmark's own file, if it has one.
	File, DropIn string
	conflist.Network
	Content []byte
	// Entry is podmark's, nil without one; Config what it says, if Err is nil.
	Entry  json.RawMessage
	Config config.Config
	Err    error
}

// reserved are bits that are not seen in use, and are configured to be.
func (f Facts) reserved() uint32 {
	bits := f.configured
	if f.Daemon != nil {
		if calico, err := mark.ParseMask(f.Daemon.FelixMask); err == nil {
			bits |= calico
		}
	}
	return bits
}

// mask is the mask in force, or the one that the next endpoint will have: without
// any, that of the conflist, or the one that it would be given.
func (f Facts) mask() mark.Layout {
	active, ok := f.active()
	switch now := f.State.Layout; {
	case ok && active.Err == nil && len(f.State.Records) == 0 && active.Config.Layout.Mask() != 0:
		return active.Config.Layout
	case now.Mask() != 0:
		return now
	}
	if free, any := f.Free(); ok && active.Err == nil && any {
		return free
	}
	layout, _ := mark.NewLayout(config.DefaultMask) // valid
	return layout
}

// active is the network that the node uses, if podmark is in it.
func (f Facts) active() (Network, bool) {
	if len(f.Networks) == 0 || f.ActiveErr != nil || f.Networks[0].Entry == nil {
		return Network{}, false
	}
	return f.Networks[0], true
}
