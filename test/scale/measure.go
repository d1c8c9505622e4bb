package main

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/test/fakeapi"
	"github.com/podmark/podmark/test/scale/cluster"
)

// measure is one cluster, from podmarkd's start to some time of events.
func measure(ctx context.Context, flags *flag.FlagSet, args []string) error {
	o := clusterFlags(flags)
	bin := flags.String("bin", "bin", "where podmarkd is")
	dir := flags.String("dir", "", "an empty directory on a tmpfs, for state")
	backend := flags.String("backend", string(config.BackendNFTables), "nftables or iptables")
	rate := flags.Int("rate", 500, "events a second")
	period := flags.Duration("for", 30*time.Second, "how long to measure without events, and with them")
	everything := flags.Bool("everything", true, "have a client besides that watches everything")
	if err := flags.Parse(args); err != nil {
		return err
	}
	c, err := cluster.New(*o)
	if err != nil {
		return err
	}
	n, err := newNode(*dir, config.Backend(*backend))
	if err != nil {
		return err
	}
	defer n.pods.Close()
	if err := n.attachAll(ctx, c); err != nil {
		return err
	}
	progress("%d pods are attached", len(n.attached))
	a, err := startAPI(*o, *dir)
	if err != nil {
		return err
	}
	defer a.stop()
	served, err := a.usage()
	if err != nil {
		return err
	}
	progress("the API server has %d pods in %d MiB", o.Pods, served.resident>>20)

	policies, err := n.selecting(c)
	if err != nil {
		return err
	}
	begin := time.Now()
	d, err := n.startDaemon(*bin, a.kubeconfig)
	if err != nil {
		return err
	}
	defer d.stop()
	err = d.until("podmarkd is in sync", 5*time.Minute, func() error { return d.inSync(policies) })
	if err != nil {
		return err
	}
	took := time.Since(begin)
	used, err := d.usage()
	if err != nil {
		return err
	}
	fmt.Printf("\n## %d pods, %d namespaces, %d policies (%s), %d nodes, %d local pods, %s\n\nIn sync after %.1f s, of which %.1f s of a processor, with %d policies. Resident at most: %d MiB.\n",
		o.Pods, o.Namespaces, o.Policies, o.Mix, o.Nodes, len(n.attached), *backend, took.Seconds(), used.processor.Seconds(), policies, used.top>>20)
	if *everything {
		progress("a client watches everything")
		if err := a.watchEverything(ctx, "everything"); err != nil {
			return err
		}
		if err := a.until("it has everything", 5*time.Minute, func() error {
			s, err := a.state()
			if n := sum(s.Traffic["everything"]).Objects; err == nil && n < int64(o.Pods+o.Namespaces+o.Policies) {
				err = fmt.Errorf("it has %d objects", n)
			}
			return err
		}); err != nil {
			return err
		}
	}
	fmt.Printf("\n| events a second | happened | CPU, %% | resident, MiB | at most, MiB | changes waiting, at most |\n|---|---|---|---|---|---|\n")
	for _, events := range []int{0, *rate} {
		progress("%v with %d events a second", *period, events)
		if err := a.over(ctx, d, *period, events); err != nil {
			return err
		}
	}
	s, err := a.state()
	if err != nil {
		return err
	}
	report(s.Traffic)
	if *backend == string(config.BackendNFTables) {
		progress("changes, one after the other")
		if err := n.latency(ctx, a.kubeconfig); err != nil {
			return err
		}
	}
	known, err := d.metrics("podmark_policies", "podmark_policy_watches", "podmark_policy_pods", "podmark_policy_rewrites_total", "podmark_policy_failures_total")
	if err != nil {
		return err
	}
	fmt.Printf("\npodmarkd enforces %.0f policies, and knows %.0f pods by %.0f watches. It wrote everything again %.0f times, and failed %.0f times.\n",
		known[0], known[2], known[1], known[3], known[4])
	return nil
}

// over prints what podmarkd needs while events happen.
func (a *apiProcess) over(ctx context.Context, d daemon, period time.Duration, events int) error {
	before, err := d.usage()
	if err != nil {
		return err
	}
	first, err := a.state()
	if err != nil {
		return err
	}
	if err := a.setRate(events); err != nil {
		return err
	}
	begin := time.Now()
	var waiting int64
	for second := time.NewTicker(time.Second); time.Since(begin) < period; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-second.C:
		}
		s, err := a.state()
		if err != nil {
			return err
		}
		waiting = max(waiting, sum(s.Traffic["podmarkd"]).Waiting)
	}
	elapsed := time.Since(begin)
	after, err := d.usage()
	if err != nil {
		return err
	}
	last, err := a.state()
	if err != nil {
		return err
	}
	fmt.Printf("| %d | %.0f | %.1f | %d | %d | %d |\n", events, float64(last.Events-first.Events)/elapsed.Seconds(),
		100*(after.processor-before.processor).Seconds()/elapsed.Seconds(), after.resident>>20, after.top>>20, waiting)
	return a.setRate(0)
}

func sum(of map[string]fakeapi.Traffic) (t fakeapi.Traffic) {
	for _, one := range of {
		t = t.Add(one)
	}
	return t
}

// report prints what clients were sent.
func report(traffic map[string]map[string]fakeapi.Traffic) {
	fmt.Printf("\n| client | resource | gets | lists | watches | open | objects | KiB |\n|---|---|---|---|---|---|---|---|\n")
	for _, client := range slices.Sorted(maps.Keys(traffic)) {
		of := traffic[client]
		of["all"] = sum(of)
		for _, resource := range slices.Sorted(maps.Keys(of)) {
			t := of[resource]
			fmt.Printf("| %s | %s | %d | %d | %d | %d | %d | %d |\n", client, resource, t.Gets, t.Lists, t.Watches, t.Open, t.Objects, t.Bytes>>10)
		}
	}
}
