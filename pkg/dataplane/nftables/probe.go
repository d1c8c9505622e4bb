package nftables

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/dataplane/counters"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/mark"
)

// probeTable lives as long as one transaction: nobody ever sees it.
const probeTable = Table + "-probe"

// Probe reports why this kernel cannot do what the backend needs: to log is not among
// that. It writes a ruleset with everything in it and removes it again, in one transaction.
func Probe() error {
	s, err := probeState()
	if err != nil {
		return err
	}
	if err := try(render(s, numbers{}.with(s))); err != nil {
		return fmt.Errorf("this kernel cannot do what the nftables backend needs (Linux 5.6 with NF_TABLES_INET and NF_TABLES_BRIDGE can): %w", err)
	}
	return nil
}

// ProbeGuard reports why this kernel cannot do what Guard needs.
func ProbeGuard() error {
	s, err := probeState()
	if err != nil {
		return err
	}
	if err := try(renderGuard(s)); err != nil {
		return fmt.Errorf("this kernel cannot guard the ports of a bridge beside iptables (Linux 5.6 with NF_TABLES_INET and NF_TABLES_BRIDGE can): %w", err)
	}
	return nil
}

// Logs reports why this kernel cannot log packets.
func Logs() error {
	r := ruleset{tables: tables(), chains: []chain{
		end(inet, chainSpoofed, counters.Spoofed, false),
		end(bridge, chainStray, counters.Stray, false),
	}}
	if err := try(r); err != nil {
		return fmt.Errorf("this kernel cannot log packets (one with NETFILTER_NETLINK_LOG and NFT_LOG can): %w", err)
	}
	return nil
}

// try writes a ruleset and removes it again, in one transaction.
func try(r ruleset) error {
	for i := range r.chains {
		r.chains[i].table.Name = probeTable
	}
	for i := range r.sets {
		r.sets[i].table.Name = probeTable
	}
	var commands []command
	for _, t := range r.tables {
		t.Name = probeTable
		// Adding what is there is fine, so that what a crash of another program's
		// left under this name goes.
		commands = append(commands, addTable(t), deleteTable(t), addTable(t))
	}
	added := actual{tables: map[nftables.TableFamily]bool{inet.Family: true, bridge.Family: true}}
	ch := whole(added, ruleset{chains: r.chains, sets: r.sets, elements: r.elements})
	commands = slices.Concat(commands, ch.prepare, ch.commit)
	for _, t := range r.tables {
		t.Name = probeTable
		commands = append(commands, deleteTable(t))
	}
	c, err := dial()
	if err != nil {
		return err
	}
	defer c.close()
	return c.commit(anyGeneration, commands)
}

// probeState has one of everything: both families, a routed and a bridged
// endpoint, peers, blocks and ports.
func probeState() (desired.State, error) {
	layout, err := mark.NewLayout(0x80010000) // with holes, to need every shift
	if err != nil {
		return desired.State{}, err
	}
	prefixes := []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")}
	rule := desired.Rule{Peers: []desired.Peer{{Namespace: "probe"}}, Blocks: prefixes}
	for _, p := range []desired.Protocol{desired.TCP, desired.UDP, desired.SCTP} {
		rule.Ports = append(rule.Ports, desired.Port{Protocol: p, PortRange: desired.PortRange{First: 80, Last: 90}})
	}
	isolation := &desired.Isolation{Rules: []desired.Rule{rule}}
	policies := desired.Policies{Policies: []desired.Policy{{
		Namespace: "probe", Name: "probe", Ingress: isolation,
		Egress: isolation,
	}}}
	e := attachment.Endpoint{
		Namespace: "probe", L3Interface: "probe0", HostVeth: "probe0",
		Addresses: []netip.Addr{prefixes[0].Addr(), prefixes[1].Addr()},
	}
	e.L3InterfaceIndex, e.HostVethIndex, e.AllowedSources = 1, 1, prefixes
	onBridge := e
	onBridge.L3InterfaceIndex, onBridge.HostVethIndex = 2, 3
	onBridge.HostVeth, onBridge.MAC = "probe1", "02:00:00:00:00:01"
	tunnels := desired.Tunnels{UDPPorts: []uint16{1, 2}, Protocols: []uint8{1, 2}}
	return desired.Build(desired.Node{Layout: layout, Epoch: 1, Unlogged: true, Tunnels: tunnels}, policies,
		[]attachment.Record{
			{ID: mark.First, Endpoint: e, Policed: true},
			{ID: mark.First + 1, Endpoint: onBridge, Policed: true},
		}), nil
}
