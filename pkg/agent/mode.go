package agent

import (
	"context"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/podmark/podmark/pkg/agent/runner"
)

// longestPause is the longest pause between two reads of the mode. It leaves room for
// others too, but a change has to be told of within a second.
const longestPause = 300 * time.Millisecond

// modeWatch tells how services are done, in its own time: a reconciliation waits for
// the node's lock, and after the one before it leaves room for others.
type modeWatch struct {
	every time.Duration
	// proxy is where kube-proxy serves its metrics; empty for nowhere.
	proxy string
	tell  func(Mode)
	last  Mode
	told  bool
	// due is notified when the mode may have changed.
	due *runner.Runner
}

// run reads the mode after each notification and every so often, until ctx is done.
func (w *modeWatch) run(ctx context.Context) {
	w.due.Run(ctx, func(notified bool) runner.Pause {
		start := time.Now()
		w.read()
		pause := min(max(leastPause, pauseRatio*time.Since(start)), longestPause)
		next := w.every
		if notified {
			next = min(next, follow)
		}
		return runner.Pause{Least: pause, Most: pause + next}
	})
}

// read reads the mode and tells of it, the first time and when it has changed. One that
// cannot be read stays what it was: a reconciliation, which reads it too, says why.
func (w *modeWatch) read() {
	f, err := readServices()
	if err != nil {
		return
	}
	m := f.mode()
	m.Proxy = askProxy(w.proxy)
	if m != w.last || !w.told {
		w.last, w.told = m, true
		w.tell(m)
	}
}

// proxyPatience is how long kube-proxy may take to say its mode: it is on this machine.
const proxyPatience = 100 * time.Millisecond

// askProxy returns what kube-proxy says its mode is, at /proxyMode beside its metrics;
// empty where nobody answers, or with anything else.
func askProxy(address string) string {
	if address == "" {
		return ""
	}
	client := http.Client{Timeout: proxyPatience}
	defer client.CloseIdleConnections()
	answer, err := client.Get("http://" + address + "/proxyMode")
	if err != nil {
		return ""
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(io.LimitReader(answer.Body, 32))
	mode := strings.TrimSpace(string(b))
	if err != nil || !slices.Contains([]string{"ipvs", "iptables", "nftables"}, mode) {
		return ""
	}
	return mode
}
