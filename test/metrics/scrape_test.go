package metrics_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/test/netns"
	"github.com/podmark/podmark/test/wait"
)

const root = "../.."

// family is one exported metric.
type family struct {
	kind   string // counter, gauge or histogram
	labels []string
}

// node is a network namespace on which podmark runs.
type node struct {
	t   *testing.T
	bin string
	dir string
}

func (n node) run(stdin, name string, args ...string) string {
	n.t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		n.t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// scrape runs podmarkd on a node with a policed pod, on which a set was replaced, and
// returns what it exports of podmark's.
func scrape(t *testing.T) map[string]*dto.MetricFamily {
	t.Helper()
	netns.Enter(t)
	n := node{t: t, bin: t.TempDir(), dir: filepath.Join(t.TempDir(), "state")}
	build := exec.Command("go", "build", "-o", n.bin+"/", "./plugins/podmark", "./plugins/podmarkd", "./plugins/podmarkctl")
	build.Dir, build.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building: %v\n%s", err, out)
	}
	n.run("", "ip", "link", "set", "lo", "up")
	n.run(`{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "web", "namespace": "shop"}, "spec": {"podSelector": {}, "policyTypes": ["Ingress"]}}
{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "trial", "namespace": "shop", "annotations": {"podmark.dev/audit": "true"}}, "spec": {"podSelector": {}, "policyTypes": ["Egress"]}}`,
		filepath.Join(n.bin, "podmarkctl"), "--state-dir", n.dir, "apply", "-f", "-")
	n.addPod()
	address := n.startDaemon()
	n.until(address, "a look", "podmark_last_reconcile_success")
	// So that one of the node's own sets is stale, and is replaced.
	n.run("", "ip", "addr", "add", "192.0.2.7/32", "dev", "lo")
	return n.until(address, "a replaced set, and the drops and audits of policies", "podmark_replaced_sets_total", "podmark_policy_dropped_packets_total", "podmark_policy_audited_packets_total")
}

// until waits until a scrape has these metrics.
func (n node) until(address, what string, names ...string) map[string]*dto.MetricFamily {
	n.t.Helper()
	var families map[string]*dto.MetricFamily
	wait.For(n.t, what, func() bool {
		families = n.get(address)
		return !slices.ContainsFunc(names, func(name string) bool { return families[name] == nil })
	})
	return families
}

// addPod adds a pod with a veth, in a network namespace that lives until the test ends, and
// fails to add it again.
func (n node) addPod() {
	n.t.Helper()
	ready, over := make(chan string), make(chan struct{})
	n.t.Cleanup(func() { close(over) })
	go func() {
		runtime.LockOSThread() // never unlocked: thread and namespace end together
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			n.t.Error(err)
		}
		ready <- fmt.Sprint(unix.Gettid())
		<-over
	}()
	thread := <-ready
	n.run("", "ip", "link", "add", "pod0", "type", "veth", "peer", "name", "eth0", "netns", thread)
	conf := map[string]any{
		"cniVersion": "1.1.0", "name": "net", "type": "podmark", "stateDir": n.dir, "policy": "files", "backend": "iptables",
		"prevResult": map[string]any{"cniVersion": "1.1.0", "ips": []any{map[string]any{"address": "10.1.0.2/32"}}},
	}
	add := func() ([]byte, error) {
		stdin, err := json.Marshal(conf)
		if err != nil {
			n.t.Fatal(err)
		}
		cmd := exec.Command(filepath.Join(n.bin, "podmark"))
		cmd.Stdin = bytes.NewReader(stdin)
		cmd.Env = append(os.Environ(), "CNI_COMMAND=ADD", "CNI_CONTAINERID=a", "CNI_NETNS=/proc/"+thread+"/ns/net", "CNI_IFNAME=eth0", "CNI_PATH=/",
			"CNI_ARGS=K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0")
		return cmd.CombinedOutput()
	}
	if out, err := add(); err != nil {
		n.t.Fatalf("ADD: %v\n%s", err, out)
	}
	conf["iptablesMarkMask"] = "0x00ff0000" // cannot change now: a call that fails
	if out, err := add(); err == nil {
		n.t.Fatalf("ADD with another mask:\n%s", out)
	}
}

// bridgeList makes a directory with a network whose pods are on a bridge: it needs kernel
// parameters.
func (n node) bridgeList() string {
	n.t.Helper()
	dir := n.t.TempDir()
	list := fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "bridge", "ipam": {"type": "bridge"}}, {"type": "podmark", "policy": "files", "stateDir": %q}]}`, n.dir)
	err := os.WriteFile(filepath.Join(dir, "10-net.conflist"), []byte(list), 0o600)
	if err == nil { // it is never called
		err = os.WriteFile(filepath.Join(n.bin, "bridge"), nil, 0o700)
	}
	if err != nil {
		n.t.Fatal(err)
	}
	return dir
}

// startDaemon runs podmarkd until the test ends, and returns where it serves.
func (n node) startDaemon() (address string) {
	n.t.Helper()
	log, err := os.Create(filepath.Join(n.t.TempDir(), "log"))
	if err != nil {
		n.t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(n.bin, "podmarkd"), "--state-dir", n.dir, "--listen", "127.0.0.1:0", "--interval", "300ms", "--cni-conf-dir", n.bridgeList(), "--cni-bin-dir", n.bin)
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	said := func() string {
		b, err := os.ReadFile(log.Name())
		if err != nil {
			n.t.Fatal(err)
		}
		return string(b)
	}
	n.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if n.t.Failed() {
			n.t.Logf("podmarkd said:\n%s", said())
		}
		log.Close()
	})
	var serves []string
	wait.For(n.t, "podmarkd serves", func() bool {
		serves = regexp.MustCompile(`address=(\S+)`).FindStringSubmatch(said())
		return serves != nil
	})
	return serves[1]
}

// get reads /metrics on the test's own thread, which is in the node's namespace.
func (n node) get(address string) map[string]*dto.MetricFamily {
	n.t.Helper()
	conn, err := net.DialTimeout("tcp", address, wait.Still)
	if err != nil {
		n.t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET /metrics HTTP/1.0\r\n\r\n")
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		n.t.Fatal(err)
	}
	defer response.Body.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(response.Body)
	if err != nil {
		n.t.Fatal(err)
	}
	for name := range families {
		if !strings.HasPrefix(name, "podmark_") {
			delete(families, name) // of the process and of Go
		}
	}
	return families
}

// shapes are the types and labels of what was scraped.
func shapes(families map[string]*dto.MetricFamily) map[string]family {
	out := map[string]family{}
	for name, f := range families {
		shape := family{kind: strings.ToLower(f.GetType().String()), labels: []string{}}
		for _, l := range f.Metric[0].Label {
			shape.labels = append(shape.labels, l.GetName())
		}
		slices.Sort(shape.labels)
		out[name] = shape
	}
	return out
}
