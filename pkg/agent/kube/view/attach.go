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
			if !p.served {
				if p.enrolled() {
					v.index.Remove(&p.IndexedPod)
				}
				p.served = true
			}
			sources := v.sources(r, p, records)
			// Whose it was when it came goes on to hold.
			of := cmp.Or(r.NamespaceUID, p.Own.place.uid)
			if !r.Kubernetes || r.NamespaceUID != of || !r.Policed || !maps.Equal(r.Labels, p.Own.Labels) || !slices.Equal(r.NamedPorts, p.Ports) || !slices.Equal(r.AllowedSources, sources) {
				r.Kubernetes, r.Policed, r.Labels, r.NamedPorts, r.AllowedSources = true, true, p.Own.Labels, p.Ports, sources
				r.NamespaceUID = of
				records[i] = r
				changed = append(changed, r)
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

// sandbox is what a runtime makes for a pod, with all its attachments.
type sandbox struct {
	Name
	container string
}

// assign finds whose each attachment is of the pods that the API has: by UID, and where no
// runtime has told one, by address, or else by name where there is but one of that name.
// One that was another pod's of the name, or may have been, is nobody's.
func (v *View) assign(records []attachment.Record) map[attachment.Key]*Pod {
	uids := map[sandbox]string{}
	addresses := map[sandbox][]netip.Addr{}
	for _, r := range records {
		s := sandbox{Name{r.Namespace, r.Pod}, r.ContainerID}
		uids[s] = cmp.Or(uids[s], r.UID)
		addresses[s] = append(addresses[s], r.Addresses...)
	}
	for ask := range v.expected { // one that comes is one more of its name
		if s := (sandbox{ask.name(), ask.Attachment.ContainerID}); s.container != "" {
			uids[s] = cmp.Or(uids[s], ask.UID)
		}
	}
	by := map[Name][]sandbox{}
	for s := range uids {
		by[s.Name] = append(by[s.Name], s)
	}
	meant := map[sandbox]*Pod{}
	for n, all := range by {
		p := v.pods.get(n)
		if p == nil || p.Own == nil {
			continue
		}
		pick := func(is func(sandbox) bool) (picked []sandbox) {
			for _, s := range all {
				if is(s) {
					picked = append(picked, s)
				}
			}
			return picked
		}
		unnamed := func(s sandbox) bool { return uids[s] == "" }
		list := pick(func(s sandbox) bool { return !unnamed(s) && p.Is(uids[s]) })
		if len(list) == 0 {
			list = pick(func(s sandbox) bool {
				return unnamed(s) && slices.ContainsFunc(addresses[s], p.Addresses.Contain)
			})
		}
		if only := pick(unnamed); len(list) == 0 && len(only) == 1 {
			list = only
		}
		for _, s := range list {
			meant[s] = p
		}
	}
	whose := map[attachment.Key]*Pod{}
	for _, r := range records {
		if p := meant[sandbox{Name{r.Namespace, r.Pod}, r.ContainerID}]; p != nil {
			whose[r.Key] = p
		}
	}
	return whose
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
