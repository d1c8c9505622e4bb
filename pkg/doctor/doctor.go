// Package doctor finds what is wrong with podmark on a node: what others do to the
// bits, rules and kernel parameters that it needs, and what has become of its own
// state.
//
// [Gather] reads the node and changes nothing; [Examine] decides, purely, on what was
// read. It fixes nothing either: a [Finding] names the command that does.
//
//	for _, f := range doctor.Examine(doctor.Gather(ctx, options)) {
//		fmt.Println(f.What, f.Fix)
//	}
package doctor

import (
	"fmt"
	"slices"
	"strings"
)

// Severity says how bad a finding is.
type Severity string

// The severities.
const (
	// Error: packets are judged wrongly or not at all, or pods cannot start.
	Error Severity = "error"
	// Warning: it works, and will not for long or not in every case.
	Warning Severity = "warning"
	// Unknown: something could not be looked at.
	Unknown Severity = "unknown"
)

// Finding is one thing that is wrong.
type Finding struct {
	// Check is the name of the check that found it.
	Check    string   `json:"check"`
	Severity Severity `json:"severity"`
	// What is wrong, and Why it matters.
	What string `json:"what"`
	Why  string `json:"why"`
	// Fix is a command for root's shell on this node. Where What names a cause that
	// lasts, such as a program that will do it again, that is to be fixed too.
	Fix string `json:"fix"`
}

// Check is one thing that is looked at.
type Check struct {
	Name string
	// Finds says what the check finds, in a few words.
	Finds string
	// parts are what it needs to have been read.
	parts []Part
	run   func(Facts) []Finding
}

// Checks are all checks, in the order in which their findings come: what keeps pods
// from being policed first.
func Checks() []Check {
	cni, rules := []Part{PartRuntime, PartConflists}, []Part{PartNFTables, PartLegacy, PartLinks, PartLookups}
	return []Check{
		{"state", "a file of the state directory is damaged, or the state of what is in the kernel is gone", []Part{PartState, PartNFTables, PartLegacy, PartLinks}, checkState},
		{"backend", "the kernel or the node lacks what the backend needs", []Part{PartKernel}, checkBackend},
		{"kernel", "a rule, hook, set or element is missing in the kernel", []Part{PartKernel}, checkKernel},
		{"drop-log", "the kernel or the node cannot log what is dropped", []Part{PartState}, checkDropLog},
		{"checksums", "the kernel or the node cannot look where packets leave their checksums", []Part{PartState}, checkChecksums},
		{"runtime", "where the runtime looks is not known, or it is elsewhere than the flags say", []Part{PartRuntime}, checkRuntime},
		{"conflist", "podmark is not in the conflist that the node uses, or no runtime can read it", cni, checkConflist},
		{"conflist-order", "podmark does not come last in a conflist, or has no main plugin before it", cni, checkOrder},
		{"conflist-plugins", "podmark cannot work behind the main plugin of a conflist, or a plugin of it is missing", append(slices.Clone(cni), PartDaemon), checkWorks},
		{"configuration", "the plugin refuses its entry or the version of the conflist", cni, checkConfiguration},
		{"settings", "networks differ in what is the node's, or the conflist's mask is not that of the endpoints", []Part{PartConflists, PartState}, checkSettings},
		{"policy-source", "networks of the node take their policies from different places", []Part{PartConflists, PartState}, checkSource},
		{"policy-socket", "podmarkd does not answer where the plugin asks for policies", []Part{PartConflists, PartDaemon}, checkSocket},
		{"policy-behind", "what the Kubernetes API or the directory says is not in force", []Part{PartDaemon}, checkBehind},
		{"policy-open", "a pod is not policed", []Part{PartState, PartDaemon, PartConflists}, checkOpen},
		{"policy-unsaid", "an entry does not say where policies come from", cni, checkSilent},
		{"policy-idle", "a policy selects no endpoint, and should", []Part{PartState}, checkIdle},
		{"plugin", "the plugin's file is missing, or cannot be executed", cni, checkPlugin},
		{"ipvs-conntrack", "IPVS is in use and does not track its connections", []Part{PartServices, PartSysctls}, checkIPVS},
		{"bridge-netfilter", "frames between the policed pods of a bridge pass no hook", []Part{PartState, PartSysctls}, checkBridge},
		{"source-route", "the node follows routes that pods write into their packets", []Part{PartState, PartSysctls}, checkRoutes},
		{"mark-users", "a well-known program on this node uses bits of the mask", rules, checkUsers},
		{"mark-rules", "a rule of another program writes bits of the mask where they matter", rules, checkRules},
		{"mark-compares", "a rule, route or service of another program asks for a mark where a pod's ID is in it", rules, checkCompares},
		{"mark-sysctls", "a kernel parameter lets a pod's ID into the mark of what the node itself sends", []Part{PartSysctls}, checkReflects},
		{"notrack", "a rule of another program keeps pods' packets out of conntrack", []Part{PartNFTables, PartLegacy, PartState}, checkNoTrack},
		{"flowtable", "a flowtable carries live connections of pods past the policy in force", []Part{PartOffload}, checkOffload},
		{"iptables-mix", "both variants of iptables have rules", []Part{PartNFTables, PartLegacy}, checkMix},
		{"iptables-variant", "podmark's rules are in the variant of iptables that the kubelet does not use", []Part{PartNFTables, PartLegacy, PartState}, checkVariant},
		{"node-ports", "a NodePort in use is in no configured range", []Part{PartServices, PartConflists}, checkNodePorts},
		{"ids", "IDs are nearly or all taken", []Part{PartState}, checkIDs},
		{"leaked", "an attachment or a file is left of a pod that is gone", []Part{PartLeaked}, checkLeaked},
		{"drift", "a link of a pod was renamed, moved, or taken out of podmark's device group", []Part{PartState, PartLinks}, checkDrift},
		{"podmarkd", "podmarkd has ended, hangs, or could not do its work", []Part{PartDaemon}, checkDaemon},
		{"conntrack-table", "the conntrack table is nearly full", []Part{PartConntrack}, checkConntrack},
	}
}

// NotChecked is the name under which what could not be looked at is found.
const NotChecked = "could-not-look"

// Examine runs every check. What could not be read is a finding of its own, which
// names the checks that may have missed something.
func Examine(f Facts) []Finding {
	findings := []Finding{}
	touched := map[Part][]string{}
	for _, c := range Checks() {
		for _, found := range c.run(f) {
			found.Check = c.Name
			findings = append(findings, found)
		}
		for _, p := range c.parts {
			touched[p] = append(touched[p], c.Name)
		}
	}
	for _, u := range f.Unread {
		findings = append(findings, Finding{
			Check: NotChecked, Severity: Unknown,
			What: fmt.Sprintf("could not look at %s: %v", u.Part, u.Err),
			Why:  "these checks may have missed something: " + strings.Join(touched[u.Part], ", "),
			Fix:  u.Fix,
		})
	}
	return findings
}
