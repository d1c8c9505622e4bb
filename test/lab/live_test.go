package lab_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/podmark/podmark/test/lab"
	"github.com/podmark/podmark/test/wait"
)

// liveFlow is a connection that never stops, under a name.
type liveFlow struct {
	name   string
	stream *lab.Stream
	cut    *bool // whether it was, when it was last used
}

func live(name string, s *lab.Stream) liveFlow { return liveFlow{name, s, new(bool)} }

// use pings the flow. One that was never cut must answer at once; one that was
// cut and is allowed again has to send first what was lost, which takes TCP
// longer each time.
func (f liveFlow) use(want lab.Outcome) lab.Result {
	limit := lab.AnswerLimit
	if want != lab.OK {
		limit = lab.SilenceLimit
	}
	result := f.stream.Ping(limit)
	for deadline := time.Now().Add(wait.Still); *f.cut && want == lab.OK && result.Outcome != want && time.Now().Before(deadline); {
		result = f.stream.Ping(limit)
	}
	*f.cut = result.Outcome != lab.OK
	return result
}

// pingAll uses every flow once, all at the same time, and compares.
func pingAll(t *testing.T, when string, flows []liveFlow, want map[string]lab.Outcome) {
	t.Helper()
	type answer struct {
		name   string
		result lab.Result
	}
	answers := make(chan answer)
	for _, f := range flows {
		go func() { answers <- answer{f.name, f.use(want[f.name])} }()
	}
	for range flows {
		if a := <-answers; a.result.Outcome != want[a.name] {
			t.Errorf("%s: live connection %s is %v, want %v", when, a.name, a.result, want[a.name])
		}
	}
}

// applyJSON is apply, with what it did.
func applyJSON(t *testing.T, n *lab.Node, manifests string) (done struct {
	Epoch                     uint32
	Restricted                bool
	FlowsReclaimed, Offloaded int
},
) {
	t.Helper()
	file := filepath.Join(n.Dir, "policy.yaml")
	if err := os.WriteFile(file, []byte(manifests), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(podmarkctl(t, n, "apply", "-n", "default", "-f", file, "-o", "json")), &done); err != nil {
		t.Fatal(err)
	}
	return done
}

const allowAToB = `---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: allow-a-to-b}
spec:
  podSelector: {matchLabels: {app: a}}
  policyTypes: [Egress]
  egress:
  - to: [{podSelector: {matchLabels: {app: b}}}]
`

// A policy stops the live connections it forbids at their next packet, directly
// and through IPVS, and touches no other.
func TestLiveConnections(t *testing.T) {
	onRouted(t, func(t *testing.T, c *cluster) {
		var flows []liveFlow
		for _, p := range lab.Protocols {
			for _, f := range lab.Families {
				open := func(name string, from *lab.NS, r lab.Request) {
					r.Protocol = p
					flows = append(flows, live(name+" "+p.String()+" "+f.String(), from.Stream(r)))
				}
				open("pod to pod", c.a.NS, lab.Request{To: c.b.At(f, podPort)})
				open("pod to ClusterIP", c.a.NS, lab.Request{To: c.vip(p, f)})
				open("pod to outside", c.a.NS, lab.Request{To: c.outside.At(f, podPort)})
				open("pod to host process", c.a.NS, lab.Request{To: c.Node.At(f, hostPort)})
				open("outside to NodePort", c.outside.NS, lab.Request{To: c.Node.At(f, nodePort)})
				open("host process to pod", c.Node.NS, lab.Request{To: c.a.At(f, podPort)})
				open("other pod to pod", c.b.NS, lab.Request{To: c.a.At(f, podPort)})
			}
		}
		blocked := func(names ...string) map[string]lab.Outcome {
			out := map[string]lab.Outcome{}
			for _, n := range names {
				for _, p := range lab.Protocols {
					for _, f := range lab.Families {
						out[n+" "+p.String()+" "+f.String()] = lab.Blocked
					}
				}
			}
			return out
		}
		pingAll(t, "no policy", flows, blocked())

		first := applyJSON(t, c.Node, isolate("a", "Egress"))
		if !first.Restricted {
			t.Error("isolating a pod did not begin an epoch")
		}
		pingAll(t, "egress of a denied", flows, blocked("pod to pod", "pod to ClusterIP", "pod to outside", "pod to host process"))
		// An SCTP association gives up for good after a while: those end here.
		flows = slices.DeleteFunc(flows, func(f liveFlow) bool { return strings.Contains(f.name, "sctp") })

		second := applyJSON(t, c.Node, isolate("a", "Egress")+allowAToB)
		if second.Restricted || second.Epoch != first.Epoch {
			t.Errorf("a policy that only allows more began epoch %d after %d", second.Epoch, first.Epoch)
		}
		pingAll(t, "a may reach b", flows, blocked("pod to outside", "pod to host process"))

		if third := applyJSON(t, c.Node, isolate("b", "Ingress")); !third.Restricted {
			t.Error("isolating another pod did not begin an epoch")
		}
		pingAll(t, "ingress of b denied", flows, blocked("pod to pod", "pod to ClusterIP", "outside to NodePort"))

		podmarkctl(t, c.Node, "apply", "--delete")
		pingAll(t, "no policy again", flows, blocked())
	})
}

// The number of an epoch that was used before the wrap is taken off the flows
// that still carry it: with two bits there are three epochs.
func TestEpochWraps(t *testing.T) {
	t.Parallel()
	lab.Backends(t, func(t *testing.T, backend lab.Backend) {
		node := lab.NewNode(t, lab.Options{Backend: backend})
		outside := node.AddHost("outside")
		network := node.PTP(node.Podmark(lab.Plugin{"policy": "files", "iptablesMarkMask": "0x30000"}))
		b := node.AddPod(lab.PodSpec{Name: "b", Labels: map[string]string{"app": "b"}, Network: network})
		b.Listen(lab.UDP, podPort)
		stream := outside.Stream(lab.Request{Protocol: lab.UDP, To: b.At(lab.V4, podPort)})
		seen := map[uint32]bool{}
		for range 4 {
			done := applyJSON(t, node, isolate("b", "Ingress"))
			seen[done.Epoch] = true
			if got := stream.Ping(lab.SilenceLimit); got.Outcome != lab.Blocked {
				t.Errorf("epoch %d: a forbidden flow is %v", done.Epoch, got)
			}
			podmarkctl(t, node, "apply", "--delete")
			if got := stream.Ping(lab.AnswerLimit); got.Outcome != lab.OK {
				t.Errorf("after epoch %d: an allowed flow is %v", done.Epoch, got)
			}
		}
		if len(seen) != 3 {
			t.Errorf("four denials of a 2-bit mask used the epochs %v, want all of 1 to 3", seen)
		}
	})
}
