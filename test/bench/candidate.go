package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/podmark/podmark/pkg/dataplane"
	"github.com/podmark/podmark/pkg/dataplane/checksum"
	"github.com/podmark/podmark/pkg/dataplane/iptables"
	"github.com/podmark/podmark/pkg/dataplane/nftables"
)

// candidate is a way to police a node, or a reason not to.
type candidate struct {
	name string
	// fill puts a population's rules into a node.
	fill func(node space, p population) error
	// mark is what a packet of the sender has when IPVS sends it on.
	mark func(p population) uint32
	// judges is false where nothing is ever dropped.
	judges bool
}

// The names by which sections speak of single candidates.
const (
	// baseline is what the others are compared with: every node with kube-proxy
	// tracks connections.
	baseline     = "no rules"
	untracked    = "no rules, connections not tracked"
	accepting    = "two chains of nftables that accept"
	checksums    = "the program that looks where checksums go"
	withNFTables = "podmark nftables"
)

// podmarks are podmark's backends, as on a node whose kernel has nf_tables.
func podmarks() map[string]dataplane.Backend {
	all := map[string]dataplane.Backend{}
	for _, k := range dataplane.Kinds {
		all["podmark "+string(k.Name)] = k.New(dataplane.Options{Wait: time.Minute, Guarded: true})
	}
	return all
}

// podmarkNames are podmark's backends in the order of the report.
var podmarkNames = func() (all []string) {
	for _, k := range dataplane.Kinds {
		all = append(all, "podmark "+string(k.Name))
	}
	return all
}()

// track makes the kernel track connections without looking at any packet: a rule
// that asks for it is enough, in a chain that nothing leads to.
func track(node space, _ population) error {
	_, err := node.command("table inet tracked {\n chain unused {\n ct state new\n }\n}\n", "nft", "-f", "-")
	return err
}

// accept has nftables called at podmark's hooks for forwarded packets, and do nothing: what
// the least that proves senders ahead of conntrack and judges behind it costs.
func accept(node space, p population) error {
	_, err := node.command("table inet accepting {\n chain sender {\n type filter hook prerouting priority -301\n }\n chain forward {\n type filter hook forward priority -150\n }\n}\n", "nft", "-f", "-")
	return errors.Join(track(node, p), err)
}

// lookAtChecksums attaches the program that does, where the kernel can.
func lookAtChecksums() error {
	if err := checksum.Sync(); err != nil {
		progress("measured without %s: %v", checksums, err)
	}
	return nil
}

// candidates are all there are, the baseline first.
func candidates() []candidate {
	unmarked := func(population) uint32 { return 0 }
	list := []candidate{
		{name: baseline, fill: track, mark: unmarked},
		{name: untracked, fill: func(space, population) error { return nil }, mark: unmarked},
		{name: accepting, fill: accept, mark: unmarked},
		{name: checksums, fill: func(node space, p population) error { return errors.Join(track(node, p), node.do(lookAtChecksums)) }, mark: unmarked},
	}
	backends := podmarks()
	for _, name := range podmarkNames {
		list = append(list, candidate{
			name: name, judges: true,
			fill: func(node space, p population) error {
				err := node.do(func() error {
					p.number()
					return errors.Join(lookAtChecksums(), backends[name].Sync(context.Background(), p.state()))
				})
				return errors.Join(err, node.forgetSockets(backends[name]))
			},
			mark: func(p population) uint32 { return p.node.Layout.ID(p.records[p.sender].ID).Value },
		})
	}
	for _, v := range []iptables.Variant{iptables.NFT, iptables.Legacy} {
		list = append(list, candidate{
			name: "Felix's layout, iptables-" + string(v), judges: true,
			fill: func(node space, p population) error { return (&felix{population: p}).fill(node, v) },
			mark: func(p population) uint32 { return felixMark(p.sender) },
		})
	}
	return list
}

// forgetSockets takes the rules out by which a backend knows the node's own sockets. What
// IPVS sends on has no socket; here a socket plays IPVS.
func (s space) forgetSockets(b dataplane.Backend) error {
	if b, ok := b.(dataplane.Guarded); ok {
		return errors.Join(s.forgetOwner(b.Variant, "mangle", "OUTPUT"), s.forgetOwner(b.Variant, "security", "CLEAR"))
	}
	chain := []string{"inet", nftables.Table, "output"}
	list, err := s.command("", "nft", append([]string{"-a", "list", "chain"}, chain...)...)
	if err != nil {
		return err
	}
	for line := range strings.Lines(list) {
		if _, handle, ok := strings.Cut(strings.TrimSpace(line), "# handle "); ok && strings.Contains(line, "meta skuid") {
			_, err := s.command("", "nft", append(append([]string{"delete", "rule"}, chain...), "handle", handle)...)
			return err
		}
	}
	return fmt.Errorf("chain %v has no rule that knows sockets", chain)
}

// forgetOwner does so in a chain of iptables, if it is there: not every kernel has table
// security.
func (s space) forgetOwner(v iptables.Variant, table, chain string) error {
	command := func(args ...string) error {
		_, err := s.command("", "iptables-"+string(v), append([]string{"-w", "60", "-t", table}, args...)...)
		return err
	}
	chain = iptables.ChainPrefix + chain
	if command("-S", chain) != nil {
		return nil
	}
	return command("-D", chain, "-m", "owner", "--socket-exists", "-j", "RETURN")
}

// lane is a node of its own for a candidate, so that all can be measured in turn.
type lane struct {
	candidate
	node             space
	sender, receiver *link
}

// lanes makes a node for every candidate, filled with the population. The two real
// pods are alive where the pods themselves are to talk.
func lanes(list []candidate, p population, alive bool) ([]*lane, error) {
	var out []*lane
	for _, c := range list {
		begin := time.Now()
		node, err := newNode()
		if err != nil {
			return nil, err
		}
		l := &lane{candidate: c, node: node}
		connect := func(i int) (*link, error) {
			return node.connect(linkOptions{name: p.records[i].L3Interface, addr: p.addr(i), alive: alive})
		}
		var errSender, errReceiver error
		l.sender, errSender = connect(p.sender)
		l.receiver, errReceiver = connect(p.receiver)
		if err := errors.Join(errSender, errReceiver); err != nil {
			return nil, err
		}
		if err := c.fill(node, p); err != nil {
			return nil, fmt.Errorf("%s: %w", c.name, err)
		}
		out = append(out, l)
		progress("%s is there, with %d endpoints, after %v", c.name, len(p.records), time.Since(begin).Round(10*time.Millisecond))
	}
	return out, nil
}

// free gives the namespaces back. The kernel takes them apart in the background,
// which must not be counted as anybody's.
func free(lanes []*lane) {
	for _, l := range lanes {
		for _, s := range []space{l.sender.pod, l.receiver.pod, l.node} {
			s.ns.Close()
		}
	}
	time.Sleep(2 * time.Second)
}

// inTurn calls f for every candidate of a round, each round beginning with another.
func inTurn[C any](round int, list []C, f func(int, C) error) error {
	for i := range list {
		at := (i + round) % len(list)
		if err := f(at, list[at]); err != nil {
			return err
		}
	}
	return nil
}
