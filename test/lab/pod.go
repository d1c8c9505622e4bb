package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	cnitypes "github.com/containernetworking/cni/pkg/types"
	types "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/podmark/podmark/test/testnode"
)

// Plugin is an entry of a network's list of plugins.
type Plugin = map[string]any

// Network is a CNI network configuration list. It is a value: a copy may be
// changed before a pod is added with it.
type Network struct {
	Name       string
	CNIVersion string // 1.1.0 when empty
	Plugins    []Plugin
}

// conflist renders the network, with labels as the args.cni.labels of its plugins.
func (c Network) conflist(labels map[string]string) (*libcni.NetworkConfigList, error) {
	type label struct {
		Key   string `json:"key"`
		Value string `json:"value"`
	}
	var list []label
	for k, v := range labels {
		list = append(list, label{Key: k, Value: v})
	}
	slices.SortFunc(list, func(a, b label) int { return strings.Compare(a.Key, b.Key) })
	var plugins []Plugin
	for _, p := range c.Plugins {
		with := Plugin{}
		for k, v := range p {
			with[k] = v
		}
		if list != nil {
			with["args"] = Plugin{"cni": Plugin{"labels": list}}
		}
		plugins = append(plugins, with)
	}
	if c.CNIVersion == "" {
		c.CNIVersion = "1.1.0"
	}
	b, err := json.Marshal(map[string]any{"cniVersion": c.CNIVersion, "name": c.Name, "plugins": plugins})
	if err != nil {
		return nil, err
	}
	return libcni.NetworkConfFromBytes(b)
}

// PTP is a network of routed pods: a veth each, with a route to it.
func (n *Node) PTP(chained ...Plugin) Network {
	ptp := Plugin{"type": "ptp", "ipam": n.ipam()}
	return Network{Name: "routed", Plugins: append([]Plugin{ptp}, chained...)}
}

// Bridge is a network of pods on one bridge, cni0, with the node as their router.
func (n *Node) Bridge(chained ...Plugin) Network {
	bridge := Plugin{"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true, "ipam": n.ipam()}
	return Network{Name: "bridged", Plugins: append([]Plugin{bridge}, chained...)}
}

// LockTimeout is that of tests, as flags have it.
var LockTimeout = testnode.LockTimeout.String()

// Podmark is the entry of the plugin under test, keeping its state on this node
// and enforcing with the node's backend; keys add to it or replace what is there.
func (n *Node) Podmark(keys Plugin) Plugin {
	p := Plugin{
		"type": "podmark", "stateDir": n.StateDir, "backend": n.Backend().Key,
		"lockTimeoutSeconds": testnode.LockTimeout.Seconds(),
	}
	for k, v := range keys {
		p[k] = v
	}
	return p
}

// ipam gives out addresses of the node's pod ranges, and default routes.
func (n *Node) ipam() Plugin {
	var ranges [][]Plugin
	var routes []Plugin
	for _, cidr := range n.PodCIDRs {
		ranges = append(ranges, []Plugin{{"subnet": cidr.String()}})
		routes = append(routes, Plugin{"dst": everywhere(familyOf(cidr.Addr())).String()})
	}
	return Plugin{
		"type": "host-local", "dataDir": filepath.Join(n.Dir, "ipam"),
		"ranges": ranges, "routes": routes,
	}
}

// PodSpec says which pod to add and how.
type PodSpec struct {
	Name      string
	Namespace string // "default" when empty
	Labels    map[string]string
	Network   Network
	// Args are added to CNI_ARGS, which has the pod's name and namespace already.
	Args map[string]string
	// Capabilities are runtime capabilities, such as portMappings.
	Capabilities map[string]any
}

// Pod is a pod of the node, with the addresses that the plugins gave it.
type Pod struct {
	*NS
	Spec   PodSpec
	Result *types.Result
	// HostVeth is the node's end of the pod's link.
	HostVeth string

	node    *Node
	list    *libcni.NetworkConfigList
	runtime *libcni.RuntimeConf
}

// AddPod attaches a pod as a container runtime does: it makes the namespace and
// runs the network's plugins in the node's, all through libcni.
func (n *Node) AddPod(spec PodSpec) *Pod {
	n.t.Helper()
	pod, err := n.TryAddPod(spec)
	if err != nil {
		n.t.Fatalf("adding pod %q: %v", spec.Name, err)
	}
	return pod
}

// TryAddPod is [Node.AddPod] for a pod that may be refused; the error is
// libcni's. The pod is returned in any case, so that it can be deleted.
func (n *Node) TryAddPod(spec PodSpec) (*Pod, error) {
	n.t.Helper()
	pod := n.NewPod(spec)
	return pod, pod.Add()
}

// NewPod makes a pod's namespace and nothing more: [Pod.Add] attaches it.
func (n *Node) NewPod(spec PodSpec) *Pod {
	n.t.Helper()
	if spec.Namespace == "" {
		spec.Namespace = "default"
	}
	list, err := spec.Network.conflist(spec.Labels)
	if err != nil {
		n.t.Fatalf("network %q: %v", spec.Network.Name, err)
	}
	pod := &Pod{NS: newNS(n.t, spec.Name, n.site), Spec: spec, node: n, list: list}
	// The name of the namespace's file is unique, as a container's ID is.
	pod.runtime = &libcni.RuntimeConf{
		ContainerID:    filepath.Base(pod.Path),
		NetNS:          pod.Path,
		IfName:         "eth0",
		CapabilityArgs: spec.Capabilities,
		Args: [][2]string{
			{"IgnoreUnknown", "1"},
			{"K8S_POD_NAMESPACE", spec.Namespace},
			{"K8S_POD_NAME", spec.Name},
		},
	}
	for k, v := range spec.Args {
		pod.runtime.Args = append(pod.runtime.Args, [2]string{k, v})
	}
	return pod
}

// Add runs CNI ADD, again if it was run before.
func (p *Pod) Add() error { return p.AddContext(context.Background()) }

// AddContext is Add whose plugin is killed when ctx is done.
func (p *Pod) AddContext(ctx context.Context) error {
	result, err := p.node.cni.AddNetworkList(ctx, p.list, p.runtime)
	// A kubelet that is refused a pod deletes it and tries again. So does this where podmark's own
	// deadline has passed: a minute may be short on an emulated processor of a busy machine.
	for try := 1; err != nil && late(err) && ctx.Err() == nil && try < 5; try++ {
		if err := p.Del(); err != nil {
			return fmt.Errorf("deleting after an ADD that took too long: %w", err)
		}
		result, err = p.node.cni.AddNetworkList(ctx, p.list, p.runtime)
	}
	if err != nil {
		return err
	}
	p.Result, err = types.GetResult(result)
	if err != nil {
		return fmt.Errorf("reading the result of %q: %w", p.list.Name, err)
	}
	p.Addresses = nil
	for _, ip := range p.Result.IPs {
		addr, _ := netip.AddrFromSlice(ip.Address.IP)
		p.Addresses = append(p.Addresses, addr.Unmap())
	}
	for _, i := range p.Result.Interfaces {
		// A bridge stands before its port in the list.
		if i.Sandbox == "" {
			p.HostVeth = i.Name
		}
	}
	return nil
}

// late reports whether an ADD ended because its deadline passed.
func late(err error) bool { return strings.Contains(err.Error(), context.DeadlineExceeded.Error()) }

// Chain runs CNI ADD of further plugins behind those that attached the pod, with what
// they said as the prevResult: for what happens to the pod's link in between.
func (p *Pod) Chain(plugins ...Plugin) error {
	first := Plugin{"prevResult": p.Result}
	for k, v := range plugins[0] {
		first[k] = v
	}
	rest := p.Spec.Network
	rest.Plugins = append([]Plugin{first}, plugins[1:]...)
	list, err := rest.conflist(p.Spec.Labels)
	if err == nil {
		_, err = p.node.cni.AddNetworkList(context.Background(), list, p.runtime)
	}
	if err != nil {
		return err
	}
	p.Spec.Network.Plugins = append(slices.Clone(p.Spec.Network.Plugins), plugins...)
	p.list, err = p.Spec.Network.conflist(p.Spec.Labels)
	return err
}

// Check runs CNI CHECK.
func (p *Pod) Check() error {
	return p.node.cni.CheckNetworkList(context.Background(), p.list, p.runtime)
}

// Del runs CNI DEL. The namespace stays until the test ends, as a container's
// may, and DEL may be run again.
func (p *Pod) Del() error { return p.DelContext(context.Background()) }

// DelContext is Del whose plugin is killed when ctx is done.
func (p *Pod) DelContext(ctx context.Context) error {
	return p.node.cni.DelNetworkList(ctx, p.list, p.runtime)
}

// DelOnly runs CNI DEL of one of the network's plugins.
func (p *Pod) DelOnly(plugin string) error {
	only := *p.list
	only.Plugins = slices.DeleteFunc(slices.Clone(only.Plugins), func(c *libcni.PluginConfig) bool {
		return c.Network.Type != plugin
	})
	return p.node.cni.DelNetworkList(context.Background(), &only, p.runtime)
}

// GC runs CNI GC on a network: the pods in valid are all that live.
func (n *Node) GC(network Network, valid ...*Pod) error {
	list, err := network.conflist(nil)
	if err != nil {
		return err
	}
	args := &libcni.GCArgs{}
	for _, p := range valid {
		args.ValidAttachments = append(args.ValidAttachments, cnitypes.GCAttachment{
			ContainerID: p.runtime.ContainerID,
			IfName:      p.runtime.IfName,
		})
	}
	return n.cni.GCNetworkList(context.Background(), list, args)
}

// Status runs CNI STATUS on a network.
func (n *Node) Status(network Network) error {
	list, err := network.conflist(nil)
	if err != nil {
		return err
	}
	return n.cni.GetStatusNetworkList(context.Background(), list)
}

// Programs is the directory with podmark's programs. Tests that run where there is a Go
// toolchain build them into one of their own; empty is that of scripts/build.sh.
var Programs string

// program is where a program of podmark's is; empty is for their directory.
func program(t testing.TB, name string) string {
	t.Helper()
	if Programs != "" {
		return filepath.Join(Programs, name)
	}
	return filepath.Join(bin(t), name)
}

// bin is where scripts/build.sh and scripts/tools.sh put programs. Tests run in a directory
// two below the module's, as go test has it.
func bin(t testing.TB) string {
	t.Helper()
	path, err := filepath.Abs("../../bin")
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// pluginDirs is where the plugins are.
func pluginDirs(t testing.TB) []string {
	t.Helper()
	cni := filepath.Join(bin(t), "cni")
	if _, err := os.Stat(filepath.Join(cni, "ptp")); err != nil {
		t.Fatalf("CNI plugins are missing: run scripts/tools.sh cni: %v", err)
	}
	return []string{program(t, ""), cni}
}

// pluginExec starts plugins inside a node: in its namespace, and with its
// directories to look for commands in.
type pluginExec struct {
	invoke.DefaultExec
	node *Node
}

func newPluginExec(node *Node) *pluginExec {
	return &pluginExec{
		DefaultExec: invoke.DefaultExec{
			RawExec:       &invoke.RawExec{Stderr: os.Stderr},
			PluginDecoder: version.PluginDecoder{},
		},
		node: node,
	}
}

// ExecPlugin is called by libcni for each plugin.
func (e *pluginExec) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) (out []byte, err error) {
	environ = append(slices.Clone(environ), "PATH="+e.node.path)
	if e.node.Starts != nil {
		e.node.Starts(filepath.Base(path))
	}
	// A child process has the namespace of the thread that starts it.
	doErr := e.node.Do(func() error {
		out, err = e.RawExec.ExecPlugin(ctx, path, stdin, environ)
		return nil
	})
	if doErr != nil {
		return nil, doErr
	}
	return out, err
}
