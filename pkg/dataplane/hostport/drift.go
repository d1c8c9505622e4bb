package hostport

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"

	"github.com/podmark/podmark/pkg/attachment"
)

// Link is what tells where a link is: its number, names, and the number of the link that
// it is enslaved to, 0 for none.
type Link struct {
	Index, Master int
	Name, Kind    string
	Group         uint32
}

// Links are those of a network namespace, by number.
type Links map[int]Link

// LinksOf are the links of a dump.
func LinksOf(list []netlink.Link) Links {
	out := make(Links, len(list))
	for _, l := range list {
		out[l.Attrs().Index] = linkOf(l)
	}
	return out
}

func linkOf(l netlink.Link) Link {
	a := l.Attrs()
	return Link{Index: a.Index, Master: a.MasterIndex, Name: a.Name, Kind: l.Type(), Group: a.Group}
}

// Find is the link of a number.
func (l Links) Find(index int) (Link, bool) {
	link, ok := l[index]
	return link, ok
}

// named is the link of a name.
func (l Links) named(name string) (Link, bool) {
	for _, link := range l {
		if link.Name == name {
			return link, true
		}
	}
	return Link{}, false
}

// Locate gives an endpoint of an older podmark, which noted names alone, the numbers of its
// links. One whose host veth is gone, or no more a port of the interface that it was, gets
// none: nothing comes in by a link of number 0, so that endpoint is closed.
func (l Links) Locate(e attachment.Endpoint) attachment.Endpoint {
	port, ok := l.named(e.HostVeth)
	if !ok || port.Kind != "veth" {
		return e
	}
	l3 := port
	if !e.Routed() {
		if l3, ok = l.named(e.L3Interface); !ok || port.Master != l3.Index {
			return e
		}
	}
	e.HostVethIndex, e.L3InterfaceIndex = port.Index, l3.Index
	return e
}

// Change is what another program did to an endpoint's links.
type Change string

// The changes.
const (
	// Gone: the host veth was deleted, or is in another network namespace.
	Gone Change = "gone"
	// Renamed: a link has another name than it had.
	Renamed Change = "renamed"
	// Moved: a link was enslaved to another one, or is no more enslaved.
	Moved Change = "moved"
	// Ungrouped: a routed host veth is not in podmark's device group any more.
	Ungrouped Change = "group"
)

// Changes lists them all.
func Changes() []Change { return []Change{Gone, Renamed, Moved, Ungrouped} }

// Drift is one way in which an endpoint's links are not as its record has them.
type Drift struct {
	Change Change `json:"change"`
	// Link is the name of the link now; of one that is gone, its last.
	Link string `json:"link"`
	// Was and Is are names of the link for Renamed, and of its master for Moved, where
	// empty is none.
	Was string `json:"was,omitempty"`
	Is  string `json:"is,omitempty"`
	// Group is the device group for Ungrouped.
	Group uint32 `json:"group,omitempty"`
}

func (d Drift) String() string {
	switch d.Change {
	case Gone:
		return fmt.Sprintf("host veth %q is gone", d.Link)
	case Renamed:
		return fmt.Sprintf("link %q was renamed to %q", d.Was, d.Is)
	case Ungrouped:
		return fmt.Sprintf("host veth %q is in device group %d, want %d", d.Link, d.Group, Group)
	}
	in := func(master string) string {
		if master == "" {
			return "nothing"
		}
		return fmt.Sprintf("%q", master)
	}
	return fmt.Sprintf("link %q is enslaved to %s, and was to %s", d.Link, in(d.Is), in(d.Was))
}

// Drifts compares an endpoint with the links that lookUp knows.
func Drifts(e attachment.Endpoint, lookUp func(index int) (Link, bool)) []Drift {
	find := func(index int) (Link, bool) {
		if index == 0 { // nothing has it
			return Link{}, false
		}
		return lookUp(index)
	}
	port, ok := find(e.HostVethIndex)
	if !ok {
		return []Drift{{Change: Gone, Link: e.HostVeth}}
	}
	var out []Drift
	compare := func(l Link, name string, master int, masterName string) {
		if l.Name != name {
			out = append(out, Drift{Change: Renamed, Link: l.Name, Was: name, Is: l.Name})
		}
		if l.Master == master {
			return
		}
		is := ""
		if m, ok := find(l.Master); ok {
			is = m.Name
		} else if l.Master != 0 {
			is = fmt.Sprintf("link %d", l.Master)
		}
		out = append(out, Drift{Change: Moved, Link: l.Name, Was: masterName, Is: is})
	}
	if !e.Routed() {
		compare(port, e.HostVeth, e.L3InterfaceIndex, e.L3Interface)
		if l3, ok := find(e.L3InterfaceIndex); ok {
			compare(l3, e.L3Interface, e.VRFIndex, e.VRF)
		}
	} else {
		compare(port, e.HostVeth, e.VRFIndex, e.VRF)
		if port.Group != Group {
			out = append(out, Drift{Change: Ungrouped, Link: port.Name, Group: port.Group})
		}
	}
	if vrf, ok := find(e.VRFIndex); ok && vrf.Name != e.VRF {
		out = append(out, Drift{Change: Renamed, Link: vrf.Name, Was: e.VRF, Is: vrf.Name})
	}
	return out
}

// List dumps all links. A dump that a change interrupted may lack some, and is repeated.
func List() ([]netlink.Link, error) {
	list, err := netlink.LinkList()
	for tries := 0; errors.Is(err, netlink.ErrDumpInterrupted) && tries < 5; tries++ {
		list, err = netlink.LinkList()
	}
	if err != nil {
		return nil, fmt.Errorf("listing links: %w", err)
	}
	return list, nil
}
