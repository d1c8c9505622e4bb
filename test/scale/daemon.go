package main

import (
	"bufio"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/podmark/podmark/test/scale/cluster"
)

// daemonAddress is where podmarkd serves its metrics.
const daemonAddress = "127.0.0.1:9469"

// daemon is a running podmarkd.
type daemon struct{ process }

// startDaemon starts podmarkd on a node; what it logs goes to a file.
func (n *node) startDaemon(bin, kubeconfig string) (daemon, error) {
	log, err := os.Create(filepath.Join(n.dir, "podmarkd.log"))
	if err != nil {
		return daemon{}, err
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(bin, "podmarkd"), "--state-dir", n.state, "--listen", daemonAddress, "--node-name", cluster.Node(0),
		"--kubeconfig", kubeconfig, "--cni-conf-dir", n.confDir, "--cni-cache-dir", "", "--static-pod-dirs", "", "--kube-proxy-metrics", "")
	cmd.Stdout, cmd.Stderr = log, log
	p, err := start(cmd)
	return daemon{p}, err
}

// inSync is whether podmarkd says that so many policies are in force. /readyz tells of
// the node alone.
func (d daemon) inSync(policies int) error {
	n, err := d.metrics("podmark_policies", "podmark_policy_watches_unsynced")
	switch {
	case err != nil:
		return err
	case int(n[0]) != policies:
		return fmt.Errorf("%.0f policies of %d are in force", n[0], policies)
	case n[1] > 0:
		return fmt.Errorf("%.0f watches have not seen all there is", n[1])
	}
	return nil
}

// metrics are values that podmarkd exports without labels, in the order of their names.
func (d daemon) metrics(names ...string) ([]float64, error) {
	response, err := http.Get("http://" + daemonAddress + "/metrics")
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	values, found := make([]float64, len(names)), make([]bool, len(names))
	for lines := bufio.NewScanner(response.Body); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), " ")
		if i := slices.Index(names, name); i >= 0 {
			if values[i], err = strconv.ParseFloat(value, 64); err != nil {
				return nil, fmt.Errorf("metric %s: %w", name, err)
			}
			found[i] = true
		}
	}
	if i := slices.Index(found, false); i >= 0 {
		return nil, fmt.Errorf("podmarkd exports no %s", names[i])
	}
	return values, nil
}

// usage is what a process has used and needs: from proc(5).
type usage struct {
	processor     time.Duration
	resident, top int // bytes now, and at most up to now
}

func (p process) usage() (u usage, err error) {
	const utime, stime, ticks = 11, 12, 100 // of the fields behind the name; sysconf(_SC_CLK_TCK)
	dir := fmt.Sprintf("/proc/%d", p.cmd.Process.Pid)
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return u, err
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest)
	for _, i := range []int{utime, stime} {
		n, err := strconv.Atoi(fields[i])
		if err != nil {
			return u, err
		}
		u.processor += time.Duration(n) * time.Second / ticks
	}
	status, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return u, err
	}
	for l := range strings.Lines(string(status)) {
		f := strings.Fields(l)
		if len(f) != 3 || f[2] != "kB" {
			continue
		}
		n, _ := strconv.Atoi(f[1])
		switch f[0] {
		case "VmRSS:":
			u.resident = n << 10
		case "VmHWM:":
			u.top = n << 10
		}
	}
	if u.resident == 0 {
		return u, errors.New("the kernel does not say how much memory the process has")
	}
	return u, nil
}
