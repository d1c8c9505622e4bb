package lab_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/moby/ipvs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/agent"
	"github.com/podmark/podmark/pkg/state"
	"github.com/podmark/podmark/test/lab"
	"github.com/podmark/podmark/test/wait"
)

// Whether IPVS is used is noticed at once, also while another process holds the node's
// lock, which everything else has to wait for.
func TestDaemonKnowsIPVSAtOnce(t *testing.T) {
	c := newCluster(t, lab.Options{Backend: lab.NFTables}, routed)
	startDaemon(t, c.Node, "--interval", "1m")
	becomes(t, c.Node, "it has looked", func(s agent.Status) bool { return s.Mode.IPVS })
	mode := watchMode(t, c.Node)

	lock, err := os.Open(filepath.Join(c.StateDir, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	c.Node.Run("ip", "link", "del", "kube-ipvs0")
	mode.becomes(false, "the link is gone")
	c.Node.Run("ip", "link", "add", "kube-ipvs0", "type", "dummy")
	mode.becomes(true, "the link is back")
}

// modeWatch compares all the time whether the kernel has a service of IPVS and
// kube-proxy's link with what podmarkd says.
type modeWatch struct {
	t    *testing.T
	node *lab.Node

	mu           sync.Mutex
	kernel, said bool
	lag          time.Duration // from the last change of the one to that of the other
}

// every is how often it looks; a lag is too long by twice as much at most, and never
// too short.
const every = 50 * time.Millisecond

func watchMode(t *testing.T, n *lab.Node) *modeWatch {
	t.Helper()
	w := &modeWatch{t: t, node: n}
	var links *netlink.Handle
	var services *ipvs.Handle
	err := n.Do(func() (err error) {
		if links, err = netlink.NewHandle(unix.NETLINK_ROUTE); err == nil {
			services, err = ipvs.New("")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	t.Cleanup(func() {
		stop()
		running.Wait()
		links.Close()
		services.Close()
	})
	running.Go(func() {
		last := time.Now()
		var changed time.Time // zero when podmarkd has said so
		for ctx.Err() == nil {
			now := time.Now()
			_, err := links.LinkByName("kube-ipvs0")
			list, _ := services.GetServices()
			status, _ := agent.ReadStatus(state.At(n.StateDir))
			w.mu.Lock()
			if is := err == nil && len(list) > 0; is != w.kernel {
				// It was so before it was seen.
				w.kernel, changed = is, last
			}
			if w.said = status.Mode.IPVS; w.said == w.kernel && !changed.IsZero() {
				w.lag, changed = time.Since(changed), time.Time{}
			}
			w.mu.Unlock()
			last = now
			time.Sleep(every) //nolint:forbidigo // watches until the test ends
		}
	})
	return w
}

// becomes waits until kernel and podmarkd both have it that IPVS is used, or that it
// is not. podmarkd looks by itself once a minute: in half of that it was told.
func (w *modeWatch) becomes(want bool, why string) {
	w.t.Helper()
	wait.Until(w.t, why, func() error {
		w.mu.Lock()
		kernel, said, lag := w.kernel, w.said, w.lag
		w.mu.Unlock()
		if kernel != want || said != want {
			return fmt.Errorf("IPVS is used: %v, podmarkd says %v, want %v", kernel, said, want)
		}
		w.t.Logf("%s: podmarkd noticed within %v", why, lag.Round(time.Millisecond))
		if lag >= 30*time.Second {
			w.t.Errorf("%s: podmarkd noticed after %v, and nobody told it", why, lag)
		}
		return nil
	})
}
