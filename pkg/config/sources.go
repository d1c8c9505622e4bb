package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// SourcesAnnotation is the annotation of a pod that names the further prefixes that it may
// send from, with commas between.
const SourcesAnnotation = "podmark.dev/allowed-source-prefixes"

// mostSources bounds what one endpoint costs the kernel, and longestSources, in bytes, what
// its annotation costs podmarkd: a tenant writes it.
const (
	mostSources    = 64
	longestSources = 4096
)

// ShortSources is the annotation as far as it need be kept: of one that is too long, enough
// to be refused.
func ShortSources(annotation string) string {
	return annotation[:min(len(annotation), longestSources+1)]
}

// wantPrefixes says what is accepted.
var wantPrefixes = fmt.Sprintf(`a list of at most %d prefixes such as "172.30.0.0/16" or "fd00:30::/64", of IPv4 and IPv6, without host bits, other than /0, loopback, link-local and multicast ones`, mostSources)

// Sources reads the annotation of a pod whose network allows the prefixes of bound. What it
// names must be inside one of those: else a tenant who may make pods could let them send
// as anybody. An empty annotation names none.
func Sources(annotation string, bound []netip.Prefix) ([]netip.Prefix, error) {
	if annotation == "" {
		return nil, nil
	}
	if len(annotation) > longestSources {
		return nil, fmt.Errorf("annotation %s has %d bytes: want at most %d", SourcesAnnotation, len(annotation),
			longestSources)
	}
	items := strings.Split(annotation, ",")
	for i, item := range items {
		items[i] = strings.TrimSpace(item)
	}
	list, err := parsePrefixes(items)
	if err != nil {
		return nil, fmt.Errorf("annotation %s has value %q: want %s, with commas between: %w", SourcesAnnotation, annotation, wantPrefixes, err)
	}
	for _, p := range list {
		if !Within(p, bound) {
			return nil, fmt.Errorf("annotation %s names %s, which is not inside %v, the allowedSourcePrefixes of the network: take it out, or have the network's administrator allow it", SourcesAnnotation, p, bound)
		}
	}
	return list, nil
}

// Within reports whether a prefix is inside one of bound.
func Within(p netip.Prefix, bound []netip.Prefix) bool {
	return slices.ContainsFunc(bound, func(b netip.Prefix) bool { return b.Bits() <= p.Bits() && b.Contains(p.Addr()) })
}

// prefixes is the parser of the key.
func prefixes(v any) ([]netip.Prefix, string, error) {
	list, ok := v.([]any)
	if !ok {
		return nil, wantPrefixes, nil
	}
	items := make([]string, len(list))
	for i, item := range list {
		if items[i], ok = item.(string); !ok {
			return nil, wantPrefixes, fmt.Errorf("%v is no string", item)
		}
	}
	out, err := parsePrefixes(items)
	if err != nil {
		return nil, wantPrefixes, err
	}
	return out, "", nil
}

// parsePrefixes reads prefixes, and returns them sorted, without those that are inside another.
func parsePrefixes(items []string) ([]netip.Prefix, error) {
	if len(items) > mostSources {
		return nil, fmt.Errorf("it has %d", len(items))
	}
	var all []netip.Prefix
	for _, item := range items {
		p, err := parsePrefix(item)
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	slices.SortFunc(all, netip.Prefix.Compare) // the wider before those inside it
	var out []netip.Prefix
	for _, p := range all {
		if !Within(p, out) {
			out = append(out, p)
		}
	}
	return out, nil
}

func parsePrefix(text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	a := p.Addr()
	switch {
	case err != nil:
		return p, fmt.Errorf("%q is no prefix", text)
	case p != p.Masked():
		return p, fmt.Errorf("%q has host bits: the prefix is %s", text, p.Masked())
	case a.Is4In6():
		return p, fmt.Errorf("%q is IPv4 written as IPv6: write it as IPv4", text)
	case p.Bits() == 0:
		return p, fmt.Errorf("%q is everybody: where that is meant, name both halves", text)
	case a.IsLoopback(), a.IsLinkLocalUnicast(), a.IsMulticast(), a.IsUnspecified() && a.BitLen() == p.Bits():
		return p, fmt.Errorf("no router forwards packets from %q", text)
	}
	return p, nil
}
