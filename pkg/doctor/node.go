package doctor

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/dataplane/checksum"
	"github.com/podmark/podmark/pkg/dataplane/hostport"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/node"
)

func checkState(f Facts) []Finding {
	var out []Finding
	if err := f.State.NodeDamaged; errors.Is(err, node.ErrLost) {
		out = append(out, Finding{
			Severity: Error, What: err.Error(),
			Why: "no pod starts and no policy changes; pods that run are held to the policies that were in force. Where a network says \"policy\": \"kubernetes\", podmarkd applies them, as soon as it runs and has the API",
			Fix: ctl(f, "apply -f POLICIES"),
		})
	} else if err != nil {
		out = append(out, Finding{
			Severity: Error, What: err.Error(),
			Why: "it is no longer known which bits the endpoints have, or which policy: no pod starts, and nothing is kept current. Pods that run are policed until podmark is uninstalled, so they go first",
			Fix: afresh(f),
		})
	}
	if err := f.State.Damaged; err != nil {
		out = append(out, Finding{
			Severity: Error, What: err.Error(),
			Why: "the attachment of a pod cannot be read, so no change of policy can be made",
			Fix: ctl(f, "gc"),
		})
	}
	if left := leftInKernel(f); !f.State.Ran && f.State.NodeDamaged == nil && left != "" {
		out = append(out, Finding{
			Severity: Error,
			What:     fmt.Sprintf("there is no state in %q, and %s is podmark's", f.StateDir, left),
			Why:      "the state directory was lost, or is another one, which --state-dir names: the rules that are there judge by IDs that will be given out again. Pods that run are policed until podmark is uninstalled, so they go first",
			Fix:      afresh(f),
		})
	}
	return out
}

// leftInKernel names the first thing of podmark's that is there; empty for none.
func leftInKernel(f Facts) string {
	for _, c := range f.Chains {
		if c.Own() {
			return fmt.Sprintf("chain %s %s %s", c.Family, c.Table, c.Name)
		}
	}
	for _, l := range f.Links {
		if l.Group == hostport.Group {
			return fmt.Sprintf("the device group %d of link %s", l.Group, l.Name)
		}
	}
	return ""
}

func checkBackend(f Facts) []Finding {
	if f.State.Backend == nil {
		return nil
	}
	fix := "modprobe -a " + strings.Join(f.kind().Modules, " ") + "  "
	if f.kind().Name == config.NFTables {
		fix += "# of Linux 5.6 or later; else \"backend\": \"iptables\""
	} else {
		fix += withIPTables
	}
	return []Finding{{
		Severity: Error, What: f.State.Backend.Error(),
		Why: "nothing can enforce: every ADD fails with error 102",
		Fix: fix,
	}}
}

func checkKernel(f Facts) []Finding {
	if f.State.Missing == nil {
		return nil
	}
	return []Finding{{
		Severity: Error,
		What:     fmt.Sprintf("in the kernel: %v", f.State.Missing),
		Why:      "what is missing judges no packet. Somebody has flushed or changed rules; podmarkd puts them back by itself",
		Fix:      ctl(f, "gc"),
	}}
}

func checkDropLog(f Facts) []Finding {
	if f.State.Unlogged == "" {
		return nil
	}
	return []Finding{{
		Severity: Warning,
		What:     "dropped packets are not logged: " + f.State.Unlogged,
		Why:      "policies are enforced and drops counted, but 'podmarkctl drops --follow' has nothing to show",
		Fix:      "modprobe -a " + strings.Join(f.kind().LogModules, " ") + " && " + ctl(f, "gc"),
	}}
}

func checkChecksums(f Facts) []Finding {
	if f.State.Alterable == "" {
		return nil
	}
	fix := "mountpoint -q " + checksum.Mount + " || mount -t bpf bpffs " + checksum.Mount + "; " + ctl(f, "gc")
	if strings.Contains(f.State.Alterable, checksum.Kernel) {
		fix = "# run " + checksum.Kernel + ", or drop CAP_NET_RAW from pods"
	}
	return []Finding{{
		Severity: Warning,
		What:     "the kernel does not check where packets leave their checksums: " + f.State.Alterable,
		Why:      "a pod with CAP_NET_RAW can have the kernel write a checksum over the port or a part of the address by which its packet was allowed, where the packet is fragmented or leaves by a link that writes none itself. It takes Linux 6.4 and a bpffs at /sys/fs/bpf, for podmarkd too where it runs in a container; without them drop CAP_NET_RAW from pods",
		Fix:      fix,
	}}
}

// sysctlWhy says what goes wrong without a parameter, by the beginning of its name.
var sysctlWhy = map[string]string{
	"net.ipv4.vs.":              "IPVS takes its packets out of conntrack, so that replies of services are judged as if the pod that answers had begun, and dropped. kube-proxy sets this when it starts; 'podmarkd --set-sysctls' keeps it set",
	"net.bridge.bridge-nf-call": "frames between two pods of a bridge pass none of the hooks in which either backend judges. podmarkd, within seconds, has those from and to isolated pods dropped, whatever the policy allows; without it these pods reach each other whatever the policy forbids. The next policed pod does not start. 'podmarkd --set-sysctls' keeps it set",
	"net.ipv4.conf.all.accept":  "a pod may write a route into its packets, and the node sends them on to addresses of its choice, which no policy is asked about; 'podmarkd --set-sysctls' keeps it off",
}

func checkIPVS(f Facts) []Finding   { return sysctlFindings(f, "net.ipv4.vs.") }
func checkBridge(f Facts) []Finding { return sysctlFindings(f, "net.bridge.bridge-nf-call") }
func checkRoutes(f Facts) []Finding { return sysctlFindings(f, "net.ipv4.conf.all.accept") }

func sysctlFindings(f Facts, prefix string) []Finding {
	var out []Finding
	for _, s := range f.Sysctls {
		if !strings.HasPrefix(s.Name, prefix) || s.OK() || s.Error != "" {
			continue
		}
		what := fmt.Sprintf("sysctl %s is %s, and must be %s", s.Name, s.Value, s.Want)
		if s.Value == "" {
			what = fmt.Sprintf("there is no sysctl %s, because module %s is not loaded", s.Name, s.Module)
		}
		out = append(out, Finding{Severity: Error, What: what, Why: sysctlWhy[prefix], Fix: s.Fix()})
	}
	return out
}

func checkNodePorts(f Facts) []Finding {
	if _, inConflist := f.active(); !f.Mode.IPVS || !f.State.Ran && !inConflist {
		return nil
	}
	configured, by, told := nodePorts(f)
	var outside []string
	all := slices.Clone(configured)
	for _, p := range f.PortsInUse {
		if !slices.ContainsFunc(configured, func(r desired.PortRange) bool { return r.Contains(p) }) {
			outside = append(outside, fmt.Sprint(p))
			all = append(all, desired.PortRange{First: p, Last: p})
		}
	}
	if len(outside) == 0 {
		return nil
	}
	var ranges []string
	for _, r := range desired.MergeRanges(all) {
		ranges = append(ranges, fmt.Sprintf("%d-%d", r.First, r.Last))
	}
	found := Finding{
		Severity: Warning,
		What:     fmt.Sprintf("NodePorts %s are in use, and not among %v by %s", strings.Join(outside, ", "), configured, by),
		Why:      "with the iptables backend and without podmarkd, what a pod sends to such a port of the node is judged as for a process of the node, and may be dropped. The nftables backend needs no range. Best give the range of kube-apiserver's --service-node-port-range",
		Fix:      install(f, map[string]any{"kubeNodePortRanges": ranges}),
	}
	if told {
		// One that runs does not let another one start.
		found.Fix = fmt.Sprintf("# have %s say %s, as podmarkd --node-port-ranges does, and restart podmarkd", by, strings.Join(ranges, ","))
	}
	return []Finding{found}
}

// nodePorts are the NodePort ranges of the node and who says so: a podmarkd that runs, which is told
// then, comes before the conflist, and that before what the node has.
func nodePorts(f Facts) (configured []desired.PortRange, by string, told bool) {
	by = "kubeNodePortRanges of the conflist"
	if f.DaemonRuns && f.Daemon != nil && !f.Daemon.Idle && f.Daemon.Ports.Source != "" && f.Daemon.Ports.Source != by {
		return f.Daemon.Ports.Configured, f.Daemon.Ports.Source, true
	}
	if active, ok := f.active(); ok && active.Err == nil {
		return active.Config.NodePorts, by, false
	}
	return f.State.NodePorts, by, false
}

// nearly is the share, in percent, from which on a table counts as nearly full.
const nearly = 90

func checkIDs(f Facts) []Finding {
	capacity := f.State.Layout.Capacity()
	if f.State.Layout.Mask() == 0 || f.State.IDs*100 < capacity*nearly {
		return nil
	}
	found := Finding{
		Severity: Warning,
		What:     fmt.Sprintf("%d of the %d IDs of iptablesMarkMask %#x are taken", f.State.IDs, capacity, f.State.Layout.Mask()),
		Why:      "without a free ID no pod starts: ADD fails with error 100",
		Fix:      ctl(f, "gc"),
	}
	if f.State.IDs >= capacity {
		found.Severity = Error
	}
	if len(f.State.Leaked.Attachments) == 0 {
		found.Fix = "# no mask of free bits is wider: give the other programs other bits, or have fewer pods on this node"
		if free, ok := f.Free(); ok && free.Capacity() > capacity {
			found.Fix = otherMask(f)
		}
	}
	return []Finding{found}
}

func checkLeaked(f Facts) []Finding {
	var left []string
	for _, r := range f.State.Leaked.Attachments {
		left = append(left, fmt.Sprintf("attachment %s (ID %d)", r.Key, r.ID))
	}
	for _, name := range f.State.Leaked.Files {
		left = append(left, "file "+name)
	}
	if len(left) == 0 {
		return nil
	}
	what := left[0]
	if n := len(left) - 1; n > 0 {
		what += fmt.Sprintf(", and %d more", n)
	}
	return []Finding{{
		Severity: Warning,
		What:     "no longer needed: " + what,
		Why:      "its pod is gone and no DEL came for it, or a crash left it: it keeps an ID and its rules. podmarkd collects them by itself",
		Fix:      ctl(f, "gc"),
	}}
}

func checkDaemon(f Facts) []Finding {
	d := f.Daemon
	switch {
	case d == nil:
		return nil // pods start without it
	case !f.DaemonRuns:
		severity, why := Warning, ""
		if following := f.following(); len(following) > 0 {
			severity, why = Error, "; and "+noAnswer(following[0].Config)
		}
		return []Finding{{
			Severity: severity,
			What:     fmt.Sprintf("podmarkd does not run any more; it last looked at %s", d.LastReconcile.Format(time.RFC3339)),
			Why:      "what others take out of the kernel is not put back, new NodePorts are not known to iptables, and pods without a DEL are not collected" + why + ". Have a service manager start it again",
			Fix:      withState(f, "podmarkd"),
		}}
	case d.Stale(f.Now):
		return []Finding{{
			Severity: Warning,
			What:     fmt.Sprintf("podmarkd has not looked at the node since %s, and should every %vs", d.LastReconcile.Format(time.RFC3339), d.Interval),
			Why:      "it hangs, so nothing is put back or kept current. Its service manager starts it again when it ends",
			Fix:      end(f, "KILL"),
		}}
	case d.Error != "" && d.Error != d.Policies.Error: // see checkBehind
		return []Finding{{
			Severity: Error,
			What:     fmt.Sprintf("podmarkd could not do its work at %s: %s", d.LastReconcile.Format(time.RFC3339), d.Error),
			Why:      "until it can, what is missing in the kernel is not put back",
			Fix:      ctl(f, "gc"),
		}}
	}
	return nil
}

func checkConntrack(f Facts) []Finding {
	if f.Tracks == 0 || f.Tracked*100 < f.Tracks*nearly {
		return nil
	}
	return []Finding{{
		Severity: Warning,
		What:     fmt.Sprintf("conntrack has %d entries of at most %d", f.Tracked, f.Tracks),
		Why:      "when it is full, the kernel drops the packets of every new connection of the node",
		Fix:      fmt.Sprintf("sysctl -w net.netfilter.nf_conntrack_max=%d", 2*f.Tracks),
	}}
}
