// Command podmark is a chained CNI plugin. It gives each new pod endpoint an ID
// inside iptablesMarkMask at ADD, writes its mark and its policy, and releases
// both at DEL. It belongs into a conflist after the plugin that makes the
// endpoint's interface; see docs/configuration.md.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/endpoint"
	"github.com/podmark/podmark/pkg/fault"
	"github.com/podmark/podmark/pkg/node"
	"github.com/podmark/podmark/pkg/podapi"
	"github.com/podmark/podmark/pkg/state"
	"github.com/podmark/podmark/pkg/version"
)

// Deadlines: a runtime ends a plugin that outlives its own with SIGKILL, so ours
// are shorter (containerd: 4 minutes for an ADD, 1 for the DEL after a failed one).
const (
	addDeadline    = 60 * time.Second
	askDeadline    = 30 * time.Second // of that, for podmarkd's answer
	delDeadline    = 30 * time.Second
	statusDeadline = time.Second // containerd holds a lock that ADDs wait for
)

func main() {
	skel.PluginMainFuncs(skel.CNIFuncs{
		Add:    verb("ADD", addDeadline, cmdAdd),
		Del:    verb("DEL", delDeadline, cmdDel),
		Check:  verb("CHECK", delDeadline, cmdCheck),
		GC:     verb("GC", delDeadline, cmdGC),
		Status: verb("STATUS", statusDeadline, cmdStatus),
	}, config.Versions, about())
}

// about is what the plugin prints where no runtime calls it.
func about() string { return "CNI podmark plugin " + version.Read().Version }

// call is one invocation: what the runtime gave, parsed.
type call struct {
	*skel.CmdArgs
	config config.Config
	node   node.Node
	log    *slog.Logger
}

// key identifies the attachment the runtime speaks of.
func (c call) key() attachment.Key {
	return attachment.Key{Network: c.config.Network, ContainerID: c.ContainerID, IfName: c.IfName}
}

// verb wraps a command with what all have in common: the configuration, the
// deadline, the log, and errors with CNI codes.
func verb(name string, deadline time.Duration, run func(context.Context, *call) error) func(*skel.CmdArgs) error {
	return func(args *skel.CmdArgs) (err error) {
		start := time.Now()
		c := call{CmdArgs: args}
		defer func() {
			if p := recover(); p != nil {
				err = types.NewError(types.ErrInternal, fmt.Sprintf("podmark panicked: %v", p), string(debug.Stack()))
			}
			c.note(name, err, time.Since(start))
		}()
		if c.config, err = config.Parse(args.StdinData); err != nil {
			return coded(err)
		}
		log, closeLog := openLog(c.config.LogFile)
		defer closeLog()
		c.log = log.With("verb", name, "network", c.config.Network, "container", args.ContainerID, "ifname", args.IfName)
		c.node = node.Node{
			Store: state.At(c.config.StateDir), LockTimeout: c.config.LockTimeout, Programs: true,
			Step: fault.Steps(), Warn: c.warn,
		}
		ctx, cancel := context.WithTimeout(context.Background(), deadline)
		defer cancel()
		if err := run(ctx, &c); err != nil {
			c.log.Error("Call failed", "error", err, "duration", time.Since(start))
			return coded(err)
		}
		c.log.Info("Call succeeded", "duration", time.Since(start))
		return nil
	}
}

// warn says what an operator should know although the call goes on.
func (c call) warn(text string) {
	c.log.Warn(text)
	fmt.Fprintf(os.Stderr, "podmark: %s\n", text)
}

// note leaves word of the call for podmarkd's metrics. Of a configuration that cannot
// be read nobody knows the state directory, and STATUS changes nothing.
func (c call) note(verb string, err error, took time.Duration) {
	if c.config.StateDir == "" || verb == "STATUS" {
		return
	}
	var code uint
	if coded := (*types.Error)(nil); errors.As(err, &coded) {
		code = coded.Code
	}
	err = state.At(c.config.StateDir).RecordCall(state.Call{Verb: verb, Code: code, Took: took})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		fmt.Fprintf(os.Stderr, "podmark: the call is not counted: %v\n", err)
	}
}

// openLog appends to file, one write a line, so that concurrent plugins do not
// mix. Without a file nothing is logged: the runtime keeps stderr for trouble.
func openLog(file string) (log *slog.Logger, closeLog func()) {
	if file == "" {
		return slog.New(slog.DiscardHandler), func() {}
	}
	f, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		fmt.Fprintf(os.Stderr, "podmark: no log: %v\n", err)
		return slog.New(slog.DiscardHandler), func() {}
	}
	return slog.New(slog.NewJSONHandler(f, nil)), func() { f.Close() }
}

func cmdAdd(ctx context.Context, c *call) error {
	result, e, counters, err := endpointOf(c)
	if err != nil {
		return err
	}
	defer counters.Close()
	if unknown := config.Unknown(c.StdinData); unknown != nil {
		c.warn(fmt.Sprintf("the entry has unknown keys %q, which mean nothing: known are %s", unknown, strings.Join(config.Keys(), ", ")))
	}
	r := attachment.Record{
		Key: c.key(), Endpoint: e, Netns: c.Netns, UID: podOf(c.Args).UID,
		Policed: c.config.Policy != config.PolicyNone, SourceBound: c.config.Sources,
	}
	settings := node.SettingsOf(c.config)
	if c.config.Policy != config.PolicyKubernetes {
		r, err = c.node.Add(ctx, settings, r, nil, counters.HasSent)
	} else if err = c.node.Close(ctx, settings, r, counters.HasSent); err == nil {
		// podmarkd may take its time, and nobody knows yet what the pod may do.
		r, err = addAnswered(ctx, c, r, counters.HasSent)
	}
	if err != nil {
		return err
	}
	c.log = c.log.With("id", r.ID)
	if now, err := c.node.Configured(); err == nil && uint32(r.ID) <= now.Layout.Max() {
		c.log = c.log.With("mark", now.Layout.ID(r.ID).String())
	}
	return handOn(c, result)
}

// addAnswered adds r as podmarkd says who it is, and asks again where that is no more so
// by the time that the node's lock is there. The port is closed all the while.
func addAnswered(
	ctx context.Context,
	c *call,
	r attachment.Record,
	sent func() (bool, error),
) (attachment.Record, error) {
	asking, cancel := context.WithTimeout(ctx, askDeadline)
	defer cancel()
	for {
		told, promised, err := ask(asking, c, r)
		if err != nil {
			return r, err
		}
		added, err := c.node.Add(ctx, node.SettingsOf(c.config), told, promised, sent)
		if !errors.Is(err, node.ErrPromise) || asking.Err() != nil {
			return added, err
		}
		c.log.Info("Asking podmarkd again", "reason", err)
	}
}

// ask has podmarkd say who the pod is, and which profiles it gets; nil from one that does not
// tell. Where it cannot and failOpen is set, The pod starts without its policy, which
// podmarkd gives it as soon as it is back.
func ask(
	ctx context.Context,
	c *call,
	r attachment.Record,
) (told attachment.Record, promised *[2]desired.ProfileID, err error) {
	if r.Namespace == "" || r.Pod == "" {
		return r, nil, types.NewError(types.ErrInvalidEnvironmentVariables, "CNI_ARGS does not name the pod", `"policy": "kubernetes" needs K8S_POD_NAMESPACE and K8S_POD_NAME, which Kubernetes runtimes set`)
	}
	r.Kubernetes = true
	question := podapi.Request{
		Namespace: r.Namespace, Pod: r.Pod, UID: r.UID,
		Attachment: r.Key,
	}.With(node.SettingsOf(c.config))
	answer, err := podapi.Get(ctx, c.config.DaemonSocket, question)
	switch {
	case err == nil:
		r.Labels, r.NamedPorts = answer.Labels, answer.Ports
		r.UID, r.NamespaceUID = cmp.Or(r.UID, answer.UID), answer.NamespaceUID
		if r.AllowedSources, err = config.Sources(answer.Sources, r.SourceBound); err != nil {
			return r, nil, types.NewError(types.ErrInvalidNetworkConfig, "the pod asks for sources that it may not have",
				err.Error())
		}
	case c.config.FailOpen:
		r.Policed = false
		c.log.Warn("The pod starts without its policy", "error", err)
		fmt.Fprintf(os.Stderr, "podmark: failOpen: %s/%s starts without its policy: %v\n", r.Namespace, r.Pod, err)
	default:
		return r, nil, err
	}
	return r, answer.Profiles, nil
}

func cmdDel(ctx context.Context, c *call) error {
	left, err := c.node.Delete(ctx, c.key())
	if left != nil {
		// An error would keep the runtime from deleting the plugins before us, and
		// with them the pod's address; the next change removes what is left.
		c.log.Warn("Kernel cleanup deferred to the next change", "error", left)
		fmt.Fprintf(os.Stderr, "podmark: DEL of %s left something for the next change or 'podmarkctl gc': %v\n", c.key(), left)
	}
	return err
}

func cmdCheck(ctx context.Context, c *call) error {
	_, e, counters, err := endpointOf(c)
	if err != nil {
		return err
	}
	counters.Close()
	return c.node.Check(ctx, attachment.Record{Key: c.key(), Endpoint: e, SourceBound: c.config.Sources})
}

// cmdGC collects this network's attachments that the runtime does not list.
func cmdGC(ctx context.Context, c *call) error {
	valid := c.config.Attachments
	if !valid.Given {
		fmt.Fprintln(os.Stderr, "podmark: GC without cni.dev/valid-attachments: nothing collected; use 'podmarkctl gc'")
		return nil
	}
	keep := map[attachment.Key]bool{}
	for _, a := range valid.List {
		keep[attachment.Key{Network: c.config.Network, ContainerID: a.ContainerID, IfName: a.IfName}] = true
	}
	done, err := c.node.CollectGarbage(ctx, func(r attachment.Record) bool {
		switch {
		case r.Network != c.config.Network || keep[r.Key]:
			return false
		case len(valid.List) == 0:
			// A runtime that knows no pods sends an empty list, and so does one
			// that has lost its memory: believe it only where the pod is gone.
			return node.HostVethGone(r)
		default:
			return true
		}
	}, false)
	if done.Left != nil {
		c.log.Warn("Kernel cleanup deferred to the next change", "error", done.Left)
		fmt.Fprintf(os.Stderr, "podmark: GC left something for the next change or 'podmarkctl gc': %v\n", done.Left)
	}
	return err
}

func cmdStatus(ctx context.Context, c *call) error {
	err := c.node.Status(ctx, node.SettingsOf(c.config))
	if errors.Is(err, context.DeadlineExceeded) {
		return nil // slow is not unavailable
	}
	if err != nil {
		return types.NewError(types.ErrPluginNotAvailable, "podmark cannot add a pod", err.Error())
	}
	return nil
}

// endpointOf reads the endpoint that the plugins before us made, and what they
// returned. Its fields are the same in all versions we support.
func endpointOf(c *call) (result types100.Result, e attachment.Endpoint, counters endpoint.Counters, err error) {
	if c.config.PrevResult == nil {
		return result, e, counters, types.NewError(types.ErrInvalidNetworkConfig, "no prevResult: podmark is a chained plugin", "list it in a conflist behind the plugin that makes the interface, such as ptp or bridge")
	}
	if err := json.Unmarshal(c.config.PrevResult, &result); err != nil {
		return result, e, counters, types.NewError(types.ErrDecodingFailure, "reading prevResult", err.Error())
	}
	if e, counters, err = endpoint.FromResult(&result, c.Netns, c.IfName); err != nil {
		return result, e, counters, err
	}
	p := podOf(c.Args)
	e.Namespace, e.Pod, e.Labels = p.Namespace, p.Name, c.config.Labels
	if c.config.Policy != config.PolicyKubernetes {
		e.AllowedSources = c.config.Sources
	}
	return result, e, counters, nil
}

// handOn prints what the plugins before us returned: as it is, with what we do not
// know in it, unless it is of another version than the runtime wants.
func handOn(c *call, result types100.Result) error {
	if result.CNIVersion == c.config.CNIVersion {
		_, err := os.Stdout.Write(append(c.config.PrevResult, '\n'))
		return err
	}
	result.CNIVersion = types100.ImplementedSpecVersion
	return types.PrintResult(&result, c.config.CNIVersion)
}
