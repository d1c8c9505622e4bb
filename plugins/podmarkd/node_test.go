package main_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/agent"
	"github.com/podmark/podmark/pkg/state"
	"github.com/podmark/podmark/test/contain"
	"github.com/podmark/podmark/test/testnode"
	"github.com/podmark/podmark/test/wait"
)

func TestMain(m *testing.M) {
	contain.Main()
	os.Exit(testnode.Main(m))
}

type backend = testnode.Backend

var (
	nftables = testnode.NFTables
	backends = testnode.Backends
)

// eachBackend runs test on a node of each backend.
func eachBackend(t *testing.T, test func(t *testing.T, n *host)) {
	testnode.Each(t, backends, newHost, test)
}

// host is a node that podmarkd is run on.
type host struct{ *testnode.Node }

func newHost(t *testing.T, b backend) *host { t.Helper(); return &host{testnode.New(t, b)} }

// addPod adds a pod that has a routed veth and both kinds of address.
func (h *host) addPod() { h.T.Helper(); h.addPodIn(testnode.NewSpace(h.T)) }

// addPodUntil adds such a pod, whose network namespace is gone after end.
func (h *host) addPodUntil() (end func()) {
	h.T.Helper()
	space, end := testnode.SpaceUntil(h.T)
	h.addPodIn(space)
	return end
}

// addPodIn adds such a pod, whose network namespace is that.
func (h *host) addPodIn(space testnode.Space) { h.T.Helper(); h.come(h.NewPod(space)) }

// come adds a pod.
func (h *host) come(p *testnode.Pod) {
	h.T.Helper()
	p.Add().OK(h.T)
	h.decide()
}

// decide says that there are to be no policies, where the test has said nothing about them: the
// pods would count as open.
func (h *host) decide() {
	h.T.Helper()
	if b, err := os.ReadFile(filepath.Join(h.Dir, "node.json")); err == nil && bytes.Contains(b, []byte(`"policiesHash":"none"`)) && !bytes.Contains(b, []byte(`"kubernetes":true`)) {
		h.Ctl("", "apply", "--delete")
	}
}

var changing = regexp.MustCompile(`\[\d+:\d+\]| (hashsize|bucketsize|initval|references) \S+| packets \d+ bytes \d+`)

// kernel is what of podmark's is in the kernel, in a stable order, whichever
// generation of sets is used.
func (h *host) kernel() string {
	h.T.Helper()
	lines := []string{h.Exec("", "nft", "-s", "list", "ruleset", "inet"), h.Exec("", "nft", "-s", "list", "ruleset", "bridge")}
	if h.Backend != nftables {
		lines = slices.AppendSeq(lines, strings.Lines(testnode.AnyGeneration(h.Exec("", "ipset", "save"))))
		slices.Sort(lines)
		lines = append(lines, testnode.AnyGeneration(strings.Join(h.Rules(h.Backend.Variant), "")))
	}
	return changing.ReplaceAllString(strings.Join(lines, ""), "")
}

// daemon is a running podmarkd.
type daemon struct {
	*testnode.Daemon
	h       *host
	address string
}

// start runs podmarkd in the node's network namespace until the test ends, and
// waits until it has reconciled the node.
func (h *host) start(args ...string) *daemon { h.T.Helper(); return h.startIn(nil, args...) }

// startIn adds to the environment.
func (h *host) startIn(env []string, args ...string) *daemon {
	h.T.Helper()
	d := &daemon{h: h, Daemon: h.Podmarkd(env, append([]string{"--listen", "127.0.0.1:0", "--interval", "300ms", "--cni-conf-dir", ""}, args...)...)}
	h.eventually("podmarkd has reconciled the node", func() error {
		if s, err := d.status(); err != nil || s.PID != d.Process.Pid {
			return fmt.Errorf("status of %d: %w", s.PID, err)
		}
		m := regexp.MustCompile(`address=(\S+)`).FindStringSubmatch(d.Log.String())
		if m == nil {
			return errors.New("it does not say where it serves metrics")
		}
		d.address = m[1]
		return nil
	})
	return d
}

func (d *daemon) status() (agent.Status, error) { return agent.ReadStatus(state.At(d.h.Dir)) }

// get asks podmarkd over HTTP, from the test's own thread: it is the one that is in
// the node's network namespace.
func (d *daemon) get(path string) (code int, body string) {
	d.h.T.Helper()
	conn, err := net.DialTimeout("tcp", d.address, wait.Still)
	if err != nil {
		d.h.T.Fatal(err)
	}
	defer conn.Close()
	request, err := http.NewRequest(http.MethodGet, "http://"+d.address+path, nil)
	if err == nil {
		err = request.Write(conn)
	}
	if err != nil {
		d.h.T.Fatal(err)
	}
	r, err := http.ReadResponse(bufio.NewReader(conn), request)
	if err != nil {
		d.h.T.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		d.h.T.Fatal(err)
	}
	return r.StatusCode, string(b)
}

// metric is the value of a metric, with its labels as Prometheus writes them.
func (d *daemon) metric(name string) string {
	d.h.T.Helper()
	_, body := d.get("/metrics")
	for line := range strings.Lines(body) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	d.h.T.Fatalf("no metric %s in:\n%s", name, body)
	return ""
}

// paused calls f while podmarkd stands still.
func (d *daemon) paused(f func()) {
	d.h.T.Helper()
	if err := d.Process.Signal(unix.SIGSTOP); err != nil {
		d.h.T.Fatal(err)
	}
	f()
	if err := d.Process.Signal(unix.SIGCONT); err != nil {
		d.h.T.Fatal(err)
	}
}

// repairs counts them, of every kind.
func (d *daemon) repairs() (sum int) {
	d.h.T.Helper()
	_, body := d.get("/metrics")
	for _, m := range regexp.MustCompile(`(?m)^podmark_repairs_total\{.*\} (\d+)$`).FindAllStringSubmatch(body, -1) {
		n, err := strconv.Atoi(m[1])
		if err != nil {
			d.h.T.Fatal(err)
		}
		sum += n
	}
	return sum
}

// eventually waits until check returns nil.
func (h *host) eventually(what string, check func() error) {
	h.T.Helper()
	wait.Until(h.T, what, check)
}
