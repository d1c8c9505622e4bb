package main_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/test/testnode"
)

// values are the metrics of a scrape, by name and labels.
func (d *daemon) values() map[string]float64 {
	d.h.T.Helper()
	_, body := d.get("/metrics")
	out := map[string]float64{}
	for line := range strings.Lines(body) {
		if i := strings.LastIndexByte(line, ' '); i > 0 && strings.HasPrefix(line, "podmark_") {
			value, err := strconv.ParseFloat(strings.TrimSpace(line[i:]), 64)
			if err != nil {
				d.h.T.Fatalf("%q: %v", line, err)
			}
			out[line[:i]] = value
		}
	}
	return out
}

// become waits until a scrape has these values.
func (d *daemon) become(what string, want map[string]float64) {
	d.h.T.Helper()
	d.h.eventually(what, func() error {
		got := d.values()
		for name, value := range want {
			if v, there := got[name]; !there || v != value {
				return fmt.Errorf("%s is %v (there: %v), want %v", name, v, there, value)
			}
		}
		return nil
	})
}

// What the plugin does is counted, once, whether a daemon runs or not.
func TestCallMetrics(t *testing.T) {
	t.Parallel()
	h := newHost(t, nftables)
	mask := testnode.Conf{"iptablesMarkMask": "0x00030000"}
	for range 2 { // with the default mask, which is not the node's
		h.addPod()
	}
	h.Pods[0].Check().OK(t)
	for _, p := range h.Pods {
		p.Del().OK(t)
	}
	d := h.start()
	calls := func(verb string, code int) string {
		return fmt.Sprintf("podmark_plugin_calls_total{code=\"%d\",verb=%q}", code, verb)
	}
	d.become("calls before the daemon are counted", map[string]float64{
		calls("ADD", 0): 2, calls("DEL", 0): 2, calls("CHECK", 0): 1, calls("GC", 0): 0, "podmark_allocation_failures_total": 0,
		`podmark_plugin_call_duration_seconds_count{verb="ADD"}`: 2, `podmark_plugin_call_duration_seconds_bucket{verb="ADD",le="+Inf"}`: 2,
	})
	h.addPod()
	d.become("and those that come", map[string]float64{calls("ADD", 0): 3, `podmark_plugin_call_duration_seconds_count{verb="ADD"}`: 3})
	if v := d.values(); v[`podmark_plugin_call_duration_seconds_sum{verb="ADD"}`] <= 0 || v[`podmark_plugin_call_duration_seconds_bucket{verb="ADD",le="30"}`] != 3 {
		t.Errorf("durations: %v", v)
	}
	// What nobody has asked for stays for the next one, and what was counted does not.
	if code := d.Stop(); code != 0 {
		t.Errorf("ended with %d", code)
	}
	h.Pods[2].Del().OK(t)
	for i, p := range h.Pods {
		if r := p.Add(mask); (r.Exit() == 0) != (i < 2) {
			t.Fatalf("ADD %d: %v: %s", i, r.State, r.Text())
		}
	}
	d = h.start()
	d.become("the next one", map[string]float64{calls("ADD", 0): 2, calls("ADD", 100): 1, calls("DEL", 0): 1, "podmark_allocation_failures_total": 1})
	d.become("only once", map[string]float64{calls("ADD", 0): 2})
	f, err := os.OpenFile(filepath.Join(h.Dir, "calls"), os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString("nonsense\n" + strings.Repeat("GC 0 1\n", 300<<10/7))
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	d.become("a full spool", map[string]float64{"podmark_spool_full_total": 1, "podmark_spool_damaged_total": 1, calls("GC", 0): 300 << 10 / 7})
}

// send sends n packets from an address of a namespace.
func (h *host) send(space testnode.Space, from, to string, n int) {
	h.T.Helper()
	space.Do(h.T, func() error {
		conn, err := net.DialUDP("udp4", &net.UDPAddr{IP: net.ParseIP(from)}, &net.UDPAddr{IP: net.ParseIP(to), Port: 9})
		if err != nil {
			return err
		}
		defer conn.Close()
		for range n {
			if _, err := conn.Write([]byte("x")); err != nil && !errors.Is(err, unix.ECONNREFUSED) {
				return err
			}
		}
		return nil
	})
}

// ip runs ip in a namespace; that without a path is the node's.
func (h *host) ip(space testnode.Space, lines ...string) {
	h.T.Helper()
	for _, line := range lines {
		args := append([]string{"ip"}, strings.Fields(line)...)
		if space.Path != "" {
			args = append([]string{"nsenter", "--net=" + space.Path}, args...)
		}
		h.Exec("", args[0], args[1:]...)
	}
}

// drops are the totals of dropped packets, and of those that an audit would drop; those
// of policies by direction and names.
func (d *daemon) drops() map[string]float64 {
	d.h.T.Helper()
	labels := regexp.MustCompile(`^podmark_policy_(dropped|audited)_packets_total\{direction="(\w+)",policies="([^"]*)",profile="([0-9a-f]{16})"\}$`)
	out := map[string]float64{}
	for name, value := range d.values() {
		switch m := labels.FindStringSubmatch(name); {
		case m != nil:
			key := m[2] + " " + m[3]
			if m[1] == "audited" {
				key = "audit " + key
			}
			out[key] = value
		case strings.HasPrefix(name, "podmark_policy_dropped"), strings.HasPrefix(name, "podmark_policy_audited"):
			d.h.T.Fatalf("labels of %s", name)
		case strings.HasSuffix(name, "_packets_total"):
			out[name] = value
		}
	}
	return out
}

// Dropped packets are counted by their reason, and go on to be when all rules are
// written again, by podmarkctl or after others have taken them out.
func TestPacketMetrics(t *testing.T) {
	eachBackend(t, func(t *testing.T, h *host) {
		for _, name := range []string{"ip_forward", "conf/all/rp_filter", "conf/default/rp_filter"} {
			if err := os.WriteFile("/proc/sys/net/ipv4/"+name, []byte(map[bool]string{true: "1", false: "0"}[name == "ip_forward"]), 0); err != nil {
				t.Fatal(err)
			}
		}
		outside, node := testnode.NewSpace(t), testnode.Space{}
		if err := testnode.Veth("out0", outside, "eth0"); err != nil {
			t.Fatal(err)
		}
		h.ip(node, "addr add 198.51.100.1/24 dev out0", "link set out0 up")
		h.ip(outside, "addr add 198.51.100.2/24 dev eth0", "link set eth0 up", "route add default via 198.51.100.1")
		h.Ctl(policy, "apply", "-f", "-")
		h.addPod()
		pod := h.Pods[0].Space
		h.ip(node, "link set veth1 up", "addr add 10.1.0.1/32 dev veth1", "route add 10.1.0.2 dev veth1", "route add 10.1.0.77 dev veth1", "route add 10.1.0.99 dev out0")
		h.ip(pod, "addr add 10.1.0.2/32 dev eth0", "addr add 10.1.0.99/32 dev eth0", "link set eth0 up", "route add 10.1.0.1 dev eth0", "route add default via 10.1.0.1")
		traffic := func() {
			t.Helper()
			h.send(pod, "10.1.0.2", "198.51.100.1", 1)
			h.send(pod, "10.1.0.99", "198.51.100.1", 2)
			h.send(outside, "198.51.100.2", "10.1.0.2", 3)
			h.send(outside, "198.51.100.2", "10.1.0.77", 4)
		}
		traffic() // before the daemon looks: not counted
		d := h.start()
		var was map[string]float64
		h.eventually("counting has begun", func() error {
			was = d.drops()
			for _, key := range []string{"egress default/web", "ingress default/web", "podmark_spoofed_packets_total", "podmark_unclassified_packets_total"} {
				if n, there := was[key]; n != 0 || !there {
					return fmt.Errorf("%s is %v (there: %v)", key, n, there)
				}
			}
			return nil
		})
		rounds := 0.
		is := func(what string) {
			t.Helper()
			rounds++
			want := map[string]float64{"egress default/web": 1 * rounds, "podmark_spoofed_packets_total": 2 * rounds, "ingress default/web": 3 * rounds, "podmark_unclassified_packets_total": 4 * rounds}
			h.eventually(what, func() error {
				got := d.drops()
				for key, n := range want {
					if got[key] < was[key] {
						t.Fatalf("%s: %s was %v and is %v", what, key, was[key], got[key])
					}
					if got[key] != n {
						return fmt.Errorf("%s is %v, want %v, in %v", key, got[key], n, got)
					}
				}
				was = got
				return nil
			})
		}
		traffic()
		is("drops are counted")
		h.Ctl(strings.ReplaceAll(policy, "port: 80", "port: 81"), "apply", "-f", "-")
		traffic()
		is("after another policy of the same name")
		if h.Backend == nftables {
			h.Exec("", "nft", "flush", "ruleset")
		} else {
			h.Iptables("-F")
		}
		h.eventually("all rules are back", func() error {
			if s, err := d.status(); err != nil || s.Repairs != 1 {
				return fmt.Errorf("%d repairs, %w", s.Repairs, err)
			}
			return nil
		})
		traffic()
		is("after a repair")
		// A second policy makes another profile of it.
		h.Ctl(policy+"---\n"+strings.ReplaceAll(policy, "name: web", "name: all"), "apply", "-f", "-")
		traffic()
		h.eventually("drops of the new profile", func() error {
			got := d.drops()
			if got["egress default/all,default/web"] != 1 || got["egress default/web"] != rounds {
				return fmt.Errorf("%v", got)
			}
			return nil
		})
		// The same, tried out: a flow that passes is judged once, with iptables until it is
		// answered.
		h.Ctl(strings.ReplaceAll(policy, "name: web", "annotations: {podmark.dev/audit: \"true\"}, name: web"), "apply", "-f", "-")
		traffic()
		h.eventually("what an audit would drop", func() error {
			got := d.drops()
			if in := got["audit ingress default/web"]; got["audit egress default/web"] != 1 || in < 1 || in > 3 || got["egress default/web"] != rounds {
				return fmt.Errorf("%v", got)
			}
			return nil
		})
	})
}

// However many policies select a pod, the label that names them stays short.
func TestPoliciesLabel(t *testing.T) {
	t.Parallel()
	h := newHost(t, nftables)
	var all strings.Builder
	for i := range 30 {
		all.WriteString("---\n" + strings.ReplaceAll(policy, "name: web", fmt.Sprintf("name: a-rather-long-name-%02d", i)))
	}
	h.Ctl(all.String(), "apply", "-f", "-")
	h.addPod()
	d := h.start()
	h.eventually("the label is there", func() error {
		for key := range d.drops() {
			if names, ok := strings.CutPrefix(key, "egress "); ok {
				if len(names) > 280 || !strings.HasPrefix(names, "default/a-rather-long-name-00,default/a-rather-long-name-01,") || !strings.HasSuffix(names, ",+22") {
					t.Fatalf("label %q of %d bytes", names, len(names))
				}
				return nil
			}
		}
		return errors.New("no drops of egress")
	})
}

// A kernel that cannot be kept current is said: not ready, with the reason, and in the metrics.
func TestNotReady(t *testing.T) {
	t.Parallel()
	h := newHost(t, backends[1])
	h.addPod()
	// A PATH of which a command can be taken away.
	dir := t.TempDir()
	for _, f := range []string{"iptables", "ip6tables"} {
		for _, s := range []string{"", "-save", "-restore"} {
			path, err := exec.LookPath(f + "-nft" + s)
			if err == nil {
				err = os.Symlink(path, filepath.Join(dir, f+"-nft"+s))
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	d := h.startIn([]string{"PATH=" + dir})
	d.become("all is well", map[string]float64{"podmark_last_dataplane_sync_error": 0, "podmark_last_reconcile_success": 1})
	if code, body := d.get("/readyz"); code != 200 || body != "1 of 1 pods policed\n" {
		t.Errorf("/readyz: %d %s", code, body)
	}
	hidden := filepath.Join(dir, "iptables-nft-save")
	if err := os.Rename(hidden, hidden+".not"); err != nil {
		t.Fatal(err)
	}
	h.eventually("it is not ready, and well", func() error {
		ready, why := d.get("/readyz")
		if well, _ := d.get("/healthz"); ready != 503 || well != 200 || !strings.Contains(why, "iptables-save") {
			return fmt.Errorf("/readyz %d %s, /healthz %d", ready, why, well)
		}
		return nil
	})
	d.become("the metrics say so", map[string]float64{"podmark_last_dataplane_sync_error": 1, "podmark_last_reconcile_success": 0})
	h.eventually("a scrape that cannot read the kernel says so, and has the rest", func() error {
		if v := d.values(); v[`podmark_source_errors_total{source="packets"}`] == 0 || v["podmark_ids_in_use"] != 1 {
			return fmt.Errorf("%v", v)
		}
		return nil
	})
	if err := os.Rename(hidden+".not", hidden); err != nil {
		t.Fatal(err)
	}
	d.become("it can again", map[string]float64{"podmark_last_dataplane_sync_error": 0, "podmark_last_reconcile_success": 1})
	if v := d.values(); v["podmark_last_dataplane_sync_duration_seconds"] <= 0 {
		t.Errorf("podmark_last_dataplane_sync_duration_seconds %v", v["podmark_last_dataplane_sync_duration_seconds"])
	}
}
