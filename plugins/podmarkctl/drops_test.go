package main_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/test/testnode"
	"github.com/podmark/podmark/test/wait"
)

// dropsPolicy lets the clients send UDP to port 9 of the web pods.
const dropsPolicy = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: default}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: client}}}]
    ports: [{protocol: UDP, port: 9}]
`

// auditedPolicy is the same, tried out.
var auditedPolicy = strings.Replace(dropsPolicy, "default}", `default, annotations: {podmark.dev/audit: "true"}}`, 1)

// dropsLine is a line of 'drops -o json', followed or not.
type dropsLine struct {
	Direction, Verdict, Reason, Protocol string
	Source, Destination                  dropsSide
	Profile                              string
	Policies                             []string
	Suppressed, Packets                  uint64
	Rules                                []dropsRule
}

type dropsSide struct {
	Address, Pod string
	Port         uint16
}

type dropsRule struct {
	Rule    string
	Packets uint64
}

// dropsNode is a node with routed pods that packets get to: web-1 is a web pod, web-2 a
// client, web-3 neither.
func dropsNode(t *testing.T, b backend) *node {
	t.Helper()
	n := newNode(t, b)
	n.Forward()
	for i, app := range []string{"web", "client", "other"} {
		n.addPod(map[string]string{"app": app})
		n.Pods[i].Connect()
	}
	return n
}

// send sends packets from a pod.
func (n *node) send(pod int, from, to string, count int) {
	n.T.Helper()
	n.Pods[pod-1].Do(n.T, func() error {
		d := net.Dialer{}
		if from != "" {
			d.LocalAddr = net.UDPAddrFromAddrPort(netip.MustParseAddrPort(from))
		}
		c, err := d.Dial("udp", to)
		if err != nil {
			return err
		}
		defer c.Close()
		for range count {
			if _, err := c.Write([]byte("hello")); err != nil {
				return err
			}
		}
		return nil
	})
}

// follow starts 'drops --follow', and ends it with the test.
func (n *node) follow(args ...string) (lines <-chan string, stop func()) {
	n.T.Helper()
	cmd := exec.Command(testnode.Program(n.T, "podmarkctl"), append([]string{"--state-dir", n.Dir, "drops", "--follow"}, args...)...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		n.T.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		n.T.Fatal(err)
	}
	to := make(chan string, 10000)
	go func() {
		defer close(to)
		for s := bufio.NewScanner(out); s.Scan(); {
			to <- s.Text()
		}
	}()
	ended := false
	stop = func() {
		if ended {
			return
		}
		ended = true
		_ = cmd.Process.Signal(unix.SIGTERM)
		for range to { // Wait closes the pipe
		}
		if err := cmd.Wait(); err != nil {
			n.T.Errorf("following ended: %v", err)
		}
	}
	n.T.Cleanup(stop)
	n.until("it listens", func() bool {
		return strings.Contains(n.Exec("", "cat", "/proc/self/net/netfilter/nfnetlink_log"), " 1886 ")
	})
	return to, stop
}

func (n *node) until(what string, done func() bool) {
	n.T.Helper()
	wait.For(n.T, what, done)
}

func nextJSON(t *testing.T, lines <-chan string) dropsLine {
	t.Helper()
	var l dropsLine
	text := wait.Next(t, "a line", lines)
	if err := json.Unmarshal([]byte(text), &l); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return l
}

// drops is what 'drops' says, by verdict and whom.
func (n *node) drops() map[string]dropsLine {
	n.T.Helper()
	var list []dropsLine
	if err := json.Unmarshal([]byte(n.ctl("drops", "-o", "json").ok(n.T).Stdout), &list); err != nil {
		n.T.Fatal(err)
	}
	out := map[string]dropsLine{}
	for _, l := range list {
		out[strings.Join(append([]string{l.Verdict, l.Direction, l.Reason}, l.Policies...), " ")] = l
	}
	return out
}

// Each packet that is dropped, or would be but for an audit, is told of as it happens:
// from whom to whom, and by which policies. What is allowed is not.
func TestDropsFollow(t *testing.T) {
	t.Parallel()
	for _, b := range backends {
		t.Run(b.Name, func(t *testing.T) {
			t.Parallel()
			n := dropsNode(t, b)
			n.ctlIn(dropsPolicy, "apply", "-f", "-").ok(t)
			lines, _ := n.follow("-o", "json")
			daemon := n.daemon()

			web := dropsLine{
				Direction: "ingress", Verdict: "dropped", Reason: "policy", Protocol: "udp", Policies: []string{"default/web"},
				Source: dropsSide{"10.1.0.4", "default/web-3", 1234}, Destination: dropsSide{"10.1.0.2", "default/web-1", 9}, Packets: 1,
			}
			is := func(want dropsLine) {
				t.Helper()
				got := nextJSON(t, lines)
				if got.Profile == "" != (want.Policies == nil) {
					t.Errorf("profile %q", got.Profile)
				}
				got.Profile = ""
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("it should say (-) and says (+):\n%s", diff)
				}
			}
			n.send(2, "10.1.0.3:1234", "10.1.0.2:9", 1) // allowed
			n.send(3, "10.1.0.4:1234", "10.1.0.2:9", 1)
			is(web)
			daemon() // one is restarted meanwhile
			n.daemon()
			n.send(3, "[fd00:10::4]:1234", "[fd00:10::2]:9", 1)
			web.Source.Address, web.Destination.Address, web.Packets = "fd00:10::4", "fd00:10::2", 2
			is(web)

			n.Exec("", "nsenter", "--net="+n.Pods[2].Path, "ip", "addr", "add", "10.1.0.99/32", "dev", "eth0")
			n.send(3, "10.1.0.99:1234", "10.1.0.3:9", 1)
			is(dropsLine{
				Verdict: "dropped", Reason: "spoofed", Protocol: "udp", Packets: 1,
				Source: dropsSide{"10.1.0.99", "", 1234}, Destination: dropsSide{"10.1.0.3", "default/web-2", 9},
			})
			said := n.drops()
			for what, want := range map[string]uint64{"dropped ingress policy default/web": 2, "dropped  spoofed": 1, "dropped  unclassified": 0} {
				if got, there := said[what]; !there || got.Packets != want {
					t.Errorf("%s: %+v, want %d packets", what, got, want)
				}
			}
			if got := said["dropped ingress policy default/web"].Rules; !slices.Equal(got, []dropsRule{{"default/web ingress[0]", 1}}) {
				t.Errorf("rules %+v", got)
			}

			n.ctlIn(auditedPolicy, "apply", "-f", "-").ok(t)
			arrived := n.receive(1, "10.1.0.2:9")
			n.send(3, "10.1.0.4:1234", "10.1.0.2:9", 1)
			web.Source.Address, web.Destination.Address, web.Verdict, web.Packets = "10.1.0.4", "10.1.0.2", "audit", 1
			is(web)
			arrived()
			if got := n.drops()["audit ingress policy default/web"]; got.Packets != 1 {
				t.Errorf("%+v, want 1 packet", got)
			}
		})
	}
}

// daemon starts podmarkd and returns what ends it.
func (n *node) daemon() (stop func()) {
	n.T.Helper()
	d := n.Podmarkd(nil, "--listen", "", "--interval", "200ms")
	n.until("podmarkd has looked", func() bool {
		return strings.Contains(n.files()["daemon.json"], fmt.Sprintf(`"pid":%d,`, d.Process.Pid))
	})
	return func() { d.Stop() }
}

// receive waits for a packet in a pod; arrived fails the test if none came.
func (n *node) receive(pod int, at string) (arrived func()) {
	n.T.Helper()
	var c net.PacketConn
	n.Pods[pod-1].Do(n.T, func() (err error) {
		c, err = net.ListenPacket("udp", at)
		return err
	})
	return func() {
		n.T.Helper()
		defer c.Close()
		_ = c.SetReadDeadline(time.Now().Add(wait.Still))
		if _, _, err := c.ReadFrom(make([]byte, 100)); err != nil {
			n.T.Errorf("nothing arrived: %v", err)
		}
	}
}

// Of a flood, the kernel tells of some packets, and the rest is a number.
func TestDropsFlood(t *testing.T) {
	t.Parallel()
	for _, b := range backends {
		t.Run(b.Name, func(t *testing.T) {
			t.Parallel()
			n := dropsNode(t, b)
			n.ctlIn(dropsPolicy, "apply", "-f", "-").ok(t)
			lines, stop := n.follow("-o", "json")
			const packets = 2000
			n.send(3, "10.1.0.4:1234", "10.1.0.2:9", packets)
			told, suppressed := uint64(0), uint64(0)
			for told+suppressed < packets {
				if l := nextJSON(t, lines); l.Suppressed == 0 {
					told++
				} else if suppressed += l.Suppressed; l.Packets < told+suppressed || len(l.Policies) != 1 || l.Source.Address != "" {
					t.Errorf("%d + %d packets, and it says %+v", told, suppressed, l)
				}
			}
			if told+suppressed != packets || told < 10 || told > packets/2 {
				t.Errorf("%d packets are told of and %d are suppressed, of %d", told, suppressed, packets)
			}
			stop()
		})
	}
}

// One process can listen, and another is told which.
func TestDropsFollowTwice(t *testing.T) {
	n := dropsNode(t, nftables)
	n.ctlIn(dropsPolicy, "apply", "-f", "-").ok(t)
	lines, stop := n.follow()
	if header := wait.Next(t, "a line", lines); !strings.HasPrefix(header, "TIME ") {
		t.Errorf("it begins with %q", header)
	}
	n.ctl("drops", "--follow").fails(t, "another program listens", "process ", "podmarkctl --state-dir "+n.Dir+" drops --follow", "one at a time")
	n.send(3, "[fd00:10::4]:1234", "[fd00:10::99]:9", 1) // allowed, and nobody's
	n.send(3, "[fd00:10::4]:1234", "[fd00:10::2]:9", 1)
	if line := wait.Next(t, "a line", lines); !strings.HasSuffix(line, " ingress dropped udp default/web-3:1234 -> default/web-1:9 by default/web (1)") {
		t.Errorf("line %q", line)
	}
	table := n.ctl("drops").ok(t).Stdout
	for _, row := range []string{"DIRECTION  VERDICT  BY", "ingress    dropped  default/web             1", "ingress    allowed  default/web ingress[0]  0", "-          dropped  spoofed                 0"} {
		if !strings.Contains(table, row) {
			t.Errorf("no row %q:\n%s", row, table)
		}
	}
	stop()
	_, stop = n.follow() // the group is free again
	stop()
}

// Where the kernel or a command cannot log, podmark enforces all the same, and says so.
func TestDropsUnlogged(t *testing.T) {
	n := newNode(t, iptablesNFT)
	real, err := exec.LookPath("iptables-nft-restore")
	if err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	script := "#!/bin/sh\nin=$(cat)\ncase $in in *NFLOG*) echo 'no such target' >&2; exit 2;; esac\necho \"$in\" | " + real + " \"$@\"\n"
	if err := os.WriteFile(filepath.Join(bin, "iptables-nft-restore"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	path := n.Path
	n.Path = bin + ":" + path
	n.addPod(map[string]string{"app": "web"})
	n.ctlIn(dropsPolicy, "apply", "-f", "-").ok(t)
	n.ctl("drops", "--follow").fails(t, "does not log", "no such target")
	if said := n.drops(); len(said) != 5 {
		t.Errorf("drops: %+v", said)
	}
	if found := n.ctl("doctor").Stdout; !strings.Contains(found, "drop-log") || !strings.Contains(found, "no such target") {
		t.Errorf("doctor says:\n%s", found)
	}
	if kernel := n.kernel(); strings.Contains(kernel, "NFLOG") || strings.Contains(kernel, "PODMARK-PROBE") || !strings.Contains(kernel, "PODMARK-I-") {
		t.Errorf("in the kernel:\n%s", kernel)
	}
	n.Path = path // it can again, and is asked where everything is written again
	n.ctl("gc").ok(t)
	if found := n.ctl("doctor").Stdout; strings.Contains(found, "drop-log") {
		t.Errorf("doctor says:\n%s", found)
	}
	if kernel := n.kernel(); strings.Count(kernel, "NFLOG") != 10 {
		t.Errorf("in the kernel:\n%s", kernel)
	}
}
