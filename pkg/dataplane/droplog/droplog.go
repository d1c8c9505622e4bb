// Package droplog is how the kernel tells of the packets that podmark's rules drop, or
// would drop if the policy were not audited: what it sends to which group of NFLOG.
// Rules say so, in both backends; any program may listen.
//
// This part is pure; listen.go hears the kernel.
package droplog

import (
	"fmt"
	"regexp"
	"strconv"
	"sync"

	"github.com/podmark/podmark/pkg/dataplane/counters"
	"github.com/podmark/podmark/pkg/desired"
)

// Group is the NFLOG group of all messages. It is an interface; see CHANGELOG.md.
const Group = 1886

// Size is how many bytes of a packet a message has: room for the headers, those that
// IPv6 puts before the ports too.
const Size = 128

// A rule logs PerSecond packets, and Burst at once after a silence. A connection that
// is not allowed is tried some times a minute, so what is wrong somewhere in a policy
// shows at once. In a flood, the messages of a profile and family cost less than a
// thousandth of a CPU, and a reader can keep up; the counters have the rest.
const (
	PerSecond = 10
	Burst     = 50
)

// Prefix is what a message begins with: "podmark:drop:ingress:<profile>",
// "podmark:audit:egress:<profile>", "podmark:drop:egress:<stage>:<rule>", "podmark:drop:spoofed". NFLOG of
// iptables has room for 63 bytes.
func Prefix(k counters.Key) string {
	what := "drop"
	switch k.Reason {
	case counters.Policy:
	case counters.Audit:
		what = "audit"
	default:
		return fmt.Sprintf("podmark:drop:%s", k.Reason)
	}
	if k.Stage != "" {
		return fmt.Sprintf("podmark:%s:%s:%s:%d", what, k.Direction, k.Stage, k.Rule)
	}
	return fmt.Sprintf("podmark:%s:%s:%s", what, k.Direction, k.Profile)
}

var prefix = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^podmark:(?:drop:(spoofed|unclassified|encapsulated|stray)|(drop|audit):(ingress|egress):([0-9a-f]{16})(?::([0-9]{1,5}))?)$`)
})

// Parse is the reverse of Prefix; false for a prefix of another program's.
func Parse(s string) (counters.Key, bool) {
	m := prefix().FindStringSubmatch(s)
	switch {
	case m == nil:
		return counters.Key{}, false
	case m[1] != "":
		return counters.Key{Reason: counters.Reason(m[1])}, true
	}
	k := counters.Key{Reason: counters.Policy, Direction: desired.Ingress, Profile: desired.ProfileID(m[4])}
	if m[5] != "" {
		k.Profile, k.Stage = "", desired.StageID(m[4])
		k.Rule, _ = strconv.Atoi(m[5]) // they are digits
	}
	if m[2] == "audit" {
		k.Reason = counters.Audit
	}
	if m[3] == desired.Egress.String() {
		k.Direction = desired.Egress
	}
	return k, true
}
