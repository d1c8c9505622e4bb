package lab

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/vishvananda/netlink"

	"github.com/podmark/podmark/pkg/dataplane/checksum"
	"github.com/podmark/podmark/test/needs"
	"github.com/podmark/podmark/test/share"
	"github.com/podmark/podmark/test/testnode"
)

// Variant is one of the two programs that speak iptables.
type Variant string

// The variants; a node uses one of them throughout.
const (
	NFT    Variant = "nft"
	Legacy Variant = "legacy"
)

// Variants runs test once for each variant, both at once: for what is the same
// whatever podmark enforces with.
func Variants(t *testing.T, test func(t *testing.T, variant Variant)) {
	for _, v := range share.OneOf(t, []Variant{NFT, Legacy}) {
		t.Run("iptables-"+string(v), func(t *testing.T) {
			t.Parallel()
			test(t, v)
		})
	}
}

// Backend is what podmark enforces with on a node: a column of the suite.
type Backend = testnode.Backend

// The backends.
var (
	NFTables       = testnode.NFTables
	IPTablesNFT    = testnode.IPTablesNFT
	IPTablesLegacy = testnode.IPTablesLegacy
)

// Backends runs test once for each backend, all at once; of a share for one of them.
func Backends(t *testing.T, test func(t *testing.T, backend Backend)) {
	for _, b := range share.OneOf(t, testnode.Backends) {
		t.Run(b.Name, func(t *testing.T) {
			t.Parallel()
			test(t, b)
		})
	}
}

// Options are what nodes differ in.
type Options struct {
	// Backend is podmark's; NFTables when empty.
	Backend Backend
	// Variant of kube-proxy's rules and the kubelet's chain, and what "iptables" means to the
	// node's programs; the backend's when empty.
	Variant Variant
	// PodCIDRs are the ranges pods get addresses from, one of each family;
	// 10.1.0.0/24 and fd00:10:1::/64 when nil.
	PodCIDRs []netip.Prefix
	// WithoutKubeProxy leaves out kube-proxy's rules; its link and its kernel
	// parameters are there.
	WithoutKubeProxy bool
	// Plain leaves out everything that a build machine's kernel may lack: services,
	// filtered bridges and SCTP.
	Plain bool
}

// Node is a Kubernetes node. Its Addresses are those on the links to its hosts.
type Node struct {
	*NS
	Variant  Variant
	PodCIDRs []netip.Prefix
	// Dir is a directory for the node's files; it vanishes with the test.
	Dir string
	// StateDir is for the plugin under test, on whatever file system Dir is.
	StateDir string
	// Starts, if set, is told of each CNI plugin by name, before it starts.
	Starts func(plugin string)

	cni              *libcni.CNIConfig
	hosts            int
	withoutKubeProxy bool
}

// NewNode makes a node. It is gone when the test ends.
func NewNode(t testing.TB, o Options) *Node {
	t.Helper()
	needs.All(t, needs.Root, needs.Netns)
	if !o.Plain {
		needs.All(t, needs.IPVS, needs.BridgeNetfilter, needs.SCTP, needs.Dummy)
	}
	if o.Backend.Name == "" {
		o.Backend = NFTables
	}
	if o.Variant == "" {
		o.Variant = Variant(o.Backend.Variant)
	}
	if o.PodCIDRs == nil {
		o.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("fd00:10:1::/64")}
	}
	n := &Node{
		NS:       newNS(t, "node", &site{backend: o.Backend, journal: newJournal()}),
		Variant:  o.Variant,
		PodCIDRs: o.PodCIDRs,
		Dir:      t.TempDir(),

		withoutKubeProxy: o.WithoutKubeProxy,
	}
	n.site.node = n.NS
	n.StateDir = filepath.Join(n.Dir, "state")
	// What podmark leaves in the bpffs would keep the namespace.
	t.Cleanup(func() {
		if err := n.Do(checksum.Remove); err != nil {
			t.Error(err)
		}
	})
	n.chooseVariant()
	n.cni = libcni.NewCNIConfigWithCacheDir(pluginDirs(t), filepath.Join(n.Dir, "cni-cache"), newPluginExec(n))

	n.Sysctl("net/ipv4/ip_forward", "1")
	n.Sysctl("net/ipv6/conf/all/forwarding", "1")
	if o.Plain {
		for _, f := range Families {
			n.Iptables(f, "-t", "mangle", "-N", "KUBE-IPTABLES-HINT")
		}
		return n
	}
	for _, parameter := range [][2]string{
		// What kube-proxy sets in IPVS mode.
		{"net/ipv4/vs/conntrack", "1"},
		{"net/ipv4/vs/conn_reuse_mode", "0"},
		{"net/ipv4/vs/expire_nodest_conn", "1"},
		{"net/ipv4/vs/expire_quiescent_template", "1"},
		{"net/ipv4/conf/all/arp_ignore", "1"},
		{"net/ipv4/conf/all/arp_announce", "2"},
		// What a node with bridged pods needs.
		{"net/bridge/bridge-nf-call-iptables", "1"},
		{"net/bridge/bridge-nf-call-ip6tables", "1"},
	} {
		n.Sysctl(parameter[0], parameter[1])
	}
	// Like kube-proxy's, the link stays down: its addresses are local all the same.
	err := n.Do(func() error {
		return netlink.LinkAdd(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: serviceLink}})
	})
	if err != nil {
		t.Fatalf("adding %s: %v", serviceLink, err)
	}
	if !o.WithoutKubeProxy {
		n.startKubeProxy()
	}
	return n
}

// Backend is what [Node.Podmark] asks for.
func (n *Node) Backend() Backend { return n.site.backend }

// Use makes podmark enforce with another backend from the next pod on.
func (n *Node) Use(b Backend) { n.site.backend = b }

// chooseVariant makes "iptables" and its kin mean the node's variant for every
// program that the node runs.
func (n *Node) chooseVariant() {
	bin := filepath.Join(n.Dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		n.t.Fatal(err)
	}
	for _, command := range []string{"iptables", "ip6tables"} {
		for _, suffix := range []string{"", "-save", "-restore"} {
			target, err := exec.LookPath(command + "-" + string(n.Variant) + suffix)
			if err != nil {
				n.t.Fatal(err)
			}
			if err := os.Symlink(target, filepath.Join(bin, command+suffix)); err != nil {
				n.t.Fatal(err)
			}
		}
	}
	n.path = bin + string(filepath.ListSeparator) + n.path
}

// Host is a machine beside the node, with the node as its router.
type Host struct {
	*NS
	// Link is the node's interface towards the host.
	Link string
	node *Node
}

// AddHost connects a machine to the node. Each prefix is the node's address and
// the length of the network they share; the host has the next address. Without
// prefixes the first host gets 192.168.50.1/24 and fd00:50::1/64, the second the
// same with 51, and so on.
//
// A host whose network is another node's pod range stands for a remote pod.
func (n *Node) AddHost(name string, prefixes ...string) *Host {
	n.t.Helper()
	number := n.hosts
	n.hosts++
	if prefixes == nil {
		prefixes = []string{
			fmt.Sprintf("192.168.%d.1/24", 50+number),
			fmt.Sprintf("fd00:%d::1/64", 50+number),
		}
	}
	h := &Host{NS: newNS(n.t, name, n.site), Link: fmt.Sprintf("eth%d", number), node: n}
	if err := n.Do(func() error { return testnode.Veth(h.Link, testnode.Space{Path: h.Path}, "eth0") }); err != nil {
		n.t.Fatalf("connecting host %q: %v", name, err)
	}
	for _, p := range prefixes {
		prefix, err := netip.ParsePrefix(p)
		if err != nil {
			n.t.Fatal(err)
		}
		n.AddAddress(h.Link, prefix)
		h.AddAddress("eth0", netip.PrefixFrom(prefix.Addr().Next(), prefix.Bits()))
	}
	n.setUp(h.Link)
	h.setUp("eth0")
	for _, addr := range h.Addresses {
		h.AddRoute(everywhere(familyOf(addr)), addr.Prev())
	}
	return h
}

// NodeAt returns port on the node's address of family f that the host sees as
// its router: where it reaches the node's NodePorts.
func (h *Host) NodeAt(f Family, port uint16) netip.AddrPort {
	h.node.t.Helper()
	return netip.AddrPortFrom(h.Addr(f).Prev(), port)
}
