package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/endpoint"
	"github.com/podmark/podmark/pkg/node"
	"github.com/podmark/podmark/pkg/state"
)

// adopter gives an ID and its policy to pods that were there before podmark. What
// the runtime knows of them is in libcni's cache: it notes there what the plugins
// returned at ADD, and forgets it at DEL.
type adopter struct {
	// cache is libcni's directory, /var/lib/cni with all runtimes we know.
	cache string
	// every is how often it is read.
	every time.Duration
	// seen are the pods that lacked an ID at the last reading. One is taken at the
	// second: a pod that is being deleted is in the cache for a moment longer.
	seen map[attachment.Key]bool
	next time.Time
	// failed are those that could not be adopted, and why, so that it is said once.
	failed map[attachment.Key]string
	// unmarked are the pods whose own interface has no ID, as of the last reading:
	// "namespace/name" by containers. nil before the first.
	unmarked map[string]string
	// blind is why unmarked pods cannot be known, as of the last reading.
	blind error
}

// own is what runtimes call a pod's own interface. Further ones may be on networks that have no
// podmark by choice: they make no pod unmarked, nor do they mark one.
const own = "eth0"

// soon is how long after the first sight of a pod the cache is read again.
const soon = 400 * time.Millisecond

// adopt adds the pods of networks that are not known yet. An error about one does
// not keep from adopting others, and is told once.
func (a *adopter) adopt(
	ctx context.Context,
	n node.Node,
	networks map[string]network,
	now time.Time,
) (adopted []attachment.Record, err error) {
	if a.cache == "" || now.Before(a.next) {
		return nil, nil
	}
	a.next = now.Add(a.every)
	if a.blind = a.wrong(n); a.blind != nil {
		return nil, nil
	}
	cni := libcni.NewCNIConfigWithCacheDir(nil, a.cache, nil)
	cached, err := cni.GetCachedAttachments("")
	if err != nil {
		return nil, fmt.Errorf("reading the cache of the runtime: %w", err)
	}
	lacking, marked := withoutID(n.Store, cached)
	seen, failed := map[attachment.Key]bool{}, map[attachment.Key]string{}
	unmarked := map[string]string{}
	var errs []error
	for _, c := range lacking {
		seen[c.key] = true
		if !a.seen[c.key] {
			a.next = now.Add(min(soon, a.every))
			continue
		}
		if pod := attachment.PodOf(c.CniArgs); pod.Name != "" && c.counts {
			unmarked[c.ContainerID] = pod.Namespace + "/" + pod.Name
		}
		network, ours := networks[c.Network]
		if !ours {
			continue
		}
		r, did, err := a.one(ctx, cni, n, network, c)
		switch {
		case err != nil:
			failed[c.key] = err.Error()
			if a.failed[c.key] != failed[c.key] {
				errs = append(errs, fmt.Errorf("adopting %s: %w", c.key, err))
			}
		case did:
			adopted = append(adopted, r)
			marked[c.ContainerID] = marked[c.ContainerID] || c.counts
		}
	}
	a.seen, a.failed, a.unmarked = seen, failed, stillUnmarked(n, unmarked, marked)
	return adopted, errors.Join(errs...)
}

// candidate is an attachment in the cache that has no ID.
type candidate struct {
	*libcni.NetworkAttachment
	key attachment.Key
	// counts is set for a pod's own interface: without an ID there the pod is unmarked.
	counts bool
}

// withoutID lists the attachments in the cache that have no ID and are there still, and the
// containers whose own interface has one. Of a container without its own interface in the cache
// any other counts.
func withoutID(store state.Store, cached []*libcni.NetworkAttachment) (lacking []candidate, marked map[string]bool) {
	has := map[string]bool{}
	for _, c := range cached {
		has[c.ContainerID] = has[c.ContainerID] || c.IfName == own
	}
	marked = map[string]bool{}
	for _, c := range cached {
		if c.NetNS == "" {
			continue
		}
		counts := c.IfName == own || !has[c.ContainerID]
		key := attachment.Key{Network: c.Network, ContainerID: c.ContainerID, IfName: c.IfName}
		if old, err := store.Get(key); err == nil && old.Committed {
			marked[c.ContainerID] = marked[c.ContainerID] || counts
			continue
		}
		if _, err := os.Stat(c.NetNS); err != nil {
			continue // the pod is gone, and its DEL will come
		}
		lacking = append(lacking, candidate{c, key, counts})
	}
	return lacking, marked
}

// stillUnmarked drops the pods whose own interface has an ID. Multus has an interface made by
// another network than the one that the runtime called.
func stillUnmarked(n node.Node, unmarked map[string]string, marked map[string]bool) map[string]string {
	if len(unmarked) == 0 {
		return unmarked
	}
	records, _ := n.Records() // what is damaged others tell
	for _, r := range records {
		if r.IfName == own && r.Committed {
			marked[r.ContainerID] = true
		}
	}
	maps.DeleteFunc(unmarked, func(container, _ string) bool { return marked[container] })
	return unmarked
}

// wrong tells why the cache cannot be the runtime's: it was asked for, pods were added, and nothing
// is noted there. On a new node it comes with the first pod.
func (a *adopter) wrong(n node.Node) error {
	if a.cache == libcni.CacheDir {
		return nil
	}
	results := filepath.Join(a.cache, "results")
	if _, err := os.Stat(results); !errors.Is(err, fs.ErrNotExist) {
		return nil // reading it tells what else there is
	}
	records, _ := n.Records() // what is damaged others tell
	if !slices.ContainsFunc(records, func(r attachment.Record) bool { return r.Committed }) {
		return nil
	}
	return fmt.Errorf("pods were added, and the runtime noted none in %q: which pods started without podmark is not known; give podmarkd the runtime's --cni-cache-dir (%q with most), or an empty one", results, libcni.CacheDir)
}

// one adopts one pod.
func (a *adopter) one(
	ctx context.Context,
	cni *libcni.CNIConfig,
	n node.Node,
	network network,
	c candidate,
) (r attachment.Record, did bool, err error) {
	list := &libcni.NetworkConfigList{Name: c.Network, CNIVersion: types100.ImplementedSpecVersion}
	cached, err := cni.GetNetworkListCachedResult(list, &libcni.RuntimeConf{ContainerID: c.ContainerID, IfName: c.IfName})
	if err != nil {
		return r, false, fmt.Errorf("reading the cached result: %w", err)
	}
	if cached == nil {
		return r, false, nil // a DEL came in between
	}
	result, err := types100.NewResultFromResult(cached)
	if err != nil {
		return r, false, fmt.Errorf("reading the cached result: %w", err)
	}
	e, err := endpoint.FromOutside(result, c.NetNS, c.IfName)
	if err != nil {
		return r, false, err
	}
	pod := attachment.PodOf(c.CniArgs)
	e.Namespace, e.Pod = pod.Namespace, pod.Name
	e.Labels = network.Labels
	if network.Policy != config.PolicyKubernetes {
		e.AllowedSources = network.Sources
	}
	return n.Adopt(ctx, node.SettingsOf(network.Config), attachment.Record{
		Key: c.key, Endpoint: e, Netns: c.NetNS, UID: pod.UID, SourceBound: network.Sources,
		// That of the Kubernetes API comes as soon as the pod is known there.
		Policed: network.Policy == config.PolicyFiles, Kubernetes: network.Policy == config.PolicyKubernetes,
	})
}
