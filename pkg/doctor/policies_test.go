package doctor_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/podmark/podmark/pkg/agent"
	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/conflist"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/doctor"
	"github.com/podmark/podmark/pkg/runtimes"
)

const (
	socket    = "/run/podmark/podmarkd.sock"
	elsewhere = "/run/other.sock"
)

// networked are the facts of a node with a network for each list of podmark's keys, on
// which nothing is wrong.
func networked(t *testing.T, keys ...string) doctor.Facts {
	t.Helper()
	f := healthy(t, config.DefaultMask)
	f.Networks = nil
	for i, k := range keys {
		name := fmt.Sprintf("net%d", i)
		entry := fmt.Appendf(nil, `{"type": "podmark", %s}`, k)
		content := fmt.Appendf(nil, `{"cniVersion": "1.0.0", "name": %q, "plugins": [{"type": "ptp", "ipam": {"type": "host-local"}}, %s]}`, name, entry)
		list, err := conflist.Parse(content)
		if err != nil {
			t.Fatal(err)
		}
		n := doctor.Network{File: runtimes.Default().Conf + "/" + name + ".conflist", Network: list, Content: content, Entry: entry}
		if n.Config, n.Err = config.ParseEntry(entry, name, "1.0.0"); n.Err != nil {
			t.Fatal(n.Err)
		}
		f.Networks = append(f.Networks, n)
	}
	f.Sockets = map[string]error{}
	f.Daemon.Policies = agent.PolicyStatus{Source: agent.FromKubernetes, Socket: socket, Synced: true, Watches: 3, Since: f.Now.Add(-time.Hour)}
	return f
}

// shop are pods of namespace shop, of which only the one called policed is.
func shop(kubernetes bool, names ...string) (out []attachment.Record) {
	for _, name := range names {
		r := attachment.Record{Key: attachment.Key{Network: "net0", ContainerID: name}, Kubernetes: kubernetes, Policed: name == "policed", Committed: true}
		r.Namespace, r.Pod = "shop", name
		out = append(out, r)
	}
	return out
}

// What is not policed by choice is told, and is no error; what policies hold for nobody is.
func TestUnpolicedByChoice(t *testing.T) {
	f := networked(t, `"policy": "none"`)
	f.State.Records = shop(false, "web")
	if x := only(t, f, "policy-open"); !strings.HasPrefix(x.Fix, "# ") {
		t.Errorf("to start a pod anew opens it again: %s", x.Fix)
	}
	if x := only(t, f, "policy-open", "0 of 1 pods policed", "asked for no policy"); x.Severity != doctor.Warning {
		t.Errorf("%+v", x)
	}
	f.State.Idle = []desired.IdlePolicy{{Namespace: "shop", Name: "p", Reason: desired.IdleUnpoliced, Text: "no pod is policed"}}
	if x := only(t, f, "policy-open"); x.Severity != doctor.Error {
		t.Errorf("although there is a policy for them: %+v", x)
	}
	f = networked(t, `"policy": "files"`)
	f.State.Idle = []desired.IdlePolicy{
		{Namespace: "shop", Name: "p", Reason: desired.IdleSelector, Text: "no label matches app=wbe"},
		{Namespace: "shop", Name: "q", Reason: desired.IdleSelector, Text: "no label matches app=wbe"},
	}
	if x := only(t, f, "policy-idle", "shop/p", "app=wbe", "1 more"); x.Severity != doctor.Warning {
		t.Errorf("%+v", x)
	}
}

// A pod is proposed to be deleted once, and only where that helps: where the network of its
// attachment polices now. One of a network that wants no policy would be as open again.
func TestDeletePods(t *testing.T) {
	const web, db = "kubectl -n shop delete pod web", "kubectl -n shop delete pod db"
	twice := func(r []attachment.Record) []attachment.Record {
		second := r[0]
		second.IfName, second.Network = "net1", "net1"
		return append(r, second)
	}
	for name, tt := range map[string]struct {
		networks []string
		records  []attachment.Record
		want     string
	}{
		"a further network without":     {[]string{`"policy": "kubernetes"`, `"policy": "none"`}, twice(shop(false, "policed"))[1:], "# "},
		"both networks would":           {[]string{`"policy": "files"`, `"policy": "files"`}, twice(shop(false, "web")), web + "  # "},
		"one of two networks would":     {[]string{`"policy": "files"`, `"policy": "none"`}, twice(shop(false, "web", "db")), web + " && " + db + "  # "},
		"the further one alone would":   {[]string{`"policy": "none"`, `"policy": "files"`}, twice(shop(false, "web", "db")), web + "  # "},
		"twice unanswered":              {[]string{`"policy": "kubernetes"`, `"policy": "kubernetes"`}, twice(shop(true, "web")), web + "  # if they stay so; "},
		"unanswered, and would be open": {[]string{`"policy": "none"`}, shop(true, "web"), "podmarkctl list  # if they stay so; "},
	} {
		f := networked(t, tt.networks...)
		for i := range tt.records {
			tt.records[i].Policed = false
		}
		f.State.Records = tt.records
		x := only(t, f, "policy-open")
		if !strings.HasPrefix(x.Fix, tt.want) || strings.Contains(x.Fix, "delete pod ") && !strings.HasSuffix(x.Fix, "without a controller does not come back by itself") {
			t.Errorf("%s: %s, want %s", name, x.Fix, tt.want)
		}
	}
}

// What is wrong with where policies come from is found, each by one check.
func TestPolicies(t *testing.T) {
	const kubernetes, files = `"policy": "kubernetes"`, `"policy": "files"`
	refused := errors.New("connection refused")
	behind := func(f *doctor.Facts, since time.Duration, watches int, why string) {
		p := &f.Daemon.Policies
		p.Synced, p.Error, p.Watches, p.Since = false, why, watches, f.Now.Add(-since)
	}
	for _, tt := range []struct {
		name     string
		networks []string
		do       func(*doctor.Facts)
		check    string // empty where nothing is wrong
		words    []string
	}{
		{name: "all is well", networks: []string{kubernetes, kubernetes, `"policy": "none"`}},
		{name: "a mix", networks: []string{kubernetes, files}, check: "policy-source", words: []string{"net1", `{"policy": "kubernetes", "type": "podmark"}`}},
		{
			name: "a mix, files first", networks: []string{files, kubernetes + `, "failOpen": true`}, check: "policy-source",
			words: []string{"net1", "# decide"},
		},
		{name: "a mix is said once", networks: []string{kubernetes, files}, check: "policy-source", do: func(f *doctor.Facts) {
			behind(f, time.Hour, 0, "a node has them from one place")
			f.Daemon.Error = f.Daemon.Policies.Error
		}},
		{
			name: "files where the API was followed", networks: []string{files}, check: "policy-source", words: []string{"error 7", "podmarkctl uninstall", `{"policy": "kubernetes", "type": "podmark"}`},
			do: func(f *doctor.Facts) { f.State.Kubernetes = true },
		},
		{
			name: "podmarkd has never run", networks: []string{kubernetes}, check: "policy-socket", words: []string{"error 11", "podmarkd --kubeconfig"},
			do: func(f *doctor.Facts) { f.Sockets[socket], f.Daemon, f.DaemonRuns = refused, nil, false },
		},
		{
			name: "podmarkd has ended", networks: []string{kubernetes}, check: "podmarkd", words: []string{"error 11"},
			do: func(f *doctor.Facts) { f.Sockets[socket], f.DaemonRuns = refused, false },
		},
		{
			name: "the socket is gone", networks: []string{kubernetes}, check: "policy-socket", words: []string{"refused", "fuser -k -TERM /run/podmark/daemon.lock"},
			do: func(f *doctor.Facts) { f.Sockets[socket] = refused },
		},
		{
			name: "failOpen", networks: []string{kubernetes + `, "failOpen": true`}, check: "policy-socket", words: []string{"starts without its policy"},
			do: func(f *doctor.Facts) { f.Sockets[socket] = refused },
		},
		{
			name: "the plugin asks elsewhere", networks: []string{kubernetes + `, "daemonSocket": "` + elsewhere + `"`}, check: "policy-socket",
			words: []string{elsewhere, `"daemonSocket": "` + socket + `"`}, do: func(f *doctor.Facts) { f.Sockets[elsewhere] = refused },
		},
		{
			name: "the API does not answer", networks: []string{kubernetes}, check: "policy-behind", words: []string{"no route", "kubectl get --raw /readyz"},
			do: func(f *doctor.Facts) { behind(f, 2*time.Minute, 3, "no route") },
		},
		{
			name: "the API refuses something", networks: []string{kubernetes}, check: "policy-behind", words: []string{"2 policies", "shop/web", "Forbidden", "kubectl -n shop get events"},
			do: func(f *doctor.Facts) {
				p := &f.Daemon.Policies
				p.UnsyncedPolicies, p.Troubles = 2, []agent.PolicyTrouble{{Namespace: "shop", Policy: "web", Reason: "Forbidden", Since: f.Now, Text: "no"}}
			},
		},
		{name: "not for long", networks: []string{kubernetes}, do: func(f *doctor.Facts) { behind(f, 10*time.Second, 3, "no route") }},
		{
			name: "no API server", networks: []string{kubernetes}, check: "policy-behind", words: []string{"no API server", "podmarkd --kubeconfig"},
			do: func(f *doctor.Facts) {
				behind(f, time.Second, 0, "no API server")
				f.Daemon.Error = f.Daemon.Policies.Error
			},
		},
		{name: "a manifest is wrong", networks: []string{files}, check: "policy-behind", words: []string{"web.yaml"}, do: func(f *doctor.Facts) {
			behind(f, time.Hour, 0, "web.yaml: no such field")
			f.Daemon.Policies.Source = agent.FromDirectory
		}},
		{
			name: "let in", networks: []string{kubernetes}, check: "policy-open", words: []string{"2 of 4 pods policed, 2 unpoliced", "shop/web", "kubectl -n shop delete pod web && kubectl -n shop delete pod db"},
			do: func(f *doctor.Facts) {
				f.State.Records = append(f.State.Records, shop(true, "policed", "web", "db")...)
			},
		},
		{
			name: "nobody asked", networks: []string{kubernetes}, check: "policy-open", words: []string{"1 of 4 pods policed, 3 unpoliced", "kubectl -n shop delete pod policed && "},
			do: func(f *doctor.Facts) {
				f.State.Records = append(f.State.Records, shop(false, "policed", "web", "db")...)
				f.State.Records[1].Policed = false
			},
		},
		{
			name: "started without podmark", networks: []string{kubernetes}, check: "policy-open", words: []string{"1 of 3 pods policed, 2 unpoliced", "shop/old", "confDir"},
			do: func(f *doctor.Facts) {
				f.Daemon.Unmarked = map[string]string{"a": "shop/old", "b": "shop/older"}
			},
		},
		{
			name: "no policy is said", networks: []string{`"backend": "auto"`}, check: "policy-unsaid", words: []string{"net0", `"policy": "kubernetes"`},
		},
		{
			name: "no labels", networks: []string{files}, check: "policy-idle", words: []string{"shop/p", "have no labels", "vi ", "args"},
			do: func(f *doctor.Facts) {
				f.State.Idle = []desired.IdlePolicy{{Namespace: "shop", Name: "p", Reason: desired.IdleLabels, Text: "they have no labels"}}
			},
		},
		{
			name: "of a namespace with other pods", networks: []string{files},
			do: func(f *doctor.Facts) {
				f.State.Idle = []desired.IdlePolicy{{Namespace: "shop", Name: "p", Reason: desired.IdleElsewhere, Text: "none here"}}
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := networked(t, tt.networks...)
			if tt.do != nil {
				tt.do(&f)
			}
			if tt.check == "" {
				if names := found(f); len(names) > 0 {
					t.Errorf("%q", names)
				}
				return
			}
			x := only(t, f, tt.check, tt.words...)
			if troubled := f.Daemon != nil && f.Daemon.Policies.UnsyncedPolicies > 0; (x.Severity == doctor.Error) == troubled {
				t.Errorf("%+v", x)
			}
			if strings.Contains(x.Fix, "failOpen") {
				t.Errorf("the entry would be refused: %s", x.Fix)
			}
		})
	}
}
