package lab_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/podmark/podmark/test/fakeapi"
	"github.com/podmark/podmark/test/lab"
)

// apiAt is where the node reaches the API server, which metricsAt and proxyMetricsAt
// are of podmarkd and of kube-proxy.
const (
	apiAt          = "127.0.0.1:6443"
	metricsAt      = "127.0.0.1:9469"
	proxyMetricsAt = "127.0.0.1:10249"
)

// services is the resource that tests take away again.
var services = fakeapi.Resource{Version: "v1", Name: "services", Kind: "Service", Namespaced: true}

// realNode is a node on which a real kube-proxy does the services, as it is told by an
// API server.
type realNode struct {
	*lab.Node
	t               *testing.T
	api             *fakeapi.Server
	a, b, c         *lab.Pod
	outside, remote *lab.Host
	vips            map[string]map[lab.Family]netip.Addr // by the name of the service
	proxy           *proxy
}

// newRealNode makes a node as a cluster's administrator gets it: with the kubelet's
// chain and without anything of kube-proxy's.
func newRealNode(t *testing.T, backend lab.Backend) *realNode {
	t.Helper()
	n := &realNode{t: t, Node: lab.NewNode(t, lab.Options{Backend: backend, WithoutKubeProxy: true})}
	n.Run("ip", "link", "del", "kube-ipvs0")
	// It is kube-proxy that has to set it.
	n.Sysctl("net/ipv4/vs/conntrack", "0")
	for _, f := range lab.Families {
		n.Iptables(f, "-t", "mangle", "-N", "KUBE-IPTABLES-HINT")
	}
	n.outside = n.AddHost("outside")
	n.remote = n.AddHost("remote", "10.2.0.1/24", "fd00:10:2::1/64")
	n.vips = map[string]map[lab.Family]netip.Addr{
		"web": {lab.V4: netip.MustParseAddr("10.96.0.10"), lab.V6: netip.MustParseAddr("fd00:96::10")},
		"odd": {lab.V4: netip.MustParseAddr("10.96.0.20"), lab.V6: netip.MustParseAddr("fd00:96::20")},
	}
	n.serveAPI()
	return n
}

// addPods adds the pods, when kube-proxy runs, as it does on a node that starts.
func (n *realNode) addPods() {
	add := func(name string) *lab.Pod {
		return n.AddPod(lab.PodSpec{Name: name, Labels: map[string]string{"app": name}, Network: routed(n.Node)})
	}
	n.a, n.b, n.c = add("a"), add("b"), add("c")
}

// serveAPI starts the API server, in the node's namespace, with what is there before
// any Service.
func (n *realNode) serveAPI() {
	n.t.Helper()
	n.api = fakeapi.New(
		services,
		fakeapi.Resource{Version: "v1", Name: "nodes", Kind: "Node"},
		fakeapi.Resource{Group: "discovery.k8s.io", Version: "v1", Name: "endpointslices", Kind: "EndpointSlice", Namespaced: true},
		fakeapi.Resource{Group: "networking.k8s.io", Version: "v1", Name: "servicecidrs", Kind: "ServiceCIDR"},
		fakeapi.Resource{Group: "events.k8s.io", Version: "v1", Name: "events", Kind: "Event", Namespaced: true},
	)
	var l net.Listener
	err := n.Do(func() (err error) {
		l, err = net.Listen("tcp", apiAt)
		return err
	})
	if err != nil {
		n.t.Fatal(err)
	}
	server := &http.Server{Handler: n.api, ReadHeaderTimeout: time.Minute}
	n.t.Cleanup(func() { server.Close() })
	go func() { _ = server.Serve(l) }()
	n.write("kubeconfig", `apiVersion: v1
kind: Config
clusters: [{name: lab, cluster: {server: "http://`+apiAt+`"}}]
contexts: [{name: lab, context: {cluster: lab}}]
current-context: lab
`)
	n.apply(fmt.Sprintf(`
apiVersion: v1
kind: Node
metadata: {name: node}
spec: {podCIDRs: [%q, %q]}
status: {addresses: [{type: InternalIP, address: %q}, {type: InternalIP, address: %q}]}
---
apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
metadata: {name: kubernetes}
spec: {cidrs: [10.96.0.0/16, "fd00:96::/112"]}
`, n.PodCIDRs[0], n.PodCIDRs[1], n.Addr(lab.V4), n.Addr(lab.V6)))
}

// apply creates or replaces objects of the API.
func (n *realNode) apply(manifests string) {
	n.t.Helper()
	if err := n.api.Apply(manifests); err != nil {
		n.t.Fatal(err)
	}
}

// write makes a file of the node's directory and returns its path.
func (n *realNode) write(name, content string) string {
	n.t.Helper()
	path := filepath.Join(n.Dir, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		n.t.Fatal(err)
	}
	return path
}

// Ports of each service, and of pod b behind them: served is for who is allowed, and
// only those who are forbidden ask for denied, so its servers count what got through.
const (
	servedPort, deniedPort       = 80, 81
	servedTarget, deniedTarget   = 8080, 6666
	unusedNodePort               = 30999 // inside the range, and a process of the node has it
	webNodePort, webDeniedPort   = 30080, 30666
	oddNodePort, oddDeniedPort   = 40080, 40666
	usualRange, widenedRangeList = `["30000-32767"]`, `["30000-32767", "40000-40999"]`
)

// createService gives the API a Service of both families with pod b behind it, as the
// API server would have stored it.
func (n *realNode) createService(name string, served, denied uint16) {
	n.t.Helper()
	vips := n.vips[name]
	manifest := fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: %s, namespace: default}
spec:
  type: NodePort
  clusterIP: %q
  clusterIPs: [%q, %q]
  ipFamilies: [IPv4, IPv6]
  ipFamilyPolicy: RequireDualStack
  internalTrafficPolicy: Cluster
  externalTrafficPolicy: Cluster
  sessionAffinity: None
  selector: {app: b}
  ports:
`, name, vips[lab.V4], vips[lab.V4], vips[lab.V6])
	slicePorts := ""
	for _, p := range []lab.Protocol{lab.TCP, lab.UDP} {
		protocol := strings.ToUpper(p.String())
		for _, port := range []struct {
			name                   string
			port, target, nodePort uint16
		}{{"served", servedPort, servedTarget, served}, {"denied", deniedPort, deniedTarget, denied}} {
			manifest += fmt.Sprintf("  - {name: %s-%v, protocol: %s, port: %d, targetPort: %d, nodePort: %d}\n",
				port.name, p, protocol, port.port, port.target, port.nodePort)
			slicePorts += fmt.Sprintf("- {name: %s-%v, protocol: %s, port: %d}\n", port.name, p, protocol, port.target)
		}
	}
	for _, f := range lab.Families {
		manifest += fmt.Sprintf(`---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: %[1]s-%[5]s, namespace: default, labels: {kubernetes.io/service-name: %[1]s}}
addressType: %[2]v
endpoints: [{addresses: [%[3]q], nodeName: node, conditions: {ready: true, serving: true, terminating: false}}]
ports:
%[4]s`, name, f, n.b.Addr(f), slicePorts, strings.ToLower(f.String()))
	}
	n.apply(manifest)
	n.awaitService(name, served, denied)
}

// get asks a server of the node, from the node.
func (n *realNode) get(url string) (string, error) {
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(_ context.Context, network, at string) (conn net.Conn, err error) {
			err = n.Do(func() (err error) {
				conn, err = net.DialTimeout(network, at, 10*time.Second)
				return err
			})
			return conn, err
		},
	}}
	response, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return string(body), err
}
