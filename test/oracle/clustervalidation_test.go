package oracle_test

import (
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/podmark/podmark/pkg/policy"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structural "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/listtype"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apimachinery/pkg/util/validation/field"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"
	"sigs.k8s.io/yaml"
)

// crdJudge validates a ClusterNetworkPolicy as an API server does that has upstream's CRD.
type crdJudge struct {
	schema *structural.Structural
	fields validation.SchemaValidator
	rules  *cel.Validator
}

func newCRDJudge(t *testing.T) crdJudge {
	t.Helper()
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/network-policy-api").Output()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "config/crd/experimental/policy.networking.k8s.io_clusternetworkpolicies.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var crd apiextensionsv1.CustomResourceDefinition
	if err := yaml.Unmarshal(text, &crd); err != nil {
		t.Fatal(err)
	}
	var internal apiextensions.JSONSchemaProps
	if err := apiextensionsv1.Convert_v1_JSONSchemaProps_To_apiextensions_JSONSchemaProps(crd.Spec.Versions[0].Schema.OpenAPIV3Schema, &internal, nil); err != nil {
		t.Fatal(err)
	}
	j := crdJudge{}
	if j.schema, err = structural.NewStructural(&internal); err != nil {
		t.Fatal(err)
	}
	if j.fields, _, err = validation.NewSchemaValidator(&internal); err != nil {
		t.Fatal(err)
	}
	j.rules = cel.NewValidator(j.schema, true, celconfig.PerCallLimit)
	return j
}

// validate returns what an API server would say; formed is set where it has asked the rules of the
// CRD too, which are for what has the right form.
func (j crdJudge) validate(t *testing.T, object map[string]any) (errs field.ErrorList, formed bool) {
	t.Helper()
	pruning.Prune(object, j.schema, true)
	errs = validation.ValidateCustomResource(nil, object, j.fields)
	errs = append(errs, listtype.ValidateListSetsAndMaps(nil, j.schema, object)...)
	if len(errs) > 0 {
		return errs, false
	}
	errs, _ = j.rules.Validate(t.Context(), nil, j.schema, object, nil, celconfig.RuntimeCELCostBudget)
	return errs, true
}

// What the CRD refuses of a ClusterNetworkPolicy, [policy.ValidateCluster] refuses in the same place,
// and nothing else but what the comments below name.
func TestClusterValidation(t *testing.T) {
	seed, count := run(t)
	random := rand.New(rand.NewPCG(seed, 3))
	judge, valid := newCRDJudge(t), 0
	for i := range count / 10 {
		w := newWorld(random)
		p := w.clusterPolicy(i)
		p.TypeMeta.APIVersion, p.TypeMeta.Kind = v1alpha2.GroupVersion.String(), "ClusterNetworkPolicy"
		if len(p.Spec.Egress) > 0 && w.maybe(3) {
			r := &p.Spec.Egress[0]
			r.Action = v1alpha2.ClusterNetworkPolicyRuleActionAccept
			r.To = append(r.To, v1alpha2.ClusterNetworkPolicyEgressPeer{DomainNames: []v1alpha2.DomainName{
				pick(w, v1alpha2.DomainName("kubernetes.io"), "*.kubernetes.io.", "www.*.io", "io", "-.io"),
			}})
		}
		if len(p.Spec.Ingress) > 0 && w.maybe(3) {
			p.Spec.Ingress[0].Name = strings.Repeat(pick(w, "x", "é"), pick(w, 1, 100, 101))
		}
		object := asMap(t, p)
		for range w.IntN(3) {
			w.spoil(object["spec"].(map[string]any))
		}
		manifest, err := json.Marshal(object)
		if err != nil {
			t.Fatal(err)
		}
		var read v1alpha2.ClusterNetworkPolicy
		if err := json.Unmarshal(manifest, &read); err != nil {
			t.Fatalf("%s: %v", manifest, err)
		}
		want, formed := judge.validate(t, object)
		got := slices.DeleteFunc(policy.ValidateCluster(&read, manifest), func(err *field.Error) bool {
			return err.Type == field.ErrorTypeForbidden && strings.HasSuffix(err.Field, ".domainNames") // the CRD takes them in any rule
		})
		theirs, ours := places(want), places(got)
		if !formed { // we ask the rules all the same
			ours = slices.DeleteFunc(ours, func(place string) bool { return !slices.Contains(theirs, place) })
		}
		if diff := cmp.Diff(theirs, ours); diff != "" {
			t.Fatalf("they say %v\nwe say %v\nof %s\n%s", want, got, manifest, diff)
		}
		if len(want) == 0 {
			valid++
		}
	}
	t.Logf("%d of %d policies are valid, by both", valid, count/10)
	if valid < count/100 || valid > count*9/100 {
		t.Errorf("%d of %d policies are valid: too one-sided to prove much", valid, count/10)
	}
}

func asMap(t *testing.T, p *v1alpha2.ClusterNetworkPolicy) map[string]any {
	t.Helper()
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]any{}
	if err := json.Unmarshal(text, &out); err != nil {
		t.Fatal(err)
	}
	delete(out, "status")
	return out
}

// places are the rules, or the fields beside them, that errors are about.
func places(errs field.ErrorList) []string {
	set := map[string]bool{}
	for _, err := range errs {
		parts := strings.Split(err.Field, ".")
		set[strings.Join(parts[:min(2, len(parts))], ".")] = true
	}
	return slices.Sorted(maps.Keys(set))
}

// spoil makes one thing of a spec wrong, maybe.
func (w *world) spoil(spec map[string]any) {
	var maps []map[string]any
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			if len(v) > 0 {
				maps = append(maps, v)
			}
			for _, key := range slices.Sorted(keysOf(v)) {
				if key != "matchExpressions" && key != "matchLabels" {
					walk(v[key])
				}
			}
		case []any:
			for _, item := range v {
				walk(item)
			}
		}
	}
	walk(spec)
	in := maps[w.IntN(len(maps))]
	keys := slices.Sorted(keysOf(in))
	key := keys[w.IntN(len(keys))]
	if key == "matchExpressions" || key == "matchLabels" {
		return
	}
	switch v := in[key].(type) {
	case map[string]any:
		w.spoilMap(in, key)
	case []any:
		switch w.IntN(3) {
		case 0:
			in[key] = []any{}
		case 1:
			for len(v) > 0 && len(v) < 26 {
				v = append(v, v[0])
			}
			in[key] = v
		default:
			delete(in, key)
		}
	case string:
		if key == "destinationNamedPort" { // the CRD takes a port without a name, which none has
			return
		}
		in[key] = pick(w, "", "Deny", "Admin", "10.0.0.0/8", "fd00::/129", "::ffff:10.0.0.0/104", "010.0.0.0/8", "kubernetes.io")
	case int64:
		in[key] = pick(w, int64(0), -1, 1, 1000, 1001, 65535, 65536)
	}
}

// spoilMap takes an object away, empties it, or puts another one beside it.
func (w *world) spoilMap(in map[string]any, key string) {
	switch w.IntN(3) {
	case 0:
		delete(in, key)
	case 1:
		in[key] = map[string]any{}
	default:
		other := pick(w, "namespaces", "pods", "nodes", "tcp", "udp", "range", "unknown")
		if _, there := in[other]; !there {
			in[other] = map[string]any{}
		}
	}
}

func keysOf(m map[string]any) func(func(string) bool) { return maps.Keys(m) }
