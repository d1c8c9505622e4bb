package conformance_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mattfenwick/cyclonus/pkg/connectivity"
	"github.com/mattfenwick/cyclonus/pkg/connectivity/probe"
	"github.com/mattfenwick/cyclonus/pkg/generator"
	"github.com/mattfenwick/cyclonus/pkg/kube"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/podmark/podmark/test/conformance"
	"github.com/podmark/podmark/test/lab"
)

// retries is how often the interpreter may repeat a probe that differs: a machine that is
// busy with something else may keep an answer for longer than the silence that is waited
// for. The report counts them. A packet that gets through and must not is never forgiven.
const retries = 2

// interpreter is cyclonus', as it is.
func (s *suite) interpreter(k kube.IKubernetes) *connectivity.Interpreter {
	return connectivity.NewInterpreter(k, s.resources, &connectivity.InterpreterConfig{
		ResetClusterBeforeTestCase: true, VerifyClusterStateBeforeTestCase: true,
		KubeProbeRetries: retries, BatchJobs: true,
		// What a pod may send to itself through a service is not defined.
		IgnoreLoopback: true,
	})
}

// run has a cluster judged by every so manieth case. Clusters of another number have
// other cases, so that few clusters see all of them.
func run(t *testing.T, o conformance.Options, mode generator.ProbeMode, share, number int) {
	if *every > 0 {
		share = *every
	}
	s := newSuite(t, o, mode)
	interpreter := s.interpreter(s)
	var r report
	start := time.Now()
	for i, c := range s.cases(t) {
		if i%share != number%share {
			continue
		}
		if err := s.Tidy(namespaces...); err != nil {
			t.Fatal(err)
		}
		r.add(t, fmt.Sprintf("case %d, %s", i, c.Description), interpreter.ExecuteTestCase(c))
	}
	t.Logf("%d of %d cases, one in %d, from number %d on", r.cases, allCases, share, number%share)
	// scripts/conformance.sh makes a table of these lines.
	t.Logf("| %s | %s | %v | %d | %d | %d | %d | %d | %d | %.0f s |", mode, o.Backend, o.Family,
		r.cases, r.failed, r.steps, r.probes, r.blocked, r.repeated, time.Since(start).Seconds())
	if r.blocked == 0 || r.blocked == r.probes {
		t.Errorf("%d of %d probes were blocked: that judges nothing", r.blocked, r.probes)
	}
}

// report is what cases came to. Probes to oneself are not counted.
type report struct {
	cases, failed, steps, probes, blocked, repeated int
}

func (r *report) add(t *testing.T, name string, result *connectivity.Result) {
	t.Helper()
	r.cases++
	if result.Err != nil {
		r.failed++
		t.Errorf("%s: %v", name, result.Err)
		return
	}
	failed := false
	for i, step := range result.Steps {
		r.steps++
		opened := false
		for try, got := range step.KubeProbes[:len(step.KubeProbes)-1] {
			r.repeated++
			t.Logf("%s, step %d, try %d:\n%s", name, i+1, try+1, differences(step, got))
			each(step, got, func(_, _ string, want, got *probe.JobResult) {
				opened = opened || want.Combined == probe.ConnectivityBlocked && got != nil && got.Combined == probe.ConnectivityAllowed
			})
		}
		each(step, step.LastKubeProbe(), func(_, _ string, want, _ *probe.JobResult) {
			r.probes++
			if want.Combined == probe.ConnectivityBlocked {
				r.blocked++
			}
		})
		switch {
		case !step.Passed(true):
			failed = true
			t.Errorf("%s, step %d:\n%s", name, i+1, differences(step, step.LastKubeProbe()))
		case opened:
			failed = true
			t.Errorf("%s, step %d: something got through at first that is forbidden", name, i+1)
		}
	}
	if failed {
		r.failed++
	}
}

// each calls f with every probe of a try between different pods.
func each(step *connectivity.StepResult, try *probe.Table, f func(from, to string, want, got *probe.JobResult)) {
	for _, key := range step.SimulatedProbe.Wrapped.Keys() {
		if key.From == key.To {
			continue
		}
		got := try.Get(key.From, key.To).JobResults
		for port, want := range step.SimulatedProbe.Get(key.From, key.To).JobResults {
			f(key.From, key.To, want, got[port])
		}
	}
}

// differences names a few, and the policies.
func differences(step *connectivity.StepResult, try *probe.Table) string {
	const most = 5
	var b strings.Builder
	n := 0
	each(step, try, func(from, to string, want, got *probe.JobResult) {
		if got != nil && got.Combined == want.Combined {
			return
		}
		if n++; n <= most {
			seen := probe.ConnectivityUnknown
			if got != nil {
				seen = got.Combined
			}
			fmt.Fprintf(&b, "%s to %s, %s: %s, want %s\n", from, to, want.Key(), seen, want.Combined)
		}
	})
	fmt.Fprintf(&b, "%d differences, with these policies:\n", n)
	for _, p := range step.KubePolicies {
		spec, _ := json.Marshal(p.Spec) // it came from there
		fmt.Fprintf(&b, "%s/%s: %s\n", p.Namespace, p.Name, spec)
	}
	return b.String()
}

// A cluster that loses its policies does not pass.
func TestInterpreterNotices(t *testing.T) {
	t.Parallel()
	s := newSuite(t, conformance.Options{Backend: lab.NFTables, Family: lab.V4, Silence: 300 * time.Millisecond}, generator.ProbeModePodIP)
	result := s.interpreter(forgetful{s}).ExecuteTestCase(s.cases(t)[0])
	if result.Err != nil {
		t.Fatal(result.Err)
	}
	if result.Passed(true) {
		t.Error("it passed")
	}
}

// forgetful is a cluster that stores no policy.
type forgetful struct{ kube.IKubernetes }

// CreateNetworkPolicy implements [kube.IKubernetes], but for what it says.
func (forgetful) CreateNetworkPolicy(p *networkingv1.NetworkPolicy) (*networkingv1.NetworkPolicy, error) {
	return p, nil
}
