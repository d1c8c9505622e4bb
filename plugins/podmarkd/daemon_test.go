package main_test

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/dataplane/drift"
	"github.com/podmark/podmark/pkg/state"
	"github.com/podmark/podmark/test/testnode"
)

const policy = `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: default}
spec:
  podSelector: {}
  policyTypes: [Ingress, Egress]
  ingress: [{ports: [{port: 80}]}]
`

// harm is something that others do to a node, and what podmarkd calls it.
type harm struct {
	name string
	do   func(h *host)
	word string
	kind drift.Kind
}

func harms(b backend) []harm {
	if b == nftables {
		nft := func(command string) func(*host) { return func(h *host) { h.Exec("", "nft", command) } }
		return []harm{
			{"nft flush ruleset", nft("flush ruleset"), "missing", drift.Chain},
			{"table gone", nft("delete table inet podmark"), "missing", drift.Chain},
			{"chain flushed", nft("flush chain inet podmark forward"), "inet podmark", drift.Chain},
			{"rule inserted", nft("insert rule inet podmark forward accept"), "inet podmark forward", drift.Chain},
			{"element gone", nft(`delete element inet podmark senders4 { "veth1" . 10.1.0.2 }`), "senders4", drift.Element},
			{"maps flushed", nft("flush map inet podmark ingress4"), "ingress4", drift.Element},
		}
	}
	rule := func(args ...string) func(*host) { return func(h *host) { h.Iptables(args...) } }
	return []harm{
		{"iptables -F", rule("-F"), "no rule uses", drift.Chain},
		{"hook gone", rule("-D", "FORWARD", "-j", "PODMARK-FORWARD"), "FORWARD", drift.Hook},
		{"hook not first", rule("-I", "OUTPUT", "1", "-j", "ACCEPT"), "OUTPUT", drift.Hook},
		{"chain flushed", rule("-F", "PODMARK-SPOOFED"), "PODMARK-SPOOFED", drift.Chain},
		{"hook of table security gone", rule("-t", "security", "-D", "OUTPUT", "-j", "PODMARK-CLEAR"), "security OUTPUT", drift.Hook},
		{"guard of bridges gone", func(h *host) { h.Exec("", "nft", "delete table bridge podmark") }, "bridge podmark", drift.Chain},
		{"rule inserted", rule("-I", "PODMARK-POLICE", "1", "-j", "RETURN"), "PODMARK-POLICE", drift.Chain},
		{"ipset destroy", func(h *host) {
			h.Iptables("-F")
			h.Iptables("-X")
			h.eventually("the kernel lets go of the sets", func() error { return exec.Command("ipset", "destroy").Run() })
			h.Iptables("-N", "KUBE-IPTABLES-HINT")
		}, "no rule uses", drift.Chain},
		{"element gone", func(h *host) {
			for name := range strings.FieldsSeq(h.Exec("", "ipset", "list", "-n")) {
				if strings.HasPrefix(name, "podmark-ep4") {
					h.Exec("", "ipset", "flush", name)
				}
			}
		}, "podmark-ep4", drift.Element},
	}
}

// What others take out of the data plane is back soon, and counted.
func TestRepair(t *testing.T) {
	eachBackend(t, func(t *testing.T, h *host) {
		h.Ctl(policy, "apply", "-f", "-")
		h.addPod()
		h.addPod()
		d := h.start()
		want := h.kernel()
		byKind := map[drift.Kind]int{}
		for i, harm := range harms(h.Backend) {
			byKind[harm.kind]++
			d.paused(func() { harm.do(h) }) // it would come in between
			h.eventually(harm.name+" is repaired", func() error {
				s, err := d.status()
				if err != nil || s.Repairs <= i {
					return fmt.Errorf("%d repairs: %w", s.Repairs, err)
				}
				if s.Repairs > i+1 || !strings.Contains(s.LastRepair.Drift, harm.word) {
					t.Fatalf("%s: repair %d of %q, want repair %d of something with %q", harm.name, s.Repairs, s.LastRepair.Drift, i+1, harm.word)
				}
				return nil
			})
			foreign := strings.NewReplacer("iptables -A OUTPUT -j ACCEPT\n", "", "ip6tables -A OUTPUT -j ACCEPT\n", "")
			if diff := cmp.Diff(want, foreign.Replace(h.kernel())); diff != "" {
				t.Fatalf("%s: after the repair:\n%s", harm.name, diff)
			}
			for _, k := range drift.Kinds() {
				if got := d.metric(fmt.Sprintf("podmark_repairs_total{kind=%q}", k)); got != fmt.Sprint(byKind[k]) {
					t.Errorf("%s: podmark_repairs_total of %s is %s, want %d", harm.name, k, got, byKind[k])
				}
			}
		}
	})
}

// What podmarkd and the plugin do themselves is no reason to repair anything.
func TestNothingToRepair(t *testing.T) {
	eachBackend(t, func(t *testing.T, h *host) {
		d := h.start()
		if s, err := d.status(); err != nil || !s.Idle {
			t.Errorf("on a node that podmark has never run on: %+v, %v", s, err)
		}
		h.Ctl(policy, "apply", "-f", "-")
		for range 5 {
			h.addPod()
		}
		h.Ctl("", "apply", "--delete")
		first, err := d.status()
		if err != nil {
			t.Fatal(err)
		}
		h.eventually("it has looked once more", func() error {
			if s, err := d.status(); err != nil || !s.LastReconcile.After(first.LastReconcile) || s.Idle {
				return fmt.Errorf("%+v, %w", s, err)
			}
			return nil
		})
		if s, err := d.status(); err != nil || s.Repairs != 0 || s.Error != "" {
			t.Errorf("%+v, %v", s, err)
		}
	})
}

// The set of the node's own addresses follows them, without a rule being written.
func TestHostAddresses(t *testing.T) {
	eachBackend(t, func(t *testing.T, h *host) {
		if h.Backend == nftables {
			t.Skip("nftables needs none")
		}
		h.addPod()
		h.start()
		rules := h.rules()
		h.Exec("", "ip", "addr", "add", "192.0.2.7/32", "dev", "lo")
		h.Exec("", "ip", "addr", "add", "2001:db8::7/128", "dev", "lo")
		h.eventually("new addresses are the host's", func() error { return h.has("192.0.2.7", "2001:db8::7") })
		h.Exec("", "ip", "addr", "del", "192.0.2.7/32", "dev", "lo")
		h.eventually("an address is the host's no longer", func() error {
			if h.has("192.0.2.7") == nil {
				return errors.New("192.0.2.7 is there")
			}
			return h.has("2001:db8::7")
		})
		if diff := cmp.Diff(rules, h.rules()); diff != "" {
			t.Errorf("rules were written:\n%s", diff)
		}
	})
}

// rules are those of the node's variant, with their counters.
func (h *host) rules() string {
	h.T.Helper()
	return h.Exec("", "iptables-"+h.Backend.Variant, "-t", "mangle", "-S") + h.Exec("", "ip6tables-"+h.Backend.Variant, "-t", "mangle", "-S")
}

// has says which of these are in none of podmark's sets of addresses and ports.
func (h *host) has(elements ...string) error {
	h.T.Helper()
	sets := h.Exec("", "ipset", "save")
	for _, e := range elements {
		if !slices.ContainsFunc(strings.Split(sets, "\n"), func(line string) bool {
			f := strings.Fields(line)
			return len(f) == 3 && f[0] == "add" && (strings.HasPrefix(f[1], "podmark-host") || strings.HasPrefix(f[1], "podmark-port")) && f[2] == e
		}) {
			return fmt.Errorf("%s is in no set", e)
		}
	}
	return nil
}

// NodePorts are what the daemon was told, and stay so when the plugin comes with
// what it was told: a daemon that ends leaves them as they are.
func TestNodePorts(t *testing.T) {
	eachBackend(t, func(t *testing.T, h *host) {
		h.addPod()
		d := h.start("--node-port-mode", "range", "--node-port-ranges", "30000-30002,40000:40001")
		ports := []string{"30000", "30001", "30002", "40000", "40001"}
		check := func() {
			t.Helper()
			h.eventually("the ports are there", func() error {
				if h.Backend == nftables {
					return nil // needs none
				}
				if err := h.has("30003"); err == nil {
					return errors.New("30003 is there")
				}
				return h.has(ports...)
			})
		}
		check()
		h.eventually("the status says so", func() error {
			if s, err := d.status(); err != nil || s.Ports.Source != "--node-port-ranges" || fmt.Sprint(s.Ports.Ranges) != "[30000:30002 40000:40001]" {
				return fmt.Errorf("%+v, %w", s.Ports, err)
			}
			return nil
		})
		if got := d.metric(`podmark_node_ports_info{mode="range",source="--node-port-ranges"}`); got != "1" {
			t.Errorf("podmark_node_ports_info %s", got)
		}
		h.addPod()
		check()
		if code := d.Stop(); code != 0 {
			t.Errorf("ended with %d", code)
		}
		h.addPod()
		h.Ctl("", "gc")
		check()
		if s, err := d.status(); err != nil || s.Repairs != 0 {
			t.Errorf("%+v, %v", s, err)
		}
	})
}

// A configuration file is read again when it changes, however it is written; a
// static pod manifest counts where it says nothing.
func TestConfigFile(t *testing.T) {
	t.Parallel()
	h := newHost(t, nftables)
	h.addPod()
	dir := t.TempDir()
	file := filepath.Join(dir, "podmarkd.yaml")
	write := func(path, content string) {
		t.Helper()
		if err := os.WriteFile(path+".new", []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	write(file, "nodePortRanges: [20000-20010]\nnodePortMode: range\n")
	d := h.start("--config", file, "--static-pod-dirs", dir)
	is := func(source, ranges string) {
		t.Helper()
		h.eventually(source+" says "+ranges, func() error {
			if s, err := d.status(); err != nil || !strings.HasPrefix(s.Ports.Source, source) || fmt.Sprint(s.Ports.Configured) != ranges {
				return fmt.Errorf("%+v, %w", s.Ports, err)
			}
			return nil
		})
	}
	is("configuration file", "[20000:20010]")
	write(file, "nodePortRanges: [20000-20010, 40000]\n")
	is("configuration file", "[20000:20010 40000]")
	write(filepath.Join(dir, "kube-apiserver.yaml"), "apiVersion: v1\nkind: Pod\nmetadata: {name: kube-apiserver, namespace: kube-system}\n"+
		"spec: {containers: [{name: kube-apiserver, image: a, command: [kube-apiserver, --service-node-port-range=31000-31999]}]}\n")
	write(file, "nodePortMode: range\n")
	is("static pod manifest", "[31000:31999]")
	write(file, "nodePortMode: some\n")
	h.eventually("it says what is wrong", func() error {
		if !strings.Contains(d.Log.String(), "nodePortMode") {
			return errors.New(d.Log.String())
		}
		return nil
	})
	is("static pod manifest", "[31000:31999]")
}

// A second daemon is refused, and the first one, when it is killed, leaves the data
// plane as it is and its place to another.
func TestOneDaemon(t *testing.T) {
	t.Parallel()
	h := newHost(t, nftables)
	h.addPod()
	d := h.start()
	kernel := h.kernel()
	out, err := exec.Command(testnode.Program(t, "podmarkd"), "--state-dir", h.Dir, "--listen", "").CombinedOutput()
	if exit := (&exec.ExitError{}); !errors.As(err, &exit) || exit.ExitCode() != 2 || !strings.Contains(string(out), "another podmarkd is running") {
		t.Errorf("a second one: %v: %s", err, out)
	}
	d.Kill()
	if diff := cmp.Diff(kernel, h.kernel()); diff != "" {
		t.Errorf("it was killed, and left:\n%s", diff)
	}
	h.Exec("", "nft", "flush", "ruleset")
	h.start()
	h.eventually("the next one repairs", func() error {
		if diff := cmp.Diff(kernel, h.kernel()); diff != "" {
			return errors.New(diff)
		}
		return nil
	})
}

// A pod of which nothing is left, and for which no DEL came, is taken back. One whose
// interface is gone and whose namespace is there is not.
func TestCollect(t *testing.T) {
	eachBackend(t, func(t *testing.T, h *host) {
		h.Ctl(policy, "apply", "-f", "-")
		h.addPod()
		d := h.start("--collect-after", "1s")
		end := h.addPodUntil()
		h.addPod()
		h.Exec("", "ip", "link", "del", "veth3")
		end() // takes veth2 with it
		listed := func() (names string) {
			for _, r := range h.records() {
				names += r.Pod + " "
			}
			return names
		}
		h.eventually("web-2 is collected, and web-3 is not", func() error {
			kernel := h.kernel()
			if got := listed(); got != "web-1 web-3 " || strings.Contains(kernel, "10.1.0.3") || !strings.Contains(kernel, "10.1.0.4") {
				return fmt.Errorf("%s are known, and in the kernel is\n%s", got, kernel)
			}
			if got := d.metric("podmark_garbage_collected_total"); got != "1" {
				return fmt.Errorf("podmark_garbage_collected_total %s", got)
			}
			return nil
		})
	})
}

// What crashes left in the state directory is removed; a damaged record is not, because its
// pod may be alive.
func TestSweep(t *testing.T) {
	t.Parallel()
	h := newHost(t, nftables)
	h.Ctl(policy, "apply", "-f", "-")
	h.addPod()
	left := []string{"attachments/0123456789abcdef0123456789abcdef.tmp", "addresses/10.9.9.9"}
	write := func(name, content string) {
		if err := os.WriteFile(filepath.Join(h.Dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range left {
		write(name, "")
	}
	d := h.start("--collect-after", "300ms")
	h.eventually("the files are removed", func() error {
		for _, name := range left {
			if _, err := os.Stat(filepath.Join(h.Dir, name)); err == nil {
				return fmt.Errorf("%s is there", name)
			}
		}
		return nil
	})
	const damaged = "attachments/00000000000000000000000000000000"
	write(damaged, "{")
	write(left[0], "")
	h.eventually("it says what is damaged", func() error {
		if s, err := d.status(); err != nil || !strings.Contains(s.Error, "podmarkctl gc") {
			return fmt.Errorf("error %q, %w", s.Error, err)
		}
		return nil
	})
	if _, err := os.Stat(filepath.Join(h.Dir, damaged)); err != nil {
		t.Errorf("the damaged record: %v", err)
	}
	h.Ctl("", "gc")
	h.eventually("after gc nothing is left", func() error {
		s, err := d.status()
		if _, still := os.Stat(filepath.Join(h.Dir, left[0])); err != nil || s.Error != "" || still == nil {
			return fmt.Errorf("error %q, %w, left: %t", s.Error, err, still == nil)
		}
		return nil
	})
}

// What kube-proxy says of itself is shown beside what the kernel does.
func TestProxySays(t *testing.T) {
	t.Parallel()
	h := newHost(t, nftables)
	h.addPod()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var says atomic.Value
	says.Store("nftables")
	server := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/proxyMode" {
			w.WriteHeader(http.StatusNotFound)
		}
		fmt.Fprint(w, says.Load())
	})}
	t.Cleanup(func() { server.Close() })
	go func() { _ = server.Serve(l) }()
	d := h.start("--kube-proxy-metrics", l.Addr().String())
	for _, tt := range []struct{ says, shown string }{{"nftables", ", kube-proxy says nftables"}, {"ipvs", ", kube-proxy says ipvs"}, {"<html>", ""}} {
		says.Store(tt.says)
		h.eventually("it is shown", func() error {
			if out := h.Ctl("", "status"); !strings.Contains(out, "other, 0 services in IPVS"+tt.shown+"\n") {
				return errors.New(out)
			}
			return nil
		})
	}
	if got := d.metric("podmark_proxy_ipvs"); got != "0" {
		t.Errorf("podmark_proxy_ipvs %s: it is the kernel that counts", got)
	}
}

// records are the node's attachments, by ID.
func (h *host) records() []attachment.Record {
	h.T.Helper()
	list, err := state.At(h.Dir).List()
	if err != nil {
		h.T.Fatal(err)
	}
	slices.SortFunc(list, func(a, b attachment.Record) int { return int(a.ID) - int(b.ID) })
	return list
}

// Probes are answered by whether looks come and end well.
func TestProbes(t *testing.T) {
	t.Parallel()
	h := newHost(t, nftables)
	h.addPod()
	d := h.start()
	for _, path := range []string{"/healthz", "/readyz"} {
		if code, body := d.get(path); code != 200 || body != "1 of 1 pods policed\n" {
			t.Errorf("%s: %d %q", path, code, body)
		}
	}
	if got := d.metric("podmark_ids_in_use"); got != "1" {
		t.Errorf("podmark_ids_in_use %s", got)
	}
	if got := d.metric("podmark_ids_capacity"); got != "65534" {
		t.Errorf("podmark_ids_capacity %s", got)
	}
	file := filepath.Join(h.Dir, "node.json")
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.eventually("a damaged node is not ready, and podmarkd is well", func() error {
		ready, why := d.get("/readyz")
		if well, _ := d.get("/healthz"); ready != 503 || well != 200 || !strings.Contains(why, "node.json") {
			return fmt.Errorf("/readyz %d %s, /healthz %d", ready, why, well)
		}
		return nil
	})
	if err := os.WriteFile(file, good, 0o600); err != nil {
		t.Fatal(err)
	}
	h.eventually("it is ready again", func() error {
		if code, why := d.get("/readyz"); code != 200 {
			return fmt.Errorf("/readyz %d %s", code, why)
		}
		return nil
	})
}

// Wrong usage changes nothing and says what would be right; flags come from the
// environment too.
func TestUsage(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		env, args []string
		words     []string
	}{
		{nil, []string{"--node-port-mode", "some"}, []string{"--node-port-mode", "exact or range"}},
		{nil, []string{"--node-port-ranges", "9-1"}, []string{"--node-port-ranges", "9-1"}},
		{nil, []string{"--log-level", "loud"}, []string{"--log-level", "debug"}},
		{nil, []string{"--log-format", "xml"}, []string{"--log-format", "json"}},
		{[]string{"PODMARKD_NODE_PORT_MODE=some"}, nil, []string{"--node-port-mode", "some"}},
		{[]string{"PODMARKD_INTERVAL=soon"}, nil, []string{"PODMARKD_INTERVAL", "soon"}},
		{[]string{"PODMARKD_INTERVALL=10s", "PODMARKD_PORT=tcp://10.0.0.1:9469"}, nil, []string{"has PODMARKD_INTERVALL,", "--help"}},
		{[]string{"PODMARKD_NODE_PORT=80"}, nil, []string{"has PODMARKD_NODE_PORT,"}},
		{nil, []string{"--interval", "0"}, []string{"--interval 0s", "100ms"}},
		{nil, []string{"--interval", "-1s"}, []string{"--interval -1s", "0 or more"}},
		{[]string{"PODMARKD_COLLECT_AFTER=-1m"}, nil, []string{"--collect-after -1m0s", "0 or more"}},
		{nil, []string{"--lock-timeout", "-1ns"}, []string{"--lock-timeout -1ns"}},
		{nil, []string{"--config", "/no/such/file"}, []string{"--config", "/no/such/file"}},
		{nil, []string{"--kubeconfig", "/no/such/file"}, []string{"--kubeconfig", "/no/such/file"}},
		{nil, []string{"--keep-installed", "--policy", "none", "--cni-conf-dir", ""}, []string{`--cni-conf-dir ""`, "absolute path or auto"}},
		{[]string{"PODMARKD_CNI_CONF_DIR="}, []string{"--keep-installed", "--policy", "none"}, []string{`--cni-conf-dir ""`}},
		{[]string{"PODMARKD_CNI_BIN_DIR="}, []string{"--keep-installed", "--policy", "none"}, []string{`--cni-bin-dir ""`}},
		{nil, []string{"--cni-conf-dir", "net.d"}, []string{`--cni-conf-dir "net.d"`}},
		{nil, []string{"extra"}, []string{"extra"}},
	} {
		dir := filepath.Join(t.TempDir(), "state")
		cmd := exec.Command(testnode.Program(t, "podmarkd"), append(tt.args, "--state-dir", dir, "--listen", "")...)
		cmd.Env = append(os.Environ(), tt.env...)
		out, err := cmd.CombinedOutput()
		if exit := (&exec.ExitError{}); !errors.As(err, &exit) || exit.ExitCode() != 2 {
			t.Errorf("%v %v: %v", tt.env, tt.args, err)
		}
		for _, w := range tt.words {
			if !strings.Contains(string(out), w) {
				t.Errorf("%v %v: %q does not say %q", tt.env, tt.args, out, w)
			}
		}
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%v %v: made a state directory", tt.env, tt.args)
		}
	}
}
