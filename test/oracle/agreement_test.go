package oracle_test

import (
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/policy"
	networkingv1 "k8s.io/api/networking/v1"
)

const (
	// agreedFlows is how many flows of which both judges say the same a run has at
	// least. PODMARK_FUZZTIME asks for a run of that long.
	agreedFlows = 100000
	// flowsPerWorld are asked about in each cluster.
	flowsPerWorld = 400
)

// Of random flows under random policies we say what cyclonus and kube-network-policies
// say, wherever these two agree. Where they do not, it is known which of them errs, and we
// say what the other does; such flows do not count.
func TestAgreement(t *testing.T) {
	seed, _ := run(t)
	var (
		random  = rand.New(rand.NewPCG(seed, 0))
		engine  = newEngineJudge(t)
		end     = deadline(t)
		worlds  int
		agreed  int
		allowed int
		skipped = map[string]int{} // by what is known of a judge
	)
	for ; agreed < agreedFlows || time.Now().Before(end); worlds++ {
		w := newWorld(random)
		compiled, judged := w.read(t)
		ours, cyclonus := newCluster(t, compiled, w.pods), newMatcherJudge(w, judged)
		engine.load(t, w, judged)
		for range flowsPerWorld {
			f := w.flow(ours)
			want, second := cyclonus.judge(f), engine.judge(t, f)
			first, other := cyclonusErrs(w, cyclonus, f), engineErrs(cyclonus, f)
			switch {
			case first != "" && other != "":
				// They may agree, and both be wrong.
				skipped["both: "+first+"; "+other]++
				continue
			case want == second:
				agreed++
				if want.both {
					allowed++
				}
			case first != "":
				skipped[first]++
				want = second
			case other != "":
				skipped[other]++
			default:
				t.Fatalf("world %d: %v: the judges disagree, and it is not known why: cyclonus %+v, kube-network-policies %+v\n%s", worlds, f, want, second, describe(w, judged))
			}
			if got := ours.judge(f); got != want {
				t.Fatalf("world %d: %v: ours %+v, theirs %+v\n%s", worlds, f, got, want, describe(w, w.policies))
			}
		}
	}
	t.Logf("%d worlds, %d flows of which both judges say the same, and so do we; %d of them allowed", worlds, agreed, allowed)
	for reason, n := range skipped {
		t.Logf("%d flows do not count: %s", n, reason)
	}
	if allowed < agreed/5 || allowed > agreed*4/5 {
		t.Errorf("%d of %d flows are allowed: too one-sided to prove much", allowed, agreed)
	}
}

// read compiles the policies for us, and makes them plain for the judges.
func (w *world) read(t *testing.T) (desired.Policies, []*networkingv1.NetworkPolicy) {
	t.Helper()
	compiled := desired.Policies{Namespaces: w.namespaces}
	var judged []*networkingv1.NetworkPolicy
	for _, p := range w.policies {
		if errs := refusedUpdate(t, p); len(errs) > 0 {
			t.Fatalf("no API server holds %s: %v", asJSON(p), errs)
		}
		object, err := policy.Object(p)
		if err != nil {
			t.Fatalf("%v\n%s", err, asJSON(p))
		}
		compiled.Policies = append(compiled.Policies, object)
		judged = append(judged, plain(p))
	}
	return compiled, judged
}

func deadline(t *testing.T) time.Time {
	t.Helper()
	text := os.Getenv("PODMARK_FUZZTIME")
	if text == "" {
		return time.Time{}
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatalf("PODMARK_FUZZTIME: %v", err)
	}
	return time.Now().Add(d)
}
