package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/podmark/podmark/pkg/agent"
	"github.com/podmark/podmark/pkg/state"
)

const (
	// idle is how long the daemon is watched doing nothing.
	idle = 30 * time.Second
	// events are made within eventsWithin.
	events       = 10_000
	eventsWithin = time.Minute
	// memoryLimit is what the daemon should need at most, in MiB.
	memoryLimit = 40
	// repairLimit is within what time a node should be repaired.
	repairLimit = 2 * time.Second
)

// benchDaemon measures podmarkd on a node with many endpoints.
func benchDaemon(o options) error {
	sizes := o.sizesOr(4000)
	size := sizes[len(sizes)-1]
	fmt.Printf(`
## podmarkd

%s endpoints. Memory is what is resident, once podmarkd has looked at the node and then at most. CPU is of one
processor, over %v without an event, and over %v with %s links and addresses that come and go. Repair is from
when everything of podmark's was flushed to when a CHECK passes again, at an interval of 10 s between looks:
iptables-legacy notifies of nothing, so half of that is waiting. Medians of the repairs.
`, count(size), idle, eventsWithin, count(events))
	all, err := plugins(o)
	if err != nil {
		return err
	}
	t := table{"backend", "memory, MiB", "at most, MiB", "CPU idle, %", "CPU with events, %", "at most then, MiB", "repair, s", "the longest, s"}
	t.head()
	var g goals
	for _, p := range all {
		if !p.isPodmark() {
			continue
		}
		if err := p.reach(size); err != nil {
			return err
		}
		progress("%s has %d endpoints", p.name, size)
		if err := p.benchKeeping(o, t, &g); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	g.print()
	return nil
}

// benchKeeping measures podmarkd on the plugin's node.
func (p *plugin) benchKeeping(o options, t table, g *goals) error {
	last, err := p.attach()
	if err != nil {
		return err
	}
	if _, err := p.call("ADD", last); err != nil {
		return err
	}
	d, err := p.startDaemon(o)
	if err != nil {
		return err
	}
	defer d.stop()
	calm, err := d.over(idle, func() error { time.Sleep(idle); return nil })
	if err != nil {
		return err
	}
	settled, peak, err := d.memory()
	if err != nil {
		return err
	}
	progress("%s: events", p.name)
	busy, err := d.over(eventsWithin, func() error { return p.node.do(makeEvents) })
	if err != nil {
		return err
	}
	_, peakBusy, err := d.memory()
	if err != nil {
		return err
	}
	var repairs []time.Duration
	for range o.roundsOr(5) {
		took, err := p.repair(last)
		if err != nil {
			return err
		}
		repairs = append(repairs, took)
	}
	longest := quantile(repairs, 1)
	percent := func(f float64) string { return fmt.Sprintf("%.1f", 100*f) }
	seconds := func(d time.Duration) string { return fmt.Sprintf("%.1f", d.Seconds()) }
	t.row(p.name, mebibytes(settled), mebibytes(peak), percent(calm), percent(busy), mebibytes(peakBusy), seconds(median(repairs)), seconds(longest))
	g.add(fmt.Sprintf("%s: at most %d MiB are resident", p.name, memoryLimit), peakBusy <= memoryLimit<<20, "%s MiB", mebibytes(peakBusy))
	if p.name == "podmark nftables" {
		g.add(fmt.Sprintf("%s: repaired within %v", p.name, repairLimit), longest <= repairLimit, "%s s", seconds(longest))
	}
	return nil
}

func mebibytes(n int) string { return fmt.Sprintf("%.0f", float64(n)/(1<<20)) }

// daemon is a running podmarkd.
type daemon struct{ cmd *exec.Cmd }

// startDaemon starts podmarkd and waits until it has looked at the node.
func (p *plugin) startDaemon(o options) (daemon, error) {
	d := daemon{exec.Command(filepath.Join(o.bin, "podmarkd"), "--state-dir", p.state, "--listen", "", "--cni-conf-dir", "", "--cni-cache-dir", "")}
	d.cmd.Env = append(os.Environ(), "PATH="+p.path)
	if err := p.node.do(d.cmd.Start); err != nil {
		return d, err
	}
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if s, err := agent.ReadStatus(state.At(p.state)); err == nil && s.PID == d.cmd.Process.Pid {
			return d, nil
		}
	}
	d.stop()
	return d, errors.New("podmarkd has not looked at the node within a minute")
}

func (d daemon) stop() {
	_ = d.cmd.Process.Kill()
	_ = d.cmd.Wait()
}

// over is the share of a processor that the daemon uses while f runs.
func (d daemon) over(within time.Duration, f func() error) (float64, error) {
	before, err := d.processorTime()
	if err != nil {
		return 0, err
	}
	begin := time.Now()
	if err := f(); err != nil {
		return 0, err
	}
	elapsed := max(time.Since(begin), within)
	time.Sleep(within - time.Since(begin))
	after, err := d.processorTime()
	return (after - before).Seconds() / elapsed.Seconds(), err
}

// processorTime is what the daemon has used, from /proc/PID/stat (proc(5)).
func (d daemon) processorTime() (time.Duration, error) {
	const utime, stime, ticks = 11, 12, 100 // of the fields behind the name; sysconf(_SC_CLK_TCK)
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", d.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	fields := strings.Fields(rest)
	sum := 0
	for _, i := range []int{utime, stime} {
		n, err := strconv.Atoi(fields[i])
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return time.Duration(sum) * time.Second / ticks, nil
}

// memory is what is resident now, and was at most, in bytes.
func (d daemon) memory() (now, peak int, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.cmd.Process.Pid))
	if err != nil {
		return 0, 0, err
	}
	for l := range strings.Lines(string(b)) {
		f := strings.Fields(l)
		if len(f) != 3 || f[2] != "kB" {
			continue
		}
		n, _ := strconv.Atoi(f[1])
		switch f[0] {
		case "VmRSS:":
			now = n << 10
		case "VmHWM:":
			peak = n << 10
		}
	}
	if now == 0 || peak == 0 {
		return 0, 0, errors.New("the kernel does not say how much memory podmarkd has")
	}
	return now, peak, nil
}

// makeEvents makes links and addresses come and go, evenly.
func makeEvents() error {
	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "event"}, PeerName: "event-peer"}
	address, err := netlink.ParseAddr("192.0.2.1/32")
	if err != nil {
		return err
	}
	if err := netlink.LinkAdd(link); err != nil {
		return err
	}
	steps := []func() error{
		func() error { return netlink.LinkSetUp(link) },
		func() error { return netlink.AddrAdd(link, address) },
		func() error { return netlink.AddrDel(link, address) },
		func() error { return netlink.LinkSetDown(link) },
	}
	begin := time.Now()
	for i := range events {
		time.Sleep(time.Until(begin.Add(time.Duration(i) * eventsWithin / events)))
		if err := steps[i%len(steps)](); err != nil {
			return err
		}
	}
	return netlink.LinkDel(link)
}

// repair flushes what podmark has and waits until a CHECK of a passes.
func (p *plugin) repair(a attached) (time.Duration, error) {
	commands := [][]string{{"nft", "flush", "ruleset"}}
	if strings.HasPrefix(p.name, "podmark iptables") {
		commands = [][]string{{"iptables", "-t", "mangle", "-F"}, {"ip6tables", "-t", "mangle", "-F"}}
	}
	for _, c := range commands {
		variant := strings.TrimPrefix(p.name, "podmark iptables-")
		if variant != p.name {
			c[0] += "-" + variant
		}
		if _, err := p.node.command("", c[0], c[1:]...); err != nil {
			return 0, err
		}
	}
	begin := time.Now()
	for time.Since(begin) < time.Minute {
		if _, err := p.call("CHECK", a); err == nil {
			return time.Since(begin), nil
		}
	}
	return 0, errors.New("not repaired within a minute")
}
