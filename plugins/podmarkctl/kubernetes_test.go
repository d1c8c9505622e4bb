package main_test

import (
	"encoding/json"
	"net"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/podmark/podmark/test/fakeapi"
)

// api starts an API server in the node's namespace, and returns how podmarkd asks it.
func (p *patient) api(manifests string) (flags []string) {
	p.T.Helper()
	_, flags = p.serveAPI(manifests)
	return flags
}

// serveAPI is api for a server that is told more later.
func (p *patient) serveAPI(manifests string) (api *fakeapi.Server, flags []string) {
	p.T.Helper()
	p.Exec("", "ip", "link", "set", "lo", "up")
	l, err := net.Listen("tcp", "127.0.0.1:0") // on the thread that is in the namespace
	if err != nil {
		p.T.Fatal(err)
	}
	api = fakeapi.New(
		fakeapi.Resource{Version: "v1", Name: "pods", Kind: "Pod", Namespaced: true},
		fakeapi.Resource{Version: "v1", Name: "namespaces", Kind: "Namespace"},
		fakeapi.Resource{Version: "v1", Name: "services", Kind: "Service", Namespaced: true},
		fakeapi.Resource{Group: "networking.k8s.io", Version: "v1", Name: "networkpolicies", Kind: "NetworkPolicy", Namespaced: true},
	)
	if err := api.Apply(manifests); err != nil {
		p.T.Fatal(err)
	}
	server := httptest.NewUnstartedServer(api)
	server.Listener.Close()
	server.Listener = l
	server.Start()
	p.T.Cleanup(func() {
		server.CloseClientConnections() // watches do not end by themselves
		server.Close()
	})
	file := filepath.Join(p.T.TempDir(), "kubeconfig")
	write(p.T, file, `{apiVersion: v1, kind: Config, clusters: [{name: a, cluster: {server: "`+server.URL+`"}}], contexts: [{name: a, context: {cluster: a}}], current-context: a}`)
	return api, []string{"--kubeconfig", file, "--node-name", "node"}
}

const inAPI = `
{apiVersion: v1, kind: Namespace, metadata: {name: default}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web-1, namespace: default, labels: {app: web}}, spec: {nodeName: node}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web-2, namespace: default, labels: {app: web}}, spec: {nodeName: node}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: web, namespace: default}, spec: {podSelector: {}, policyTypes: [Ingress]}}
`

// A node goes from files to the Kubernetes API, and what keeps it from that is found. What
// was let in by failOpen is shown, and policed when podmarkd is there.
func TestKubernetes(t *testing.T) {
	p := newPatient(t, nftables, 1)
	p.Keys = map[string]any{"policy": "kubernetes", "failOpen": true}
	p.list("10-net.conflist", "net", p.Keys)
	p.finds("policy-socket", "does not answer")
	p.addPod(nil)
	if f := p.finds("policy-open", "default/web-2", "policy-socket"); !strings.HasPrefix(f.Fix, "# ") { // a pod that is deleted comes back as it is
		t.Errorf("fix %q", f.Fix)
	}
	unpoliced := func() (names []string) {
		t.Helper()
		var list []struct {
			Pod       string
			Unpoliced bool
		}
		if err := json.Unmarshal([]byte(p.ctl("list", "-o", "json").ok(t).Stdout), &list); err != nil {
			t.Fatal(err)
		}
		for _, l := range list {
			if l.Unpoliced {
				names = append(names, l.Pod)
			}
		}
		return names
	}
	if got := unpoliced(); len(got) != 1 || got[0] != "web-2" {
		t.Errorf("unpoliced are %q", got)
	}
	if table := p.ctl("list").ok(t).Stdout; strings.Count(table, "unpoliced") != 3 || !strings.Contains(table, "1 of 2 pods policed, 1 unpoliced because failOpen") {
		t.Errorf("%s", table)
	}

	without := p.podmarkd()
	p.finds("policy-behind", "no API server", "policy-open")
	without.Stop()
	with := p.podmarkd(p.api(inAPI)...)
	p.eventually("both pods are policed by the API", func() bool {
		return strings.Count(p.ctl("list").ok(t).Stdout, "default/web ") == 2 && len(unpoliced()) == 0
	})
	p.eventually("it is well", func() bool { return len(p.doctor()) == 0 })
	p.eventually("the status says so", func() bool {
		s := p.ctl("status").ok(t).Stdout
		return strings.Contains(s, "from the Kubernetes API, 1 in force, as it says since ") && !strings.Contains(s, "trouble")
	})
	p.ctlIn(webPolicy, "apply", "-f", "-").fails(t, "Kubernetes API")

	p.list("20-files.conflist", "files", nil)
	p.finds("policy-source", "20-files.conflist")
	p.fix("policy-source")
	p.well()
	with.Stop()
	if f := p.finds("podmarkd", "does not run"); f.Severity != "error" || !strings.Contains(f.Why, "starts without its policy") {
		t.Errorf("%+v", f)
	}
}

// The status says how the directory is.
func TestStatusOfDirectory(t *testing.T) {
	p := newPatient(t, nftables, 1)
	dir := manifests(t, map[string]string{"web.yaml": webPolicy})
	p.podmarkd("--policy-dir", dir)
	says := func(words string) func() bool {
		return func() bool { return strings.Contains(p.ctl("status").ok(t).Stdout, words) }
	}
	p.eventually("it is in force", says("from the directory, 1 in force, as it says since "))
	write(t, filepath.Join(dir, "shop.yaml"), deployment)
	p.eventually("what is passed over is said", says("shop.yaml: document 1: apps/v1 Deployment default/shop: "))
	if s := p.ctl("status").ok(t).Stdout; !strings.Contains(s, "from the directory, 1 in force, as it says since ") {
		t.Errorf("it is not in force: %s", s)
	}
	write(t, filepath.Join(dir, "shop.yaml"), strings.Repeat("---"+deployment, 12))
	p.eventually("and that there are more", says("and 2 more"))
	write(t, filepath.Join(dir, "web.yaml"), "kind: NetworkPolicy")
	p.eventually("what is wrong is said", says("not as it says since "))
	p.eventually("and why", says("web.yaml"))
}
