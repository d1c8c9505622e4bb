package nodeports_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	"k8s.io/client-go/rest"
)

func pipe(t *testing.T, name string) {
	t.Helper()
	if err := unix.Mkfifo(name, 0o600); err != nil {
		t.Fatal(err)
	}
}

// The paths of what is asked for.
const (
	services = "/api/v1/services"
	pods     = "/api/v1/namespaces/kube-system/pods"
	felixes  = "/apis/crd.projectcalico.org/v1/felixconfigurations"
)

// kinds are apiVersion and kind of the lists below the paths.
func kinds(path string) (apiVersion, kind string) {
	switch path {
	case services:
		return "v1", "Service"
	case pods:
		return "v1", "Pod"
	default:
		return "crd.projectcalico.org/v1", "FelixConfiguration"
	}
}

type object map[string]any

// event is an entry of a watch.
type event struct {
	Type    string `json:"type"`
	Object  object `json:"object"`
	path    string
	version int
}

// api speaks list and watch. It heeds no selectors, but can refuse those of fields.
type api struct {
	mu      sync.Mutex
	more    *sync.Cond
	objects map[string]map[string]object
	// status of paths that are not answered.
	status map[string]int
	events []event
	// streams is whether a watch can begin with all that is there.
	streams bool
	// unselective refuses field selectors.
	unselective bool
	queries     map[string][]string
	ended       bool
}

func serve(t *testing.T, configure func(*api)) (*api, *rest.Config) {
	t.Helper()
	a := &api{objects: map[string]map[string]object{}, status: map[string]int{}, queries: map[string][]string{}}
	a.more = sync.NewCond(&a.mu)
	if configure != nil {
		configure(a)
	}
	s := httptest.NewServer(a)
	t.Cleanup(func() {
		a.mu.Lock()
		a.ended = true
		a.mu.Unlock()
		a.more.Broadcast()
		s.Close()
	})
	return a, &rest.Config{Host: s.URL}
}

// put adds or changes an object; a nil body takes it away.
func (a *api) put(path, name string, body object) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.objects[path] == nil {
		a.objects[path] = map[string]object{}
	}
	old, existed := a.objects[path][name]
	version := len(a.events) + 1
	e := event{Type: "ADDED", path: path, version: version}
	if existed {
		e.Type = "MODIFIED"
	}
	if body == nil {
		e.Type, e.Object = "DELETED", old
		delete(a.objects[path], name)
	} else {
		e.Object = object{}
		for k, v := range body {
			e.Object[k] = v
		}
		e.Object["apiVersion"], e.Object["kind"] = kinds(path)
		e.Object["metadata"] = object{
			"name": name, "namespace": "kube-system", "uid": path + name, "resourceVersion": strconv.Itoa(version),
			"annotations": object{"long": "text"}, "managedFields": []object{{"manager": "kubectl"}},
		}
		a.objects[path][name] = e.Object
	}
	a.events = append(a.events, e)
	a.more.Broadcast()
}

// refuse answers a path with a status from now on, and ends its watches; 0 for no more.
func (a *api) refuse(path string, status int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.status[path] = status
	a.more.Broadcast()
}

// asked counts the requests for a path.
func (a *api) asked(path string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.queries[path])
}

func reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

func failure(w http.ResponseWriter, status int) {
	reasons := map[int]string{http.StatusForbidden: "Forbidden", http.StatusNotFound: "NotFound", http.StatusBadRequest: "BadRequest", http.StatusInternalServerError: "InternalError"}
	reply(w, status, object{"apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": reasons[status], "message": "no", "code": status})
}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	path, query := r.URL.Path, r.URL.Query()
	a.queries[path] = append(a.queries[path], r.URL.RawQuery)
	watching, streaming := query.Get("watch") != "", query.Get("sendInitialEvents") == "true"
	switch {
	case !slices.Contains([]string{services, pods, felixes}, path):
		failure(w, http.StatusNotFound)
	case a.status[path] != 0:
		failure(w, a.status[path])
	case a.unselective && query.Get("fieldSelector") != "", streaming && !a.streams:
		failure(w, http.StatusBadRequest)
	case watching:
		a.watch(w, r, path, query.Get("resourceVersion"), streaming)
	default:
		items := []object{}
		for _, o := range a.objects[path] {
			items = append(items, o)
		}
		apiVersion, kind := kinds(path)
		reply(w, http.StatusOK, object{
			"apiVersion": apiVersion, "kind": kind + "List", "items": items,
			"metadata": object{"resourceVersion": strconv.Itoa(len(a.events))},
		})
	}
}

// watch sends what happens after a version, until the path is refused.
func (a *api) watch(w http.ResponseWriter, r *http.Request, path, since string, streaming bool) {
	done := make(chan struct{})
	defer close(done)
	go func() { // a wait for a Cond cannot be given up otherwise
		select {
		case <-r.Context().Done():
			a.more.Broadcast()
		case <-done:
		}
	}()
	w.Header().Set("Content-Type", "application/json")
	send := func(e event) {
		_ = json.NewEncoder(w).Encode(e)
		_ = http.NewResponseController(w).Flush()
	}
	next, _ := strconv.Atoi(since)
	if streaming {
		for _, o := range a.objects[path] {
			send(event{Type: "ADDED", Object: o})
		}
		next = len(a.events)
		apiVersion, kind := kinds(path)
		send(event{Type: "BOOKMARK", Object: object{"apiVersion": apiVersion, "kind": kind, "metadata": object{
			"resourceVersion": strconv.Itoa(max(next, 1)), "annotations": object{"k8s.io/initial-events-end": "true"},
		}}})
	}
	_ = http.NewResponseController(w).Flush()
	for !a.ended && a.status[path] == 0 && r.Context().Err() == nil {
		for ; next < len(a.events); next++ {
			if e := a.events[next]; e.path == path {
				send(e)
			}
		}
		a.more.Wait()
	}
}
