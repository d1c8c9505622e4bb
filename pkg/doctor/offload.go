package doctor

import (
	"fmt"
	"slices"
	"strings"

	"github.com/podmark/podmark/pkg/dataplane/flowtable"
)

// checkOffload finds flows that a flowtable carries past the hooks although the policy has
// changed since they passed them. A flowtable by itself is no fault: what is in it has been
// allowed, and is taken back when that may have changed.
func checkOffload(f Facts) []Finding {
	if f.Unjudged == 0 {
		return nil
	}
	var names, fixes []string
	last := ""
	for _, t := range f.ofPods() {
		names = append(names, t.String())
		m, known := withoutOffload(t)
		switch {
		case known && t.Table == firewalld && last == "":
			last = "  # firewalld forgets rules that are not permanent"
		case !known:
			last = "  # turn flow offloading off in the program that this belongs to"
		}
		if !slices.Contains(fixes, m) {
			fixes = append(fixes, m)
		}
	}
	return []Finding{{
		Severity: Error,
		What:     fmt.Sprintf("%d live connections of isolated pods are in a flowtable, and were not judged by the policy in force: %s", f.Unjudged, strings.Join(names, ", ")),
		Why: "a flowtable carries packets past every hook, so a connection goes on that the policy forbids by now. podmark takes such connections back; " +
			"here the kernel does not let them go (Linux 6.1.32, 5.15.115 and 6.4 do), or a rule ahead of podmark's in FORWARD, below priority -150, puts them there again",
		Fix: strings.Join(fixes, "; ") + last,
	}}
}

// ofPods are the flowtables that take packets from an interface of an endpoint; all, where
// none does: it may take those that come from elsewhere.
func (f Facts) ofPods() []flowtable.Flowtable {
	foreign := func(t flowtable.Flowtable) bool {
		for _, r := range f.State.Records {
			if slices.Contains(t.Devices, r.HostVeth) || slices.Contains(t.Devices, r.L3Interface) {
				return false
			}
		}
		return true
	}
	if of := slices.DeleteFunc(slices.Clone(f.Flowtables), foreign); len(of) > 0 {
		return of
	}
	return f.Flowtables
}

// firewalld is the table of that name's program.
const firewalld = "firewalld"

// withoutOffload is how the owner of a flowtable is told to have none, where the owner is known;
// else a look at what it belongs to. The flowtable itself is its owner's: it would come back,
// and while rules lead to it, it cannot be deleted.
func withoutOffload(t flowtable.Flowtable) (command string, known bool) {
	switch t.Table {
	case firewalld:
		return "sed -i 's/^#*NftablesFlowtable=.*/NftablesFlowtable=off/' /etc/firewalld/firewalld.conf && firewall-cmd --reload", true
	case "calico":
		return `kubectl patch felixconfiguration default --type merge -p '{"spec":{"nftablesFlowTableOffload":"Disabled"}}'`, true
	}
	return "nft list table " + t.Family + " " + quote(t.Table), false
}
