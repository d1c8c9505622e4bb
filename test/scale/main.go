// Command scale measures podmarkd in a large cluster: how long it takes to be in sync,
// what it needs, and what it is sent by the API server, beside what a node is sent that
// watches everything.
//
//	scale api   serves a cluster that package cluster makes up, and its events
//	scale run   starts that, makes a node with its local pods, and measures podmarkd there
//
// The API server is a process of its own, so that neither its memory nor its collector
// is podmarkd's. scripts/scale.sh runs it in namespaces of their own: it makes the network
// namespace that it is started in the node.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/test/scale/cluster"
)

func main() {
	// Only this thread moves between namespaces, and children live as long as it.
	runtime.LockOSThread()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "scale:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	commands := map[string]func(context.Context, *flag.FlagSet, []string) error{"api": serve, "run": measure}
	if len(args) == 0 || commands[args[0]] == nil {
		return fmt.Errorf("usage: scale api|run [flags]; -h lists them")
	}
	return commands[args[0]](ctx, flag.NewFlagSet(args[0], flag.ExitOnError), args[1:])
}

// clusterFlags are the size of a cluster.
func clusterFlags(flags *flag.FlagSet) *cluster.Options {
	o := &cluster.Options{}
	flags.Uint64Var(&o.Seed, "seed", 1, "of the cluster and its events")
	flags.IntVar(&o.Nodes, "nodes", 200, "how many nodes there are")
	flags.IntVar(&o.Pods, "pods", 50_000, "how many pods there are, one on the network of each node among them")
	flags.IntVar(&o.Namespaces, "namespaces", 2_000, "how many namespaces there are")
	flags.IntVar(&o.Policies, "policies", 5_000, "how many policies there are")
	flags.IntVar(&o.Local, "local", 250, "pods of the first node with a network of their own, which is podmarkd's; 0 for as many as elsewhere")
	flags.BoolVar(&o.Together, "together", false, "whether the local pods are of one namespace")
	flags.StringVar((*string)(&o.Mix), "mix", string(cluster.SameNamespace), fmt.Sprintf("what policies mention: %s, %s, %s", cluster.SameNamespace, cluster.FewClusterWide, cluster.AllClusterWide))
	return o
}

// clusterArgs hand a size on.
func clusterArgs(o cluster.Options) []string {
	var out []string
	for name, v := range map[string]any{
		"seed": o.Seed, "nodes": o.Nodes, "pods": o.Pods, "namespaces": o.Namespaces, "policies": o.Policies, "local": o.Local, "mix": o.Mix, "together": o.Together,
	} {
		out = append(out, fmt.Sprintf("-%s=%v", name, v))
	}
	return out
}

var started = time.Now()

// progress tells whoever waits what is being done; the report is on stdout.
func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "scale: %4.0f s: %s\n", time.Since(started).Seconds(), fmt.Sprintf(format, args...))
}
