package view

import (
	"maps"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/podmark/podmark/pkg/desired"
)

// Kind is a resource of the API.
type Kind string

// The resources that are watched.
const (
	Pods       Kind = "pods"
	Namespaces Kind = "namespaces"
	Policies   Kind = "networkpolicies"
)

// Watch is what one watch of the API asks for.
type Watch struct {
	Kind Kind
	// Namespace is empty for all of them.
	Namespace string
	// Labels is a label selector, Node the value of spec.nodeName; empty for any.
	Labels, Node string
}

// String is for people: "pods of shop with app in (web)".
func (w Watch) String() string {
	var b strings.Builder
	b.WriteString(string(w.Kind))
	for _, part := range []struct{ word, value string }{{" of ", w.Namespace}, {" with ", w.Labels}, {" on ", w.Node}} {
		if part.value != "" {
			b.WriteString(part.word + part.value)
		}
	}
	return b.String()
}

// follows reports whether what other sees tells whether w is needed: policies name
// namespaces by labels, and pods by labels and namespaces.
func (w Watch) follows(other Watch) bool {
	switch {
	case w.Kind == Namespaces:
		return other.Kind == Policies
	case w.Kind == Pods && w.Node == "":
		return other.Kind != Pods
	}
	return false
}

// covers reports whether w sees everything that other sees.
func (w Watch) covers(other Watch) bool {
	return w.Kind == other.Kind && (w.Namespace == "" || w.Namespace == other.Namespace) &&
		(w.Labels == "" || w.Labels == other.Labels) && (w.Node == "" || w.Node == other.Node)
}

// coveredBy lists the watches that see everything that w sees.
func (w Watch) coveredBy() []Watch {
	list := []Watch{w}
	widen := func(wider func(*Watch)) {
		for _, one := range list {
			before := one
			if wider(&one); one != before {
				list = append(list, one)
			}
		}
	}
	widen(func(w *Watch) { w.Labels = "" })
	widen(func(w *Watch) { w.Namespace = "" })
	widen(func(w *Watch) { w.Node = "" })
	return list
}

// Where one watch more costs the API server less than what it saves.
const (
	// selectorsEach is how many selectors over all namespaces are watched by themselves;
	// for more, all pods are.
	selectorsEach = 4
	// namespacesEach is how many namespaces that a selector picks are watched by
	// themselves; for more, all are.
	namespacesEach = 32
	// mostEach is how many watches of pods the policies of one namespace may have, and most
	// those of all of them; for more, all pods are watched, of which there are as many as the
	// cluster has.
	mostEach = 64
	most     = 512
)

// world is what is known of namespaces: their labels, the one with the name among them.
// Those of one edition, from 1 on, are the same.
type world struct {
	labels  map[string]map[string]string
	edition uint64
	known   bool
}

// needs is what has to be watched to know whom a policy means.
type needs struct {
	// always is what that takes in any case, and of across the rest follows from the labels
	// of namespaces.
	always []Watch
	across []desired.Peer
	// found is what that was in the world of an edition: it is asked for at each event.
	found   []Watch
	edition uint64
}

func needsOf(p desired.Policy) needs {
	set := map[Watch]bool{}
	var n needs
	for _, isolation := range []*desired.Isolation{p.Ingress, p.Egress} {
		if isolation == nil {
			continue
		}
		for _, rule := range isolation.Rules {
			for _, peer := range rule.Peers {
				watches, all := watchesOf(peer)
				for _, w := range watches {
					set[w] = true
				}
				if !all {
					n.across = append(n.across, peer)
				}
			}
			// A named port of an ingress rule is the endpoint's own. One of an egress rule
			// is that of whoever has the address, of all pods where it selects none.
			if isolation == p.Egress && len(rule.NamedPorts) > 0 && (len(rule.Peers) == 0 || len(rule.Blocks) > 0) &&
				!rule.MatchNone {
				set[Watch{Kind: Pods}] = true
			}
		}
	}
	n.always = slices.Collect(maps.Keys(set))
	return n
}

// watchesOf lists what has to be watched for a peer. all is false where that depends on
// the labels of namespaces besides.
func watchesOf(peer desired.Peer) (watches []Watch, all bool) {
	labels := labelSelector(peer.Pods)
	if peer.Namespace != "" || len(peer.NamespaceSelector) == 0 {
		return []Watch{{Kind: Pods, Namespace: peer.Namespace, Labels: labels}}, true
	}
	names, ok := namesOnly(peer.NamespaceSelector)
	if !ok {
		return []Watch{{Kind: Namespaces}}, false
	}
	for _, name := range names {
		watches = append(watches, Watch{Kind: Pods, Namespace: name, Labels: labels})
	}
	return watches, true
}

// in lists the watches, as far as the labels of namespaces are known.
func (n *needs) in(w world) []Watch {
	switch {
	case len(n.across) == 0 || !w.known:
		return n.always
	case n.edition != w.edition:
		n.found, n.edition = n.search(w), w.edition
	}
	return n.found
}

func (n *needs) search(w world) []Watch {
	out := slices.Clone(n.always)
	for _, peer := range n.across {
		labels := labelSelector(peer.Pods)
		var picked []string
		for name, of := range w.labels {
			if peer.NamespaceSelector.Matches(of) {
				picked = append(picked, name)
			}
		}
		if len(picked) > namespacesEach {
			out = append(out, Watch{Kind: Pods, Labels: labels})
			continue
		}
		for _, name := range picked {
			out = append(out, Watch{Kind: Pods, Namespace: name, Labels: labels})
		}
	}
	return out
}

// namesOnly lists the namespaces that a selector picks by nothing but their names.
func namesOnly(s desired.Selector) (names []string, ok bool) {
	if len(s) != 1 || s[0].Key != desired.MetadataName || s[0].Op != desired.In {
		return nil, false
	}
	return s[0].Values, true
}

// bounded is merged, with one watch of all pods where more than some were left.
func bounded(wanted map[Watch]bool, some int) map[Watch]bool {
	out := merged(wanted)
	pods := 0
	for w := range out {
		if w.Kind == Pods && w.Node == "" {
			pods++
		}
	}
	if pods <= some {
		return out
	}
	out[Watch{Kind: Pods}] = true
	return merged(out)
}

// merged leaves out what others cover, and joins what is cheaper as one.
func merged(wanted map[Watch]bool) map[Watch]bool {
	everywhere := map[string]bool{}        // selectors over all namespaces
	within := map[string]map[string]bool{} // selectors by namespace
	out := map[Watch]bool{}
	for w := range wanted {
		switch {
		case w.Kind != Pods || w.Node != "":
			out[w] = true
		case w.Namespace == "":
			everywhere[w.Labels] = true
		default:
			if within[w.Namespace] == nil {
				within[w.Namespace] = map[string]bool{}
			}
			within[w.Namespace][w.Labels] = true
		}
	}
	if everywhere[""] || len(everywhere) > selectorsEach {
		out[Watch{Kind: Pods}] = true
		return out
	}
	for labels := range everywhere {
		out[Watch{Kind: Pods, Labels: labels}] = true
	}
	for namespace, selectors := range within {
		maps.DeleteFunc(selectors, func(labels string, _ bool) bool { return everywhere[labels] })
		switch {
		case len(selectors) == 0:
		case len(selectors) == 1:
			for labels := range selectors {
				out[Watch{Kind: Pods, Namespace: namespace, Labels: labels}] = true
			}
		default:
			out[Watch{Kind: Pods, Namespace: namespace}] = true
		}
	}
	return out
}

// longestSelector is how long a label selector may be, in bytes: it is a part of the URL of
// a request, for which servers and proxies have little room.
const longestSelector = 1 << 10

// labelSelector writes a selector as the API reads it. Both say of NotIn that it holds for
// a label that is absent. It is empty, for all labels, where the selector is longer than
// [longestSelector], or the API reads no such selector: a value that was valid once is none
// of a label. What all labels show besides, [desired.Selector.Matches] leaves out.
func labelSelector(s desired.Selector) string {
	parts := make([]string, 0, len(s))
	length := 0
	for _, r := range s {
		if len(validation.IsQualifiedName(r.Key)) > 0 {
			return ""
		}
		length += len(r.Key) + len(",!")
		for _, v := range r.Values {
			if length += len(v) + len(","); length > longestSelector || len(validation.IsValidLabelValue(v)) > 0 {
				return ""
			}
		}
		if part := requirement(r); part != "" {
			parts = append(parts, part)
		}
	}
	slices.Sort(parts)
	if text := strings.Join(slices.Compact(parts), ","); len(parts) == len(s) && len(text) <= longestSelector {
		return text
	}
	return ""
}

// requirement is one of a selector; empty where the API reads no such one.
func requirement(r desired.Requirement) string {
	values := slices.Sorted(slices.Values(r.Values))
	list := "(" + strings.Join(slices.Compact(values), ",") + ")"
	switch {
	case r.Op == desired.In && len(values) > 0:
		return r.Key + " in " + list
	case r.Op == desired.NotIn && len(values) > 0:
		return r.Key + " notin " + list
	case r.Op == desired.Exists:
		return r.Key
	case r.Op == desired.DoesNotExist:
		return "!" + r.Key
	}
	return ""
}

// wider is the next watch that sees all that w sees and asks for less; w itself where there
// is none: the node's own pods, policies and namespaces are asked for in one way.
func (w Watch) wider() Watch {
	switch {
	case w.Kind != Pods || w.Node != "":
	case w.Labels != "":
		w.Labels = ""
	default:
		w.Namespace = ""
	}
	return w
}
