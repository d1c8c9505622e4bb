package view

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/ident"
)

// Attach takes over which pods have attachments, and returns those of which the API says
// something else than they have noted.
func (v *View) Attach(records []ident.Record) (changed []ident.Record) {
	endpoints := map[Name]map[string]string{}
	var addresses []netip.Addr
	records = slices.Clone(records)
	for i, r := range records {
		n := Name{r.Namespace, r.Pod}
		addresses = append(addresses, r.Addresses...)
		if !r.Kubernetes && (v.follows == nil || !v.follows(r.Network)) {
			continue
		}
		if p := v.pods[n]; p.Is(r.UID) {
			sources := v.sources(r, p, records)
			if !r.Kubernetes || !r.Policed || !maps.Equal(r.Labels, p.Labels) || !slices.Equal(r.Ports, p.Ports) || !slices.Equal(r.Sources, sources) {
				r.Kubernetes, r.Policed, r.Labels, r.Ports, r.Sources = true, true, p.Labels, p.Ports, sources
				records[i] = r
				changed = append(changed, r)
			}
		}
		if r.Kubernetes {
			endpoints[n] = r.Labels
			delete(v.coming, n)
		}
	}
	maps.DeleteFunc(v.refused, func(k ident.Key, _ string) bool {
		return !slices.ContainsFunc(records, func(r ident.Record) bool { return r.Key == k })
	})
	before := v.endpoints
	v.endpoints = endpoints
	v.dirty = v.dirty || !maps.EqualFunc(before, endpoints, maps.Equal)
	v.index.Claim(addresses)
	for n := range before {
		if _, still := endpoints[n]; !still && v.pods[n] != nil {
			v.enrol(n, v.pods[n])
		}
	}
	for n := range endpoints {
		if _, already := before[n]; !already && v.pods[n] != nil {
			v.enrol(n, v.pods[n])
		}
	}
	return changed
}

// sources are the prefixes that a pod with an attachment may send from besides. Where its
// annotation is wrong, or asks for more than the network allows or for what is another's
// already, they stay what they were: that is said once.
func (v *View) sources(r ident.Record, p *Pod, all []ident.Record) []netip.Prefix {
	list, err := config.Sources(p.Own.Sources, r.SourceBound)
	if err == nil {
		err = contended(r, list, all)
	}
	if err == nil {
		delete(v.refused, r.Key)
		return list
	}
	if v.refused[r.Key] != p.Own.Sources {
		v.note(true, "a pod asks for sources that it may not have, and keeps those that it had", "pod", r.Namespace+"/"+r.Pod, "has", r.Sources, "error", err)
		v.refused[r.Key] = p.Own.Sources
	}
	if !r.Kubernetes { // what it had was the whole network's
		return nil
	}
	return r.Sources
}

// contended says whose the prefixes are already, in part, that a pod asks for.
func contended(r ident.Record, list []netip.Prefix, all []ident.Record) error {
	r.Sources = list
	for _, other := range all {
		if p, both := r.Contends(other.Endpoint); both && other.Key != r.Key {
			return fmt.Errorf("annotation %s names %s, from which pod %s/%s behind %s may send already", config.SourcesAnnotation, p, other.Namespace, other.Pod, r.Interface)
		}
	}
	return nil
}
