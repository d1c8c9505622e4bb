package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/podmark/podmark/pkg/agent"
	"github.com/podmark/podmark/pkg/agent/nodeports"
	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/node"
	"github.com/podmark/podmark/pkg/runtimes"
	"github.com/podmark/podmark/pkg/version"
)

// daemonOptions are the flags of the daemon.
type daemonOptions struct {
	*options
	interval  time.Duration
	collect   time.Duration
	cache     string
	proxy     string
	portRange []string
	portMode  string
	// Where NodePorts are looked for, besides.
	configFile, kubeconfig string
	staticPods             []string
	nodeName               string
	// policyDir and socket are where policies come from, and where the plugin asks.
	policyDir, socket string
	listen            string
	logFormat         string
	logLevel          string
	setSysctls        bool
	// keepInstalled runs the guard, with install's flags.
	keepInstalled bool
	install       *installOptions
}

// leastInterval leaves the node's lock to others.
const leastInterval = 100 * time.Millisecond

func newDaemon(common *options) *cobra.Command {
	o := &daemonOptions{options: common, install: &installOptions{options: common}}
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
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), cmd.ErrOrStderr()) },
	}
	o.addFlags(cmd)
	return cmd
}

// addFlags adds the daemon's flags.
func (o *daemonOptions) addFlags(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.DurationVar(&o.interval, "interval", 10*time.Second, "maximum time between reconciliations")
	flags.DurationVar(&o.collect, "collect-after", 5*time.Minute, "garbage-collect a pod this long after its interface and network namespace disappeared; 0 disables")
	flags.StringVar(&o.cache, "cni-cache-dir", libcni.CacheDir, "directory in which the runtime caches the results of plugins; podmarkd adopts the pods it finds there; empty disables adoption")
	flags.StringSliceVar(&o.portRange, "node-port-ranges", nil, "NodePort ranges, as 30000-32767 (default the plugin's kubeNodePortRanges)")
	flags.StringVar(&o.portMode, "node-port-mode", "", "exact, the default: only the ports in use count as NodePorts; range: the whole ranges")
	flags.StringVar(&o.configFile, "config", "", "YAML file with nodePortRanges and nodePortMode, read again whenever it changes")
	flags.StringVar(&o.kubeconfig, "kubeconfig", "", "how to ask the API server for node ports and for their range (default as a pod does, where it is one)")
	flags.StringSliceVar(&o.staticPods, "static-pod-dirs", []string{"/etc/kubernetes/manifests"}, "where the manifest of a kube-apiserver may be, whose flags say the range")
	flags.StringVar(&o.nodeName, "node-name", "", "the Node that this is, where the API server is asked (default the host's name)")
	flags.StringVar(&o.policyDir, "policy-dir", "", "directory with NetworkPolicy manifests that are the node's policy, as with 'podmarkctl apply', and again whenever they change; for networks with \"policy\": \"files\"")
	flags.StringVar(&o.socket, "socket", "", "where the plugin asks who a pod is, its daemonSocket (default podmarkd.sock in the state directory)")
	flags.BoolVar(&o.setSysctls, "set-sysctls", false, "set net.ipv4.vs.conntrack and net.bridge.bridge-nf-call-iptables and -ip6tables to 1 where they are needed and are not, and net.ipv4.conf.all.accept_source_route to 0; without it podmarkd only warns")
	flags.StringVar(&o.proxy, "kube-proxy-metrics", "127.0.0.1:10249", "where kube-proxy on this node serves its metrics, and says its mode, which is shown; empty for nowhere")
	flags.StringVar(&o.listen, "listen", "127.0.0.1:9469", "address for /metrics, /healthz and /readyz; empty for none")
	flags.BoolVar(&o.keepInstalled, "keep-installed", false, "do what 'podmarkd install' does, and again whenever others undo it; --cni-conf-dir, --cni-bin-dir, --cni-conf-name, --source, --entry, --policy and --drop-in are for it")
	o.install.addFlags(flags)
	flags.Lookup("cni-conf-dir").Usage += "; empty is none: whether podmark is installed is not looked at then, as where it is to be gone; not with --keep-installed"
	flags.StringVar(&o.logFormat, "log-format", "text", "text or json")
	flags.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
	choices(cmd, "node-port-mode", string(agent.PortsExact), string(agent.PortsRange))
	choices(cmd, "log-format", "text", "json")
	choices(cmd, "log-level", "debug", "info", "warn", "error")
	directories(cmd, "policy-dir", "cni-cache-dir", "static-pod-dirs")
	completeInstall(cmd)
}

// run checks what the flags say together, and keeps the node current until ctx is done. It logs to w.
func (o *daemonOptions) run(ctx context.Context, w io.Writer) error {
	log, err := newLog(w, o.logFormat, o.logLevel)
	if err != nil {
		return err
	}
	klog.SetSlogLogger(log) // client-go's
	ports, err := o.sources(log)
	if err != nil {
		return err
	}
	if o.interval < leastInterval {
		return fmt.Errorf("--interval %s: want %s or more", o.interval, leastInterval)
	}
	// Without directories there is nothing to be kept installed in, nor to be seen.
	if o.keepInstalled || o.install.confDir != "" {
		if _, err := runtimes.GivenBy(o.install.confDir, o.install.binDir); err != nil {
			return err
		}
	}
	o.install.hasAPI = ports.API != nil
	if _, err := o.install.entry(); err != nil {
		return err
	}
	return o.keep(ctx, log, ports)
}

// prefix begins the variables that stand for flags.
const prefix = "PODMARKD_"

// variable is the one that stands for a flag.
func variable(flag string) string {
	return prefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// link is what the kubelet sets in a container for each Service of its namespace
// (k8s.io/kubernetes pkg/kubelet/envvars): one may be called podmarkd.
var link = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`_SERVICE_HOST=|_SERVICE_PORT(_\w+)?=|_PORT(_[0-9]+_(TCP|UDP|SCTP))?=(tcp|udp|sctp)://|_PORT_[0-9]+_(TCP|UDP|SCTP)_(PROTO|PORT|ADDR)=`)
})

// unknownVariables refuses a PODMARKD_* that is no flag of any command: several commands may
// have one file of them.
func unknownVariables(root *cobra.Command, environment []string) error {
	known := map[string]bool{}
	for _, cmd := range append(root.Commands(), root) {
		for _, flags := range []*pflag.FlagSet{cmd.LocalFlags(), cmd.PersistentFlags()} {
			flags.VisitAll(func(f *pflag.Flag) { known[variable(f.Name)] = true })
		}
	}
	var errs []error
	for _, e := range environment {
		if name, _, _ := strings.Cut(e, "="); strings.HasPrefix(name, prefix) && !known[name] && !link().MatchString(e) {
			errs = append(errs, fmt.Errorf("the environment has %s, and there is no such flag: see podmarkd --help", name))
		}
	}
	return errors.Join(errs...)
}

// negative refuses durations below 0.
func negative(flags *pflag.FlagSet) error {
	var errs []error
	flags.VisitAll(func(f *pflag.Flag) {
		if d, err := flags.GetDuration(f.Name); err == nil && d < 0 {
			errs = append(errs, fmt.Errorf("--%s %s: want 0 or more", f.Name, d))
		}
	})
	return errors.Join(errs...)
}

// fromEnvironment sets the flags that were not given from PODMARKD_*.
func fromEnvironment(flags *pflag.FlagSet) error {
	var errs []error
	flags.VisitAll(func(f *pflag.Flag) {
		name := variable(f.Name)
		if value, ok := os.LookupEnv(name); ok && !f.Changed {
			if err := flags.Set(f.Name, value); err != nil {
				errs = append(errs, fmt.Errorf("%s=%q: %w", name, value, err))
			}
		}
	})
	return errors.Join(errs...)
}

// sources are where NodePorts are looked for.
func (o *daemonOptions) sources(log *slog.Logger) (*nodeports.Watcher, error) {
	w := &nodeports.Watcher{
		Mode: agent.PortMode(o.portMode), ConfigFile: o.configFile, ManifestDirs: o.staticPods,
		Log: log,
	}
	if w.Mode != "" && w.Mode != agent.PortsExact && w.Mode != agent.PortsRange {
		return nil, fmt.Errorf("--node-port-mode %q: want %s or %s", o.portMode, agent.PortsExact, agent.PortsRange)
	}
	for _, text := range o.portRange {
		r, err := config.ParsePortRange(text)
		if err != nil {
			return nil, fmt.Errorf("--node-port-ranges: %w", err)
		}
		w.Given = append(w.Given, r)
	}
	// Later it may come and go; at the start it is a mistake.
	var err error
	if o.configFile != "" {
		if _, err = nodeports.ReadConfig(o.configFile); err != nil {
			return nil, fmt.Errorf("--config: %w", err)
		}
	}
	if o.kubeconfig != "" {
		if w.API, err = clientcmd.BuildConfigFromFlags("", o.kubeconfig); err != nil {
			return nil, fmt.Errorf("--kubeconfig: %w", err)
		}
	} else if w.API, err = rest.InClusterConfig(); err != nil && !errors.Is(err, rest.ErrNotInCluster) {
		return nil, fmt.Errorf("asking the API server as a pod: %w", err)
	}
	if w.API == nil {
		return w, nil
	}
	w.NodeName, err = o.nodeNamed()
	return w, err
}

// nodeNamed is the name of the Node, by default as the kubelet has it.
func (o *daemonOptions) nodeNamed() (string, error) {
	if o.nodeName != "" {
		return o.nodeName, nil
	}
	name, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("reading the host's name: %w: give --node-name", err)
	}
	return strings.ToLower(name), nil
}

// keep looks after the node until ctx is done.
func (o *daemonOptions) keep(ctx context.Context, log *slog.Logger, ports *nodeports.Watcher) error {
	n := o.node()
	n.Warn = func(text string) { log.Warn(text) }
	release, err := n.Store.ClaimAsDaemon()
	if err != nil {
		return err
	}
	defer release()
	m := newMetrics(n, log)
	if o.socket == "" {
		o.socket = filepath.Join(o.stateDir, config.SocketName)
	}
	policies, err := o.newPolicies(n, ports.API, log, m)
	if err != nil {
		return err
	}
	tell, stop, err := o.tellAPI(ports.API, policies, log)
	if err != nil {
		return err
	}
	defer stop()
	server, err := o.serveMetrics(m, log)
	if err != nil {
		return err
	}
	defer server.Close()
	log.Info("Started podmarkd", "version", version.Read().Version, "stateDir", o.stateDir)
	r := &reporter{
		log: log, metrics: m, tell: tell, store: n.Store, policies: policies.status,
		status: agent.Status{
			PID: os.Getpid(), Version: version.Read().Version, Started: time.Now(),
			Interval: o.interval.Seconds(),
		},
	}
	if err := o.runAll(ctx, policies.members(n), ports, policies, r); err != nil {
		return err
	}
	log.Info("Stopped; the data plane stays in place")
	return nil
}

// tellAPI has what is found written to the API as events, where there is one: tell is told of each
// reconciliation, until stop.
func (o *daemonOptions) tellAPI(
	api *rest.Config,
	policies *policies,
	log *slog.Logger,
) (tell func(agent.Reconciliation), stop func(), err error) {
	if api == nil {
		return func(agent.Reconciliation) {}, func() {}, nil
	}
	name, err := o.nodeNamed()
	if err != nil {
		return nil, nil, err
	}
	ofNode, err := newEvents(api, name)
	if err != nil {
		return nil, nil, err
	}
	ofPolicies := newPolicyEvents(ofNode.client, name, log)
	tell = func(l agent.Reconciliation) {
		ofNode.reconciled(l)
		ofPolicies.tell(policies.troubles(), time.Now())
	}
	stop = func() {
		ofPolicies.stop()
		ofNode.stop()
	}
	return tell, stop, nil
}

// serveMetrics serves metrics and health until the server is closed, where an address is given.
func (o *daemonOptions) serveMetrics(m *metrics, log *slog.Logger) (*http.Server, error) {
	server := &http.Server{Handler: m.handler(o.interval), ReadHeaderTimeout: 5 * time.Second}
	if o.listen == "" {
		return server, nil
	}
	l, err := net.Listen("tcp", o.listen)
	if err != nil {
		return nil, fmt.Errorf("--listen: %w", err)
	}
	go func() { _ = server.Serve(l) }()
	log.Info("Serving metrics", "address", l.Addr().String())
	return server, nil
}

// runAll runs all that follows the node and the cluster until ctx is done, or one of them fails.
func (o *daemonOptions) runAll(
	ctx context.Context,
	n node.Node,
	ports *nodeports.Watcher,
	policies *policies,
	r *reporter,
) error {
	running, ctx := errgroup.WithContext(ctx)
	changed := make(chan struct{}, 1)
	running.Go(func() error {
		return ports.Run(ctx, func() {
			select {
			case changed <- struct{}{}:
			default: // a reconciliation is due anyway
			}
		})
	})
	running.Go(func() error { return policies.run(ctx) })
	if o.keepInstalled {
		running.Go(func() error {
			if err := guard(ctx, o.install, r.log); err != nil { // the rest goes on without it
				r.log.Error("Failed to keep podmark installed", "error", err)
			}
			return nil
		})
	}
	k := agent.Agent{
		Node: n, Interval: o.interval, CollectAfter: o.collect, Log: r.log, Changed: changed,
		ConfDir: func() string { return o.install.configurations(ctx) }, Cache: o.cache, Proxy: o.proxy,
		SetSysctls: o.setSysctls,
		Ports:      func() agent.PortOptions { return ports.Current().Options() },
		FelixMask:  func() *uint32 { return ports.Current().FelixMask },
		Present:    func() error { return o.install.present(ctx) },
		Reconciled: r.reconciled, ModeIs: r.modeIs, Policies: policies.seen,
	}
	running.Go(func() error { return k.Run(ctx) })
	return running.Wait()
}
