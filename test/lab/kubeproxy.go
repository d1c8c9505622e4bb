package lab

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// serviceLink is where kube-proxy puts the addresses of services.
const serviceLink = "kube-ipvs0"

// sets are kube-proxy's ipsets that this package fills, with their types; v4
// names, see [setName]. They are those of pkg/proxy/ipvs/ipset.go of Kubernetes.
var sets = []struct{ name, kind string }{
	{"KUBE-LOOP-BACK", "hash:ip,port,ip"},
	{"KUBE-CLUSTER-IP", "hash:ip,port"},
	{"KUBE-EXTERNAL-IP", "hash:ip,port"},
	{"KUBE-NODE-PORT-TCP", "bitmap:port range 0-65535"},
	{"KUBE-NODE-PORT-UDP", "bitmap:port range 0-65535"},
	{"KUBE-NODE-PORT-SCTP-HASH", "hash:ip,port"},
	{"KUBE-IPVS-IPS", "hash:ip"},
}

// setName is kube-proxy's name of a set for family f.
func setName(f Family, name string) string {
	if f == V6 {
		return strings.Replace(name, "KUBE-", "KUBE-6-", 1)
	}
	return name
}

// kubeProxyRules are kube-proxy's rules of one family, cut down to the services
// this package makes: those of a cluster whose pods are known by their range
// (--cluster-cidr). PODS stands for that range, a set's name for the family's.
//
// KUBE-IPTABLES-HINT is the kubelet's; programs tell the node's variant by it.
const kubeProxyRules = `*mangle
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
COMMIT
*nat
:KUBE-SERVICES - [0:0]
:KUBE-NODE-PORT - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
-A PREROUTING -j KUBE-SERVICES
-A OUTPUT -j KUBE-SERVICES
-A POSTROUTING -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-SERVICES ! -s PODS -m set --match-set KUBE-CLUSTER-IP dst,dst -j KUBE-MARK-MASQ
-A KUBE-SERVICES -m set --match-set KUBE-EXTERNAL-IP dst,dst -j KUBE-MARK-MASQ
-A KUBE-SERVICES -m set --match-set KUBE-EXTERNAL-IP dst,dst -m addrtype --dst-type LOCAL -j ACCEPT
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODE-PORT
-A KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT
-A KUBE-NODE-PORT -p tcp -m set --match-set KUBE-NODE-PORT-TCP dst -j KUBE-MARK-MASQ
-A KUBE-NODE-PORT -p udp -m set --match-set KUBE-NODE-PORT-UDP dst -j KUBE-MARK-MASQ
-A KUBE-NODE-PORT -p sctp -m set --match-set KUBE-NODE-PORT-SCTP-HASH dst,dst -j KUBE-MARK-MASQ
-A KUBE-POSTROUTING -m set --match-set KUBE-LOOP-BACK dst,dst,src -j MASQUERADE
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
COMMIT
*filter
:KUBE-FORWARD - [0:0]
:KUBE-IPVS-FILTER - [0:0]
-A INPUT -j KUBE-IPVS-FILTER
-A FORWARD -j KUBE-FORWARD
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A KUBE-IPVS-FILTER -m set --match-set KUBE-CLUSTER-IP dst,dst -j RETURN
-A KUBE-IPVS-FILTER -m set --match-set KUBE-EXTERNAL-IP dst,dst -j RETURN
-A KUBE-IPVS-FILTER -m conntrack --ctstate NEW -m set --match-set KUBE-IPVS-IPS dst -j REJECT
COMMIT
`

// startKubeProxy loads the sets and rules of both families.
func (n *Node) startKubeProxy() {
	n.t.Helper()
	var creates strings.Builder
	for _, f := range Families {
		for _, s := range sets {
			fmt.Fprintf(&creates, "create %s %s", setName(f, s.name), s.kind)
			if strings.HasPrefix(s.kind, "hash:") {
				fmt.Fprintf(&creates, " family %s", map[Family]string{V4: "inet", V6: "inet6"}[f])
			}
			creates.WriteByte('\n')
		}
	}
	n.restoreSets(creates.String())
	for _, f := range Families {
		var edits []string
		for _, s := range sets {
			edits = append(edits, " "+s.name+" ", " "+setName(f, s.name)+" ")
		}
		for _, cidr := range n.PodCIDRs {
			if familyOf(cidr.Addr()) == f {
				edits = append(edits, "PODS", cidr.String())
			}
		}
		n.RunInput(strings.NewReplacer(edits...).Replace(kubeProxyRules), n.iptables(f, "-restore"), "-w", xtablesWait)
	}
}

// xtablesWait is how long, in seconds, iptables waits for the lock that all
// namespaces of the machine share.
const xtablesWait = "60"

// iptables is the node's variant of the program for family f.
func (n *Node) iptables(f Family, suffix string) string {
	command := "iptables"
	if f == V6 {
		command = "ip6tables"
	}
	return command + "-" + string(n.Variant) + suffix
}

// Iptables runs the node's iptables for family f and returns what it prints.
func (n *Node) Iptables(f Family, args ...string) string {
	n.t.Helper()
	return n.Run(n.iptables(f, ""), append([]string{"-w", xtablesWait}, args...)...)
}

// Packets sums the packets counted by the rules of a chain whose text, as
// iptables-save prints it, contains part.
func (n *Node) Packets(f Family, table, chain, part string) uint64 {
	n.t.Helper()
	var sum uint64
	found := false
	for line := range strings.Lines(n.Run(n.iptables(f, "-save"), "-c", "-t", table)) {
		// [packets:bytes] -A CHAIN ...
		counters, rule, ok := strings.Cut(strings.TrimSpace(line), "] ")
		if !ok || !strings.HasPrefix(rule, "-A "+chain+" ") || !strings.Contains(rule, part) {
			continue
		}
		packets, _, _ := strings.Cut(strings.TrimPrefix(counters, "["), ":")
		count, err := strconv.ParseUint(packets, 10, 64)
		if err != nil {
			n.t.Fatalf("reading the counters of %q: %v", line, err)
		}
		sum += count
		found = true
	}
	if !found {
		n.t.Fatalf("no rule of %s in table %s contains %q", chain, table, part)
	}
	return sum
}

// Masqueraded counts the flows whose source kube-proxy's rules have replaced,
// because the packet was marked for it (hairpin flows are not counted).
func (n *Node) Masqueraded(f Family) uint64 {
	n.t.Helper()
	return n.Packets(f, "nat", "KUBE-POSTROUTING", "--random-fully")
}

// setEntries are the lines that add or delete (the verb) the set entries of a
// service with one address.
func (n *Node) setEntries(verb string, s Service, addr netip.Addr) string {
	f := familyOf(addr)
	var lines strings.Builder
	entry := func(set, format string, args ...any) {
		// Services share entries: one address, many ports.
		fmt.Fprintf(&lines, "%s -exist %s %s\n", verb, setName(f, set), fmt.Sprintf(format, args...))
	}
	switch s.Kind {
	case ClusterIP:
		entry("KUBE-CLUSTER-IP", "%v,%v:%d", addr, s.Protocol, s.Port)
	case ExternalIP:
		entry("KUBE-EXTERNAL-IP", "%v,%v:%d", addr, s.Protocol, s.Port)
	case NodePort:
		switch {
		case s.Local:
		case s.Protocol == SCTP:
			entry("KUBE-NODE-PORT-SCTP-HASH", "%v,sctp:%d", addr, s.Port)
		default:
			entry("KUBE-NODE-PORT-"+strings.ToUpper(s.Protocol.String()), "%d", s.Port)
		}
	}
	if n.binds(s, addr) && verb == "add" {
		entry("KUBE-IPVS-IPS", "%v", addr)
	}
	for _, b := range s.backends(f) {
		entry("KUBE-LOOP-BACK", "%v,%v:%d,%v", b.Addr(), s.Protocol, b.Port(), b.Addr())
	}
	return lines.String()
}

// restoreSets loads lines of ipset's own format.
func (n *Node) restoreSets(lines string) {
	n.t.Helper()
	if !n.withoutKubeProxy {
		n.RunInput(lines, "ipset", "restore")
	}
}
