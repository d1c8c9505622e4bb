package conformance_test

import (
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/mattfenwick/cyclonus/pkg/connectivity/probe"
	"github.com/mattfenwick/cyclonus/pkg/generator"
	"github.com/sirupsen/logrus"
	corev1 "k8s.io/api/core/v1"

	"github.com/podmark/podmark/test/conformance"
	"github.com/podmark/podmark/test/lab"
	"github.com/podmark/podmark/test/needs"
	"github.com/podmark/podmark/test/share"
	"github.com/podmark/podmark/test/testnode"
)

// allCases is how many cyclonus v0.5.6 has.
const allCases = 230

// every is which of the cases are run: one in so many.
var every = flag.Int("every", 0, "run one in so many of the cases; 1 for all, 0 for the test's own choice")

func TestMain(m *testing.M) {
	logrus.SetOutput(io.Discard)
	// Nearly all of the time is spent waiting for packets that must not come.
	if err := flag.Set("test.parallel", "6"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// Pods speak to each other by their own addresses, on this machine's kernel.
func TestPodIP(t *testing.T) {
	onClusters(t, func(t *testing.T, o conformance.Options, number int) {
		o.Silence = 300 * time.Millisecond
		run(t, o, generator.ProbeModePodIP, 3, number)
	})
}

// Pods speak to each other by the addresses of their services, which are in IPVS. They
// take them from the cluster's DNS: cyclonus itself forgets the address of a service
// whose pod it relabels.
func TestServiceIP(t *testing.T) {
	if !needs.Lab() {
		t.Skip("this takes a kernel with IPVS: scripts/lab-test.sh has one")
	}
	onClusters(t, func(t *testing.T, o conformance.Options, number int) {
		// The lab is slow: unless it is told how many cases, it has few, and makes one
		// cluster for each backend.
		if *every == 0 && number%2 == 1 {
			t.Skip("the other family is this one's turn, without -every")
		}
		o.IPVS, o.Silence = true, 3*time.Second
		run(t, o, generator.ProbeModeServiceName, 23, number)
	})
}

// onClusters runs test for each backend and family, and numbers them.
func onClusters(t *testing.T, test func(t *testing.T, o conformance.Options, number int)) {
	for _, backend := range share.OneOf(t, testnode.Backends) {
		for f, family := range lab.Families {
			t.Run(fmt.Sprintf("%s/%v", backend, family), func(t *testing.T) {
				t.Parallel()
				test(t, conformance.Options{Backend: backend, Family: family}, slices.Index(testnode.Backends, backend)+f)
			})
		}
	}
}

// namespaces are those of cyclonus' default resources, as are pods and ports.
var namespaces = []string{"x", "y", "z"}

// suite is a cluster with cyclonus' resources.
type suite struct {
	*conformance.Cluster
	resources *probe.Resources
	mode      generator.ProbeMode
}

func newSuite(t *testing.T, o conformance.Options, mode generator.ProbeMode) *suite {
	t.Helper()
	s := &suite{Cluster: conformance.New(t, o), mode: mode}
	protocols := []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP}
	// Without SCTP in the kernel no pod can serve it, and nobody is asked to.
	if needs.SCTP() == nil {
		protocols = append(protocols, corev1.ProtocolSCTP)
	}
	var err error
	if s.resources, err = probe.NewDefaultResources(s, namespaces, []string{"a", "b", "c"}, []int{80, 81}, protocols, nil, 5, true, ""); err != nil {
		t.Fatal(err)
	}
	return s
}

// cases are all of cyclonus', probing by the suite's mode.
func (s *suite) cases(t *testing.T) []*generator.TestCase {
	t.Helper()
	zc, err := s.resources.GetPod("z", "c")
	if err != nil {
		t.Fatal(err)
	}
	cases := generator.NewTestCaseGenerator(true, zc.IP, namespaces, nil, nil).GenerateTestCases()
	if len(cases) != allCases {
		t.Fatalf("cyclonus has %d cases, want %d", len(cases), allCases)
	}
	for _, c := range cases {
		for _, step := range c.Steps {
			with := *step.Probe // which cases share
			with.Mode = s.mode
			step.Probe = &with
		}
	}
	return cases
}
