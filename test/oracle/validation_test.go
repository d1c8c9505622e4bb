package oracle_test

import (
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"

	"github.com/podmark/podmark/pkg/policy"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/kubernetes/pkg/apis/networking"
	k8sv1 "k8s.io/kubernetes/pkg/apis/networking/v1"
	"k8s.io/kubernetes/pkg/apis/networking/validation"
	netutils "k8s.io/utils/net"
)

// policyCount is how many random policies a run compares; PODMARK_ROUNDS asks for
// another number, PODMARK_SEED repeats a run.
const policyCount = 50000

// run returns the seed of a run and how many policies it looks at.
func run(t *testing.T) (uint64, int) {
	t.Helper()
	seed, count := rand.Uint64(), policyCount
	if s, err := strconv.ParseUint(os.Getenv("PODMARK_SEED"), 10, 64); err == nil {
		seed = s
	}
	if n, err := strconv.Atoi(os.Getenv("PODMARK_ROUNDS")); err == nil {
		count = n
	}
	t.Logf("PODMARK_SEED=%d", seed)
	return seed, count
}

// Defaults are those of the API server, and so are the fields it refuses and the
// kind of mistake it finds in each, but for spellings of CIDRs that it took before 1.36.
func TestDefaultsAndValidation(t *testing.T) {
	seed, count := run(t)
	g := generator{rand.New(rand.NewPCG(seed, 0))}
	valid := 0
	for i := range count {
		ours := g.policy(i%3 == 0)
		theirs := ours.DeepCopy()
		policy.Default(ours)
		k8sv1.SetObjectDefaults_NetworkPolicy(theirs)
		if !equality.Semantic.DeepEqual(ours, theirs) {
			t.Fatalf("defaults differ:\nours   %+v\ntheirs %+v", ours, theirs)
		}
		var internal networking.NetworkPolicy
		if err := k8sv1.Convert_v1_NetworkPolicy_To_networking_NetworkPolicy(theirs, &internal, nil); err != nil {
			t.Fatal(err)
		}
		options := validation.ValidationOptionsForNetworking(&internal, nil)
		for _, cidr := range cidrs(theirs) {
			if _, _, err := netutils.ParseCIDRSloppy(*cidr); err == nil {
				options.AllowCIDRsEvenIfInvalid = append(options.AllowCIDRsEvenIfInvalid, *cidr)
			}
		}
		want := validation.ValidateNetworkPolicy(&internal, options)
		got := policy.Validate(ours)
		if !slices.Equal(mistakes(want), mistakes(got)) {
			t.Fatalf("validation differs for %+v:\nours   %v\ntheirs %v", ours, got, want)
		}
		if len(want) == 0 {
			valid++
		}
	}
	t.Logf("%d of %d policies are valid, by both", valid, count)
	if valid < count/100 || valid > count*99/100 {
		t.Errorf("%d of %d policies are valid: too one-sided to prove much", valid, count)
	}
}

// What an API server may have stored is understood wholly; of anything else, what is not
// understood is what a server would refuse, and the policy isolates all the same.
func TestStoredObjects(t *testing.T) {
	seed, count := run(t)
	g := generator{rand.New(rand.NewPCG(seed, 1))}
	stored, unclear := 0, 0
	for i := range count {
		p := g.policy(i%3 == 0)
		before := p.DeepCopy()
		compiled, err := policy.Object(p)
		if !equality.Semantic.DeepEqual(before, p) {
			t.Fatalf("changed:\nbefore %+v\nafter  %+v", before, p)
		}
		k8sv1.SetObjectDefaults_NetworkPolicy(p)
		refused := refusedUpdate(t, p)
		if err != nil {
			unclear++
			for _, m := range unclearFields(t, err) {
				if !slices.ContainsFunc(refused, func(e *field.Error) bool { return e.Field == m }) {
					t.Fatalf("%s is not understood, and servers accept it: %v\n%s", m, err, asJSON(p))
				}
			}
		}
		if len(refused) == 0 {
			stored++
			if err != nil {
				t.Fatalf("servers accept it: %v\n%s", err, asJSON(p))
			}
		}
		for _, d := range p.Spec.PolicyTypes {
			if d == networkingv1.PolicyTypeIngress && compiled.Ingress == nil || d == networkingv1.PolicyTypeEgress && compiled.Egress == nil {
				t.Fatalf("does not isolate %s: %s", d, asJSON(p))
			}
		}
	}
	t.Logf("%d of %d policies may be stored, and %d others are understood in part", stored, count, unclear)
	if stored < count/100 || unclear < count/100 {
		t.Error("too one-sided to prove much")
	}
}

// refusedUpdate is what the API server says to a change of something else in a policy that
// is stored: legacy spellings pass, which is by how they were written before. What was
// never a CIDR was never stored.
func refusedUpdate(t *testing.T, p *networkingv1.NetworkPolicy) field.ErrorList {
	t.Helper()
	p = p.DeepCopy()
	k8sv1.SetObjectDefaults_NetworkPolicy(p)
	p.ResourceVersion = "1"
	internal := func(p *networkingv1.NetworkPolicy) *networking.NetworkPolicy {
		out := &networking.NetworkPolicy{}
		if err := k8sv1.Convert_v1_NetworkPolicy_To_networking_NetworkPolicy(p, out, nil); err != nil {
			t.Fatal(err)
		}
		return out
	}
	before := p.DeepCopy()
	for _, cidr := range cidrs(before) {
		if _, _, err := netutils.ParseCIDRSloppy(*cidr); err != nil {
			*cidr = "0.0.0.0/0"
		}
	}
	old, update := internal(before), internal(p)
	return validation.ValidateNetworkPolicyUpdate(update, old, validation.ValidationOptionsForNetworking(update, old))
}

// cidrs lists the CIDRs of a policy, to be read and changed.
func cidrs(p *networkingv1.NetworkPolicy) []*string {
	var out []*string
	for _, peer := range peers(p) {
		if peer.IPBlock == nil {
			continue
		}
		out = append(out, &peer.IPBlock.CIDR)
		for i := range peer.IPBlock.Except {
			out = append(out, &peer.IPBlock.Except[i])
		}
	}
	return out
}

// peers lists those of every rule of a policy.
func peers(p *networkingv1.NetworkPolicy) []networkingv1.NetworkPolicyPeer {
	var out []networkingv1.NetworkPolicyPeer
	for _, r := range p.Spec.Ingress {
		out = append(out, r.From...)
	}
	for _, r := range p.Spec.Egress {
		out = append(out, r.To...)
	}
	return out
}

// unclearFields takes the fields from an error of Object.
func unclearFields(t *testing.T, err error) []string {
	t.Helper()
	var fields []string
	for _, err := range err.(interface{ Unwrap() []error }).Unwrap() {
		var e *field.Error
		if !errors.As(err, &e) {
			t.Fatalf("no error of a field: %v", err)
		}
		fields = append(fields, e.Field)
	}
	return fields
}

// mistakes reduces errors to kind and field; the wording is each side's own.
func mistakes(list field.ErrorList) []string {
	var out []string
	for _, e := range list {
		out = append(out, string(e.Type)+" "+e.Field)
	}
	slices.Sort(out)
	return out
}

func asJSON(p any) string {
	text, err := json.Marshal(p)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// generator makes policies of which many are wrong, in few places each.
type generator struct{ *rand.Rand }

// dice is a source of random numbers.
type dice interface{ IntN(n int) int }

func pick[T any](d dice, values ...T) T { return values[d.IntN(len(values))] }

// some makes 0 to 2 values.
func some[T any](g generator, one func() T) []T {
	var out []T
	for range g.IntN(3) {
		out = append(out, one())
	}
	return out
}

func (g generator) policy(plain bool) *networkingv1.NetworkPolicy {
	p := &networkingv1.NetworkPolicy{}
	p.Name, p.Namespace = "a", "web"
	if !plain {
		p.ObjectMeta = g.metadata()
		p.Spec.PodSelector = g.selector()
	}
	p.Spec.Ingress = some(g, func() networkingv1.NetworkPolicyIngressRule {
		return networkingv1.NetworkPolicyIngressRule{From: some(g, g.peer), Ports: some(g, g.port)}
	})
	p.Spec.Egress = some(g, func() networkingv1.NetworkPolicyEgressRule {
		return networkingv1.NetworkPolicyEgressRule{To: some(g, g.peer), Ports: some(g, g.port)}
	})
	for range g.IntN(4) {
		p.Spec.PolicyTypes = append(p.Spec.PolicyTypes, pick(g, networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress, "ingress", ""))
	}
	return p
}

func (g generator) metadata() metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Name:         pick(g, "a", "a.b", "", "A", "a/b", ".", ".."),
		Namespace:    pick(g, "web", "web", "", "a.b", "Web"),
		GenerateName: pick(g, "", "", "a-", "A-"),
		Labels:       g.labels(),
		Annotations:  g.labels(),
		Finalizers:   pick(g, nil, nil, []string{"foo"}, []string{"a/b", "orphan", "foregroundDeletion"}, []string{"kubernetes"}, []string{"a/b/c"}),
		Generation:   pick(g, int64(0), 0, -1),
		OwnerReferences: pick(g, nil, nil, []metav1.OwnerReference{{}},
			[]metav1.OwnerReference{{APIVersion: "v1", Kind: "Event", Name: "x", UID: "y"}}),
	}
}

func (g generator) labels() map[string]string {
	if g.IntN(3) == 0 {
		return nil
	}
	m := map[string]string{}
	for range g.IntN(3) {
		m[pick(g, "a", "b", "x/y", "a b", "", "UP")] = pick(g, "", "v", "a b", "-", "V1")
	}
	return m
}

func (g generator) selector() metav1.LabelSelector {
	return metav1.LabelSelector{
		MatchLabels: g.labels(),
		MatchExpressions: some(g, func() metav1.LabelSelectorRequirement {
			return metav1.LabelSelectorRequirement{
				Key: pick(g, "a", "b c", ""),
				Operator: pick(g, metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn,
					metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist, "in", ""),
				Values: pick(g, nil, []string{}, []string{"a"}, []string{"a", "b c"}),
			}
		}),
	}
}

func (g generator) peer() networkingv1.NetworkPolicyPeer {
	var p networkingv1.NetworkPolicyPeer
	if g.IntN(3) == 0 {
		s := g.selector()
		p.PodSelector = &s
	}
	if g.IntN(3) == 0 {
		s := g.selector()
		p.NamespaceSelector = &s
	}
	if g.IntN(2) == 0 {
		p.IPBlock = &networkingv1.IPBlock{CIDR: g.cidr(), Except: some(g, g.cidr)}
	}
	return p
}

func (g generator) cidr() string {
	return pick(g, "", "10.0.0.0/8", "10.1.0.0/16", "10.0.0.1/8", "010.0.0.0/8", "10.0.0.0/08", "0.0.0.0/0", "0.0.0.0/1",
		"128.0.0.0/1", "1.2.3.4/32", "10.0.0.0", "10.0.0.0/33", " 10.0.0.0/8", "nonsense", "::/0", "fd00::/8", "FD00:0::/9", "fd00::1/64",
		"::ffff:10.0.0.0/104", "::ffff:10.0.0.0/96", "::ffff:0:0/96", "fe80::%eth0/64", "2001:db8::/129")
}

func (g generator) port() networkingv1.NetworkPolicyPort {
	var p networkingv1.NetworkPolicyPort
	if g.IntN(2) == 0 {
		v := pick(g, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP, "tcp", "", "ICMP")
		p.Protocol = &v
	}
	if g.IntN(3) > 0 {
		v := pick(g, intstr.FromInt32(80), intstr.FromInt32(0), intstr.FromInt32(-1), intstr.FromInt32(65535), intstr.FromInt32(65536),
			intstr.FromString("http"), intstr.FromString("80"), intstr.FromString(""), intstr.FromString("a--b"),
			intstr.FromString("abcdefghijklmnop"), intstr.FromString("HTTP"), intstr.FromString("-"))
		p.Port = &v
	}
	if g.IntN(3) == 0 {
		v := pick(g, int32(80), 79, 90, 0, -1, 65536, 65535)
		p.EndPort = &v
	}
	return p
}
