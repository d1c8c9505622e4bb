package lab_test

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/podmark/podmark/test/lab"
	"github.com/podmark/podmark/test/testnode"
	"github.com/podmark/podmark/test/wait"
)

// proxy is a kube-proxy that runs.
type proxy struct {
	*exec.Cmd
	mode    string
	started time.Time
	ended   chan struct{} // closed then
	log     *testnode.Log
}

// kubeProxy is a command of kube-proxy, with the node's iptables.
func (n *realNode) kubeProxy(mode string, args ...string) *exec.Cmd {
	n.t.Helper()
	path, err := filepath.Abs("../../bin/kube/kube-proxy")
	if err != nil {
		n.t.Fatal(err)
	}
	// Everything that is not said here is as by default. It may not touch what is not
	// the namespace's: the sizes of conntrack, and its own oom_score_adj.
	config := n.write("kube-proxy.yaml", fmt.Sprintf(`apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: %s
hostnameOverride: node
detectLocalMode: ClusterCIDR
clusterCIDR: %s,%s
clientConnection:
  kubeconfig: %s
  contentType: application/json
  acceptContentTypes: application/json
metricsBindAddress: %s
oomScoreAdj: 0
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
`, mode, n.PodCIDRs[0], n.PodCIDRs[1], filepath.Join(n.Dir, "kubeconfig"), proxyMetricsAt))
	cmd := exec.Command(path, append([]string{"--config", config, "-v", "2"}, args...)...)
	cmd.Env = append(os.Environ(), "PATH="+filepath.Join(n.Dir, "bin")+":"+os.Getenv("PATH"))
	return cmd
}

// startProxy starts kube-proxy, which ends with the test at the latest.
func (n *realNode) startProxy(mode string) {
	n.t.Helper()
	log := &testnode.Log{}
	cmd := n.kubeProxy(mode)
	cmd.Stdout, cmd.Stderr = log, log
	if err := n.Do(cmd.Start); err != nil {
		n.t.Fatal(err)
	}
	p := &proxy{Cmd: cmd, log: log, mode: mode, started: time.Now(), ended: make(chan struct{})}
	go func() {
		_ = p.Wait() // it is ended by a signal
		close(p.ended)
	}()
	n.proxy = p
	n.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-p.ended
		if n.t.Failed() {
			n.t.Logf("kube-proxy in mode %s said:\n%s", mode, log.String())
		}
	})
}

// await polls until something is so, while kube-proxy runs.
func (n *realNode) await(what string, is func() bool) {
	n.t.Helper()
	wait.Until(n.t, what, func() error {
		if is() {
			return nil
		}
		select {
		case <-n.proxy.ended:
			n.t.Fatalf("kube-proxy ended by itself: %v", n.proxy.ProcessState)
		case <-time.After(proxyPoll):
		}
		return fmt.Errorf("IPVS has\n%s", n.Run("ipvsadm", "-Sn"))
	}, func() any { return len(n.proxy.log.String()) })
}

// proxyPoll is how often kube-proxy is asked how far it is: its metrics are long, and
// keep it from its work.
const proxyPoll = 500 * time.Millisecond

// awaitProxy waits until kube-proxy has done all its work once, for both families.
func (n *realNode) awaitProxy() {
	n.t.Helper()
	n.await("kube-proxy's first sync", func() bool { return n.proxySynced(nil) })
	n.t.Logf("kube-proxy in mode %s had all its rules after %v", n.proxy.mode, time.Since(n.proxy.started).Round(time.Millisecond))
}

// awaitLink waits until kube-proxy has set up what IPVS needs, and has its link.
func (n *realNode) awaitLink() {
	n.t.Helper()
	n.await("kube-proxy's link", func() bool {
		_, err := n.Try("ip", "link", "show", "dev", "kube-ipvs0")
		return err == nil
	})
}

// awaitService waits until kube-proxy is through with a Service: IPVS has all of it, and
// the sync that did that, of either family, has ended.
func (n *realNode) awaitService(name string, nodePorts ...uint16) {
	n.t.Helper()
	created := time.Now()
	begun := map[lab.Family]time.Time{lab.V4: created, lab.V6: created}
	n.await("Service "+name, func() bool {
		now, all := time.Now(), true
		for _, f := range lab.Families {
			if !n.balances(f, name, nodePorts) {
				begun[f], all = now, false
			}
		}
		return all && n.proxySynced(begun)
	})
	n.t.Logf("Service %s: kube-proxy was through with it after %v", name, time.Since(created).Round(time.Millisecond))
}

// balances is whether IPVS leads every address and port of a Service to pod b.
func (n *realNode) balances(f lab.Family, name string, nodePorts []uint16) bool {
	table := n.Run("ipvsadm", "-Sn")
	for i, target := range []uint16{servedTarget, deniedTarget} {
		for _, at := range []netip.AddrPort{
			netip.AddrPortFrom(n.vips[name][f], []uint16{servedPort, deniedPort}[i]), n.At(f, nodePorts[i]),
		} {
			for _, protocol := range "tu" {
				if !strings.Contains(table, fmt.Sprintf("-a -%c %v -r %v ", protocol, at, n.b.At(f, target))) {
					return false
				}
			}
		}
	}
	return true
}

var lastSync = regexp.MustCompile(`(?m)^kubeproxy_sync_proxy_rules_last_timestamp_seconds\{ip_family="(IPv[46])"\} (\S+)$`)

// proxySynced is whether kube-proxy has ended a sync of each family well since then.
func (n *realNode) proxySynced(since map[lab.Family]time.Time) bool {
	body, err := n.get("http://" + proxyMetricsAt + "/metrics")
	ended := map[string]float64{}
	for _, match := range lastSync.FindAllStringSubmatch(body, -1) {
		ended[match[1]], _ = strconv.ParseFloat(match[2], 64) // 0 says never, too
	}
	for _, f := range lab.Families {
		if s := ended[f.String()]; s == 0 || s*1000 < float64(since[f].UnixMilli()) {
			return false
		}
	}
	return err == nil
}

// stopProxy ends kube-proxy, which leaves its rules.
func (n *realNode) stopProxy() {
	n.t.Helper()
	if err := n.proxy.Process.Signal(syscall.SIGTERM); err != nil {
		n.t.Fatal(err)
	}
	select {
	case <-n.proxy.ended:
	case <-time.After(wait.Still):
		n.t.Fatalf("kube-proxy goes on for %v after SIGTERM", wait.Still)
	}
}

// cleanUpProxy has kube-proxy remove the rules of all its modes. It may say that it
// failed: 1.36 removes chains of its iptables mode first, to which chains of its IPVS
// mode still lead. What it has to remove for others to work, it removes.
func (n *realNode) cleanUpProxy() {
	n.t.Helper()
	begun := time.Now()
	cmd := n.kubeProxy("ipvs", "--cleanup")
	var out []byte
	err := n.Do(func() (err error) {
		out, err = cmd.CombinedOutput()
		return err
	})
	if err != nil && cmd.ProcessState.ExitCode() != 1 {
		n.t.Fatalf("kube-proxy --cleanup: %v\n%s", err, out)
	}
	n.t.Logf("kube-proxy --cleanup took %v", time.Since(begun).Round(time.Millisecond))
}
