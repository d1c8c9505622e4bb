package oracle_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/mattfenwick/cyclonus/pkg/connectivity/probe"
	cyclonus "github.com/mattfenwick/cyclonus/pkg/generator"
	"github.com/mattfenwick/cyclonus/pkg/matcher"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/policy"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	k8sv1 "k8s.io/kubernetes/pkg/apis/networking/v1"
	"sigs.k8s.io/yaml"
)

// What cyclonus v0.5.6 has: fewer would mean that a part of it was not run.
const (
	cyclonusCases  = 230
	cyclonusSteps  = 256
	cyclonusProbes = 123669
)

// Every verdict of cyclonus' simulation is ours: egress, ingress, and the two together,
// with pods that have addresses of both families and speak one.
func TestCyclonus(t *testing.T) {
	for family, name := range []string{"IPv4", "IPv6"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			suite := newSuite(family)
			cases := cyclonus.NewTestCaseGenerator(true, suite.address("z/c", family).String(), []string{"x", "y", "z"}, nil, nil).GenerateTestCases()
			steps, probes, allowed := 0, 0, 0
			for _, c := range cases {
				s := newSuite(family)
				for i, step := range c.Steps {
					for _, action := range step.Actions {
						s.apply(t, action)
					}
					steps++
					judged, passed, differences := s.compare(t, step)
					probes += judged
					allowed += passed
					for _, d := range differences[:min(len(differences), 3)] {
						t.Errorf("%s, step %d: %s", c.Description, i+1, d)
					}
				}
			}
			t.Logf("%d cases, %d steps, %d probes, %d of them allowed, by both", len(cases), steps, probes, allowed)
			if len(cases) != cyclonusCases || steps != cyclonusSteps || probes != cyclonusProbes {
				t.Errorf("%d cases, %d steps, %d probes; want %d, %d and %d", len(cases), steps, probes, cyclonusCases, cyclonusSteps, cyclonusProbes)
			}
		})
	}
}

// suite is the cluster of one case of cyclonus.
type suite struct {
	family    int // of the probes: 0 for IPv4
	resources *probe.Resources
	policies  []*networkingv1.NetworkPolicy
	numbers   map[string]int // of the pods, for their addresses
}

func newSuite(family int) *suite {
	s := &suite{family: family, resources: &probe.Resources{Namespaces: map[string]map[string]string{}}, numbers: map[string]int{}}
	for _, namespace := range []string{"x", "y", "z"} {
		s.resources.Namespaces[namespace] = map[string]string{"ns": namespace}
		for _, name := range []string{"a", "b", "c"} {
			p := probe.NewDefaultPod(namespace, name, []int{80, 81}, []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}, false, "")
			p.IP = s.address(namespace+"/"+name, family).String()
			s.resources.Pods = append(s.resources.Pods, p)
		}
	}
	s.resources.Namespaces = named(s.resources.Namespaces)
	return s
}

// address is where a pod is, the same for as long as the suite lasts.
func (s *suite) address(pod string, family int) netip.Addr {
	if _, known := s.numbers[pod]; !known {
		s.numbers[pod] = len(s.numbers) + 1
	}
	return netip.MustParseAddr(fmt.Sprintf([]string{"10.99.0.%d", "fd00:99::%d"}[family], s.numbers[pod]))
}

// apply does to the cluster what a step of a case asks for.
func (s *suite) apply(t *testing.T, action *cyclonus.Action) {
	t.Helper()
	var (
		next = s.resources
		err  error
	)
	switch {
	case action.CreatePolicy != nil:
		s.policies = append(s.policies, action.CreatePolicy.Policy)
	case action.UpdatePolicy != nil:
		p := action.UpdatePolicy.Policy
		s.policies[s.index(t, p.Namespace, p.Name)] = p
	case action.DeletePolicy != nil:
		i := s.index(t, action.DeletePolicy.Namespace, action.DeletePolicy.Name)
		s.policies = slices.Delete(s.policies, i, i+1)
	case action.CreateNamespace != nil:
		next, err = next.CreateNamespace(action.CreateNamespace.Namespace, action.CreateNamespace.Labels)
	case action.SetNamespaceLabels != nil:
		next, err = next.UpdateNamespaceLabels(action.SetNamespaceLabels.Namespace, action.SetNamespaceLabels.Labels)
	case action.DeleteNamespace != nil:
		next, err = next.DeleteNamespace(action.DeleteNamespace.Namespace)
	case action.CreatePod != nil:
		a := action.CreatePod
		if next, err = next.CreatePod(a.Namespace, a.Pod, a.Labels); err == nil {
			next.Pods[len(next.Pods)-1].IP = s.address(a.Namespace+"/"+a.Pod, s.family).String()
		}
	case action.SetPodLabels != nil:
		next, err = next.SetPodLabels(action.SetPodLabels.Namespace, action.SetPodLabels.Pod, action.SetPodLabels.Labels)
	case action.DeletePod != nil:
		next, err = next.DeletePod(action.DeletePod.Namespace, action.DeletePod.Pod)
	case action.ReadNetworkPolicies != nil:
		// There are none but those of the case.
	default:
		t.Fatalf("an action of no known kind: %+v", action)
	}
	if err != nil {
		t.Fatal(err)
	}
	s.resources = next
	s.resources.Namespaces = named(s.resources.Namespaces)
}

func (s *suite) index(t *testing.T, namespace, name string) int {
	t.Helper()
	i := slices.IndexFunc(s.policies, func(p *networkingv1.NetworkPolicy) bool { return p.Namespace == namespace && p.Name == name })
	if i < 0 {
		t.Fatalf("there is no policy %s/%s", namespace, name)
	}
	return i
}

// compare runs the probe of a step. It returns how many verdicts were compared, how many
// flows are allowed, and the differences.
func (s *suite) compare(t *testing.T, step *cyclonus.TestStep) (judged, allowed int, differences []string) {
	t.Helper()
	var defaulted []*networkingv1.NetworkPolicy
	for _, p := range s.policies {
		d := p.DeepCopy()
		k8sv1.SetObjectDefaults_NetworkPolicy(d)
		defaulted = append(defaulted, d)
	}
	runner := probe.NewSimulatedRunner(matcher.BuildNetworkPolicies(true, defaulted), &probe.JobBuilder{TimeoutSeconds: 1})
	table := runner.RunProbeForConfig(step.Probe, s.resources)
	ours := newCluster(t, s.compile(t), s.pods())
	for _, key := range table.Wrapped.Keys() {
		for _, r := range table.Get(key.From, key.To).JobResults {
			f := flow{
				netip.MustParseAddr(r.Job.FromIP), netip.MustParseAddr(r.Job.ToIP),
				protocols[r.Job.Protocol], uint16(r.Job.ResolvedPort),
			}
			want := verdict{*r.Ingress == probe.ConnectivityAllowed, *r.Egress == probe.ConnectivityAllowed, r.Combined == probe.ConnectivityAllowed}
			judged++
			if want.both {
				allowed++
			}
			if got := ours.judge(f); got != want {
				differences = append(differences, fmt.Sprintf("%s to %s, %v: ours %+v, theirs %+v", key.From, key.To, f, got, want))
			}
		}
	}
	return judged, allowed, differences
}

var protocols = map[corev1.Protocol]desired.Protocol{
	corev1.ProtocolTCP: desired.TCP, corev1.ProtocolUDP: desired.UDP, corev1.ProtocolSCTP: desired.SCTP,
}

// compile reads the policies as a file says them, and sees that what an API server would
// hand out comes to the same.
func (s *suite) compile(t *testing.T) desired.Policies {
	t.Helper()
	var sources []policy.Source
	add := func(object any) {
		text, err := yaml.Marshal(object)
		if err != nil {
			t.Fatal(err)
		}
		sources = append(sources, policy.Source{Name: fmt.Sprintf("%d.yaml", len(sources)), Data: text})
	}
	for name, labels := range s.resources.Namespaces {
		namespace := probe.KubeNamespace(name, labels)
		namespace.APIVersion, namespace.Kind = "v1", "Namespace"
		add(namespace)
	}
	for _, p := range s.policies {
		p := p.DeepCopy()
		p.APIVersion, p.Kind = "networking.k8s.io/v1", "NetworkPolicy"
		add(p)
	}
	compiled, _, err := policy.Options{}.Compile(sources...)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range s.policies {
		object, err := policy.Object(p)
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(compiled.Policies, func(c desired.Policy) bool { return c.Namespace == p.Namespace && c.Name == p.Name })
		if diff := cmp.Diff(compiled.Policies[i], object, comparePrefixes); diff != "" {
			t.Fatalf("as a file and as an object (-file +object):\n%s", diff)
		}
	}
	return compiled
}

var comparePrefixes = cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })

// pods are the pods as Kubernetes has them, on either node by turns.
func (s *suite) pods() []*corev1.Pod {
	var pods []*corev1.Pod
	for _, p := range s.resources.Pods {
		pod := p.KubePod()
		key := p.Namespace + "/" + p.Name
		pod.Status.PodIPs = []corev1.PodIP{{IP: s.address(key, 0).String()}, {IP: s.address(key, 1).String()}}
		pod.Spec.NodeName = nodes[s.numbers[key]%len(nodes)]
		pods = append(pods, pod)
	}
	return pods
}
