package doctor

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/podmark/podmark/pkg/agent"
	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/desired"
)

// following lists the networks whose policies come from the Kubernetes API.
func (f Facts) following() []Network {
	var out []Network
	for _, n := range f.Networks {
		if n.Entry != nil && n.Err == nil && n.Config.Policy == config.PolicyKubernetes {
			out = append(out, n)
		}
	}
	return out
}

// policySource is where the policies of the node come from, as far as the node tells; false
// where it does not.
func (f Facts) policySource() (config.Policy, bool) {
	if f.State.Kubernetes {
		return config.PolicyKubernetes, true
	}
	for _, n := range f.Networks {
		if n.Entry != nil && n.Err == nil && n.Config.Policy != config.PolicyNone {
			return n.Config.Policy, true
		}
	}
	for _, r := range f.State.Records {
		if r.Policed {
			return config.PolicyFiles, true
		}
	}
	return "", false
}

// checkSource wants all networks to take their policies from where the node does, or the
// first of them.
func checkSource(f Facts) []Finding {
	var out []Finding
	want, by := config.PolicyNone, ""
	if f.State.Kubernetes {
		want, by = config.PolicyKubernetes, "the node has followed the Kubernetes API"
	}
	for _, n := range f.Networks {
		if n.Entry == nil || n.Err != nil || n.Config.Policy == config.PolicyNone {
			continue
		}
		if want == config.PolicyNone {
			want, by = n.Config.Policy, fmt.Sprintf("%q has %q", n.where(), n.Config.Policy)
		}
		if n.Config.Policy == want {
			continue
		}
		fix := fmt.Sprintf("# decide: \"policy\": %q in all networks, as in %s, or %q there too", config.PolicyKubernetes,
			quote(n.where()), want)
		if want == config.PolicyKubernetes {
			fix = n.edit(f, map[string]any{"policy": string(want)})
		}
		out = append(out, Finding{
			Severity: Error,
			What:     fmt.Sprintf("%q has \"policy\": %q, and %s", n.where(), n.Config.Policy, by),
			Why:      "a node has its policies from one place: podmarkd follows the API for no network as long as another has files, and on a node that has followed it, every ADD with files fails with error 7. The way back to files is podmarkctl uninstall, and pods that start again",
			Fix:      fix,
		})
	}
	return out
}

// checkSocket is about whether the plugin can ask podmarkd. That it has ended is what
// checkDaemon finds.
func checkSocket(f Facts) []Finding {
	var out []Finding
	for _, n := range f.following() {
		path := n.Config.DaemonSocket
		if f.Sockets[path] == nil || f.Daemon != nil && !f.DaemonRuns {
			continue
		}
		found := Finding{
			Severity: Error,
			What: fmt.Sprintf("%q has \"policy\": \"kubernetes\", and podmarkd does not answer at %q: %v", n.where(), path,
				f.Sockets[path]),
			Why: noAnswer(n.Config),
		}
		switch {
		case f.Daemon == nil:
			found.Fix = follower(f)
		case f.Daemon.Policies.Socket != path && f.Daemon.Policies.Socket != "":
			found.What += fmt.Sprintf("; it does at %q", f.Daemon.Policies.Socket)
			found.Fix = n.edit(f, map[string]any{"daemonSocket": f.Daemon.Policies.Socket})
		default:
			found.Why += ". Its service manager starts it again, and it makes the socket again"
			found.Fix = end(f, "TERM")
		}
		out = append(out, found)
	}
	return out
}

// noAnswer is what comes of it when podmarkd does not answer the plugin.
func noAnswer(c config.Config) string {
	if c.FailOpen {
		return "every pod starts without its policy, because failOpen is set"
	}
	return "every ADD fails with error 11, so no pod starts"
}

// follower is a podmarkd that asks the API server.
func follower(f Facts) string {
	return withState(f, "podmarkd --kubeconfig FILE") + "  # of an account with the roles of conf/"
}

// patience is how long policies may take to come into force.
const patience = time.Minute

func checkBehind(f Facts) []Finding {
	if f.Daemon == nil || !f.DaemonRuns || f.Daemon.Stale(f.Now) || len(checkSource(f)) > 0 {
		return nil // said by others
	}
	p := f.Daemon.Policies
	// Without a watch there is nothing to wait for.
	hopeless := p.Source == agent.FromKubernetes && p.Watches == 0
	if p.Synced || p.Error == "" || !hopeless && f.Now.Sub(p.Since) < patience {
		return troubled(p)
	}
	found := Finding{
		Severity: Error,
		What:     fmt.Sprintf("the policies of %s are not in force as they are there since %s: %s", p.Source, p.Since.Format(time.RFC3339), p.Error),
		Why:      "what was known before is enforced: a policy that is new or has changed holds for no pod, and pods of other nodes that come and go are not followed",
	}
	switch {
	case hopeless:
		found.Fix = follower(f)
	case p.Source == agent.FromKubernetes:
		found.Fix = "kubectl get --raw /readyz  # if it is well: podmarkd's way to it, its account, and the roles of conf/"
	default:
		found.Fix = "# fix the manifest; podmarkd reads the directory again by itself"
	}
	return []Finding{found}
}

// troubled is what is wrong with single policies.
func troubled(p agent.PolicyStatus) []Finding {
	if len(p.Troubles) == 0 {
		return nil
	}
	t := p.Troubles[0]
	return []Finding{{
		Severity: Warning,
		What:     fmt.Sprintf("%d policies are not in force as the Kubernetes API has them, of which %s: %s since %s: %s", p.UnsyncedPolicies, t.Of(), t.Reason, t.Since.Format(time.RFC3339), t.Text),
		Why:      "what is not known of them allows nothing, and where the policies of a namespace are not known, none of its pods starts",
		Fix:      fmt.Sprintf("kubectl -n %s get events  # and fix the policy, or podmarkd's rights: the roles of conf/; podmarkctl status names the others", t.Namespace),
	}}
}

// checkOpen is about pods that are not policed.
func checkOpen(f Facts) []Finding {
	var unmarked map[string]string
	if f.Daemon != nil && f.DaemonRuns && !f.Daemon.Stale(f.Now) {
		unmarked = f.Daemon.Unmarked
	}
	covers := desired.CoverageOf(f.State.Records, unmarked, !f.State.Unapplied)
	var out []Finding
	for _, u := range covers.Unpoliced {
		found := Finding{Severity: Error, What: covers.Only(u.Reason).String()}
		switch u.Reason {
		case desired.Unasked:
			found.Why = "nothing is denied to these pods, whatever the policies say"
			if found.Fix = f.restart(u.Reason); found.Fix != "" {
				found.Fix += "  # " + alone
			} else {
				found.Fix = "# a pod that starts again is as open as long as its network asks for no policy: if that is not meant, say \"policy\": \"kubernetes\" or \"files\" there, then delete the pods"
			}
			if f.unpolicedByChoice() {
				found.Severity = Warning
			}
		case desired.Unanswered:
			found.Why = "these pods are marked, and nothing is denied to them. podmarkd polices each as soon as the API shows it; one that stays so has another UID there"
			found.Fix = "# see the findings about podmarkd first: once it runs and has the API it polices them; until then a pod that is started again is let in again"
			if f.DaemonRuns {
				found.Fix = cmp.Or(f.restart(u.Reason), ctl(f, "list")) + "  # if they stay so; " + alone
			}
		case desired.Unapplied:
			found.Why = "the policies of files are in the state directory, which a reboot and an uninstall empty: nothing is denied to these pods"
			found.Fix = ctl(f, "apply -f POLICIES") + "  # podmarkd --policy-dir DIRECTORY does it by itself whenever it starts; 'podmarkctl apply --delete' says that there are to be none"
		case desired.Unmarked:
			found.Why = "they are from before podmark and could not be adopted, or the runtime reads another directory than podmark is in: no policy holds for them"
			if f.ConfDir != "" {
				found.Why = "they are from before podmark and could not be adopted, or the runtime reads another directory than " + quote(f.ConfDir) + ": no policy holds for them"
			}
			found.Fix = "crictl info | grep -i -E 'confDir|binDir'  # if these are the directories that podmark is in, delete the pods: they start with it"
		}
		out = append(out, found)
	}
	return out
}

// polices reports whether an attachment to the network that is made now gets a policy.
func (f Facts) polices(network string) bool {
	i := slices.IndexFunc(f.Networks, func(n Network) bool { return n.Name == network && n.Entry != nil })
	return i >= 0 && f.Networks[i].Err == nil && f.Networks[i].Config.Policy != config.PolicyNone
}

// unpolicedByChoice reports whether pods are not policed because their networks say that they
// want no policy, and none is there for them.
func (f Facts) unpolicedByChoice() bool {
	chosen := map[string]bool{}
	for _, n := range f.Networks {
		chosen[n.Name] = n.Entry != nil && n.Err == nil && n.Config.Policy == config.PolicyNone && config.SaysPolicy(n.Entry)
	}
	return !slices.ContainsFunc(f.State.Records,
		func(r attachment.Record) bool { return desired.GapOf(r, true) == desired.Unasked && !chosen[r.Network] }) &&
		!slices.ContainsFunc(f.State.Idle, func(p desired.IdlePolicy) bool { return p.Reason == desired.IdleUnpoliced })
}

// alone is what to know before a pod is deleted.
const alone = "a pod without a controller does not come back by itself"

// restart is the command that starts again the pods that are open for a reason, each once, as
// far as they would not be open again; empty where there is none.
func (f Facts) restart(reason desired.Gap) string {
	var commands []string
	for _, r := range f.State.Records {
		one := fmt.Sprintf("kubectl -n %s delete pod %s", quote(r.Namespace), quote(r.Pod))
		if desired.GapOf(r, true) == reason && r.Pod != "" && f.polices(r.Network) && !slices.Contains(commands, one) {
			commands = append(commands, one)
		}
	}
	return strings.Join(commands, " && ")
}

// checkIdle is about policies that hold for no pod, as far as that is a mistake.
func checkIdle(f Facts) []Finding {
	var out []Finding
	for _, reason := range []desired.Idleness{desired.IdleLabels, desired.IdleNamespace, desired.IdleSelector} {
		idle := slices.DeleteFunc(slices.Clone(f.State.Idle), func(p desired.IdlePolicy) bool { return p.Reason != reason })
		if len(idle) == 0 || len(f.State.Records) == 0 {
			continue
		}
		found := Finding{
			Severity: Warning,
			What:     idle[0].String(),
			Why:      "who wrote the policy believes that it isolates pods; on this node it isolates none",
			Fix:      ctl(f, "list -o json") + "  # the pods that there are, with namespaces and labels; fix the policy and apply it again",
		}
		if len(idle) > 1 {
			found.What += fmt.Sprintf("; and so do %d more", len(idle)-1)
		}
		if reason == desired.IdleLabels {
			found.Severity = Error
			found.Why = "podmark knows no labels of these pods but those that their network gives all of them, so the policy can select none"
			if n, ok := f.active(); ok {
				found.Fix = "vi " + quote(n.where()) + "  # \"args\": {\"cni\": {\"labels\": {...}}}, or \"policy\": \"kubernetes\": podmarkd asks the API server for the labels"
			}
		}
		out = append(out, found)
	}
	return out
}

// checkSilent is about networks of which nobody said where their policies come from.
func checkSilent(f Facts) []Finding {
	var out []Finding
	for _, n := range f.Networks {
		if n.Entry == nil || n.Err != nil || config.SaysPolicy(n.Entry) || config.Unknown(n.Entry) != nil {
			continue // a key that is misspelt is said
		}
		out = append(out, Finding{
			Severity: Error,
			What:     fmt.Sprintf("podmark's entry in %q does not say where policies come from", n.where()),
			Why:      "no pod of the network is policed, as with \"policy\": \"none\"",
			Fix:      n.edit(f, map[string]any{"policy": string(f.source())}),
		})
	}
	return out
}

// source is where a network of the node is to take its policies from that does not say so.
func (f Facts) source() config.Policy {
	following := f.State.Kubernetes || len(f.following()) > 0
	if following || f.Daemon != nil && f.DaemonRuns && f.Daemon.Policies.Source == agent.FromKubernetes {
		return config.PolicyKubernetes
	}
	return config.PolicyFiles
}
