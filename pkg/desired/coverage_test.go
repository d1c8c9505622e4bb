package desired

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/podmark/podmark/pkg/attachment"
)

// attached is an endpoint of a pod of namespace shop.
func attached(container, pod string, policed, kubernetes bool, labels map[string]string) attachment.Record {
	return attachment.Record{
		Key:     attachment.Key{Network: "net", ContainerID: container, IfName: "eth0"},
		Policed: policed, Kubernetes: kubernetes,
		Endpoint: attachment.Endpoint{Namespace: "shop", Pod: pod, Labels: labels},
	}
}

func TestCover(t *testing.T) {
	second := attached("a", "web", false, false, nil)
	second.IfName = "net1"
	for name, tt := range map[string]struct {
		records []attachment.Record
		text    string
		open    int
	}{
		"no pod":           {nil, "no pod of this node is known", 0},
		"all":              {[]attachment.Record{attached("a", "web", true, false, nil), attached("b", "db", true, true, nil)}, "2 of 2 pods policed", 0},
		"none is asked":    {[]attachment.Record{attached("a", "web", false, false, nil)}, `0 of 1 pods policed, 1 unpoliced because its network asked for no policy (shop/web)`, 0},
		"let in":           {[]attachment.Record{attached("a", "web", false, true, nil), attached("b", "db", true, true, nil)}, "1 of 2 pods policed, 1 unpoliced because failOpen let it in or it is from before podmark, and podmarkd does not know its policy (shop/web)", 1},
		"a second network": {[]attachment.Record{attached("a", "web", true, false, nil), second}, `0 of 1 pods policed, 1 unpoliced because its network asked for no policy (shop/web)`, 0},
		"no pod's name":    {[]attachment.Record{attached("a", "", false, false, nil)}, `0 of 1 pods policed, 1 unpoliced because its network asked for no policy (a)`, 0},
		"none applied": {
			[]attachment.Record{attached("a", "web", true, false, nil), attached("b", "db", false, false, nil)},
			"0 of 2 pods policed, 1 unpoliced because its network asked for no policy (shop/db), 1 unpoliced because its network takes policies from files, and none were applied since the node started or podmark was installed (shop/web)", 1,
		},
		"many": {
			[]attachment.Record{attached("a", "1", false, false, nil), attached("b", "2", false, false, nil), attached("c", "3", false, false, nil), attached("d", "4", false, false, nil)},
			`0 of 4 pods policed, 4 unpoliced because its network asked for no policy (shop/1, shop/2, shop/3, ...)`, 0,
		},
	} {
		c := CoverageOf(tt.records, nil, name != "none applied")
		if got := c.String(); got != tt.text || c.Open() != tt.open {
			t.Errorf("%s: %d open, %s", name, c.Open(), got)
		}
		sum := c.Policed
		for _, gap := range Gaps() {
			sum += c.Of(gap)
		}
		if sum != c.Pods {
			t.Errorf("%s: %d of %d are counted", name, sum, c.Pods)
		}
	}
	// A pod that is unmarked is one pod, also where a further interface of it is marked.
	for _, policed := range []bool{true, false} {
		records := []attachment.Record{attached("a", "web", true, false, nil), attached("b", "old", policed, false, nil)}
		c := CoverageOf(records, map[string]string{"b": "shop/old", "c": "shop/older"}, true)
		if got := c.String(); got != "1 of 3 pods policed, 2 unpoliced because it started without podmark (shop/old, shop/older)" || c.Open() != 2 {
			t.Errorf("%d open, %s", c.Open(), got)
		}
		c.Unseen = "nobody looks"
		if got := c.String(); !strings.HasSuffix(got, "(shop/old, shop/older); pods that started without podmark are not known: nobody looks") {
			t.Error(got)
		}
	}
}

// A policy that selects no endpoint is named with what keeps it from that.
func TestIdle(t *testing.T) {
	app := func(value string) Selector { return Selector{{Key: "app", Op: In, Values: []string{value}}} }
	policy := func(namespace string, pods Selector) Policies {
		return Policies{Policies: []Policy{{Namespace: namespace, Name: "p", Pods: pods}}, Namespaces: map[string]map[string]string{"empty": nil}}
	}
	web := attached("a", "web", true, false, map[string]string{"app": "web"})
	for name, tt := range map[string]struct {
		policies Policies
		records  []attachment.Record
		reason   Idleness
		says     string
	}{
		"selects one":       {policy("shop", app("web")), []attachment.Record{web}, "", ""},
		"selects all":       {policy("shop", nil), []attachment.Record{attached("a", "web", true, false, nil)}, "", ""},
		"lacks a label":     {policy("shop", Selector{{Key: "app", Op: DoesNotExist}}), []attachment.Record{attached("a", "web", true, false, nil)}, "", ""},
		"typo of the label": {policy("shop", app("wbe")), []attachment.Record{web}, IdleSelector, `podSelector app=wbe`},
		"no labels":         {policy("shop", app("web")), []attachment.Record{attached("a", "web", true, false, nil)}, IdleLabels, `1 of 1 endpoints of namespace "shop" have no labels`},
		"some labels":       {policy("shop", app("db")), []attachment.Record{web, attached("b", "db", true, false, nil)}, IdleLabels, "1 of 2"},
		"typo of namespace": {policy("shpo", nil), []attachment.Record{web}, IdleNamespace, `they are in ["shop"]`},
		"no pods":           {policy("shop", nil), nil, "", ""},
		"elsewhere":         {policy("empty", nil), []attachment.Record{web}, IdleElsewhere, "no pod on this node"},
		"unpoliced":         {policy("shop", nil), []attachment.Record{attached("a", "web", false, false, nil)}, IdleUnpoliced, "is policed"},
	} {
		idle := tt.policies.Idle(tt.records)
		if tt.reason == "" {
			if idle != nil {
				t.Errorf("%s: %v", name, idle)
			}
			continue
		}
		if len(idle) != 1 || idle[0].Reason != tt.reason || !strings.Contains(idle[0].String(), tt.says) {
			t.Errorf("%s: %v", name, idle)
		}
	}
}

// Of a policy of the cluster it is said which of its selectors picks nobody.
func TestIdleCluster(t *testing.T) {
	by := func(key, value string) Selector { return Selector{{Key: key, Op: In, Values: []string{value}}} }
	policy := func(namespaces, pods Selector) Policies {
		return Policies{
			Policies:   []Policy{{Tier: AdminTier, Name: "p", NamespaceSelector: namespaces, Pods: pods}},
			Namespaces: map[string]map[string]string{"shop": {"team": "a"}},
		}
	}
	web, bare := attached("a", "web", true, false, map[string]string{"app": "web"}), attached("b", "db", true, false, nil)
	outside := attached("c", "", true, false, nil)
	outside.Namespace = ""
	for name, tt := range map[string]struct {
		policies Policies
		records  []attachment.Record
		reason   Idleness
		says     string
	}{
		"selects one":            {policy(by("team", "a"), by("app", "web")), []attachment.Record{bare, web}, "", ""},
		"selects all":            {policy(nil, nil), []attachment.Record{bare}, "", ""},
		"other namespaces":       {policy(by("team", "b"), nil), []attachment.Record{web}, IdleNamespace, `namespaceSelector team=b; they are in ["shop"]`},
		"nobody in Kubernetes":   {policy(nil, nil), []attachment.Record{outside}, IdleNamespace, "they are in [\"\"]"},
		"typo of the label":      {policy(by("team", "a"), by("app", "wbe")), []attachment.Record{web}, IdleSelector, "podSelector app=wbe"},
		"no labels":              {policy(nil, by("app", "db")), []attachment.Record{web, bare}, IdleLabels, `1 of 2 endpoints of the namespaces ["shop"]`},
		"unpoliced":              {policy(nil, nil), []attachment.Record{attached("a", "web", false, false, nil)}, IdleUnpoliced, "is policed"},
		"unpoliced, and another": {policy(nil, by("app", "db")), []attachment.Record{web, attached("b", "db", false, false, map[string]string{"app": "db"})}, IdleSelector, "app=db"},
	} {
		idle := tt.policies.Idle(tt.records)
		switch {
		case tt.reason == "" && idle != nil:
			t.Errorf("%s: %v", name, idle)
		case tt.reason != "" && (len(idle) != 1 || idle[0].Reason != tt.reason || !strings.Contains(idle[0].String(), tt.says) || !strings.Contains(idle[0].String(), "policy Admin/p ")):
			t.Errorf("%s: %v", name, idle)
		}
	}
}

func TestSelectorString(t *testing.T) {
	s := Selector{{"app", In, []string{"web"}}, {"tier", In, []string{"a", "b"}}, {"x", NotIn, []string{"y"}}, {"there", Exists, nil}, {"old", DoesNotExist, nil}}
	if diff := cmp.Diff("app=web,tier in (a,b),x notin (y),there,!old", s.String()); diff != "" {
		t.Error(diff)
	}
}
