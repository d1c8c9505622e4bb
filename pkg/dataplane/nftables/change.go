package nftables

import "slices"

// whole lists what turns have into want. Rules are all written again, so that ones that others
// changed are mended; elements only where they differ. Who is in a policy's set stays there.
func whole(have actual, want ruleset) (ch change) {
	ch.prepare, have = prepare(have, want)
	sets, kept := makeSets(have, want)
	ch.commit = slices.Concat(makeChains(have, want), sets, fillAll(want, kept))
	ch.cleanup = removeLeft(have, want)
	return ch
}

// makeChains lists what makes all chains of want be there and have no rules. Of the others only those
// at hooks go with it: see atHook.
func makeChains(have actual, want ruleset) (out []command) {
	for _, t := range want.tables {
		out = append(out, addTable(t)) // of one that is there: wake it
	}
	for _, c := range want.chains {
		if !has(have.chains, c) {
			out = append(out, addChain(c))
		}
	}
	for _, c := range have.chains {
		switch {
		case has(want.chains, c):
			out = append(out, flushChain(c))
		case c.atHook():
			out = append(out, flushChain(c), deleteChain(c))
		}
	}
	return out
}

// makeSets lists what makes all sets of want be there with room for their elements, and says
// which elements those have that stay. A policy's set has no size.
func makeSets(have actual, want ruleset) (out []command, kept map[string]elements) {
	kept = map[string]elements{}
	for _, s := range want.sets {
		i := slices.IndexFunc(have.sets, func(h set) bool { return h.name == s.name })
		if i >= 0 && (s.ofPolicy() || int(have.sets[i].size) >= len(want.elements[s.name])) {
			kept[s.name] = have.elements[s.name]
			continue
		}
		if i >= 0 {
			out = append(out, deleteSet(s)) // too small
		}
		out = append(out, addSet(s))
	}
	return out, kept
}

// fillAll lists what fills chains without rules, and sets that have the elements kept.
func fillAll(want ruleset, kept map[string]elements) (out []command) {
	for _, c := range want.chains {
		out = append(out, fill(c)...)
	}
	for _, s := range want.sets {
		out = append(out, replaceElements(s, kept[s.name], want.elements[s.name])...)
	}
	return out
}

// removeLeft lists what removes what want does not have, when nothing leads there any more. A
// chain goes last, when no rule refers to it nor to a set.
func removeLeft(have actual, want ruleset) []command {
	var flush, sets, chains []command
	for _, c := range have.chains {
		if !has(want.chains, c) && !c.atHook() {
			flush, chains = append(flush, flushChain(c)), append(chains, deleteChain(c))
		}
	}
	for _, s := range have.sets {
		if !slices.ContainsFunc(want.sets, func(w set) bool { return w.name == s.name }) {
			sets = append(sets, deleteSet(s))
		}
	}
	return slices.Concat(flush, sets, chains)
}

// atHook reports whether a chain that was read from the kernel is one of our base chains, by
// its name. What goes with one of them goes behind it: it would still note on flows that
// they were judged, when it finds nobody in its sets any more.
func (c chain) atHook() bool {
	return slices.Contains([]string{
		chainSender, chainInput, chainRemark, chainHost, chainForward, chainOutput, chainBridge, chainFrom, chainTo,
	}, c.name)
}

func has(list []chain, c chain) bool {
	return slices.ContainsFunc(list, func(other chain) bool { return other.name == c.name })
}

// prepare lists what makes the chains that have lacks, but for those that begin at a
// hook, and what they look into; and what there is then. Where there is no table, nothing
// leads to a chain yet.
func prepare(have actual, want ruleset) ([]command, actual) {
	var sets, chains, rules []command
	for _, s := range want.sets {
		if have.tables[s.table.Family] && !slices.ContainsFunc(have.sets, func(h set) bool { return h.name == s.name }) {
			sets = append(sets, addSet(s))
			have.sets = append(slices.Clip(have.sets), s)
		}
	}
	for _, c := range want.chains {
		if have.tables[c.table.Family] && c.hook == nil && !has(have.chains, c) {
			chains, rules = append(chains, addChain(c)), append(rules, fill(c)...)
			have.chains = append(slices.Clip(have.chains), c)
		}
	}
	return slices.Concat(sets, chains, rules), have
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
func fresh(have actual, want ruleset) change {
	return change{commit: append(nothing(have), whole(actual{}, want).commit...)}
}
