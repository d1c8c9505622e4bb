package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/dataplane"
)

// policy isolates every endpoint of the bench in both directions.
const policy = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress, Egress]
  ingress:
  - from: [{podSelector: {matchLabels: {app: web}}}, {ipBlock: {cidr: 192.168.0.0/16, except: [192.168.7.0/24]}}]
    ports: [{port: 80}, {port: 8000, endPort: 8080}]
  egress: [{to: [{namespaceSelector: {}}]}]
`

// network is the name of the CNI network.
const network = "bench"

// plugin is a chained plugin, on a node of its own.
type plugin struct {
	name, program string
	// path is where it looks for the commands it starts.
	path string
	conf func(attached) map[string]any
	// writes is what it writes rules with, nil for podmark and for nothing.
	writes dialect
	state  string // podmark's
	node   space
	pods   space // all container interfaces
	next   int   // number of the next endpoint
	there  int   // endpoints that stay
}

func (p *plugin) isPodmark() bool { return p.state != "" }

// plugins are all that are measured; the first does nothing.
func plugins(o options) ([]*plugin, error) {
	nothing := func(attached) map[string]any { return map[string]any{"type": "noop"} }
	list := []*plugin{{name: "no-op", program: "noop", conf: nothing}}
	for _, k := range dataplane.Kinds {
		name, variant := string(k.Name), "nft"
		if k.Name == config.IPTablesLegacy {
			variant = "legacy"
		}
		state := filepath.Join(o.dir, name)
		list = append(list, &plugin{name: "podmark " + name, program: "podmark", path: variant, state: state, conf: func(attached) map[string]any {
			return map[string]any{
				"type": "podmark", "stateDir": state, "policy": "files", "backend": k.Name.Backend(),
				"lockTimeoutSeconds": 600, // an overloaded machine gives worse figures, and no failure
				"args":               map[string]any{"cni": map[string]any{"labels": []any{map[string]any{"key": "app", "value": "web"}}}},
			}
		}})
	}
	portmap := func(name, backend, variant string, d dialect) {
		list = append(list, &plugin{name: "portmap " + name, program: "cni/portmap", path: variant, writes: d, conf: func(a attached) map[string]any {
			return map[string]any{
				"type": "portmap", "backend": backend, "capabilities": map[string]any{"portMappings": true},
				"runtimeConfig": map[string]any{"portMappings": []any{map[string]any{"hostPort": a.hostPort, "containerPort": 80, "protocol": "tcp"}}},
			}
		}})
	}
	portmap("nftables", "nftables", "nft", nftDialect{tables: []string{"ip cni_hostport", "ip6 cni_hostport"}})
	for _, variant := range []string{"nft", "legacy"} {
		portmap("iptables-"+variant, "iptables", variant, iptablesDialect{variant: variant, table: "nat"})
	}
	for _, variant := range []string{"nft", "legacy"} {
		list = append(list, &plugin{
			name: "firewall iptables-" + variant, program: "cni/firewall", path: variant,
			writes: iptablesDialect{variant: variant, table: "filter"},
			conf:   func(attached) map[string]any { return map[string]any{"type": "firewall", "backend": "iptables"} },
		})
	}
	for _, p := range list {
		if err := p.prepare(o); err != nil {
			return nil, fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return list, nil
}

// prepare makes the plugin's node.
func (p *plugin) prepare(o options) (err error) {
	if p.node, err = newNode(); err != nil {
		return err
	}
	if p.pods, err = newSpace(); err != nil {
		return err
	}
	p.program = filepath.Join(o.bin, p.program)
	variant := p.path
	p.path = os.Getenv("PATH")
	if variant == "" {
		return nil
	}
	links := filepath.Join(o.dir, "path-"+variant)
	if err := linkVariant(links, variant); err != nil {
		return err
	}
	p.path = links + ":" + p.path
	if !p.isPodmark() {
		return nil
	}
	// By this chain kubelet says which iptables it uses.
	if _, err := p.node.command("", "iptables-"+variant, "-t", "mangle", "-N", "KUBE-IPTABLES-HINT"); err != nil {
		return err
	}
	if _, err := p.node.command(policy, filepath.Join(o.bin, "podmarkctl"), "--state-dir", p.state, "apply", "-f", "-"); err != nil {
		return err
	}
	// The first ADD of all decides on the backend and writes the frame.
	a, err := p.attach()
	if err != nil {
		return err
	}
	_, errAdd := p.call("ADD", a)
	_, errDel := p.call("DEL", a)
	return errors.Join(errAdd, errDel, p.usesBackend())
}

// linkVariant makes a directory in which "iptables" is one variant.
func linkVariant(dir, variant string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, family := range []string{"iptables", "ip6tables"} {
		for _, suffix := range []string{"", "-save", "-restore"} {
			target, err := exec.LookPath(family + "-" + variant + suffix)
			if err != nil {
				return err
			}
			if err := os.Symlink(target, filepath.Join(dir, family+suffix)); err != nil {
				return err
			}
		}
	}
	return nil
}

// usesBackend makes sure that podmark uses what its row says.
func (p *plugin) usesBackend() error {
	b, err := os.ReadFile(filepath.Join(p.state, "node.json"))
	if err != nil {
		return err
	}
	var file struct{ Backend string }
	if err := json.Unmarshal(b, &file); err != nil {
		return err
	}
	if want := strings.TrimPrefix(p.name, "podmark "); file.Backend != want {
		return fmt.Errorf("backend %q was chosen, not %q", file.Backend, want)
	}
	return nil
}

// attached is one container interface.
type attached struct {
	id       string
	ifName   string
	hostPort int
	v4, v6   netip.Addr
	result   map[string]any
}

// another numbers the next attachment of the plugin's node.
func (p *plugin) another() attached {
	i := p.next
	p.next++
	a := attached{id: fmt.Sprintf("container-%d", i), ifName: fmt.Sprintf("c%d", i), hostPort: 20000 + i}
	a.v4 = netip.AddrFrom4([4]byte{10, 1, byte((i + 1) >> 8), byte(i + 1)})
	a.v6 = netip.MustParseAddr(fmt.Sprintf("fd00:10::%x", i+1))
	a.result = map[string]any{
		"cniVersion": "1.0.0",
		"interfaces": []any{
			map[string]any{"name": fmt.Sprintf("veth%d", i)},
			map[string]any{"name": a.ifName, "sandbox": p.pods.path()},
		},
		"ips": []any{
			map[string]any{"address": a.v4.String() + "/32", "gateway": gateway.String(), "interface": 1},
			map[string]any{"address": a.v6.String() + "/128", "gateway": "fd00:10::ffff:ffff", "interface": 1},
		},
	}
	return a
}

// attach makes the next attachment with its veth, as ptp would.
func (p *plugin) attach() (attached, error) {
	name := fmt.Sprintf("veth%d", p.next)
	a := p.another()
	return a, p.node.do(func() error {
		veth := &netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: a.ifName, PeerNamespace: netlink.NsFd(int(p.pods.ns)),
		}
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("making %s: %w", name, err)
		}
		made, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		return errors.Join(
			netlink.LinkSetUp(made),
			netlink.RouteAdd(&netlink.Route{LinkIndex: made.Attrs().Index, Dst: host(a.v4)}))
	})
}

// command prepares a call, with more environment.
func (p *plugin) command(verb string, a attached, env ...string) (cmd *exec.Cmd, output *bytes.Buffer, err error) {
	conf := map[string]any{"cniVersion": "1.0.0", "name": network, "prevResult": a.result}
	for k, v := range p.conf(a) {
		conf[k] = v
	}
	stdin, err := json.Marshal(conf)
	if err != nil {
		return nil, nil, err
	}
	cmd, output = exec.Command(p.program), &bytes.Buffer{}
	cmd.Env = append(os.Environ(),
		"PATH="+p.path, "CNI_PATH="+filepath.Dir(p.program), "CNI_COMMAND="+verb,
		"CNI_CONTAINERID="+a.id, "CNI_NETNS="+p.pods.path(), "CNI_IFNAME="+a.ifName,
		"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME="+a.id)
	cmd.Env = append(cmd.Env, env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), output, output
	return cmd, output, nil
}

// call runs the plugin once and returns how long the process took.
func (p *plugin) call(verb string, a attached, env ...string) (took time.Duration, err error) {
	cmd, output, err := p.command(verb, a, env...)
	if err != nil {
		return 0, err
	}
	err = p.node.do(func() error {
		begin := time.Now()
		err := cmd.Run()
		took = time.Since(begin)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("%s %s: %w: %.1000s", p.name, verb, err, output.String())
	}
	return took, nil
}

// callAtOnce runs the plugin for all attachments at once and returns how long it
// took until the last had ended.
func (p *plugin) callAtOnce(verb string, list []attached) (time.Duration, error) {
	commands, outputs := make([]*exec.Cmd, len(list)), make([]*bytes.Buffer, len(list))
	for i, a := range list {
		var err error
		if commands[i], outputs[i], err = p.command(verb, a); err != nil {
			return 0, err
		}
	}
	return p.node.atOnce(len(list), func(i int) error {
		if err := commands[i].Run(); err != nil {
			return fmt.Errorf("%s %s, one of %d: %w: %.1000s", p.name, verb, len(list), err, outputs[i].String())
		}
		return nil
	})
}
