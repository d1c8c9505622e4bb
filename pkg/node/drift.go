package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/dataplane/drift"
	"github.com/podmark/podmark/pkg/dataplane/hostport"
)

// EndpointDrift is what others did to a link of an endpoint.
type EndpointDrift struct {
	Key attachment.Key `json:"attachment"`
	// Pod is its "namespace/name"; empty where there is none.
	Pod string `json:"pod,omitempty"`
	hostport.Drift
}

func (d EndpointDrift) String() string {
	who := d.Pod
	if who == "" {
		who = d.Key.String()
	}
	return who + ": " + d.Drift.String()
}

// endpointDrift is that of an attachment.
type endpointDrift struct {
	attachment.Record
	hostport.Drift
}

func (d endpointDrift) told() EndpointDrift {
	t := EndpointDrift{Key: d.Key, Drift: d.Drift}
	if d.Pod != "" {
		t.Pod = d.Namespace + "/" + d.Pod
	}
	return t
}

// EndpointDrifts lists what others did to the links of endpoints, in one dump of all links,
// and changes nothing. fs.ErrNotExist when podmark has never run here.
func (n Node) EndpointDrifts() ([]EndpointDrift, error) {
	if _, err := n.load(); err != nil {
		return nil, err
	}
	// The records first: a link of one that comes meanwhile would not be in the dump.
	records, err := n.records()
	if err != nil {
		return nil, err
	}
	links, err := n.kernel().links()
	if err != nil {
		return nil, err
	}
	list, err := n.endpointDrifts(records, links)
	var out []EndpointDrift
	for _, d := range list {
		out = append(out, d.told())
	}
	return out, err
}

// endpointDrifts compares records with the links of a dump.
func (n Node) endpointDrifts(records []attachment.Record, dump []netlink.Link) ([]endpointDrift, error) {
	// Before the first change after an upgrade no record has numbers.
	if f, err := n.load(); err != nil || !f.Indexed {
		return nil, err
	}
	links := hostport.LinksOf(dump)
	var out []endpointDrift
	for _, r := range records {
		for _, d := range hostport.Drifts(r.Endpoint, links.Find) {
			if d.Change == hostport.Gone && r.Netns != "" {
				if _, err := os.Stat(r.Netns); errors.Is(err, fs.ErrNotExist) {
					continue // the pod is, too: that is for its DEL, and for Collect
				}
			}
			if now, err := n.Store.Get(r.Key); err != nil || !now.Committed || now.HostVethIndex != r.HostVethIndex {
				continue // it is being deleted, or added again
			}
			out = append(out, endpointDrift{r, d})
		}
	}
	return out, nil
}

// repairLinks puts host veths back into podmark's device group that others took out of it, and
// lists what else was done to links, which is for those others to undo. Its caller holds
// the lock.
func (n Node) repairLinks(links []netlink.Link) (left []EndpointDrift, regrouped, err error) {
	records, err := n.records()
	if err != nil {
		return nil, nil, err
	}
	list, err := n.endpointDrifts(records, links)
	for _, d := range list {
		if d.Change != hostport.Ungrouped {
			left = append(left, d.told())
			continue
		}
		switch failed := n.kernel().setGroup(d.Endpoint); {
		case errors.Is(failed, unix.ENODEV): // it is gone by now
		case failed != nil:
			left, err = append(left, d.told()), errors.Join(err, failed)
		default:
			regrouped = errors.Join(regrouped, fmt.Errorf("%w: %s", drift.Group.Err(), d.told()))
		}
	}
	return left, regrouped, err
}
