// Command bench measures what an ADD and a DEL cost, as whole processes: podmark
// beside a chained plugin that does nothing and portmap with one mapping, in turn
// on the same node. scripts/bench.sh runs it in namespaces of its own.
//
// It prints medians and, because machines differ, what they are in proportion to
// the plugin that does nothing.
package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
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

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run() error {
	bin := flag.String("bin", "bin", "where podmark, podmarkctl, noop and cni/portmap are")
	dir := flag.String("dir", "", "an empty folder on a tmpfs, for state")
	variant := flag.String("variant", "nft", "nft or legacy: the iptables of the node")
	sizes := flag.String("sizes", "10,4000", "how many endpoints there are already, rising")
	rounds := flag.Int("rounds", 40, "how many ADDs and DELs of each plugin a size is measured with")
	flag.Parse()
	runtime.LockOSThread() // the bench's thread moves between namespaces

	b := &bench{bin: *bin, dir: *dir, variant: *variant}
	if err := b.prepare(); err != nil {
		return err
	}
	for _, s := range strings.Split(*sizes, ",") {
		size, err := strconv.Atoi(s)
		if err != nil {
			return err
		}
		if err := b.measure(size, *rounds); err != nil {
			return err
		}
	}
	return nil
}

type bench struct {
	bin, dir, variant string
	pods              netns.NsHandle
	podsPath          string
	next              int // number of the next endpoint
	existing          int
}

// prepare makes the node and the namespace that every container interface is in.
func (b *bench) prepare() error {
	node, err := netns.Get()
	if err != nil {
		return err
	}
	if b.pods, err = netns.New(); err != nil {
		return err
	}
	b.podsPath = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(b.pods))
	if err := netns.Set(node); err != nil {
		return err
	}
	links := filepath.Join(b.dir, "path")
	if err := os.MkdirAll(links, 0o755); err != nil {
		return err
	}
	for _, family := range []string{"iptables", "ip6tables"} {
		for _, suffix := range []string{"", "-save", "-restore"} {
			target, err := exec.LookPath(family + "-" + b.variant + suffix)
			if err != nil {
				return err
			}
			if err := os.Symlink(target, filepath.Join(links, family+suffix)); err != nil {
				return err
			}
		}
	}
	if err := os.Setenv("PATH", links+":"+os.Getenv("PATH")); err != nil {
		return err
	}
	for _, command := range []string{
		"ip link set lo up",
		"iptables-" + b.variant + " -t mangle -N KUBE-IPTABLES-HINT",
	} {
		args := strings.Fields(command)
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", command, err, out)
		}
	}
	cmd := exec.Command(filepath.Join(b.bin, "podmarkctl"), "--state-dir", b.state(), "apply", "-f", "-")
	cmd.Stdin = strings.NewReader(policy)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("applying the policy: %w: %s", err, out)
	}
	fmt.Printf("| iptables | endpoints | plugin | ADD ms | × no-op | DEL ms | × no-op |\n|---|---|---|---|---|---|---|\n")
	return nil
}

func (b *bench) state() string { return filepath.Join(b.dir, "state") }

// attachment is one container interface.
type attachment struct {
	id     string
	ifName string
	result map[string]any
}

// attach makes a veth whose far end is in the pods' namespace, as ptp would.
func (b *bench) attach() (attachment, error) {
	i := b.next
	b.next++
	a := attachment{id: fmt.Sprintf("container-%d", i), ifName: fmt.Sprintf("c%d", i)}
	host := fmt.Sprintf("veth%d", i)
	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: host}, PeerName: a.ifName, PeerNamespace: netlink.NsFd(int(b.pods))}
	if err := netlink.LinkAdd(link); err != nil {
		return a, err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return a, err
	}
	v4 := netip.AddrFrom4([4]byte{10, byte(1 + i>>16), byte(i >> 8), byte(i)})
	v6 := fmt.Sprintf("fd00:10::%x:%x", i>>16, i&0xffff)
	if i&0xffff == 0 {
		v6 = fmt.Sprintf("fd00:10::ffff:%x", i>>16)
	}
	a.result = map[string]any{
		"cniVersion": "1.0.0",
		"interfaces": []any{
			map[string]any{"name": host},
			map[string]any{"name": a.ifName, "sandbox": b.podsPath},
		},
		"ips": []any{
			map[string]any{"address": v4.String() + "/8", "gateway": "10.255.255.254", "interface": 1},
			map[string]any{"address": v6 + "/64", "gateway": "fd00:10::ffff:ffff", "interface": 1},
		},
	}
	return a, nil
}

// plugin is one that is measured.
type plugin struct {
	name string
	path string
	conf map[string]any
}

func (b *bench) plugins() []plugin {
	return []plugin{
		{"no-op", filepath.Join(b.bin, "noop"), map[string]any{"type": "noop"}},
		{"podmark", filepath.Join(b.bin, "podmark"), b.podmark()},
		{"portmap", filepath.Join(b.bin, "cni", "portmap"), map[string]any{
			"type": "portmap", "capabilities": map[string]any{"portMappings": true}, "backend": "iptables",
			"runtimeConfig": map[string]any{"portMappings": []any{map[string]any{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}}},
		}},
	}
}

func (b *bench) podmark() map[string]any {
	return map[string]any{
		"type": "podmark", "stateDir": b.state(), "policy": "files",
		"args": map[string]any{"cni": map[string]any{"labels": []any{map[string]any{"key": "app", "value": "web"}}}},
	}
}

// call runs a plugin once and returns how long the process took.
func (b *bench) call(p plugin, verb string, a attachment) (time.Duration, error) {
	conf := map[string]any{"cniVersion": "1.0.0", "name": "bench", "prevResult": a.result}
	for k, v := range p.conf {
		conf[k] = v
	}
	stdin, err := json.Marshal(conf)
	if err != nil {
		return 0, err
	}
	cmd := exec.Command(p.path)
	cmd.Env = append(os.Environ(),
		"CNI_COMMAND="+verb, "CNI_CONTAINERID="+a.id, "CNI_NETNS="+b.podsPath, "CNI_IFNAME="+a.ifName, "CNI_PATH="+b.bin,
		"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME="+a.id)
	var out bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &out, &out
	start := time.Now()
	if err := cmd.Run(); err != nil {
		return 0, fmt.Errorf("%s %s: %w: %s", p.name, verb, err, out.String())
	}
	return time.Since(start), nil
}

// measure brings the node to size endpoints and measures the plugins in turn.
func (b *bench) measure(size, rounds int) error {
	plugins := b.plugins()
	for ; b.existing < size; b.existing++ {
		a, err := b.attach()
		if err != nil {
			return err
		}
		if _, err := b.call(plugins[1], "ADD", a); err != nil {
			return err
		}
	}
	adds, dels := make([][]time.Duration, len(plugins)), make([][]time.Duration, len(plugins))
	for range rounds {
		a, err := b.attach()
		if err != nil {
			return err
		}
		for i, p := range plugins {
			add, err := b.call(p, "ADD", a)
			if err != nil {
				return err
			}
			adds[i] = append(adds[i], add)
		}
		for i, p := range plugins {
			del, err := b.call(p, "DEL", a)
			if err != nil {
				return err
			}
			dels[i] = append(dels[i], del)
		}
	}
	for i, p := range plugins {
		add, del := median(adds[i]), median(dels[i])
		fmt.Printf("| %s | %d | %s | %s | %.1f | %s | %.1f |\n", b.variant, size, p.name,
			millis(add), ratio(add, median(adds[0])), millis(del), ratio(del, median(dels[0])))
	}
	return nil
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

func ratio(a, b time.Duration) float64 { return float64(a) / float64(b) }

func millis(d time.Duration) string { return fmt.Sprintf("%.1f", float64(d)/float64(time.Millisecond)) }
