package lab

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/podmark/podmark/test/fakeapi"
	"github.com/podmark/podmark/test/testnode"
	"github.com/podmark/podmark/test/wait"
)

// The resources that a node's policies come from.
var (
	APIPods       = fakeapi.Resource{Version: "v1", Name: "pods", Kind: "Pod", Namespaced: true}
	APINamespaces = fakeapi.Resource{Version: "v1", Name: "namespaces", Kind: "Namespace"}
	APIEvents     = fakeapi.Resource{Version: "v1", Name: "events", Kind: "Event", Namespaced: true}
	APIPolicies   = fakeapi.Resource{Group: "networking.k8s.io", Version: "v1", Name: "networkpolicies", Kind: "NetworkPolicy", Namespaced: true}
)

// apiAt is where the API server listens, in the node's namespace.
const apiAt = "127.0.0.1:6443"

// NodeName is the node's in the API.
const NodeName = "node"

// Kubernetes is a node whose policies come from an API server, which podmarkd asks.
type Kubernetes struct {
	*Node
	API *fakeapi.Server
	// Network is of routed pods that are policed so.
	Network Network

	confDir, kubeconfig string
	daemon              *exec.Cmd
	log                 *testnode.Log
}

// Kubernetes starts an API server for the node, and podmarkd. keys are of podmark's entry.
func (n *Node) Kubernetes(keys Plugin) *Kubernetes {
	n.t.Helper()
	k := &Kubernetes{
		Node: n, API: fakeapi.New(APIPods, APINamespaces, APIPolicies, APIEvents, fakeapi.Resource{Version: "v1", Name: "services", Kind: "Service", Namespaced: true}),
		confDir: filepath.Join(n.Dir, "net.d"), kubeconfig: filepath.Join(n.Dir, "api.kubeconfig"), log: &testnode.Log{},
	}
	with := Plugin{"policy": "kubernetes"}
	for key, v := range keys {
		with[key] = v
	}
	k.Network = n.PTP(n.Podmark(with))
	list, err := json.Marshal(map[string]any{"cniVersion": "1.0.0", "name": k.Network.Name, "plugins": k.Network.Plugins})
	if err == nil {
		err = os.Mkdir(k.confDir, 0o755)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(k.confDir, "10-test.conflist"), list, 0o600)
	}
	if err == nil {
		err = os.WriteFile(k.kubeconfig, []byte(`apiVersion: v1
kind: Config
clusters: [{name: lab, cluster: {server: "http://`+apiAt+`"}}]
contexts: [{name: lab, context: {cluster: lab}}]
current-context: lab
`), 0o600)
	}
	if err != nil {
		n.t.Fatal(err)
	}
	k.serve()
	k.Start()
	n.t.Cleanup(func() {
		k.Stop()
		if n.t.Failed() {
			n.t.Logf("podmarkd said:\n%s", k.log)
		}
	})
	return k
}

func (k *Kubernetes) serve() {
	k.t.Helper()
	var l net.Listener
	err := k.Do(func() (err error) {
		l, err = net.Listen("tcp", apiAt)
		return err
	})
	if err != nil {
		k.t.Fatal(err)
	}
	server := &http.Server{Handler: k.API, ReadHeaderTimeout: time.Minute}
	k.t.Cleanup(func() { server.Close() })
	go func() { _ = server.Serve(l) }()
}

// Start starts podmarkd, and waits until it can be asked.
func (k *Kubernetes) Start() {
	k.t.Helper()
	k.Launch()
	wait.For(k.t, "podmarkd can be asked", k.Listens, k.Progress)
}

// Listens reports whether podmarkd can be asked.
func (k *Kubernetes) Listens() bool {
	conn, err := net.Dial("unix", filepath.Join(k.StateDir, "podmarkd.sock"))
	if err == nil {
		conn.Close()
	}
	return err == nil
}

// Progress is what shows that podmarkd does something.
func (k *Kubernetes) Progress() any { return len(k.Said()) }

// Launch starts podmarkd, and does not wait for it.
func (k *Kubernetes) Launch() {
	k.t.Helper()
	k.daemon = exec.Command(program(k.t, "podmarkd"), "--state-dir", k.StateDir, "--lock-timeout", LockTimeout, "--listen", "", "--interval", "1s", "--node-name", NodeName,
		"--kubeconfig", k.kubeconfig, "--cni-conf-dir", k.confDir, "--cni-cache-dir", "", "--static-pod-dirs", "", "--kube-proxy-metrics", "", "--log-level", "debug")
	k.daemon.Stdout, k.daemon.Stderr = k.log, k.log
	if err := k.Do(k.daemon.Start); err != nil {
		k.t.Fatal(err)
	}
}

// Stop kills podmarkd.
func (k *Kubernetes) Stop() {
	if k.daemon != nil {
		_ = k.daemon.Process.Kill()
		_ = k.daemon.Wait()
		k.daemon = nil
	}
}

// Said is what podmarkd has logged.
func (k *Kubernetes) Said() string { return k.log.String() }

// Apply creates or replaces objects of the API.
func (k *Kubernetes) Apply(manifests string) {
	k.t.Helper()
	if err := k.API.Apply(manifests); err != nil {
		k.t.Fatal(err)
	}
}

// Manifest is a pod as the API has it once it is bound to a node, with addresses once it
// has some.
type Manifest struct {
	Namespace, Name string
	UID             string // of the API's own making when empty
	Labels          map[string]string
	NodeName        string
	Ports           []map[string]any // of its one container
	Addresses       []string
	Phase           string // Pending when empty
	More            map[string]any
}

// Put creates or replaces a pod of the API.
func (k *Kubernetes) Put(m Manifest) {
	k.t.Helper()
	if m.Namespace == "" {
		m.Namespace = "default"
	}
	if m.Phase == "" {
		m.Phase = "Pending"
	}
	status := map[string]any{"phase": m.Phase}
	if len(m.Addresses) > 0 {
		var ips []any
		for _, a := range m.Addresses {
			ips = append(ips, map[string]any{"ip": a})
		}
		status["podIP"], status["podIPs"] = m.Addresses[0], ips
	}
	labels := map[string]any{}
	for key, v := range m.Labels {
		labels[key] = v
	}
	container := map[string]any{"name": "main"}
	if m.Ports != nil {
		container["ports"] = m.Ports
	}
	spec := map[string]any{"nodeName": m.NodeName, "containers": []any{container}}
	for key, v := range m.More {
		spec[key] = v
	}
	metadata := map[string]any{"namespace": m.Namespace, "name": m.Name, "labels": labels}
	if m.UID != "" {
		metadata["uid"] = m.UID
	}
	b, err := json.Marshal(map[string]any{"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": status})
	if err != nil {
		k.t.Fatal(err)
	}
	k.Apply(string(b))
}

// RunPod creates a pod in the API, attaches it, and says its addresses, as a cluster does.
// An ADD that podmarkd has not answered in time is tried again in another namespace.
func (k *Kubernetes) RunPod(m Manifest) *Pod {
	k.t.Helper()
	m.NodeName = NodeName
	k.Put(m)
	spec := PodSpec{Name: m.Name, Namespace: m.Namespace, Network: k.Network}
	p, err := k.TryAddPod(spec)
	wait.For(k.t, "podmarkd answers", func() bool {
		if err == nil || !strings.Contains(err.Error(), "podmarkd") {
			return true
		}
		if err := p.Del(); err != nil {
			k.t.Fatal(err)
		}
		p.Remove()
		p, err = k.TryAddPod(spec)
		return false
	}, k.Progress)
	if err != nil {
		k.t.Fatalf("adding pod %q: %v", m.Name, err)
	}
	m.Addresses = nil
	for _, a := range p.Addresses {
		m.Addresses = append(m.Addresses, a.String())
	}
	m.Phase = "Running"
	k.Put(m)
	return p
}

// Eventually waits until a request from inside ns is answered, or is not, as want says.
func (k *Kubernetes) Eventually(what string, ns *NS, r Request, want Outcome) {
	k.t.Helper()
	if r.Limit == 0 {
		r.Limit = 300 * time.Millisecond
	}
	err := wait.Poll(func() error {
		got := ns.Send(r)
		if got.Outcome == want {
			return nil
		}
		if want == OK { // where answers are slow, each question waits longer for one
			r.Limit = min(r.Limit+r.Limit/4, AnswerLimit)
		}
		return fmt.Errorf("%v, want %v", got.Outcome, want)
	}, k.Progress)
	if err != nil {
		k.t.Errorf("%s: %v", what, err)
	}
}
