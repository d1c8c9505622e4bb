package main_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// apiServer lists one Service and one FelixConfiguration, and takes events.
type apiServer struct {
	mu       sync.Mutex
	nodePort int
	mask     string
	// forbidden is whether events are.
	forbidden bool
	events    []corev1.Event
	refused   int
}

func (a *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	answer := func(code int, format string, args ...any) {
		w.WriteHeader(code)
		fmt.Fprintf(w, format, args...)
	}
	const status = `{"apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": %q, "code": %d, "message": "no"}`
	const list = `{"apiVersion": %q, "kind": %q, "metadata": {"resourceVersion": "1"}, "items": [%s]}`
	switch path := r.URL.Path; {
	case strings.HasPrefix(path, "/api/v1/namespaces/default/events"):
		var e corev1.Event
		body, err := io.ReadAll(r.Body)
		if err == nil {
			err = json.Unmarshal(body, &e)
		}
		switch {
		case a.forbidden:
			a.refused++
			answer(http.StatusForbidden, status, "Forbidden", http.StatusForbidden)
		case err != nil:
			answer(http.StatusBadRequest, "{}")
		default:
			a.events = append(a.events, e)
			answer(http.StatusCreated, "%s", body)
		}
	case r.URL.Query().Get("sendInitialEvents") != "": // a server that cannot
		answer(http.StatusBadRequest, status, "BadRequest", http.StatusBadRequest)
	case r.URL.Query().Get("watch") != "":
		_ = http.NewResponseController(w).Flush()
		a.mu.Unlock()
		<-r.Context().Done()
		a.mu.Lock()
	case path == "/api/v1/services":
		answer(http.StatusOK, list, "v1", "ServiceList", fmt.Sprintf(`{"metadata": {"name": "web", "namespace": "shop"}, "spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": %d}]}}`, a.nodePort))
	case path == "/apis/crd.projectcalico.org/v1/felixconfigurations":
		answer(http.StatusOK, list, "crd.projectcalico.org/v1", "FelixConfigurationList",
			fmt.Sprintf(`{"apiVersion": "crd.projectcalico.org/v1", "kind": "FelixConfiguration", "metadata": {"name": "default"}, "spec": {"iptablesMarkMask": %s}}`, a.mask))
	default:
		answer(http.StatusNotFound, status, "NotFound", http.StatusNotFound)
	}
}

// serveAPI serves a in the node's network namespace and returns a kubeconfig for it.
func (h *host) serveAPI(a *apiServer) string {
	h.T.Helper()
	s := httptest.NewServer(a)
	h.T.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	file := filepath.Join(h.T.TempDir(), "kubeconfig")
	config := fmt.Sprintf("apiVersion: v1\nkind: Config\nclusters: [{name: a, cluster: {server: %q}}]\ncontexts: [{name: a, context: {cluster: a}}]\ncurrent-context: a\n", s.URL)
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		h.T.Fatal(err)
	}
	return file
}

func (a *apiServer) said() (list []string, all []corev1.Event) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, e := range a.events {
		list = append(list, e.Reason)
	}
	slices.Sort(list)
	return slices.Compact(list), slices.Clone(a.events)
}

// A NodePort outside of the range and another mask of Calico's are said: in the log, in the
// status, in the metrics, and as events on the Node, once while they stay.
func TestWarnings(t *testing.T) {
	t.Parallel()
	h := newHost(t, nftables)
	h.addPod()
	a := &apiServer{nodePort: 40000, mask: "4278190080"}
	d := h.start("--kubeconfig", h.serveAPI(a), "--node-name", "worker-1")
	h.eventually("both are events", func() error {
		if list, _ := a.said(); !slices.Equal(list, []string{"FelixMaskDiffers", "NodePortOutsideRange"}) {
			return fmt.Errorf("%v", list)
		}
		return nil
	})
	d.become("both are in the metrics", map[string]float64{"podmark_felix_mask_differs": 1, "podmark_node_ports_outside_range": 1})
	s, err := d.status()
	if err != nil || s.FelixMask != "0xff000000" || fmt.Sprint(s.Ports.Outside) != "[40000]" {
		t.Errorf("status %+v, %v", s, err)
	}
	if text := h.Ctl("", "status"); !strings.Contains(text, "0xff000000 in FelixConfiguration") || !strings.Contains(text, "[40000] are in use") {
		t.Errorf("podmarkctl status:\n%s", text)
	}
	looks := d.values()[`podmark_reconciles_total{trigger="interval"}`]
	h.eventually("it has looked some more", func() error {
		if n := d.values()[`podmark_reconciles_total{trigger="interval"}`]; n < looks+5 {
			return fmt.Errorf("%v looks", n)
		}
		return nil
	})
	list, events := a.said()
	if len(events) != len(list) {
		t.Errorf("%d events, want one a reason: %+v", len(events), events)
	}
	for _, e := range events {
		ref := e.InvolvedObject
		if ref.Kind != "Node" || ref.APIVersion != "v1" || ref.Name != "worker-1" || ref.UID != "worker-1" || e.Type != "Warning" || e.Source.Component != "podmarkd" || e.Source.Host != "worker-1" {
			t.Errorf("event %+v", e)
		}
		words := map[string][]string{"FelixMaskDiffers": {"0xff000000", "0xffff0000"}, "NodePortOutsideRange": {"40000", "30000:32767", "kubeNodePortRanges"}}[e.Reason]
		for _, w := range words {
			if !strings.Contains(e.Message, w) {
				t.Errorf("%s does not say %q: %s", e.Reason, w, e.Message)
			}
		}
	}
	for _, words := range [][]string{{"level=WARN", "FelixConfiguration has another mask", "0xff000000", "0xffff0000"}, {"level=WARN", "NodePorts in use", "40000"}} {
		n := 0
		for line := range strings.Lines(d.Log.String()) {
			if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%d lines of the log have %q, want 1:\n%s", n, words, d.Log)
		}
	}
}

// Where nothing is wrong nothing is said; and an API server that takes no events is
// no reason not to look after the node.
func TestNoWarnings(t *testing.T) {
	t.Parallel()
	h := newHost(t, nftables)
	h.addPod()
	a := &apiServer{nodePort: 30080, mask: "4294901760"}
	d := h.start("--kubeconfig", h.serveAPI(a))
	h.eventually("the API server was asked", func() error {
		if s, err := d.status(); err != nil || fmt.Sprint(s.Ports.Ranges) != "[30080]" {
			return fmt.Errorf("%+v, %w", s, err)
		}
		return nil
	})
	d.become("nothing is wrong", map[string]float64{"podmark_felix_mask_differs": 0, "podmark_node_ports_outside_range": 0})
	if list, _ := a.said(); len(list) > 0 {
		t.Errorf("events %v", list)
	}
	other := &apiServer{nodePort: 40000, mask: "255", forbidden: true}
	if code := d.Stop(); code != 0 {
		t.Errorf("ended with %d", code)
	}
	d = h.start("--kubeconfig", h.serveAPI(other))
	h.eventually("events were refused", func() error {
		other.mu.Lock()
		defer other.mu.Unlock()
		if other.refused == 0 {
			return errors.New("none")
		}
		return nil
	})
	d.become("it looks all the same", map[string]float64{"podmark_last_reconcile_success": 1})
	if code := d.Stop(); code != 0 {
		t.Errorf("ended with %d", code)
	}
}
