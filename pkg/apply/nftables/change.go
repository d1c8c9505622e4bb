package nftables

import "slices"

// whole lists what turns have into want, in one transaction: every packet sees
// the one or the other. Rules are all written anew, so that ones somebody
// meddled with are mended; elements only where they differ.
func whole(have actual, want ruleset) []command {
	var out []command
	for _, t := range tables() {
		if !have.tables[t.Family] {
			out = append(out, addTable(t))
		}
	}
	known := func(list []chain, name string) bool {
		return slices.ContainsFunc(list, func(c chain) bool { return c.name == name })
	}
	for _, c := range want.chains {
		if !known(have.chains, c.name) {
			out = append(out, addChain(c))
		}
	}
	for _, c := range have.chains {
		out = append(out, flushChain(c))
	}
	kept := map[string]elements{}
	for _, s := range want.sets {
		i := slices.IndexFunc(have.sets, func(h set) bool { return h.name == s.name })
		if i >= 0 && int(have.sets[i].size) >= len(want.elements[s.name]) {
			kept[s.name] = have.elements[s.name]
			continue
		}
		if i >= 0 {
			out = append(out, deleteSet(s)) // too small
		}
		out = append(out, addSet(s))
	}
	for _, c := range want.chains {
		for _, r := range c.rules {
			out = append(out, addRule(c, r))
		}
	}
	for _, s := range want.sets {
		out = append(out, replaceElements(s, kept[s.name], want.elements[s.name])...)
	}
	for _, s := range have.sets {
		if !slices.ContainsFunc(want.sets, func(w set) bool { return w.name == s.name }) {
			out = append(out, deleteSet(s))
		}
	}
	for _, c := range have.chains {
		if !known(want.chains, c.name) {
			out = append(out, deleteChain(c))
		}
	}
	return out
}

// replaceElements turns the content of s from one to the other. What a key maps
// to changes by deleting and adding it: a lookup in between finds either.
func replaceElements(s set, from, to elements) []command {
	gone, come := differences(from, to)
	return append(deleteElements(s, gone), addElements(s, come)...)
}

// differences lists what from has and to has not, or has otherwise, and the reverse.
func differences(from, to elements) (gone, come []element) {
	lacks := func(e, other elements) []element {
		rest := elements{}
		for key, one := range e {
			if o, ok := other[key]; !ok || !o.same(one) {
				rest[key] = one
			}
		}
		return rest.sorted()
	}
	return lacks(from, to), lacks(to, from)
}

// nothing lists what removes all of ours.
func nothing(have actual) []command {
	var out []command
	for _, t := range tables() {
		if have.tables[t.Family] {
			out = append(out, deleteTable(t))
		}
	}
	return out
}

// fresh lists what builds want from nothing, whatever there is.
func fresh(have actual, want ruleset) []command {
	return append(nothing(have), whole(actual{}, want)...)
}
