package deploy_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/client-go/rest"

	"github.com/podmark/podmark/pkg/node/source"
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
	if len(parts) == 3 && parts[0] == "namespaces" {
		out.namespace = parts[1]
		parts = parts[2:]
	}
	out.resource = strings.Join(parts, "/")
	out.name, _ = strings.CutPrefix(r.URL.Query().Get("fieldSelector"), "metadata.name=")
	if strings.Contains(out.name, "=") {
		out.name = "" // another selector
	}
	return out
}

// podmarkd asks for what its roles allow, and for all of it: nothing is refused, and
// nothing is allowed that is not asked for.
func TestRights(t *testing.T) {
	for name, o := range map[string]objects{"kustomize": built(t), "chart": mustRender(t, "")} {
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

// ask lets podmarkd look for NodePorts at a server that allows these rights, until it
// has asked for each that such a server is asked for.
func ask(t *testing.T, streams bool, rights map[right]bool) map[right]bool {
	t.Helper()
	var mu sync.Mutex
	asked := map[right]bool{}
	ctx, stop := context.WithCancel(t.Context())
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		streaming := r.URL.Query().Get("sendInitialEvents") == "true"
		if streaming && !streams {
			w.WriteHeader(http.StatusBadRequest)
			_ = json.NewEncoder(w).Encode(map[string]any{"apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": "BadRequest", "code": 400})
			return
		}
		need := needed(r)
		mu.Lock()
		asked[need] = true
		mu.Unlock()
		if !rights[need] {
			w.WriteHeader(http.StatusForbidden)
			_ = json.NewEncoder(w).Encode(map[string]any{"apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": "Forbidden", "code": 403})
			return
		}
		version, kind := "v1", map[string]string{"pods": "Pod", "services": "Service"}[need.resource]
		if need.group != "" {
			version, kind = need.group+"/v1", "FelixConfiguration"
		}
		meta := map[string]any{"resourceVersion": "1"}
		if need.verb == "list" {
			_ = json.NewEncoder(w).Encode(map[string]any{"apiVersion": version, "kind": kind + "List", "metadata": meta, "items": []any{}})
			return
		}
		w.Header().Set("Content-Type", "application/json")
		if streaming {
			meta["annotations"] = map[string]any{"k8s.io/initial-events-end": "true"}
			_ = json.NewEncoder(w).Encode(map[string]any{"type": "BOOKMARK", "object": map[string]any{"apiVersion": version, "kind": kind, "metadata": meta}})
		}
		_ = http.NewResponseController(w).Flush()
		select {
		case <-r.Context().Done():
		case <-ctx.Done():
		}
	}))
	defer server.Close()
	w := source.Watcher{API: &rest.Config{Host: server.URL}, Log: slog.New(slog.DiscardHandler)}
	var running sync.WaitGroup
	running.Go(func() {
		if err := w.Run(ctx, func() {}); err != nil {
			t.Error(err)
		}
	})
	defer running.Wait()
	defer stop()
	verbs := []string{"watch"}
	if !streams {
		verbs = append(verbs, "list")
	}
	done := func() bool {
		mu.Lock()
		defer mu.Unlock()
		for r := range rights {
			if slices.Contains(verbs, r.verb) && !asked[r] {
				return false
			}
		}
		return true
	}
	for deadline := time.Now().Add(5 * time.Second); !done() && time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
	}
	mu.Lock()
	defer mu.Unlock()
	return maps.Clone(asked)
}
