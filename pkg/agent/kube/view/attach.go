package view

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/config"
)

// resident is an attachment of the node. Two of one name are two pods, each with its own
// labels.
type resident struct {
	Name
	member
}

func (r resident) equal(other resident) bool {
	return r.Name == other.Name && r.member.equal(other.member)
}

// Attach takes over which attachments there are, and returns those of which the API says
// something else than they have noted.
func (v *View) Attach(records []attachment.Record) (changed []attachment.Record) {
	records = slices.Clone(records)
	followed := func(r attachment.Record) bool { return r.Kubernetes || v.follows != nil && v.follows(r.Network) }
	whose := v.assign(slices.DeleteFunc(slices.Clone(records), func(r attachment.Record) bool { return !followed(r) }))
	residents := map[attachment.Key]resident{}
	var addresses []netip.Addr
	for i, r := range records {
		addresses = append(addresses, r.Addresses...)
		if !followed(r) {
			continue
		}
		if p := whose[r.Key]; p != nil {
			v.serve(p)
			if next, differs := v.record(r, p, records); differs {
				r, records[i] = next, next
				changed = append(changed, next)
			}
		}
		if r.Kubernetes {
			residents[r.Key] = resident{Name{r.Namespace, r.Pod}, member{r.Labels, r.NamespaceUID}}
		}
	}
	v.arrive(residents, records)
	maps.DeleteFunc(v.refused, func(k attachment.Key, _ string) bool {
		return !slices.ContainsFunc(records, func(r attachment.Record) bool { return r.Key == k })
	})
	v.dirty = v.dirty || !maps.EqualFunc(v.residents, residents, resident.equal)
	v.residents = residents
	v.index.Claim(addresses)
	return changed
}

// serve notes that a pod has an attachment on this node: others know it by that from now on, and
// not by the addresses that the API has.
func (v *View) serve(p *Pod) {
	if p.served {
		return
	}
	if p.enrolled() {
		v.index.Remove(&p.IndexedPod)
	}
	p.served = true
}

// record is r as the API has its pod, and whether that differs from what is noted. Whose it was
// when it came goes on to hold.
func (v *View) record(r attachment.Record, p *Pod, all []attachment.Record) (next attachment.Record, differs bool) {
	next = r
	next.Kubernetes, next.Policed, next.Labels, next.NamedPorts = true, true, p.Own.Labels, p.Ports
	next.AllowedSources = v.sources(r, p, all)
	next.NamespaceUID = cmp.Or(r.NamespaceUID, p.Own.place.uid)
	same := r.Kubernetes && r.Policed && r.NamespaceUID == next.NamespaceUID &&
		maps.Equal(r.Labels, next.Labels) && slices.Equal(r.NamedPorts, next.NamedPorts) &&
		slices.Equal(r.AllowedSources, next.AllowedSources)
	return next, !same
}

// sandbox is what a runtime makes for a pod, with all its attachments.
type sandbox struct {
	Name
	container string
}

// assign finds whose each attachment is of the pods that the API has. One that was another pod's of
// the name, or may have been, is nobody's.
func (v *View) assign(records []attachment.Record) map[attachment.Key]*Pod {
	all := v.sandboxes(records)
	named := map[Name][]sandbox{}
	for s := range all.uids {
		named[s.Name] = append(named[s.Name], s)
	}
	meant := map[sandbox]*Pod{}
	for n, list := range named {
		if p := v.pods.get(n); p != nil && p.Own != nil {
			for _, s := range all.of(p, list) {
				meant[s] = p
			}
		}
	}
	whose := map[attachment.Key]*Pod{}
	for _, r := range records {
		if p := meant[sandboxOf(r)]; p != nil {
			whose[r.Key] = p
		}
	}
	return whose
}

func sandboxOf(r attachment.Record) sandbox {
	return sandbox{Name{r.Namespace, r.Pod}, r.ContainerID}
}

// sandboxes are those of the node, with what tells whose they are: the UID that the runtime has
// told, empty for none, and the addresses of all attachments.
type sandboxes struct {
	uids      map[sandbox]string
	addresses map[sandbox][]netip.Addr
}

// sandboxes lists those of attachments, and of the ones that are expected.
func (v *View) sandboxes(records []attachment.Record) sandboxes {
	all := sandboxes{map[sandbox]string{}, map[sandbox][]netip.Addr{}}
	for _, r := range records {
		s := sandboxOf(r)
		all.uids[s] = cmp.Or(all.uids[s], r.UID)
		all.addresses[s] = append(all.addresses[s], r.Addresses...)
	}
	for ask := range v.expected { // one that comes is one more of its name
		if s := (sandbox{ask.name(), ask.Attachment.ContainerID}); s.container != "" {
			all.uids[s] = cmp.Or(all.uids[s], ask.UID)
		}
	}
	return all
}

// of picks a pod's of the sandboxes of its name: by UID, and where no runtime has told one, by
// address, or else the only one.
func (all sandboxes) of(p *Pod, named []sandbox) []sandbox {
	pick := func(is func(sandbox) bool) (picked []sandbox) {
		for _, s := range named {
			if is(s) {
				picked = append(picked, s)
			}
		}
		return picked
	}
	unnamed := func(s sandbox) bool { return all.uids[s] == "" }
	if list := pick(func(s sandbox) bool { return !unnamed(s) && p.Is(all.uids[s]) }); len(list) > 0 {
		return list
	}
	byAddress := pick(func(s sandbox) bool {
		return unnamed(s) && slices.ContainsFunc(all.addresses[s], p.Addresses.Contain)
	})
	if len(byAddress) > 0 {
		return byAddress
	}
	if only := pick(unnamed); len(only) == 1 {
		return only
	}
	return nil
}

// sources are the prefixes that a pod with an attachment may send from besides. Where its
// annotation is wrong, or asks for more than the network allows or for what is another's
// already, they stay what they were: that is said once.
func (v *View) sources(r attachment.Record, p *Pod, all []attachment.Record) []netip.Prefix {
	list, err := config.Sources(p.Own.Sources, r.SourceBound)
	if err == nil {
		err = contended(r, list, all)
	}
	if err == nil {
		delete(v.refused, r.Key)
		return list
	}
	if v.refused[r.Key] != p.Own.Sources {
		v.note(true, "a pod asks for sources that it may not have, and keeps those that it had", "pod", r.Namespace+"/"+r.Pod, "has", r.AllowedSources, "error", err)
		v.refused[r.Key] = p.Own.Sources
	}
	if !r.Kubernetes { // what it had was the whole network's
		return nil
	}
	return r.AllowedSources
}

// contended says whose the prefixes are already, in part, that a pod asks for.
func contended(r attachment.Record, list []netip.Prefix, all []attachment.Record) error {
	r.AllowedSources = list
	for _, other := range all {
		if p, both := r.Contends(other.Endpoint); both && other.Key != r.Key {
			return fmt.Errorf("annotation %s names %s, from which pod %s/%s behind %s may send already", config.SourcesAnnotation, p, other.Namespace, other.Pod, r.L3Interface)
		}
	}
	return nil
}
