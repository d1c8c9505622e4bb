package deploy_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/client-go/rest"

	"github.com/podmark/podmark/pkg/agent/kube"
	"github.com/podmark/podmark/pkg/agent/nodeports"
	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/node"
	"github.com/podmark/podmark/pkg/podapi"
	"github.com/podmark/podmark/pkg/state"
	"github.com/podmark/podmark/test/fakeapi"
	"github.com/podmark/podmark/test/wait"
)

// right is one thing that a role allows, or that a request needs.
type right struct{ verb, group, resource, namespace, name string }

func (r right) String() string {
	return fmt.Sprintf("%s %s.%s in %q, named %q", r.verb, r.resource, r.group, r.namespace, r.name)
}

// allowed are the rights of podmarkd's roles.
func allowed(t *testing.T, o objects) map[right]bool {
	t.Helper()
	out := map[right]bool{}
	add := func(namespace string, rules []rbacv1.PolicyRule) {
		for _, r := range rules {
			names := r.ResourceNames
			if names == nil {
				names = []string{""}
			}
			for _, group := range r.APIGroups {
				for _, resource := range r.Resources {
					for _, verb := range r.Verbs {
						for _, name := range names {
							out[right{verb, group, resource, namespace, name}] = true
						}
					}
				}
			}
		}
	}
	add("", of[*rbacv1.ClusterRole](t, o, "ClusterRole podmarkd").Rules)
	if o["ClusterRole podmarkd-policies"] != nil {
		add("", of[*rbacv1.ClusterRole](t, o, "ClusterRole podmarkd-policies").Rules)
		// Given with list, which shows as much, and not asked for.
		delete(out, right{verb: "get", group: "networking.k8s.io", resource: "networkpolicies"})
		// Of use where something is refused, which nothing is here.
		delete(out, right{verb: "create", resource: "events"})
	}
	role := of[*rbacv1.Role](t, o, "Role podmarkd")
	add(role.Namespace, role.Rules)
	return out
}

// needed is what a request needs. That of a name is one for a list or a watch whose
// field selector asks for that name alone:
// https://kubernetes.io/docs/reference/access-authn-authz/rbac/#referring-to-resources
func needed(r *http.Request) right {
	out := right{verb: "list"}
	if r.URL.Query().Get("watch") != "" {
		out.verb = "watch"
	}
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	if parts[0] == "apis" {
		out.group = parts[1]
		parts = parts[1:]
	}
	parts = parts[2:] // api or the group, and the version
	if len(parts) > 2 && parts[0] == "namespaces" {
		out.namespace = parts[1]
		parts = parts[2:]
	}
	out.resource = parts[0]
	if len(parts) == 2 {
		out.verb, out.name = "get", parts[1]
		return out
	}
	out.name, _ = strings.CutPrefix(r.URL.Query().Get("fieldSelector"), "metadata.name=")
	if strings.Contains(out.name, "=") {
		out.name = "" // another selector
	}
	return out
}

// covering is the right that allows what a request needs: that in its namespace and to its
// name, or one that is not bound to these.
func covering(rights map[right]bool, need right) (right, bool) {
	for _, namespace := range []string{need.namespace, ""} {
		for _, name := range []string{need.name, ""} {
			r := right{need.verb, need.group, need.resource, namespace, name}
			if rights[r] {
				return r, true
			}
		}
	}
	return need, false
}

// podmarkd asks for what its roles allow, and for all of it: nothing is refused, and
// nothing is allowed that is not asked for.
func TestRights(t *testing.T) {
	for name, o := range map[string]objects{
		"kustomize": built(t), "chart": mustRender(t, ""),
		"chart, without policies of the API": mustRender(t, "policy: files"),
	} {
		t.Run(name, func(t *testing.T) {
			asked := map[right]bool{}
			for _, streams := range []bool{true, false} { // servers that can begin a watch with a list, and older ones
				maps.Copy(asked, ask(t, streams, allowed(t, o)))
			}
			if diff := cmp.Diff(texts(allowed(t, o)), texts(asked)); diff != "" {
				t.Errorf("allowed (-) and asked for (+):\n%s", diff)
			}
		})
	}
}

func texts(rights map[right]bool) []string {
	var out []string
	for r := range rights {
		out = append(out, r.String())
	}
	slices.Sort(out)
	return out
}

// resources are those that podmarkd asks for.
var (
	policies  = fakeapi.Resource{Group: "networking.k8s.io", Version: "v1", Name: "networkpolicies", Kind: "NetworkPolicy", Namespaced: true}
	resources = []fakeapi.Resource{
		{Version: "v1", Name: "services", Kind: "Service", Namespaced: true},
		{Version: "v1", Name: "pods", Kind: "Pod", Namespaced: true},
		{Version: "v1", Name: "namespaces", Kind: "Namespace"},
		{Group: "crd.projectcalico.org", Version: "v1", Name: "felixconfigurations", Kind: "FelixConfiguration"},
		policies,
	}
)

// A policy of a pod of the node that takes a look at everything: whom it names depends on
// the labels of namespaces.
const objectsAsked = `
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {team: a}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop}, spec: {nodeName: node}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: web, namespace: shop},
 spec: {podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{namespaceSelector: {matchLabels: {team: a}}}]}]}}`

// guarded is an API server that allows these rights, and notes which were needed.
type guarded struct {
	*fakeapi.Server
	streams bool // whether a watch can begin with a list
	rights  map[right]bool

	mu    sync.Mutex
	asked map[right]bool
}

func (g *guarded) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	refuse := func(code int, reason string) {
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(map[string]any{"apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": reason, "code": code})
	}
	if r.URL.Query().Get("sendInitialEvents") == "true" && !g.streams {
		refuse(http.StatusBadRequest, "BadRequest")
		return
	}
	need, ok := covering(g.rights, needed(r))
	g.mu.Lock()
	g.asked[need] = true
	g.mu.Unlock()
	if !ok {
		refuse(http.StatusForbidden, "Forbidden")
		return
	}
	g.Server.ServeHTTP(w, r)
}

func (g *guarded) was(r right) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.asked[r]
}

// done reports whether each right was needed that such a server is asked for, and the last
// one of all, whether it is there or not.
func (g *guarded) done(last right) bool {
	if last != (right{}) && !g.was(last) {
		if r, ok := covering(g.rights, last); !ok || !g.was(r) {
			return false
		}
	}
	for r := range g.rights {
		if (r.verb != "list" || !g.streams) && !g.was(r) {
			return false
		}
	}
	return true
}

// ask lets podmarkd look for NodePorts, and for policies where it may, at a server that
// allows these rights, until it has asked for each.
func ask(t *testing.T, streams bool, rights map[right]bool) map[right]bool {
	t.Helper()
	g := &guarded{Server: fakeapi.New(resources...), streams: streams, rights: rights, asked: map[right]bool{}}
	if err := g.Apply(objectsAsked); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(g)
	defer server.Close()
	defer server.CloseClientConnections() // watches do not end by themselves
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
	api := &rest.Config{Host: server.URL}
	w := nodeports.Watcher{API: api, Log: slog.New(slog.DiscardHandler)}
	running.Go(func() {
		if err := w.Run(ctx, func() {}); err != nil {
			t.Error(err)
		}
	})
	var last right
	if rights[right{verb: "watch", group: policies.Group, resource: policies.Name}] {
		follow(ctx, t, &running, api)
		last = right{verb: "get", resource: "namespaces", name: "shop"}
	}
	deleted := false
	// What was not asked for is what the test is about: the caller says so.
	_ = wait.Poll(func() error {
		// What has become of its namespace is asked for when a policy is gone.
		if !deleted && g.was(right{verb: "watch", resource: "namespaces"}) {
			deleted = true
			if err := g.Delete(policies, "shop", "web"); err != nil {
				t.Fatal(err)
			}
		}
		if !g.done(last) {
			return errors.New("it asks")
		}
		return nil
	}, func() any {
		g.mu.Lock()
		defer g.mu.Unlock()
		return len(g.asked)
	})
	g.mu.Lock()
	defer g.mu.Unlock()
	return maps.Clone(g.asked)
}

// follow has podmarkd be asked for a pod of the node. The lock is held, so that it gets no
// further: what it asks the API comes before.
func follow(ctx context.Context, t *testing.T, running *sync.WaitGroup, api *rest.Config) {
	t.Helper()
	store := state.At(filepath.Join(t.TempDir(), "state"))
	if err := store.Init(); err != nil {
		t.Fatal(err)
	}
	unlock, err := store.Lock(ctx, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	context.AfterFunc(ctx, unlock)
	c, err := kube.New(node.Node{Store: store, LockTimeout: time.Millisecond}, "node", api, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	running.Go(func() { c.Run(ctx) })
	running.Go(func() {
		if _, err := c.Answer(ctx, podapi.Request{Namespace: "shop", Pod: "web", Mask: config.DefaultMask}); err == nil {
			t.Error("it answered, without the lock")
		}
	})
}
