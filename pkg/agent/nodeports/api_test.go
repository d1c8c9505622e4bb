package nodeports_test

import (
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/podmark/podmark/pkg/agent/nodeports"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/test/wait"
)

// service is a Service with node ports, each "TCP", 30080.
func service(ports ...any) object {
	list := []object{{"port": 1}}
	for i := 0; i < len(ports); i += 2 {
		list = append(list, object{"protocol": ports[i], "port": 80, "nodePort": ports[i+1]})
	}
	return object{"spec": object{"type": "NodePort", "ports": list, "healthCheckNodePort": 31999, "selector": object{"app": "a"}}}
}

func felix(spec object) object { return object{"spec": spec} }

func pod(phase string, arguments ...string) object {
	return object{
		"spec":   object{"containers": []object{{"name": "a", "command": []string{"kube-apiserver"}, "args": arguments}}},
		"status": object{"phase": phase},
	}
}

func listed(ports ...desired.Port) nodeports.Services {
	return nodeports.Services{Listed: true, Ports: ports}
}

func port(p desired.Protocol, first, last uint16) desired.Port {
	return desired.Port{Protocol: p, PortRange: desired.PortRange{First: first, Last: last}}
}

// What the API shows is followed, on servers that can begin a watch with all that is
// there, on those that cannot, and on those that know no fields of Services.
func TestAPI(t *testing.T) {
	for name, configure := range map[string]func(*api){
		"streaming":             func(a *api) { a.streams = true },
		"lists":                 nil,
		"no selectors":          func(a *api) { a.unselective = true },
		"streaming, unselected": func(a *api) { a.streams, a.unselective = true, true },
	} {
		t.Run(name, func(t *testing.T) {
			a, config := serve(t, configure)
			a.put(services, "web", service("TCP", 30081, "UDP", 30080, "", 30080))
			a.put(felixes, "default", felix(object{"kubeNodePortRanges": []any{30000, "20000:20010"}, "iptablesMarkMask": 0xff000000}))
			a.put(felixes, "node.b", felix(object{"kubeNodePortRanges": []any{1}}))
			a.put(pods, "kube-apiserver-a", pod("Running", "--service-node-port-range=100-200"))
			a.put(pods, "kube-apiserver-z", pod("Failed", "--service-node-port-range=1-2"))
			w := start(t, &nodeports.Watcher{API: config, NodeName: "a", Retry: time.Hour})
			mask := uint32(0xff000000)
			want := nodeports.Facts{
				Ranges: []nodeports.Stated{
					stated(nodeports.Felix, "default", 20000, 20010, 30000, 30000),
					stated(nodeports.Pod, "kube-apiserver-a", 100, 200),
				},
				Services:  listed(port(desired.TCP, 30080, 30081), port(desired.UDP, 30080, 30080)),
				FelixMask: &mask,
			}
			w.becomes(t, want)

			a.put(services, "sctp", service("SCTP", 30090))
			want.Services = listed(port(desired.TCP, 30080, 30081), port(desired.UDP, 30080, 30080), port(desired.SCTP, 30090, 30090))
			w.becomes(t, want)

			a.put(felixes, "node.a", felix(object{"nftablesMode": "Enabled", "nftablesMarkMask": 0xf0000000}))
			own := uint32(0xf0000000)
			want.FelixMask = &own
			w.becomes(t, want)
			a.put(felixes, "node.a", nil)
			want.FelixMask = &mask
			w.becomes(t, want)

			a.put(services, "web", nil)
			want.Services = listed(port(desired.SCTP, 30090, 30090))
			w.becomes(t, want)

			a.put(pods, "kube-apiserver-b", pod("Running", "--etcd-servers=x"))
			want.Ranges[1] = stated(nodeports.Pod, "kube-apiserver-a, kube-apiserver-b (by default)", 100, 200, 30000, 32767)
			w.becomes(t, want)

			a.put(felixes, "default", felix(object{"kubeNodePortRanges": []any{"http"}, "iptablesMarkMask": 1}))
			mask = 1
			want.Ranges = want.Ranges[1:]
			w.becomes(t, want)
			wait.For(t, "a wrong FelixConfiguration is logged", func() bool { return w.log.with("kubeNodePortRanges[0]") == 1 })

			a.put(felixes, "default", nil)
			want.FelixMask = nil
			w.becomes(t, want)
		})
	}
}

// Only what is needed is asked for.
func TestSelectors(t *testing.T) {
	a, config := serve(t, func(a *api) { a.streams = true })
	w := start(t, &nodeports.Watcher{API: config, NodeName: "a", Retry: time.Hour})
	w.becomes(t, nodeports.Facts{Services: nodeports.Services{Listed: true}})
	wait.For(t, "everything is asked for", func() bool { return a.asked(services) > 0 && a.asked(pods) > 0 && a.asked(felixes) > 1 })
	for path, selectors := range map[string][]url.Values{
		services: {{"fieldSelector": {"spec.type!=ClusterIP,spec.type!=ExternalName"}}},
		pods:     {{"labelSelector": {"component=kube-apiserver"}}},
		felixes:  {{"fieldSelector": {"metadata.name=default"}}, {"fieldSelector": {"metadata.name=node.a"}}},
	} {
		a.mu.Lock()
		queries := slices.Clone(a.queries[path])
		a.mu.Unlock()
		for _, query := range queries {
			if !slices.ContainsFunc(selectors, func(s url.Values) bool { return strings.Contains(query, s.Encode()) }) {
				t.Errorf("%s is asked for with %s, want one of %v", path, query, selectors)
			}
		}
	}
}

// What cannot be seen says nothing, is logged once, and is found when it can be seen.
func TestUnseen(t *testing.T) {
	a, config := serve(t, func(a *api) {
		a.status[felixes], a.status[services], a.status[pods] = http.StatusNotFound, http.StatusForbidden, http.StatusForbidden
	})
	name := filepath.Join(t.TempDir(), "podmarkd.yaml")
	write(t, name, "nodePortRanges: [1]\n")
	w := start(t, &nodeports.Watcher{API: config, ConfigFile: name, Retry: 10 * time.Millisecond})
	want := nodeports.Facts{Ranges: []nodeports.Stated{stated(nodeports.File, name, 1, 1)}}
	for _, path := range []string{felixes, services, pods} {
		wait.For(t, path+" is asked for again and again", func() bool { return a.asked(path) > 8 })
	}
	w.becomes(t, want)
	for _, what := range []string{"FelixConfiguration default", "Services", "kube-apiserver pod"} {
		if n := w.log.with("source=" + what + " error=cannot be seen"); n != 1 {
			t.Errorf("%s: logged %d times, want once", what, n)
		}
	}

	a.put(services, "web", service("TCP", 30080))
	a.put(felixes, "default", felix(object{"kubeNodePortRanges": []any{2}}))
	a.put(pods, "kube-apiserver-a", pod("Running", "--service-node-port-range=3"))
	for _, path := range []string{felixes, services, pods} {
		a.refuse(path, 0)
	}
	want.Ranges = append(want.Ranges, stated(nodeports.Felix, "default", 2, 2), stated(nodeports.Pod, "kube-apiserver-a", 3, 3))
	want.Services = listed(port(desired.TCP, 30080, 30080))
	w.becomes(t, want)

	// Taken away again: the role, and the CRD.
	a.refuse(services, http.StatusForbidden)
	a.refuse(felixes, http.StatusNotFound)
	want.Ranges = slices.Delete(want.Ranges, 1, 2)
	want.Services = nodeports.Services{}
	w.becomes(t, want)
	wait.For(t, "it is logged again", func() bool { return w.log.with("source=Services error=cannot be seen") == 2 })
}

// A fault passes, so what was known goes on to count.
func TestFault(t *testing.T) {
	a, config := serve(t, nil)
	a.put(services, "web", service("TCP", 30080))
	w := start(t, &nodeports.Watcher{API: config, Retry: time.Hour})
	want := nodeports.Facts{Services: listed(port(desired.TCP, 30080, 30080))}
	w.becomes(t, want)
	before := a.asked(services)
	a.refuse(services, http.StatusInternalServerError)
	wait.For(t, "it is asked for again", func() bool { return a.asked(services) > before+1 })
	w.becomes(t, want)
	a.put(services, "more", service("TCP", 30081))
	a.refuse(services, 0)
	want.Services = listed(port(desired.TCP, 30080, 30081))
	w.becomes(t, want)
}

// Without an API server everything else goes on, and the watcher ends when it is told to.
func TestUnreachable(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a"), kubeadm)
	w := start(t, &nodeports.Watcher{API: &rest.Config{Host: "http://127.0.0.1:1"}, ManifestDirs: []string{dir}})
	w.becomes(t, nodeports.Facts{Ranges: []nodeports.Stated{stated(nodeports.Manifest, filepath.Join(dir, "a")+" (by default)", 30000, 32767)}})
	wait.For(t, "it is logged", func() bool { return w.log.with("source=Services error=") == 1 })
}

func TestWrongAPIConfig(t *testing.T) {
	w := nodeports.Watcher{API: &rest.Config{Host: "http://[::"}}
	if err := w.Run(t.Context(), func() {}); err == nil {
		t.Error("got no error")
	}
}
