package main

const (
	applying  = "pkg/node"
	ipt       = "pkg/dataplane/iptables"
	nft       = "pkg/dataplane/nftables"
	deciding  = "pkg/desired"
	keeping   = "pkg/state"
	attaching = "pkg/attachment"
	asking    = "pkg/podapi"
	following = "pkg/agent/kube/view"
)

// mutants is the list.
var mutants = []mutant{
	{applying, "plan.go", "resetFirst: r.Routed() && !running}", "resetFirst: false}", "a routed endpoint opens before its flows are judged again"},
	{applying, "add.go", "do: func() error { return t.kernel().block(r.Endpoint) }}", "do: func() error { return nil }}", "an ADD does not close the port"},
	{applying, "delete.go", "t.left = errors.Join(t.left, t.kernel().blockForDelete(r.Endpoint))", "t.left = errors.Join(t.left, nil)", "a DEL leaves the bridge port open"},
	{applying, "add.go", "r.Committed = true; ", "", "an ADD does not say that it has ended"},
	{applying, "delete.go", "busy, err := n.deleteFlows(r.Addresses)\n", "busy, err := error(nil), error(nil)\n", "the flows of a pod outlive it"},
	{applying, "delete.go", "return errors.Join(left, err), nil // with its record, so that a collection does it", "left = errors.Join(left, err)", "flows that a DEL could not forget are forgotten by nobody"},
	{applying, "add.go", "owner.Network != r.Network && owner.Committed", "false && owner.Committed", "two networks may have one address"},
	{applying, "add.go", "both && other.Key != r.Key {", "both && false {", "two pods behind one interface may have one prefix"},
	{applying, "add.go", "is != *promised {", "false && is != *promised {", "a pod starts with other policies than podmarkd told"},
	{applying, "plan.go", "append(p.before, owner), true", "append(p.before, owner), false", "an address that was taken over stays with its former pod after a crash"},
	{applying, "delete.go", "r.Committed && len(t.owned(r).Addresses) > 0", "false", "a DEL takes away what was added again meanwhile"},
	{applying, "add.go", "if t.file.Kubernetes && r.Policed && !r.Kubernetes {", "if false {", "a node takes policies from two places"},
	{applying, "tx.go", "\tcase !empty:\n", "\tcase false:\n", "the mask changes under live endpoints"},
	{applying, "sync.go", "writes everything.\n\tt.file.Synced = false\n", "writes everything.\n", "half a change stays in the kernel"},
	{applying, "sync.go", "if err := t.removeFormer(ctx); err != nil {", "if err := error(nil); err != nil {", "the former backend's rules stay"},
	{applying, "plan.go", "p.restricted = !was.Synced || update.Unknown", "p.restricted = update.Unknown", "what an interrupted change forbade goes on"},
	{applying, "plan.go", "update.Unknown || p.from.Restricts(p.to) ||", "update.Unknown ||", "what a policy forbids goes on in live connections"},
	{applying, "plan.go", "p.from, p.to = p.from.WithMembers(update.Removed), p.to.WithMembers(update.Added)", "p.to = p.to.WithMembers(update.Added)", "live connections of a pod elsewhere go on when it is no peer any more"},
	{applying, "sync.go", "\tcase 1:\n", "\tcase 0:\n", "flows carry an epoch's number from before the wrap"},
	{applying, "sync.go", "\tcase layout.Max():\n", "\tcase 0:\n", "flows carry the highest number from the change that wrapped"},
	{applying, "policies.go", "t.file.FormerHash, t.file.PoliciesHash = t.file.PoliciesHash, hashOf(policies)", "t.file.PoliciesHash = hashOf(policies)", "policies are lost where a change ends between its two files"},
	{applying, "tx.go", "t.file.Synced = false\n\treturn t.saveBestEffort()", "return nil", "a gc that ends on the way leaves an endpoint whose ID is given out again"},
	{applying, "uninstall.go", "t.file.Uninstalling = true", "t.file.Uninstalling = false", "an interrupted uninstall leaves a node that seems to enforce"},
	{applying, "read.go", "used >= capacity", "used > capacity", "STATUS says nothing of a mask that is full"},
	{applying, "plan.go", "|| taken[id]", "", "two endpoints get one ID in another mask"},
	{applying, "plan.go", "owner[outside.Value] = \"\"", "", "an endpoint's mark means outside in another mask"},
	{applying, "plan.go", "rewrite: f.kind().SCTPInRules &&", "rewrite: false &&", "iptables judges services of SCTP as processes of the node"},
	{applying, "plan.go", "restricted: from.Restricts(to)", "restricted: to.Restricts(from)", "a live flow through a new tunnel is never judged"},
	{applying, "drift.go", "d.Change != hostport.Ungrouped", "true", "a veth stays out of podmark's device group"},
	{applying, "format.go", "if h.Reads <= format {", "if true {", "an older podmark goes on from what it does not understand"},
	{applying, "format.go", "f.PoliciesHash, f.Synced = is, false", "f.PoliciesHash, f.Synced = is, true", "half a change counts as done"},
	{applying, "cache.go", "s.recognised.Sub(changed) > coarse", "s.recognised.Sub(changed) >= 0", "a file that changes twice in a tick of the clock is not read again"},

	{ipt, "update.go", "if err := b.kernel().drain(); err != nil {", "if err := error(nil); err != nil {", "a packet in flight misses the profile of an endpoint that goes"},
	{ipt, "update.go", "if members == 0 {", "if true {", "a profile goes although another endpoint is in it"},
	{ipt, "update.go", "if from.Epoch == to.Epoch {", "if from.Epoch != to.Epoch {", "the next epoch does not begin"},
	{ipt, "update.go", "if !there {\n\t\t\tlines = append(lines, rewrite", "if false {\n\t\t\tlines = append(lines, rewrite", "the rules of a new profile are not written"},
	{ipt, "command.go", "slices.Index(rules, h.rule) == 0 && !slices.Contains(rules[1:], h.rule)", "slices.Contains(rules, h.rule)", "others accept before our hook, unnoticed"},
	{ipt, "sync.go", "if r == h.rule {", "if false {", "a hook is there twice"},
	{ipt, "iptables.go", "byAddress < members ||", "byAddress < members && false ||", "a profile's chain that somebody flushed goes unnoticed"},
	{ipt, "keep.go", "return int(h.Elements) == size, nil", "return int(h.Elements) >= size, nil", "an address that the node has no more stays its own"},
	{ipt, "render.go", "rules = append(rules, order+in(n.endpoints(), \"src,src\")+\"-g \"+chainSpoofed)", "_ = order", "an endpoint may send redirects"},
	{ipt, "render.go", "--ctstate ESTABLISHED -m connmark --mark %s -j RETURN", "--ctstate RELATED -m connmark --mark %s -j RETURN", "what merely relates to an allowed flow is not judged"},
	{ipt, "render.go", "if used+need > slots {", "if used+need > slots+1 {", "iptables refuses a policy of many ports"},
	{ipt, "render.go", "case b.Bits() > 0:", "case b.Bits() >= 0:", "the kernel refuses a policy for 0.0.0.0/0"},
	{ipt, "names.go", "return (!w).own(d)", "return w.own(d)", "peers are looked for at the wrong end"},

	{nft, "inet.go", "rules(on(loopback(), accept()), clear, on(judged(epoch), accept()))", "rules(on(loopback(), accept()), on(judged(epoch), accept()), clear)", "a pod gives itself the ID of another"},
	{nft, "rule.go", "expr.CtStateBitESTABLISHED)", "expr.CtStateBitNEW)", "a flow that nobody has answered is not judged"},
	{nft, "merge.go", "by: 32 - high", "by: 31 - high", "an ID is written beside its bits"},

	{deciding, "members.go", "if known || selector.byName() {", "if known || true {", "a pod of a namespace that nobody knows is a peer by a label that it lacks"},
	{deciding, "policy.go", "ok = !present || !slices.Contains(r.Values, value)", "ok = present && !slices.Contains(r.Values, value)", "NotIn does not hold for a label that is absent"},
	{deciding, "policy.go", "return a == b || a == \"\" || b == \"\"", "return true", "a namespace has the policies of a former one of its name"},
	{deciding, "policy.go", "int(p.First) <= int(last.Last)+1", "int(p.First) <= int(last.Last)+2", "a port between two ranges is allowed"},
	{deciding, "policy.go", "last.Last = max(last.Last, p.Last)", "last.Last = p.Last", "a range inside of another ends that"},
	{deciding, "profile.go", "if !rule.MatchNone && ", "if ", "a rule of which nothing is left allows everybody"},
	{deciding, "profile.go", "case enforced.policies != nil:", "case audited.policies == nil:", "a policy that is audited turns off one that is enforced"},
	{deciding, "state.go", "n.Key != e.Key || !containsAll(n.AllowedSources", "n.Key != e.Key || containsAll(n.AllowedSources", "a prefix that is taken away goes on in live flows"},
	{deciding, "profile.go", "cmp.Compare(a.Priority, b.Priority)", "cmp.Compare(b.Priority, a.Priority)", "the last policy of a tier decides"},
	{deciding, "profile.go", "s.Default == Deny ||", "false ||", "a pod that a policy isolates counts as not isolated"},
	{deciding, "profile.go", "if !p.onlyAllows() || !next.onlyAllows() {", "if false {", "a rule that denies goes unnoticed in live flows"},
	{deciding, "state.go", "peers[id] && len(n.Addrs) != len(set.Addrs)", "peers[id] && false", "a peer that comes to a rule which denies goes on in live flows"},
	{deciding, "allows.go", "if action == Pass {\n\t\t\tcontinue", "if action == Pass {\n\t\t\treturn Verdict{Allowed: true}", "a tier that passes allows"},
	{nft, "stage.go", "case r.Action == desired.Allow && !h.Audit:", "case r.Action == desired.Allow:", "a policy of the cluster that is audited allows"},
	{deciding, "subjects.go", "!known && !selector.byName()", "!known && false", "what a policy of the cluster denies is open where the labels of a namespace are not known"},
	{deciding, "profile.go", "!(p.unsure && rule.Action != Deny)", "true", "a policy of the cluster allows pods whose namespace it may not select"},
	{deciding, "members.go", "} else if set.Peer.Unsure {", "} else if false {", "a pod whose namespace is not known is no peer of a rule that denies"},
	{deciding, "profile.go", "r.Origin, r.Name, r.Action = \"\", \"\", Pass", "r.Origin, r.Name = \"\", \"\"", "a policy that is audited denies what one before it decides"},
	{deciding, "members.go", "if own || !set.Own {", "if true {", "a port's name of ingress is that of pods elsewhere"},

	{keeping, "store.go", "err != nil || ids == records {", "err != nil || ids <= records {", "an ID whose file is lost becomes another's"},
	{attaching, "attachment.go", "case r.ID < mark.First:", "case false:", "a record gives an endpoint the ID of the node itself"},
	{keeping, "store.go", "r.Hash() != name {", "false {", "a record counts that is another attachment's"},
	{keeping, "store.go", "if s.holds(r.ID, hash) {", "if true {", "a late DEL frees the ID of another endpoint"},
	{keeping, "store.go", "if s.Owns(r.Key, a) {\n\t\t\terrs", "if true {\n\t\t\terrs", "a late DEL takes the address of another endpoint"},
	{keeping, "store.go", "uint32(old.ID) <= layout.Max() && s.holds(old.ID, hash)", "s.holds(old.ID, hash)", "an ADD again keeps an ID that does not fit"},
	{keeping, "store.go", "err == nil && leadsTo(f.Name(), f)", "err == nil", "two processes hold the lock after an uninstall"},

	{asking, "podapi.go", "unix.Fchmod(int(fd), 0o600)", "unix.Fchmod(int(fd), 0o666)", "everybody may ask who a pod is"},
	{asking, "podapi.go", "l.left -= n", "", "a message without an end fills the memory"},
	{asking, "podapi.go", "case a.Error != \"\":", "case false:", "a pod starts although podmarkd has refused"},
	{asking, "podapi.go", "_, _ = conn.Read(make([]byte, 1))\n\t\tcancel()", "_, _ = conn.Read(make([]byte, 1))", "a question goes on when who asked has gone"},

	{following, "enforce.go", "next.Listed = v.localPodLabels(), true", "next.Listed = v.localPodLabels(), false", "a local pod of a namespace that nobody knows is a peer by a label that it lacks"},
	{following, "enforce.go", "later(p.since, v.sought(*watch, now))", "p.since", "a new policy cuts off its peers because a round took long"},
	{following, "view.go", "\t\t\tv.edition++\n", "", "a namespace's new labels mean no other pods than its old ones"},
	{following, "watch.go", "case n.edition != w.edition:", "case n.edition == 0:", "what a policy means is looked for once"},
	{following, "view.go", "return t.history > known.history", "return false", "after a restore of etcd what is not true any more goes on"},
	{following, "view.go", "told.follows(was, p.Version >= old.Version)", "told.follows(was, true)", "a watch that lags brings a former pod back"},
	{following, "view.go", "if s.history == v.history { //", "if true { //", "after a restore of etcd one of two watches is not heard"},
	{following, "view.go", "p.Peer && !p.served && !p.late }", "p.Peer && !p.late }", "an address of a pod that has left this node goes on to be a peer's"},
	{following, "place.go", "case p.gone && !is.Ending && guess == is.UID:", "case p.gone:", "pods lose their policies when their namespace ends"},
	{following, "view.go", "p.late = true", "p.late = false", "who has the address of a pod on a dead node has its rights"},
	{following, "place.go", "case uid == is.UID && !is.Ending:", "case false:", "a policy that somebody has deleted goes on"},
	{following, "place.go", "case p.gone && guess == \"\":", "case false:", "a policy of a former namespace holds in the next, or its pods lose it"},
	{following, "attach.go", "!unnamed(s) && p.Is(all.uids[s])", "p.Is(all.uids[s])", "a pod gets the labels of a namesake"},
}
