package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/node"
)

// daemonOptions are the flags of the daemon.
type daemonOptions struct {
	*options
	interval  time.Duration
	portRange []string
	portMode  string
	listen    string
	logFormat string
	logLevel  string
}

func newDaemon(common *options) *cobra.Command {
	o := daemonOptions{options: common}
	cmd := &cobra.Command{
		Use:   "podmarkd",
		Short: "Keep a node that podmark runs on current",
		Long: `podmarkd keeps a node that podmark runs on current. It listens to the kernel,
and what others have taken out of the data plane it puts back. Every flag can be
given by an environment variable too: PODMARKD_INTERVAL for --interval.

When it ends, the data plane stays as it is. Exit status: 0 ended by SIGTERM or
SIGINT, 2 wrong usage or failure.`,
		Example: `  podmarkd --node-port-mode range --node-port-ranges 30000-32767,40000-40100
  podmarkctl status`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := newLog(cmd.ErrOrStderr(), o.logFormat, o.logLevel)
			if err != nil {
				return err
			}
			ports, err := o.ports()
			if err != nil {
				return err
			}
			return o.keep(cmd.Context(), log, ports)
		},
	}
	flags := cmd.Flags()
	flags.DurationVar(&o.interval, "interval", 10*time.Second, "how long the node is left alone when the kernel notifies of nothing")
	flags.StringSliceVar(&o.portRange, "node-port-ranges", nil, "NodePort ranges, as 30000-32767 (default the plugin's kubeNodePortRanges)")
	flags.StringVar(&o.portMode, "node-port-mode", string(node.PortsExact), "exact: only the ports in use count as NodePorts; range: the whole ranges")
	flags.StringVar(&o.listen, "listen", "127.0.0.1:9469", "address for /metrics, /healthz and /readyz; empty for none")
	flags.StringVar(&o.logFormat, "log-format", "text", "text or json")
	flags.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
	return cmd
}

// fromEnvironment sets the flags that were not given from PODMARKD_*.
func fromEnvironment(flags *pflag.FlagSet) error {
	var errs []error
	flags.VisitAll(func(f *pflag.Flag) {
		name := "PODMARKD_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		if value, ok := os.LookupEnv(name); ok && !f.Changed {
			if err := flags.Set(f.Name, value); err != nil {
				errs = append(errs, fmt.Errorf("%s=%q: %w", name, value, err))
			}
		}
	})
	return errors.Join(errs...)
}

func (o daemonOptions) ports() (node.PortOptions, error) {
	p := node.PortOptions{Mode: node.PortMode(o.portMode), Source: "--node-port-ranges"}
	if p.Mode != node.PortsExact && p.Mode != node.PortsRange {
		return p, fmt.Errorf("--node-port-mode %q: want %s or %s", o.portMode, node.PortsExact, node.PortsRange)
	}
	for _, text := range o.portRange {
		r, err := config.ParsePortRange(text)
		if err != nil {
			return p, fmt.Errorf("--node-port-ranges: %w", err)
		}
		p.Ranges = append(p.Ranges, desired.PortRange{First: r.First, Last: r.Last})
	}
	return p, nil
}

// keep looks after the node until ctx is done.
func (o daemonOptions) keep(ctx context.Context, log *slog.Logger, ports node.PortOptions) error {
	n := o.node()
	release, err := n.Store.Claim()
	if err != nil {
		return err
	}
	defer release()
	m := newMetrics(n)
	status := node.Status{PID: os.Getpid(), Version: version(), Started: time.Now()}
	k := node.Keeper{Node: n, Ports: ports, Interval: o.interval, Log: log, Looked: func(l node.Look) {
		m.looked(l)
		logLook(log, status, l)
		status = status.After(l)
		if err := status.Write(n.Store); err != nil && !errors.Is(err, fs.ErrNotExist) {
			log.Error("writing the status", "error", err)
		}
	}}
	if o.listen != "" {
		l, err := net.Listen("tcp", o.listen)
		if err != nil {
			return fmt.Errorf("--listen: %w", err)
		}
		server := &http.Server{Handler: m.handler(o.interval), ReadHeaderTimeout: 5 * time.Second}
		defer server.Close()
		go func() { _ = server.Serve(l) }()
		log.Info("serving metrics", "address", l.Addr().String())
	}
	log.Info("started", "version", version(), "stateDir", o.stateDir)
	if err := k.Run(ctx); err != nil {
		return err
	}
	log.Info("ended, and left the data plane as it is")
	return nil
}

// logLook says what a look found that the one before did not.
func logLook(log *slog.Logger, before node.Status, l node.Look) {
	log.Debug("looked", "reason", l.Reason, "took", l.Took)
	switch {
	case l.Err != nil && l.Err.Error() != before.Error:
		log.Error("the node cannot be kept current", "error", l.Err)
	case l.Err == nil && before.Error != "":
		log.Info("the node can be kept current again")
	}
	if l.Kept.Missing != nil {
		log.Warn("repaired", "missing", l.Kept.Missing, "reason", l.Reason)
	}
	for _, set := range l.Kept.Replaced {
		log.Info("brought up to date", "set", set)
	}
	if l.Mode.IPVS != before.Mode.IPVS || before.Looked.IsZero() {
		log.Info("proxy mode", "mode", l.Mode.String(), "services", l.Mode.Services)
	}
	if fmt.Sprint(l.Ports) != fmt.Sprint(before.Ports) && !l.Idle {
		log.Info("NodePorts", "source", l.Ports.Source, "mode", l.Ports.Mode, "ranges", fmt.Sprint(l.Ports.Ranges))
		if len(l.Ports.Outside) > 0 {
			log.Warn("NodePorts in use that are in no configured range", "ports", l.Ports.Outside, "ranges", fmt.Sprint(l.Ports.Configured))
		}
	}
}
