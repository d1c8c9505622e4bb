package droplog_test

import (
	"net"
	"os/exec"
	"strings"
	"testing"

	"github.com/podmark/podmark/pkg/dataplane/counters"
	"github.com/podmark/podmark/pkg/dataplane/droplog"
	"github.com/podmark/podmark/test/netns"
)

// Messages about packets come from the moment on in which the kernel knows who listens, which
// is before the listener has said all that it wants.
func TestListenInAFlood(t *testing.T) {
	netns.Enter(t)
	rules := exec.Command("nft", "-f", "-")
	rules.Stdin = strings.NewReader(`table inet flood { chain out {
		type filter hook output priority 0
		udp dport 9 log prefix "` + droplog.Prefix(counters.Key{Reason: counters.Spoofed}) + `" group 1886
	}
}`)
	for _, c := range []*exec.Cmd{rules, exec.Command("ip", "link", "set", "lo", "up")} {
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", c, err, out)
		}
	}
	conn, err := net.Dial("udp", "127.0.0.1:9")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				_, _ = conn.Write([]byte("x")) // nobody is at port 9, and says so
			}
		}
	}()
	defer func() { close(stop); <-stopped }()
	for range 100 {
		l, err := droplog.Listen()
		if err != nil {
			t.Fatal(err)
		}
		for heard := 0; heard == 0; {
			list, _, err := l.Receive()
			if err != nil {
				t.Fatal(err)
			}
			heard = len(list)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
