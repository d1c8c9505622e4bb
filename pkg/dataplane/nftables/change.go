package nftables

import "slices"

// whole lists what turns have into want. Rules are all written anew, so that ones
// somebody meddled with are fixed; elements only where they differ. Who is in a policy's
// set stays there.
func whole(have actual, want ruleset) (ch change) {
	for _, t := range want.tables {
		ch.commit = append(ch.commit, addTable(t)) // of one that is there: wake it
	}
	ch.prepare, have = prepare(have, want)
	for _, c := range want.chains {
		if !has(have.chains, c) {
			ch.commit = append(ch.commit, addChain(c))
		}
	}
	for _, c := range have.chains {
		switch {
		case has(want.chains, c):
			ch.commit = append(ch.commit, flushChain(c))
		case c.atHook():
			ch.commit = append(ch.commit, flushChain(c), deleteChain(c))
		default:
			ch.cleanup = append(ch.cleanup, flushChain(c))
		}
	}
	kept := map[string]elements{}
	for _, s := range want.sets {
		i := slices.IndexFunc(have.sets, func(h set) bool { return h.name == s.name })
		if i >= 0 && (s.ofPolicy() || int(have.sets[i].size) >= len(want.elements[s.name])) {
			kept[s.name] = have.elements[s.name]
			continue
		}
		if i >= 0 {
			ch.commit = append(ch.commit, deleteSet(s)) // too small
		}
		ch.commit = append(ch.commit, addSet(s))
	}
	for _, c := range want.chains {
		ch.commit = append(ch.commit, fill(c)...)
	}
	for _, s := range want.sets {
		ch.commit = append(ch.commit, replaceElements(s, kept[s.name], want.elements[s.name])...)
	}
	for _, s := range have.sets {
		if !slices.ContainsFunc(want.sets, func(w set) bool { return w.name == s.name }) {
			ch.cleanup = append(ch.cleanup, deleteSet(s))
		}
	}
	for _, c := range have.chains {
		if !has(want.chains, c) && !c.atHook() {
			ch.cleanup = append(ch.cleanup, deleteChain(c))
		}
	}
	return ch
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
